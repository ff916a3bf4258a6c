"""What interventions do to margins, and the sets of heads that carry one."""

import math
from itertools import pairwise

import pytest
import torch
from test_interventions import FRAMES, ODD, close, run
from test_maps import noise
from torch.nn.functional import normalize

from bt_adapter import circuit, seeing_direction
from bt_adapter import interventions as iv
from bt_adapter.metrics import interval


@pytest.fixture(scope="module")
def model():
    return ODD["open_clip"]()


def cases(model, parts=2, batch=3):
    """Clips of noise; their own captions are what the model says of them."""
    found = []
    for seed in range(parts):
        x = noise(model, batch, FRAMES) + seed
        own, width = run(model, x)[0], model.clip.joint_width
        other = normalize(torch.randn(batch, width, generator=torch.Generator().manual_seed(seed)))
        found.append(circuit.Cases(model.clip.layer_outputs(x, model.config.states), own, other))
    return found


def test_a_sweep_is_one_run_after_the_other(model):
    parts = cases(model)
    changes = {"whole": circuit.nothing} | circuit.by_head(model)
    changes |= {f"layer {k}": under for k, under in circuit.by_layer(model).items()}
    changes |= {f"frame {i}": under for i, under in circuit.by_frame(model, FRAMES).items()}
    changes |= {f"patch {p}": under for p, under in circuit.by_patch(model, [(1, 0)]).items()}
    answers = circuit.sweep(model, iter(parts), changes)
    assert len(answers.video) == 1 + 9 + 3 + 3 + 4
    slowly = {
        (2, 1): lambda states: iv.knock_out(model, [(2, 1)]),
        "layer 1": lambda states: iv.knock_out(model, iv.time_heads(model, 1)),
        "frame 2": lambda states: iv.block(model, None, None, [2]),
        "patch 3": lambda states: iv.patch_from(
            model, states, [s.flip(1) for s in states], [(1, 0)], patches=[3]
        ),
    }
    for name, under in slowly.items():
        expected = []
        for part in parts:
            with torch.no_grad(), under(part.states):
                expected.append(model.encode_states(part.states).embedding)
        assert torch.equal(answers.video[name], torch.cat(expected)), name
    whole = torch.cat([part.own for part in parts])
    torch.testing.assert_close(answers.video["whole"], whole)
    other = torch.cat([part.opposite for part in parts])
    torch.testing.assert_close(answers.margins("whole"), 1 - (whole * other).sum(-1))


def test_an_effect_has_its_intervals():
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(400, generator=generator) + 1
    after = before - 0.5 + 0.1 * torch.randn(400, generator=generator)
    found = circuit.effect(before, after)
    assert found.low < -0.5 < found.high and found.high - found.low < 0.03
    assert math.isclose(found.direction, (after > 0).double().mean().item())
    assert (found.direction_low, found.direction_high) == interval(found.direction, 400)
    inside = 0
    for seed in range(200):
        drawn = torch.randn(30, generator=torch.Generator().manual_seed(seed))
        effect = circuit.effect(torch.zeros(30), drawn)
        inside += effect.low < 0 < effect.high
    assert 180 <= inside <= 199
    for wrong in ((torch.ones(2), torch.ones(3)), (torch.ones(1), torch.ones(1))):
        with pytest.raises(ValueError, match="two clips or more"):
            circuit.effect(*wrong)


class Told(circuit.Carried):
    """Margins by a rule instead of a model."""

    def __init__(self, rule, heads=((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1))):
        self.rule, self.heads, self.runs = rule, heads, {}
        self.none, self.all = self.margins(()).item(), self.margins(heads).item()

    def margins(self, heads):
        heads = tuple(sorted(heads))
        self.runs[heads] = torch.tensor([self.rule(frozenset(heads))])
        return self.runs[heads]


def together(heads):
    """Two heads that only work together, and one that helps a little."""
    return 0.1 + 0.9 * ({(0, 1), (2, 1)} <= heads) + 0.2 * ((1, 0) in heads)


def test_one_by_one_misses_a_pair_and_all_of_a_size_does_not():
    carried = Told(together)
    assert circuit.best_of_size(carried, 2) == ((0, 1), (2, 1))
    assert circuit.smallest_set(carried, 0.8, exact=2) == ((0, 1), (2, 1))
    steps = circuit.one_by_one(carried)
    assert steps[0] == ((1, 0),) and len(steps) == 6 and steps[-1] == carried.heads
    assert all(set(a) < set(b) for a, b in pairwise(steps))
    assert len(circuit.smallest_set(carried, 0.8, exact=0)) > 2
    assert carried(()) == 0 and carried(carried.heads) == 1


def test_heads_against_each_other_may_carry_more_than_all():
    carried = Told(lambda heads: len(heads) - 4.0 * ((2, 1) in heads))
    assert carried(circuit.best_of_size(carried, 5)) == 2.5
    assert circuit.smallest_set(carried, 1.0) == ((0, 0), (0, 1))


@pytest.mark.parametrize("goal", [0, -1, 1.5, float("nan")])
def test_a_goal_is_a_share(goal):
    with pytest.raises(ValueError, match="a share of the margin"):
        circuit.smallest_set(Told(together), goal)


def test_sets_that_are_not_there(model):
    for size in (-1, 7, 1.5):
        with pytest.raises(ValueError, match="There are 6 heads"):
            circuit.best_of_size(Told(together), size)
    with pytest.raises(ValueError, match="9 other heads were asked for, and there are 8"):
        circuit.random_sets(model, 9, [0], but=[(0, 0)])
    with pytest.raises(ValueError, match="-1 other heads were asked for"):
        circuit.random_sets(model, -1, [0])
    parts = [part._replace(opposite=part.own) for part in cases(model, 1)]
    with pytest.raises(ValueError, match="there is nothing for heads to carry"):
        circuit.Carried(model, parts)


def test_what_is_carried_is_what_is_left(model):
    carried = circuit.Carried(model, iter(cases(model)))
    with torch.no_grad(), iv.knock_out(model, [h for h in carried.heads if h != (1, 2)]):
        expected = torch.cat(
            [
                (model.encode_states(p.states).embedding * (p.own - p.opposite)).sum(-1)
                for p in carried.parts
            ]
        )
    torch.testing.assert_close(carried.margins([(1, 2)]), expected)
    assert carried([]) == 0 and carried(carried.heads) == 1 and len(carried.runs) == 3


def test_controls_are_drawn_by_their_seeds(model):
    sets = circuit.random_sets(model, 3, range(10), but=[(0, 0), (1, 1)])
    assert sets == circuit.random_sets(model, 3, range(10), but=[(0, 0), (1, 1)])
    assert len(set(sets)) > 5 and all(len(set(some)) == 3 for some in sets)
    assert not any((0, 0) in some or (1, 1) in some for some in sets)


def test_parts_as_one_or_several_give_the_same(model):
    parts = cases(model, 2)
    whole = circuit.Cases(
        [torch.cat(states) for states in zip(*(part.states for part in parts))],
        torch.cat([part.own for part in parts]),
        torch.cat([part.opposite for part in parts]),
    )
    changes = circuit.by_head(model)
    one, two = (circuit.sweep(model, some, changes).video for some in ([whole], parts))
    close(one.values(), two.values(), 1e-5)


def test_a_seed_draws_the_scenes():
    scenes = seeing_direction.scenes_of("test", 20, seed=1)
    assert scenes == seeing_direction.scenes_of("test", 30, seed=1)[:20]
    assert scenes != seeing_direction.scenes_of("test", 20, seed=2)
