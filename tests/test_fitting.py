"""The one training loop: its rates are those that made the shipped weights, and what it refuses."""

import math
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from bt_adapter.fitting import Schedule, descend, fit, run_steps
from bt_adapter.instruct import LAPTOP, InstructConfig, for_dialogues, train_parameters
from bt_adapter.runs import load_checkpoint, save_checkpoint
from bt_adapter.small_clip import WARMUP
from bt_adapter.trainer import PretrainConfig

# --- rates ---


def first_edition(step, steps, warmup):
    """The curve of the small CLIP and of the chat models, as the shipped ones were trained."""
    return min(1.0, (step + 1) / max(1, warmup)) * (1 + math.cos(math.pi * step / steps)) / 2


def shipped_runs():
    """Steps, steps of warm-up and full rates of all trainings whose weights are shipped."""
    yield 500, WARMUP, (0.02, 1e-3)
    for stage in [*LAPTOP.values(), for_dialogues("paper", 2000)]:
        yield stage.steps, round(stage.warmup * stage.steps), (stage.lr, stage.branch_lr)


@pytest.mark.parametrize(("steps", "warmup", "rates"), [*shipped_runs()])
def test_rates_are_those_of_the_shipped_weights(steps, warmup, rates):
    schedule = Schedule.over(steps, warmup)
    for step in range(steps):
        before, now = first_edition(step, steps, warmup), schedule(step, steps)
        assert abs(now - before) <= 2**-52  # the order of two products differs
        # Weights are fp32, and a rate reaches them rounded to fp32: there it is the same.
        assert all(np.float32(lr * now) == np.float32(lr * before) for lr in rates)


def test_literal_values_of_the_three_curves():
    assert WARMUP == 40
    clip, chat, adapter = Schedule.over(500, 40), Schedule.over(300, 9), PretrainConfig().schedule
    assert [clip(step, 500) for step in (0, 39, 250, 499)] == pytest.approx(
        [0.025, 0.985063298245, 0.5, 9.86957193144e-06], abs=1e-11
    )
    assert [chat(step, 300) for step in (0, 8, 150, 299)] == pytest.approx(
        [0.111111111111, 0.998246429625, 0.5, 2.74153172439e-05], abs=1e-11
    )
    assert [adapter(step, 700) for step in (0, 39, 350, 699)] == pytest.approx(
        [0.025, 0.992360519108, 0.5, 5.03550399739e-06], abs=1e-11
    )


@pytest.mark.parametrize("warmup", [0, 1])
def test_no_warm_up_starts_at_the_full_rate(warmup):
    assert Schedule.over(20, warmup)(0, 20) == 1


def test_a_run_shorter_than_its_warm_up_never_reaches_the_full_rate():
    shares = [Schedule.over(6, WARMUP)(step, 6) for step in range(6)]
    assert shares[0] == 1 / 40 and max(shares) < 6 / 40


# --- steps ---


def parameter(*values):
    return nn.Parameter(torch.tensor(values or (0.0, 0.0)))


def descent(weight, **group):
    return torch.optim.SGD([dict(params=[weight], initial_lr=1.0) | group])


def fitted(loss_of, weight, steps=4, **options):
    fit([weight], [descent(weight)], loss_of, steps=range(steps), schedule=Schedule(), **options)


def test_all_optimizers_follow_one_schedule_each_from_its_own_rate():
    first, second = parameter(), parameter()
    optimizers = [descent(first), descent(second, initial_lr=0.1)]
    for weight in (first, second):
        weight.grad = torch.tensor([0.6, 0.8])
    norm = descend([first, second], optimizers, share=0.5, clip_norm=9.0, step=0)
    assert norm == pytest.approx(math.sqrt(2))
    torch.testing.assert_close(first.data, torch.tensor([-0.3, -0.4]))
    torch.testing.assert_close(second.data, torch.tensor([-0.03, -0.04]))
    assert first.grad is None and second.grad is None


def test_a_loss_that_is_no_number_changes_no_weight_and_names_the_clips():
    weight = parameter(1.0)
    with pytest.raises(ValueError, match=r"no number at step 2 \(nan\); the clips were b\.mp4\."):
        fitted(
            lambda step: weight.sum() * (math.nan if step == 2 else 0.0),
            weight,
            names_of=lambda step: ["b.mp4"],
        )
    assert weight.item() == 1


def test_gradients_that_are_no_numbers_change_no_weight():
    weight = parameter(1.0)
    with pytest.raises(ValueError, match=r"gradients are no numbers at step 0\. Lower the rates"):
        fitted(lambda step: (weight - weight.detach()).sum().sqrt(), weight)
    assert weight.item() == 1


def test_weights_that_are_no_numbers_are_not_saved():
    weight, saved = parameter(1.0), []

    def on_step(step, loss):
        if step == 3:
            weight.data.fill_(math.inf)

    with pytest.raises(ValueError, match="weights are no numbers after step 4"):
        fitted(lambda step: weight.sum(), weight, 6, on_step=on_step, save=saved.append, every=2)
    assert saved == [2]


@pytest.mark.parametrize(("start", "saved"), [(0, [3, 6, 7]), (3, [6, 7]), (6, [7]), (7, [])])
def test_saved_every_so_often_and_at_the_end(start, saved):
    found, taken = [], []
    run_steps(range(start, 7), lambda s: taken.append(s) or [], found.append, [], every=3)
    assert found == saved and taken == list(range(start, 7))


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_saves_the_step_that_it_came_in_and_ends_the_run(number, error):
    found, before = [], signal.getsignal(number)

    def update(step):
        if step == 4:
            os.kill(os.getpid(), number)
        return []

    with pytest.raises(error):
        run_steps(range(9), update, found.append, [], every=100)
    assert found == [5] and signal.getsignal(number) is before


def test_a_signal_of_another_process_ends_the_run_of_all():
    found, answers = [], iter([0, 0, signal.SIGTERM])
    with pytest.raises(SystemExit):
        run_steps(range(9), lambda step: [], found.append, [], of_all=lambda own: next(answers))
    assert found == [3]


# --- checkpoints of the first edition ---


def tuned(folder, fail_at=None):
    """Weights after twelve steps towards goals that differ in each of them."""
    named = {"a": nn.Parameter(torch.zeros(3)), "branch.b": nn.Parameter(torch.zeros(2))}

    def loss_of(step):
        if step == fail_at:
            raise RuntimeError("power cut")
        goal = torch.randn(5, generator=torch.Generator().manual_seed(step))
        return (torch.cat([*named.values()]) - goal).square().sum()

    config = InstructConfig(12, 2, lr=0.1, branch_lr=0.01)
    train_parameters(named, loss_of, config, folder, dict(name="toy"), every=4)
    return torch.cat([*named.values()]).detach()


def test_a_checkpoint_of_the_first_edition_is_gone_on_from(tmp_path):
    whole, path = tuned(tmp_path / "whole"), tmp_path / "old" / "checkpoint.pt"
    with pytest.raises(RuntimeError, match="power cut"):
        tuned(path.parent, fail_at=6)
    state = load_checkpoint(path, dict(name="toy"))
    for group in state["optimiser"]["param_groups"]:
        group["full"] = group.pop("initial_lr")  # what the first edition called it
    save_checkpoint(path, dict(name="toy"), state)
    assert state["step"] == 4 and torch.equal(tuned(path.parent), whole)
