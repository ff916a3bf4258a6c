"""Checkpoints: damage is noticed, the one before is gone on from, and a state that does not fit."""

import copy
import io
import random
import shutil
import warnings

import pytest
import torch
from test_pretrain import TINY, end_of, equal
from tiny_runs import Source, tiny_adapter

from bt_adapter import trainer as engine
from bt_adapter.instruct.loop import InstructConfig, optimizer_of, resume, scaler_of
from bt_adapter.runs import checkpoints, is_whole, load_checkpoint, save_checkpoint
from bt_adapter.trainer import Trainer

RUN = dict(seed="0")


def saved(folder, steps=2):
    """Some checkpoints of a small run, one after the other."""
    trainer = Trainer(tiny_adapter(), TINY)
    for step, batch in zip(range(steps), Source()(0, 3)):
        trainer.update(batch)
        save_checkpoint(folder / "checkpoint.pt", RUN, trainer.state_dict())
        assert trainer.step == step + 1
    return folder / "checkpoint.pt"


def test_one_bit_anywhere_is_noticed(tmp_path):
    path = saved(tmp_path, 1)
    whole, draw = path.read_bytes(), random.Random(0)
    places = [draw.randrange(8 * len(whole)) for _ in range(40)]
    places += range(8 * (len(whole) - 93), 8 * len(whole), 11)  # the archive's end, and the seal
    for place in places:
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        assert not is_whole(path), f"bit {place}"
        if place in places[:40]:
            with pytest.raises(ValueError, match=r"is no checkpoint of this package, or is dam"):
                load_checkpoint(path, RUN)
    path.write_bytes(whole)
    assert is_whole(path) and load_checkpoint(path, RUN)["step"] == 1
    assert torch.load(path, weights_only=True)["state"]["step"] == 1  # it is torch's format still


@pytest.mark.parametrize("left", [0, 1, 30, 0.5, -1, -72, -93])
def test_a_checkpoint_cut_off_anywhere_is_noticed(left, tmp_path):
    path = saved(tmp_path, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole)) if left == 0.5 else left])
    with pytest.raises(ValueError, match="is no checkpoint of this package, or is damaged"):
        load_checkpoint(path, RUN)


def test_a_checkpoint_of_before_has_no_seal_and_is_read(tmp_path):
    file = io.BytesIO()
    torch.save(dict(run=RUN, state=dict(step=3)), file)
    (tmp_path / "checkpoint.pt").write_bytes(file.getvalue())
    assert load_checkpoint(tmp_path / "checkpoint.pt", RUN) == dict(step=3)


def harm(path, how):
    if how == "gone":
        return path.unlink()
    data = bytearray(path.read_bytes())
    if how == "bit":
        data[len(data) // 2] ^= 1
    path.write_bytes(data if how == "bit" else data[: len(data) // 3])


@pytest.mark.parametrize("how", ["bit", "cut", "gone"])
def test_the_one_before_is_gone_on_from_and_ends_bit_equal(how, tmp_path):
    def run(folder, stop=None, **more):
        model = tiny_adapter()
        same = engine.run_signature(model, TINY, "noise")

        class Stopping(Source):
            def __call__(self, start, last):
                for step, batch in enumerate(super().__call__(start, last), start):
                    if step == stop:
                        raise RuntimeError("power cut")
                    yield batch

        with engine.Run(folder, save_every=2, **more) as own:
            own.go(model, Stopping(), TINY, same)
            own.finish(model, TINY, same)

    run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "cut", stop=5)
    last, before = checkpoints(tmp_path / "cut" / "checkpoint.pt")
    assert load_both(last, before) == [4, 2]
    harm(last, how)
    told = "is not there" if how == "gone" else "is damaged"
    with pytest.warns(UserWarning, match=f"{told}: the run goes on .*, after step 2"):
        run(tmp_path / "cut", resume=True)
    (expected, log), (found, own) = end_of(tmp_path / "whole"), end_of(tmp_path / "cut")
    assert equal(expected, found) and own["step"] == log["step"] == [*range(6)]
    assert own["loss"] == log["loss"] and not [*(tmp_path / "cut").glob("*checkpoint*")]


def load_both(*paths):
    return [torch.load(path, weights_only=True)["state"]["step"] for path in paths]


def test_the_good_one_is_not_pushed_out_by_the_damaged_one(tmp_path):
    path = saved(tmp_path, 3)
    harm(path, "bit")
    with pytest.warns(UserWarning, match="after step 2"):
        state = load_checkpoint(path, RUN)
    save_checkpoint(path, RUN, state | dict(step=9))
    assert load_both(*checkpoints(path)) == [9, 2]


def test_both_damaged_is_one_sentence(tmp_path):
    path = saved(tmp_path)
    for place in checkpoints(path):
        harm(place, "cut")
    with pytest.raises(ValueError, match=r"or is damaged, and so is checkpoint\.before\.pt\.$"):
        load_checkpoint(path, RUN)


def test_the_run_of_the_one_before_is_compared_and_nothing_is_deleted(tmp_path):
    path = saved(tmp_path)
    harm(path, "bit")
    with pytest.raises(ValueError, match="belongs to another run: its seed is '0'"):
        load_checkpoint(path, dict(seed="1"))
    assert path.is_file()


def test_a_run_of_another_edition_is_told_as_such(tmp_path):
    path = saved(tmp_path)
    with pytest.raises(ValueError, match=r"another command or edition .*differ in ema, level: go"):
        load_checkpoint(path, RUN | dict(ema="null", level="1"))
    with pytest.raises(ValueError, match=r"another command or edition .*differ in seed: go"):
        load_checkpoint(path, {})


# A state that does not fit

BAD = {
    "step below": dict(step=-5),
    "step a text": dict(step="x"),
    "step true": dict(step=True),
    "step beyond": dict(step=99),
    "step a fraction": dict(step=1.5),
    "random of another size": dict(random=torch.zeros(7, dtype=torch.uint8)),
    "random of numbers": dict(random=torch.zeros(5056)),
    "masks nothing": dict(masks=None),
    "masks of another size": dict(masks=torch.zeros(3, dtype=torch.uint8)),
    "branch empty": dict(branch={}),
    "branch a list": dict(branch=[1]),
    "parts missing": dict(parts=[]),
    "parts a number": dict(parts=4),
}


@pytest.mark.parametrize("name", BAD)
def test_a_state_that_does_not_fit_is_one_sentence(name, tmp_path):
    check(copy.deepcopy(Trainer(tiny_adapter(), TINY).state_dict()) | BAD[name], tmp_path)


@pytest.mark.parametrize("part", ["step", "branch", "parts", "masks", "random"])
def test_a_state_that_lacks_a_part_is_one_sentence(part, tmp_path):
    state = Trainer(tiny_adapter(), TINY).state_dict()
    del state[part]
    check(state, tmp_path)


def state_of_some_steps():
    trainer = Trainer(tiny_adapter(), TINY)
    trainer.update(next(Source()(0, 3)))
    return copy.deepcopy(trainer.state_dict())


@pytest.mark.parametrize("how", ["shape", "kind", "lost", "rate", "weights"])
def test_a_state_of_optimizers_that_does_not_fit_is_one_sentence(how, tmp_path):
    state = state_of_some_steps()
    adam = state["parts"][1]
    first = adam["state"][0]
    if how == "shape":
        first["exp_avg"] = torch.zeros(2, 3)
    elif how == "kind":
        first["exp_avg"] = "x"
    elif how == "lost":
        del first["exp_avg"]
    elif how == "rate":
        del adam["param_groups"][0]["initial_lr"]
    else:
        name = next(iter(state["branch"]))
        state["branch"][name] = torch.zeros(1)
    check(state, tmp_path)


def check(state, folder):
    with pytest.raises(ValueError, match=r"^This state does not fit this run: (?!This).") as caught:
        Trainer(tiny_adapter(), TINY).load_state_dict(state)
    assert "\n" not in str(caught.value)
    model = tiny_adapter()
    same = engine.run_signature(model, TINY, "noise")
    save_checkpoint(folder / "checkpoint.pt", same, state)
    with (
        pytest.raises(ValueError, match=r"checkpoint\.pt does not fit this run: (?!This)"),
        engine.Run(folder, resume=True) as run,
    ):
        run.go(model, Source(), TINY, same)
    assert not (folder / "log.csv").exists()


def test_a_fitting_state_is_taken():
    state = state_of_some_steps()
    trainer = Trainer(tiny_adapter(seed=1), TINY)
    trainer.load_state_dict(state)
    assert trainer.step == 1 and equal(state["branch"], trainer.model.branch.state_dict())


@pytest.mark.parametrize("how", ["shape", "missing", "step", "nothing"])
def test_a_state_of_tuning_that_does_not_fit_is_one_sentence(how):
    config = InstructConfig(4, 2, lr=0.1)
    named = {"a": torch.nn.Parameter(torch.ones(3))}
    optimizer = optimizer_of(named, config)
    good = dict(step=2, optimiser=optimizer.state_dict(), weights={"a": torch.zeros(3)})
    scaler = scaler_of(named, torch.float32)
    assert resume(named, optimizer, scaler, copy.deepcopy(good), 4) == 2
    bad = dict(
        shape=good | dict(weights={"a": torch.zeros(1)}),
        missing=good | dict(weights={}),
        step=good | dict(step=5),
        nothing={},
    )
    with pytest.raises(ValueError, match=r"^This state does not fit this run: (?!This)."):
        resume(named, optimizer, scaler, bad[how], 4)


# Adapters


def test_weights_that_are_not_those_that_were_saved_are_told(tmp_path):
    from bt_adapter.branch import BTAdapter
    from bt_adapter.shipped import samples_folder

    shutil.copytree(samples_folder() / "adapter", tmp_path / "a")
    weights, draw = tmp_path / "a" / "adapter.safetensors", random.Random(0)
    whole, clip = weights.read_bytes(), BTAdapter.from_pretrained(tmp_path / "a").clip
    for _ in range(20):
        data, place = bytearray(whole), draw.randrange(8 * len(whole))
        data[place // 8] ^= 1 << place % 8
        weights.write_bytes(data)
        with pytest.raises(
            ValueError, match=r"is not the file that adapter\.json was written with"
        ):
            BTAdapter.from_pretrained(tmp_path / "a", clip)


def test_an_adapter_of_before_has_no_hash_and_is_read(tmp_path):
    import json

    from bt_adapter.branch import BranchConfig, BTAdapter

    model = BTAdapter(tiny_adapter().clip, BranchConfig(layers=1))
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter.json"
    settings = json.loads(file.read_text())
    assert len(settings.pop("sha256")) == 64
    file.write_text(json.dumps(settings))
    BTAdapter.from_pretrained(tmp_path, model.clip)
    for said in ("0" * 64, 5, [], True):
        file.write_text(json.dumps(settings | dict(sha256=said)))
        with pytest.raises(ValueError, match="was written with"):
            BTAdapter.from_pretrained(tmp_path, model.clip)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path)
        BTAdapter.from_pretrained(tmp_path, model.clip)


# Clips that were exchanged


def data_set(folder, packed=False):
    """Six clips in a folder, as examples or as shards."""
    from bt_adapter.datasets import Example, Shards, write_shards
    from bt_adapter.shipped import samples_folder

    files = sorted((samples_folder() / "clips").glob("*.mp4"))[:6]
    (folder / "clips").mkdir()
    for file in files:
        shutil.copyfile(file, folder / "clips" / file.name)
    places = [folder / "clips" / file.name for file in files]
    examples = [Example(p.stem, str(p), (f"it can {p.stem}",)) for p in places]
    if not packed:
        return examples
    write_shards(examples, folder / "shards", per_shard=3)
    return Shards(folder / "shards")


@pytest.mark.parametrize("kind", ["live", "store", "shards"])
def test_a_clip_that_was_exchanged_stops_a_resume_and_a_moved_folder_does_not(kind, tmp_path):
    import os
    from dataclasses import replace

    from test_pretrain import DATA

    from bt_adapter import pretrain
    from bt_adapter.backbone import load_clip

    clip, examples = load_clip("moving-shapes"), data_set(tmp_path, kind == "shards")
    config, out = replace(DATA, steps=3, batch=3), tmp_path / "out"
    store = tmp_path / "states" if kind == "store" else None

    def run(judge=lambda model: [], **more):
        return pretrain.pretrain_clips(out, clip, examples, config, store, judge=judge, **more)

    def power_cut(model):
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(power_cut)
    shard = kind == "shards"
    files = [*(tmp_path / "shards").glob("*.tar")] if shard else [*(tmp_path / "clips").iterdir()]
    for file in files:
        os.utime(file, (1, 1))  # as if it was copied
    with pytest.raises(RuntimeError, match="power cut"), warnings.catch_warnings():
        warnings.filterwarnings("error", "store:")
        run(power_cut, resume=True)
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[:700] + b"!" + whole[701:])  # the size stays
    with pytest.raises(ValueError, match=f"{files[0].name} is another file than when .* delete"):
        run(resume=True)
    files[0].write_bytes(whole)
    assert run(resume=True) is not None
    assert not (out / "clips.json").exists() and not (out / "checkpoint.pt").exists()
