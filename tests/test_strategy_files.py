"""Strategies on clips of one's own: trained, saved, loaded, judged, and fed what they read."""

import json
import shutil
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from tiny import shake, tiny_clip
from tiny_runs import problems

from bt_adapter import pretrain as library
from bt_adapter.backbone import load_clip
from bt_adapter.branch import BTAdapter
from bt_adapter.datasets import ClipDataset, Example, loader
from bt_adapter.in_place import entry_of
from bt_adapter.ledger import read_csv
from bt_adapter.precision import fast_copy
from bt_adapter.recipes import PRESETS, for_strategy
from bt_adapter.shipped import samples_folder
from bt_adapter.strategies import STRATEGIES, JointST
from bt_adapter.strategy_files import (
    NAMES,
    build_strategy,
    is_trained,
    load_strategy,
    save_strategy,
    strategy_of,
)
from bt_adapter.trainer import MaskedPass
from bt_adapter.video import read_clip

TWO = replace(PRESETS["released"], steps=2, batch=2, precision="fp32", frames=4)


@cache
def small():
    """The CLIP of Moving Shapes with words, and with three layers: quick in tests."""
    clip = load_clip("moving-shapes")
    clip.model.visual.transformer.resblocks = clip.model.visual.transformer.resblocks[:3]
    clip._fingerprint = None
    return clip


@cache
def examples(count=2):
    files = sorted((samples_folder() / "clips").glob("*.mp4"))[:count]
    return [Example(f.stem, str(f), (f"a thing can {f.stem}",)) for f in files]


def shown(clip, frames=4):
    return torch.stack([clip.transform(read_clip(e.path, frames)) for e in examples()])


@pytest.mark.parametrize("name", NAMES)
def test_trained_saved_and_loaded_it_is_the_same(name, tmp_path, monkeypatch):
    clip, kept = small(), []
    before = {n: p.clone() for n, p in clip.state_dict().items()}
    config = for_strategy(replace(TWO, branch=replace(TWO.branch, layers=2)), name)
    judge = lambda model: kept.append(model) or []  # noqa: E731
    library.pretrain_clips(tmp_path, clip, list(examples()), config, strategy=name, judge=judge)
    after = load_strategy(tmp_path, clip)
    (model,) = kept
    assert strategy_of(after) == name and type(after) is type(model) and not after.training
    with torch.no_grad():
        one, other = (m.encode_video(shown(clip)) for m in (model.eval(), after))
    for field in one._fields:
        assert torch.equal(getattr(one, field), getattr(other, field)), field
    assert all(torch.equal(p, before[n]) for n, p in clip.state_dict().items())
    torch.manual_seed(config.seed)
    fresh = build_strategy(name, clip, config.branch).branch.state_dict()
    moved = [n for n, w in after.branch.state_dict().items() if not torch.equal(w, fresh[n])]
    assert bool(moved) == is_trained(model)
    card = json.loads((tmp_path / "training.json").read_text())
    assert card["strategy"] == name and card["settings"]["mask_ratio"] == config.mask_ratio
    if name != "BT-Adapter":
        with pytest.raises(ValueError, match=f"holds the strategy {name}, not BT-Adapter"):
            BTAdapter.from_pretrained(tmp_path, clip)


def test_rows_of_all_strategies_on_real_clips():
    """What `tests/benchmarks/strategies.py` wrote: beside a ViT-B/32, as the small ones above."""
    rows = read_csv(Path(__file__).parent / "benchmarks" / "strategies.csv")
    assert [row["strategy"] for row in rows] == list(NAMES)
    assert {row["clip"] for row in rows} == {"ViT-B-32"}
    for row in rows:
        assert row["same_embeddings"] == row["same_clip"] == "True", row
        assert float(row["nearness"]) > 0.9999 and int(row["held"]) == 3 and row["recall"]
        assert (int(row["trained"]) > 0) == ("pooling" not in row["strategy"])


@pytest.mark.parametrize("name", ["joint-ST", "separate-ST", "STAN", "ST-Adapter"])
def test_a_strategy_in_the_backbone_is_fed_with_the_state_that_enters_it(name):
    """From files and from stores of any depth: what `encode_video` computes of the same clips."""
    clip, config = small(), for_strategy(TWO, name)
    model = build_strategy(name, clip, layers=3 if name == "joint-ST" else 2)
    shake(model.branch, std=0.02)
    last = model.config.states
    dataset = ClipDataset(list(examples()), clip.image_size, 4)
    keys = [[library.Key(e.id) for e in examples()]]
    deep, first = {}, {}
    library.clip_states(clip, dataset, keys, deep, 4)
    first.update({key: states[-last:][:1] for key, states in deep.items()})
    of_three = {key: states[:1] for key, states in deep.items()}
    captions = [e.captions for e in examples()]
    stored = partial(library.StoredBatches, clip, captions, keys, config=config, entry=True)
    sources = [library.LiveBatches(clip, loader(dataset, 2, clip.tokenizer), entry=True)]
    sources += [stored(first), stored(deep, stored=4), stored(of_three, stored=4)]
    every, fast = torch.arange(64).expand(2, -1), fast_copy(clip)
    pixels = shown(clip).to(fast.dtype)
    computed = entry_of(fast, pixels, last - 1).float()  # in the machine's fast type
    later = entry_of(fast, pixels, 3).bfloat16().float().flatten(0, 1)  # as it is stored
    for block in list(clip.blocks)[: 4 - last]:
        later = block(later)  # a store's states are taken on in CLIP's own type
    later = later.unflatten(0, (2, -1)).detach()
    for source, entry in zip(sources, [computed] * 3 + [later], strict=True):
        batch = next(source(0, last))
        assert batch.entry and batch.states.shape[1] == 1
        order = [[e.id for e in examples()].index(n) for n in batch.names]
        with torch.no_grad():
            wanted = model.encode_video(shown(clip))
            found, _, mbta = MaskedPass(model, torch.float32, "cosine")(batch.states, every, True)
        torch.testing.assert_close(batch.states[:, 0].float(), entry[order], rtol=0.004, atol=1e-4)
        assert (found * wanted.embedding[order]).sum(-1).min() > 0.999 and mbta == 0


def test_joint_st_reads_what_enters_the_first_of_all_layers():
    clip = tiny_clip()
    model, frames = build_strategy("joint-ST", clip), torch.randn(2, 3, 3, *clip.image_size)
    assert isinstance(model, JointST) and model.config.states == len(clip.blocks) + 1
    entry = library.entry_state(clip, frames, model.config.states)
    assert torch.equal(entry[:, 0], clip.layer_outputs(frames, 6)[0].bfloat16())
    ran = []
    for block in clip.blocks:
        block.register_forward_hook(lambda *_: ran.append(1))
    library.entry_state(clip, frames, model.config.states)
    assert not ran  # none of CLIP's layers is run for it


@pytest.mark.parametrize(
    "name", ["joint-ST", "separate-ST", "separate-ST, frozen", "ST-Adapter", "STAN"]
)
def test_layers_that_are_computed_twice_give_the_same_gradients(name):
    clip = tiny_clip()
    frames = torch.randn(2, 3, 3, *clip.image_size)
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = build_strategy(name, clip, checkpointing=checkpointing)
        masked, ran = MaskedPass(model, torch.float32, "cosine"), []
        layers = model.branch.blocks if model.config.unfreeze else clip.blocks
        handle = layers[-1].register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        states = library.entry_state(clip, frames, model.config.states).float()
        video, *_ = masked(states, torch.arange(4).expand(2, -1), True)
        video[:, ::2].sum().backward()
        found.append([p.grad for p in model.branch.parameters()])
        assert len(ran) == 1 + checkpointing
        handle.remove()
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other))


def test_what_is_no_strategy_is_told(tmp_path):
    clip = tiny_clip()
    with pytest.raises(ValueError, match="No strategy is called 'joint'"):
        build_strategy("joint", clip)
    with pytest.raises(ValueError, match=r"layers must lie in 1\.\.5, not 6"):
        build_strategy("ST-Adapter", clip, layers=6)
    with pytest.raises(ValueError, match=r"saved by strategy_files\.save_strategy"):
        STRATEGIES["STAN"].make(clip, 2).save_pretrained(tmp_path)
    save_strategy(build_strategy("ST-Adapter", clip, layers=2), tmp_path / "a")
    told = json.loads((tmp_path / "a/adapter.json").read_text())
    for wrong, message in (
        (dict(strategy="joint-STX"), "holds a strategy 'joint-STX', which this edition lacks"),
        (dict(strategy=["x"]), "its strategy is no name"),
        (dict(strategy="a\nb"), "its strategy is no name"),
        (dict(strategy="joint-ST"), "does not fit its own configuration"),
        (dict(strategy=None), "is damaged|does not fit"),
        (dict(branch=dict(layers=6)), "layers must lie in 1..5"),
        (dict(branch=[]), "is damaged"),
    ):
        shutil.copytree(tmp_path / "a", tmp_path / "b", dirs_exist_ok=True)
        (tmp_path / "b/adapter.json").write_text(json.dumps(told | wrong))
        with pytest.raises(ValueError, match=message) as caught:
            load_strategy(tmp_path / "b", clip)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"is no adapter folder: adapter\.json and"):
        load_strategy(tmp_path / "nowhere", clip)


def run(monkeypatch, module, *arguments):
    monkeypatch.setattr(
        sys, "argv", [f"bta-{module.__name__.rpartition('.')[2]}", *map(str, arguments)]
    )
    with pytest.raises(SystemExit) as stop:
        module.main()
    return stop.value.code or 0


def table(path, some):
    path.write_text("path,caption\n" + "".join(f"{e.path},{e.captions[0]}\n" for e in some))
    return path


def test_the_commands_train_and_judge_a_strategy(tmp_path, monkeypatch, capsys):
    from bt_adapter.cli import evaluate, pretrain

    monkeypatch.chdir(tmp_path)
    table(tmp_path / "train.csv", examples())
    line = ["--data", "train.csv", "--clip", "moving-shapes", "--strategy", "ST-Adapter"]
    line += ["--steps", 1, "--set", "layers=2", "--set", "frames=2", "--out", "out"]
    assert run(monkeypatch, pretrain, *line) == 0
    printed = capsys.readouterr()
    assert "settings: layers 2 (was 4), frames 2 (was 8)" in printed.out
    card = json.loads((tmp_path / "out/training.json").read_text())
    assert card["strategy"] == "ST-Adapter" and card["set"] == {"layers": "2", "frames": "2"}
    assert card["preset"] == "released" and card["settings"]["branch"]["layers"] == 2
    both = ["out", "moving-shapes", "--data", "train.csv", "--frames", 2, "--csv", "r.csv"]
    assert run(monkeypatch, evaluate, *both) == 0
    assert [row["method"] for row in read_csv(tmp_path / "r.csv")] == [
        "frozen CLIP",
        "ST-Adapter",
        "ST-Adapter, shuffled",
        "BT-Adapter",
        "BT-Adapter, shuffled",
    ]
    capsys.readouterr()
    again = [word if word != "layers=2" else "layers=3" for word in line]
    assert run(monkeypatch, pretrain, *again, "--resume") == 2
    assert "another run" in problems(capsys.readouterr().err)


def test_too_little_memory_names_half_of_what_was_tried(tmp_path, monkeypatch, capsys):
    from bt_adapter.cli import pretrain

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library, "pretrain_clips", full)
    table(tmp_path / "train.csv", examples())
    line = ["--data", "train.csv", "--clip", "moving-shapes", "--steps", 1, "--batch", 12]
    for more, half in (([], 6), (["--chunk", 9], 4)):
        assert run(monkeypatch, pretrain, *line, *more) == 2
        assert f"at once: give --chunk {half}, which" in problems(capsys.readouterr().err)


def test_a_disk_that_fills_with_states_is_one_sentence_and_the_run_goes_on(
    tmp_path, monkeypatch, capsys
):
    import resource

    from bt_adapter.cli import pretrain

    monkeypatch.chdir(tmp_path)
    table(tmp_path / "train.csv", examples())
    line = ["--data", "train.csv", "--clip", "moving-shapes", "--steps", 1, "--out", "out"]
    line += ["--store", "states", "--resume"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # bytes: less than a clip's
    try:
        assert run(monkeypatch, pretrain, *line) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be written: File too large" in problems(capsys.readouterr().err)
    assert not list(tmp_path.rglob("*.part")) and not (tmp_path / "out/adapter.json").exists()
    assert run(monkeypatch, pretrain, *line) == 0
    assert (tmp_path / "out/adapter.json").is_file()


ONE_OF_EACH = {
    "Table 6": "+ branch",
    "Table 7": "VTC, MBCA",
    "Table 10": "ST-Adapter",
    "Table 11": "addition",
    "Figure 3": "1 layers",
    "Figure 4": "mask 0.9",
}


def spans(path, clips, count):
    """A table of the first half seconds of each clip."""
    starts = [(clip, n / 2) for clip in clips for n in range(count)]
    rows = [f"{clip},{clip.stem} at {s:g} seconds,{s},{s + 0.5}\n" for clip, s in starts]
    path.write_text("path,caption,start,end\n" + "".join(rows))


@pytest.mark.slow
def test_a_row_of_each_table_on_real_clips(real_clips, tmp_path, monkeypatch, capsys):
    """Two steps each, by the command of the table; the others of its rows stand there already."""
    from bt_adapter import data_study
    from bt_adapter.cli import ablations

    monkeypatch.chdir(tmp_path)
    rows = [r for r in data_study.DATA_ROWS if ONE_OF_EACH.get(r.table) == r.name]
    monkeypatch.setattr(data_study, "DATA_ROWS", rows)
    spans(tmp_path / "train.csv", real_clips[:2], 2)
    spans(tmp_path / "held.csv", real_clips[2:], 3)
    line = ["--data", "train.csv", "--validation", "held.csv", "--quick", "--store", "states"]
    line += ["--clip", "ViT-S-32", "--pretrained", "random", "--csv", "r.csv"]
    line += ["--set", "frames=2", "--set", "batch=2", "--set", "precision=fp32"]
    for name, row in ONE_OF_EACH.items():
        torch.manual_seed(0)  # for the same random weights
        assert run(monkeypatch, ablations, *line, "--table", name) == 0, capsys.readouterr().err
        printed = capsys.readouterr()
        assert row in printed.out and f"seed 0: {name}, {row}" in printed.err
    lines = read_csv(tmp_path / "r.csv")
    assert [(r["table"], r["row"]) for r in lines] == [*ONE_OF_EACH.items()]
    assert {r["steps"] for r in lines} == {"2"} and {r["held"] for r in lines} == {"3"}
    assert {r["batch"] for r in lines} == {"2"} and {r["clips"] for r in lines} == {"4"}
    assert len({r["fingerprint"] for r in lines}) == len({r["recipe"] for r in lines}) == 1
    assert len([*(tmp_path / "r").iterdir()]) == 6
    torch.manual_seed(0)
    assert run(monkeypatch, ablations, *line, "--table", "Table 6", "--set", "mask=.5") == 0
    assert len(read_csv(tmp_path / "r.csv")) == 7  # another recipe
    capsys.readouterr()
    assert run(monkeypatch, ablations, *line, "--table", "Figure 4", "--set", "mask=.5") == 2
    assert "Figure 4 varies mask: leave --set mask out" in capsys.readouterr().err
    assert run(monkeypatch, ablations, *line, "--table", "frames") == 2
    assert "no table on clips of one's own is called 'frames'" in capsys.readouterr().err
