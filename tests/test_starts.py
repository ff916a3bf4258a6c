"""A training that goes on from weights: of an adapter, of each strategy, of the authors' files."""

import json
import shutil
import sys
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from open_clip.transformer import QuickGELU
from test_released import tuned_checkpoint, weights
from test_strategy_files import TWO, examples, shown, small, table
from tiny import shake, tiny_clip
from tiny_runs import problems

from bt_adapter import scenes, trainer
from bt_adapter.backbone import load_clip
from bt_adapter.branch import BranchConfig, BTAdapter
from bt_adapter.cli import pretrain as command
from bt_adapter.pretrain import pretrain_clips
from bt_adapter.recipes import QUICK, ParamGroup, for_strategy
from bt_adapter.released import load_released, save_released
from bt_adapter.shipped import samples_folder
from bt_adapter.starts import load_start, model_from, strategy_at, told_of
from bt_adapter.strategy_files import (
    NAMES,
    build_strategy,
    config_of,
    is_trained,
    load_strategy,
    save_strategy,
    strategy_of,
)

ON_SHAPES = replace(QUICK, steps=2, batch=18, objects=1, takes=1, precision="fp32")


def learned(name):
    """A strategy that is not as it was drawn."""
    torch.manual_seed(1)
    model = build_strategy(name, small(), BranchConfig(layers=2))
    shake(model.branch)
    return model


def same_state(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in found)


def same_weights(one, other):
    return same_state(one.branch.state_dict(), other.branch.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_each_strategy_goes_on(name, tmp_path):
    """It begins with the very weights, is trained, and is still what it was; so is the start."""
    save_strategy(learned(name), tmp_path / "before")
    start = load_start(tmp_path / "before", small())
    assert strategy_at(tmp_path / "before") == strategy_of(start) == name
    model = model_from(start, checkpointing=True)
    assert type(model) is type(start) and same_weights(model, start)
    with torch.no_grad():
        one, other = (m.eval().encode_video(shown(small())) for m in (model, start))
    assert all(torch.equal(getattr(one, field), getattr(other, field)) for field in one._fields)
    config, out = for_strategy(TWO, name), tmp_path / "after"
    pretrain_clips(out, small(), list(examples()), config, start=start)
    after = load_strategy(out, small())
    assert strategy_of(after) == name and same_weights(model, start)
    assert is_trained(start) != same_weights(after, start)
    card = json.loads((out / "training.json").read_text())
    assert card["strategy"] == name and card["run"]["start"] == told_of(start)["start"]
    assert card["settings"]["branch"]["layers"] == config_of(start).layers
    assert card["settings"]["branch"]["max_frames"] == BranchConfig.max_frames


def on_shapes(out, start, **how):
    return scenes.pretrain_moving_shapes(out, start.clip, ON_SHAPES, start=start, **how)


def test_on_moving_shapes_and_resumed(tmp_path, monkeypatch):
    """A run that was cut off goes on to the same bits, from the same start and from no other."""
    monkeypatch.setattr(scenes, "validate", lambda *_, **__: [])
    start = load_start("moving-shapes")
    on_shapes(tmp_path / "whole", start)
    update, taken = trainer.Trainer.update, []

    def once(self, batch):
        taken.append(1)
        if len(taken) > 1:
            raise KeyboardInterrupt
        return update(self, batch)

    monkeypatch.setattr(trainer.Trainer, "update", once)
    with pytest.raises(KeyboardInterrupt):
        on_shapes(tmp_path / "cut", start, save_every=1)
    monkeypatch.setattr(trainer.Trainer, "update", update)
    other = model_from(start)
    with torch.no_grad():
        other.branch.time[0, 0] += 1
    with pytest.raises(ValueError, match="belongs to another run: its start is"):
        on_shapes(tmp_path / "cut", other, resume=True)
    with pytest.raises(ValueError, match=r"belongs to another run.*differ in start"):
        scenes.pretrain_moving_shapes(tmp_path / "cut", start.clip, ON_SHAPES, resume=True)
    on_shapes(tmp_path / "cut", start, resume=True)
    whole, cut = (load_strategy(tmp_path / name) for name in ("whole", "cut"))
    assert same_weights(whole, cut) and not same_weights(whole, start)
    begun, ended = (model.branch.parameters() for model in (start, whole))
    far = [(after - before).norm() / before.norm() for before, after in zip(begun, ended)]
    assert max(far) < 0.5  # two steps from what was learned, and nowhere near a fresh branch


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.filterwarnings("ignore:.*no instructions for bf16")
def test_a_running_mean_begins_at_the_start(precision, tmp_path, monkeypatch):
    """What is saved is the mean of the weights after each step, in fp32, and not the last ones."""
    start, seen, update = learned("BT-Adapter"), [], trainer.Trainer.update
    begun = {name: weight.clone() for name, weight in start.branch.state_dict().items()}

    def watched(self, batch):
        if not seen:
            for own in (self.model.branch, self.mean.module):
                assert all(torch.equal(own.state_dict()[n], w) for n, w in begun.items())
        figures = update(self, batch)
        seen.append({n: w.clone() for n, w in self.model.branch.state_dict().items()})
        return figures

    monkeypatch.setattr(trainer.Trainer, "update", watched)
    rates = (ParamGroup(("",), 0.01),)
    config = replace(TWO, steps=3, frames=2, rates=rates, precision=precision, ema=0.5)
    pretrain_clips(tmp_path, small(), list(examples()), config, start=start)
    saved = load_strategy(tmp_path, small()).branch.state_dict()
    assert len(seen) == 3 and {weight.dtype for weight in saved.values()} == {torch.float32}
    for name, weight in saved.items():
        first, second, last = (weights[name] for weights in seen)
        torch.testing.assert_close(weight, first / 4 + second / 4 + last / 2)
    assert not same_state(saved, seen[-1]) and same_state(start.branch.state_dict(), begun)


@cache
def quick():
    """The small CLIP with the activation of OpenAI's, beside which the authors' branches belong."""
    clip = deepcopy(small())
    for block in clip.blocks:
        block.mlp.gelu = QuickGELU()
    return clip


@pytest.mark.parametrize("align", [True, False])
def test_a_checkpoint_of_the_authors_goes_on(align, tmp_path):
    """With the gates that it has; a W' that it lacks begins at random. Trained, saved, loaded."""
    torch.manual_seed(1)
    config = BranchConfig(layers=2, convention="released", align=align)
    theirs = BTAdapter(quick(), config)
    shake(theirs.branch)
    save_released(theirs, tmp_path / "theirs.pth", clip=False)
    start = load_start(tmp_path / "theirs.pth", quick())
    model = model_from(start)
    own = theirs.branch.state_dict()
    assert all(torch.equal(model.branch.state_dict()[name], own[name]) for name in own)
    assert model.config == replace(config, align=True, final="weighted")
    assert start.config.align == align
    gates = {gate.combination for gate in model.branch.gates}
    assert gates == {"weighted"} and strategy_at(tmp_path / "theirs.pth") == "BT-Adapter"
    pretrain_clips(tmp_path / "after", quick(), list(examples()), TWO, start=start)
    after = load_strategy(tmp_path / "after", quick())
    assert after.config == model.config and not same_weights(after, model)
    card = json.loads((tmp_path / "after/training.json").read_text())
    assert card["run"]["start"] == told_of(start)["start"]


def test_the_recorded_checkpoints_can_be_gone_on_with():
    """Those with a CLIP of their own, one of OpenAI's kind and one of EVA's, bit for bit."""
    for name in ("official", "eva"):
        theirs = load_released(weights(name), heads=4, gated=None)
        model = model_from(theirs)
        own = theirs.branch.state_dict()
        assert all(torch.equal(model.branch.state_dict()[n], own[n]) for n in own), name
        assert model.config.convention == "released" and model.clip is theirs.clip
        with pytest.raises(ValueError, match="has no name by which it could be loaded again"):
            command.check_known(theirs.clip)


@pytest.mark.parametrize(("gone", "kept"), [("balance1", "middle"), ("balance2", "output")])
def test_a_checkpoint_goes_on_with_the_gates_that_it_has(gone, kept, tmp_path):
    clip = tiny_clip(quick_gelu=True)
    clip.tokenizer = small().tokenizer  # its words are its own
    theirs = BTAdapter(clip, BranchConfig(layers=2, convention="released"))
    save_released(theirs, tmp_path / "theirs.pth", clip=False)
    state = torch.load(tmp_path / "theirs.pth", weights_only=True)
    torch.save({n: w for n, w in state.items() if gone not in n}, tmp_path / "less.pth")
    found, wanted = (
        load_start(tmp_path / "less.pth", clip).config,
        load_released(tmp_path / "less.pth", gated=kept, clip=clip).config,
    )
    assert found == wanted


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["bta-pretrain", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        command.main()
    return stop.value.code or 0


def test_the_command_goes_on(tmp_path, monkeypatch, capsys):
    """From a strategy, beside the CLIP that its folder names; what it is, its folder says."""
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "train.csv", examples())
    line = ["--data", "train.csv", "--steps", 1, "--set", "frames=2"]
    kind = ["--clip", "moving-shapes", "--strategy", "STAN", "--set", "layers=2"]
    assert run(monkeypatch, *line, *kind, "--out", "first") == 0
    again = ["--start", "first", "--clip", "moving-shapes", "--out", "second"]
    assert run(monkeypatch, *line, *again) == 0
    told = capsys.readouterr().out
    assert "goes on from first: STAN beside moving-shapes" in told
    card = json.loads((tmp_path / "second/training.json").read_text())
    assert (card["strategy"], card["start"]) == ("STAN", "first")
    assert card["settings"]["weights"] == [1, 0, 0] and card["settings"]["branch"]["layers"] == 2
    first, second = (load_strategy(tmp_path / name) for name in ("first", "second"))
    assert not same_weights(first, second)
    pairs = zip(first.branch.parameters(), second.branch.parameters())
    assert max((a - b).abs().max() for a, b in pairs) < 1e-3  # a step of the recipe's warm-up


@pytest.mark.parametrize("named", [True, False])
def test_the_command_goes_on_beside_a_clip_in_half_precision(named, tmp_path, monkeypatch):
    """As on a GPU, with the CLIP of --clip or the start's own: the branch loses no digit.

    What is saved knows its CLIP by the weights that it had before they were rounded.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "type_beside", lambda beside: torch.bfloat16)
    table(tmp_path / "train.csv", examples())
    shutil.copytree(samples_folder() / "clip", tmp_path / "clip")
    clip = load_clip("clip")
    save_strategy(build_strategy("BT-Adapter", clip, BranchConfig(layers=1)), "first")
    first, of_clip = load_strategy("first", clip), clip.fingerprint
    shake(first.branch, std=0.1)
    save_strategy(first, "first")
    line = ["--data", "train.csv", "--steps", 1, "--set", "frames=2", "--set", "rates=1e-6"]
    own = ["--clip", "clip"] if named else []
    assert run(monkeypatch, *line, *own, "--start", "first", "--out", "second") == 0
    second = load_strategy("second", clip)
    assert json.loads(Path("second/adapter.json").read_text())["backbone"]["fingerprint"] == of_clip
    for before, after in zip(first.branch.parameters(), second.branch.parameters()):
        assert (after - before).abs().max() < 1e-5 and after.dtype == torch.float32
        assert (before - before.bfloat16()).abs().max() > 1e-5  # so that rounding would be seen


def test_a_chat_models_file_is_no_start(tmp_path):
    torch.save(tuned_checkpoint(), tmp_path / "chat.pth")
    with pytest.raises(ValueError, match=r"chat\.pth.*one of a chat model"):
        load_start(tmp_path / "chat.pth", heads=4)


WRONG = {
    "--start nowhere": "nowhere is no adapter folder: adapter.json and adapter.safetensors missing",
    "--start moving-shapes --set layers=2": "--start names says it itself: leave --set layers out",
    "--start moving-shapes --plan": "leave --start out",
    "--start moving-shapes --set frames=65": "clips of 65 frames do not fit into a branch with",
    "--start stan": "stan is STAN, and Moving Shapes trains BT-Adapter: add --data",
    "--start moving-shapes --clip moving-shapes-2": "is another CLIP",
    "--start moving-shapes --data train.csv --strategy STAN": "leave --strategy out",
    "--start stan --data train.csv --strategy BT-Adapter": "leave --strategy out",
    "--start moving-shapes --data train.csv": "the CLIP of Moving Shapes has seen nothing of real",
    "--start stan/adapter.safetensors --data train.csv": "is a part of an adapter: name its folder",
    "--start ./stam --data train.csv": "./stam is no adapter folder",
    "--start short --level 2": "clips of 16 frames do not fit into a branch with places for 8",
    "--start notes.pth --data train.csv": "notes.pth",
    "--set max_frames=8 --level 2": "clips of 16 frames do not fit into a branch with places for 8",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_cannot_go_on_is_told(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "train.csv", examples())
    (tmp_path / "notes.pth").write_text("no weights")
    clip = load_start("moving-shapes").clip
    for name, kind in (("stan", "STAN"), ("short", "BT-Adapter")):
        config = BranchConfig(layers=1, max_frames=8)
        save_strategy(build_strategy(kind, clip, config), tmp_path / name)
    assert run(monkeypatch, *line.split(), "--steps", 1, "--out", "out") == 2
    assert WRONG[line] in problems(capsys.readouterr().err)
    assert not (tmp_path / "out/adapter.json").exists()


def test_a_start_of_another_kind_or_beside_another_clip_is_refused(tmp_path):
    start, other = learned("STAN"), tiny_clip()
    for strategy in ("BT-Adapter", "joint-ST"):
        with pytest.raises(ValueError, match=f"starts from is STAN, not {strategy}"):
            pretrain_clips(tmp_path, small(), list(examples()), TWO, strategy=strategy, start=start)
    with pytest.raises(ValueError, match="starts from is STAN, not BT-Adapter"):
        scenes.pretrain_moving_shapes(tmp_path, small(), ON_SHAPES, start=start)
    with pytest.raises(ValueError, match="give its own `clip`"):
        pretrain_clips(tmp_path, other, list(examples()), TWO, start=start)
