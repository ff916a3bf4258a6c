"""Pretraining: recipes, exact chunks and resumption, broken clips, full disks, the command."""

import csv
import functools
import json
import math
import os
import resource
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import chain, count, islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from own_terminal import without_terminal
from tiny_runs import Source, tiny_adapter
from torch.nn.functional import cosine_similarity

from bt_adapter import datasets, metrics, runs
from bt_adapter import moving_shapes as world
from bt_adapter import pretrain as room
from bt_adapter import scenes as shapes
from bt_adapter import trainer as engine
from bt_adapter.backbone import load_clip
from bt_adapter.branch import BranchConfig, BTAdapter
from bt_adapter.datasets import ClipDataset, Example, Shards, loader, write_shards
from bt_adapter.precision import PRECISIONS
from bt_adapter.pretrain import PRESETS
from bt_adapter.runs import RunLog, load_checkpoint, read_log
from bt_adapter.shipped import samples_folder
from bt_adapter.strategies import STRATEGIES
from bt_adapter.trainer import ParamGroup, PretrainConfig, Trainer
from bt_adapter.video import read_clip

TINY = PretrainConfig(steps=6, batch=12, precision="fp32", mask_ratio=0.5, tau=0.5)


@pytest.fixture(scope="module")
def clip():
    return load_clip("moving-shapes")


@pytest.fixture(scope="module")
def groups():
    return shapes.training_scenes(np.random.default_rng(0), 3)


@pytest.fixture(scope="module")
def store(clip, groups):
    states = {}
    shapes.scene_states(clip, list(chain.from_iterable(groups)), 5, states)
    return states


def weights(model):
    return {name: value.clone() for name, value in model.branch.state_dict().items()}


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


# Recipes


def test_full_is_the_schedule_that_made_the_shipped_adapter():
    for step in range(0, 700, 23):
        warm = min(1, (step + 1) / 40)
        expected = warm * (1 + math.cos(math.pi * step / 700)) / 2
        assert PRESETS["full"].schedule(step, 700) == pytest.approx(expected, abs=1e-12)


def test_only_the_paper_s_recipe_takes_the_teacher_without_a_norm():
    plain = [name for name, config in PRESETS.items() if not config.teacher_norm]
    assert plain == ["paper"]


def test_released_schedule_warms_up_for_half_an_epoch_and_hardly_bends():
    share = [PRESETS["released"].schedule(step, 1000) for step in range(1000)]
    assert share[0] == 0.05 and share[499] == 1 and share[250] == pytest.approx(0.526, abs=1e-3)
    assert share == sorted(share[:500]) + sorted(share[500:], reverse=True)
    assert share[-1] == pytest.approx((1 + math.cos(math.pi / 9)) / 2, abs=1e-3)
    assert {PRESETS["paper"].schedule(step, 10) for step in range(10)} == {1}


def test_released_rates_reach_the_parameters_that_the_authors_name():
    branch = tiny_adapter(BranchConfig(layers=2, convention="released")).branch
    (adamw,) = engine.optimizers(branch, PRESETS["released"])
    rates = {id(p): group["lr"] for group in adamw.param_groups for p in group["params"]}
    for name, parameter in branch.named_parameters():
        fast = name.startswith(("temporal.", "gates."))
        assert rates[id(parameter)] == (2e-4 if fast else 2e-5), name
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.05}
    assert {group["betas"] for group in adamw.param_groups} == {(0.9, 0.98)}


def test_muon_takes_the_matrices_of_the_layers():
    branch = tiny_adapter().branch
    muon, adamw = engine.optimizers(branch, PRESETS["full"])
    matrices = {id(p) for p in muon.param_groups[0]["params"]}
    for name, parameter in branch.named_parameters():
        layers = name.startswith(("temporal.", "spatial."))
        assert (id(parameter) in matrices) == (layers and parameter.ndim == 2), name
    assert len(matrices) + len(adamw.param_groups[0]["params"]) == len(list(branch.parameters()))


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(steps=0), "steps must be 1 or more, not 0"),
        (dict(chunk=0), "chunk must be 1 or more, not 0"),
        (dict(mask_ratio=1.0), r"mask_ratio must lie in \[0, 1\), not 1.0"),
        (dict(precision="fp8"), "precision must be one of fp32, bf16, fp16, not 'fp8'"),
        (dict(ema=1.0), "ema must lie between 0 and 1, not 1.0"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**settings)


def test_a_parameter_without_a_rate_is_named():
    config = PretrainConfig(rates=(ParamGroup(("temporal.", "spatial.", "gates."), 1.0),))
    with pytest.raises(ValueError, match=r"No rate is for video_cls, time, align\.weight"):
        engine.optimizers(tiny_adapter().branch, config)


# One step


def gradients(model, config, batch, keep):
    trainer = Trainer(model, config)
    model.branch.zero_grad()
    losses = engine.backward_in_chunks(
        trainer.passes, batch, keep, config, trainer.accelerator, lambda *_: None
    )
    return losses, [p.grad.clone() for p in model.branch.parameters()]


@pytest.mark.parametrize("convention", ["paper", "released"])
@pytest.mark.parametrize("teacher_norm", [True, False], ids=["W LN(v)", "W v"])
@pytest.mark.parametrize("chunk", [1, 5, 12])
def test_chunks_give_the_gradients_of_the_whole_batch(convention, chunk, teacher_norm):
    model = tiny_adapter(BranchConfig(layers=2, convention=convention))
    config = replace(TINY, weights=(1.0, 0.7, 0.3), token_loss="mse", teacher_norm=teacher_norm)
    batch = next(Source()(0, model.config.states))
    keep = engine.tube_mask(12, 4, 0.5, torch.Generator().manual_seed(0))
    features = model.encode_states(batch.states.unbind(1), keep)
    kept = engine.keep_patches(batch.states[:, -1, :, 1:], keep)
    with torch.no_grad():
        teacher = model.clip.project(model.clip.norm(kept) if teacher_norm else kept)
    projected = model.clip.project(features.patches)
    expected = (
        engine.video_text_contrastive(features.embedding, batch.text, 0.5),
        engine.masked_branching_token_alignment(teacher, model.branch.align(features.patches)),
        engine.masked_branching_cross_modal_alignment(projected, batch.text, 0.5),
    )
    total = sum(w * loss for w, loss in zip(config.weights, expected))
    exact = torch.autograd.grad(total, list(model.branch.parameters()))
    losses, found = gradients(model, replace(config, chunk=chunk), batch, keep)
    torch.testing.assert_close(losses, torch.stack(expected).detach(), rtol=1e-5, atol=1e-5)
    for one, other in zip(exact, found):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", ["fp32", "half"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains_and_losses_are_fp32(precision, frozen):
    model, seen = tiny_adapter(), []
    model.clip.to(torch.float32 if frozen == "fp32" else PRECISIONS[precision])
    before = weights(model)
    trainer = Trainer(model, replace(TINY, precision=precision))
    original = trainer.check
    trainer.check = lambda names, losses, video: (
        seen.append((losses, video)) or original(names, losses, video)
    )
    for batch in islice(Source()(0, 3), 3):
        trainer.update(batch)
    assert all(x.dtype == torch.float32 and x.isfinite().all() for pair in seen for x in pair)
    after = weights(model)
    assert not [name for name in before if torch.equal(before[name], after[name])]
    assert all(value.dtype == torch.float32 for value in after.values())
    assert trainer.scaler.is_enabled() == (precision == "fp16")


def test_a_running_mean_is_what_is_kept():
    trainer = Trainer(tiny_adapter(), replace(TINY, ema=0.5))
    expected = None
    for batch in islice(Source()(0, 3), 3):
        trainer.update(batch)
        now = weights(trainer.model)
        expected = now if expected is None else {n: (expected[n] + now[n]) / 2 for n in now}
    trainer.config = replace(trainer.config, steps=3)
    engine.train(trainer, Source())
    for name, value in weights(trainer.model).items():
        torch.testing.assert_close(value, expected[name])


def test_the_gradient_is_cut_to_its_longest():
    first = Trainer(tiny_adapter(), replace(TINY, clip_norm=math.inf))
    norm = first.update(next(Source()(0, 3)))["norm"]
    lengths = []
    short = Trainer(tiny_adapter(), replace(TINY, clip_norm=norm / 10))
    for optimizer in short.optimizers:
        optimizer.register_step_pre_hook(
            lambda o, *_: lengths.extend(p.grad.norm() for g in o.param_groups for p in g["params"])
        )
    assert short.update(next(Source()(0, 3)))["norm"] == pytest.approx(norm)
    assert torch.stack(lengths).norm().item() == pytest.approx(norm / 10, rel=1e-3)


def test_gradients_that_are_no_numbers_stop_the_run_before_the_weights_change():
    trainer = Trainer(tiny_adapter(), TINY)
    weights = list(trainer.model.branch.parameters())
    before = [weight.detach().clone() for weight in weights]
    weights[0].register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(
        ValueError, match=r"gradients are no numbers at step 0; the clips were clip 0"
    ):
        trainer.update(next(Source()(0, 3)))
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))


def test_a_loss_that_is_no_number_stops_before_the_weights_change():
    trainer = Trainer(tiny_adapter(), TINY)
    batch, before = next(Source()(0, 3)), weights(trainer.model)
    with pytest.raises(ValueError, match=r"step 0 .*the clips were clip 0; .* and 4 more"):
        trainer.update(batch._replace(text=batch.text * math.nan))
    batch.states[[3, 7]] = math.inf
    with pytest.raises(ValueError, match=r"the clips were clip 3; clip 7\. Leave them out"):
        trainer.update(batch)
    assert equal(before, weights(trainer.model)) and trainer.step == 0


def test_weights_that_are_no_numbers_are_not_saved():
    trainer, saved = Trainer(tiny_adapter(), TINY), []
    true = trainer.update

    def update(batch):
        figures = true(batch)
        if trainer.step == 4:
            next(trainer.model.branch.parameters()).data.fill_(math.nan)
        return figures

    trainer.update = update
    with pytest.raises(
        ValueError, match=r"weights are no numbers after step 4; the clips were clip"
    ):
        engine.train(trainer, Source(), save=lambda: saved.append(trainer.step), save_every=2)
    assert saved == [2]


# Stopping and going on


@pytest.mark.parametrize("settings", [{}, dict(ema=0.9, precision="fp16", chunk=5)], ids=str)
@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_state_is_everything_that_the_next_step_depends_on(settings, stop, tmp_path):
    config = replace(TINY, **settings)
    whole = Trainer(tiny_adapter(), config)
    engine.train(whole, Source())
    first = Trainer(tiny_adapter(), config)
    for batch in islice(Source()(0, 3), stop):
        first.update(batch)
    engine.save_checkpoint(tmp_path / "c.pt", {}, first.state_dict())
    torch.manual_seed(99)
    second = Trainer(tiny_adapter(seed=5), config)
    second.load_state_dict(load_checkpoint(tmp_path / "c.pt", {}))
    engine.train(second, Source())
    assert equal(weights(whole.model), weights(second.model))


def end_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter.safetensors"), read_log(folder / "log.csv")


def stopped(signum, folder):
    "A run in `folder` that a signal reaches in its third step."
    model, run = tiny_adapter(), engine.Run(folder, save_every=100)
    same = engine.run_signature(model, TINY, "noise")

    class Interrupted(Source):
        def __call__(self, start, last):
            for step, batch in enumerate(super().__call__(start, last), start):
                if step == 2:
                    os.kill(os.getpid(), signum)
                yield batch

    with pytest.raises((SystemExit, KeyboardInterrupt)) as left:
        run.go(model, Interrupted(), TINY, same)
    return left.value


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(signum, tmp_path):
    before = signal.getsignal(signum)
    left = stopped(signum, tmp_path)
    assert isinstance(left, KeyboardInterrupt) or left.code == 128 + signum
    assert signal.getsignal(signum) == before
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]
    assert state["step"] == 3 and read_log(tmp_path / "log.csv")["step"] == [0, 1, 2]


def test_a_checkpoint_is_touched_by_its_own_run_alone(tmp_path):
    stopped(signal.SIGTERM, tmp_path)
    bytes_before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match="a run that was cut off: add --resume"):
        engine.Run(tmp_path)
    model = tiny_adapter()
    for config, data, told in (
        (replace(TINY, seed=1), "noise", "its seed is '0', here it is '1'"),
        (TINY, "other data", "its data is 'noise'"),
    ):
        with pytest.raises(ValueError, match=told):
            run = engine.Run(tmp_path, resume=True)
            run.go(model, Source(), config, engine.run_signature(model, config, data))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/checkpoint.pt").write_bytes(bytes_before[: len(bytes_before) // 2])
    with pytest.raises(ValueError, match="or is damaged"):
        run = engine.Run(tmp_path / "damaged", resume=True)
        run.go(model, Source(), TINY, engine.run_signature(model, TINY, "noise"))
    assert (tmp_path / "checkpoint.pt").read_bytes() == bytes_before


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    model, run = tiny_adapter(), engine.Run(tmp_path, save_every=2)
    same, limit = (
        engine.run_signature(model, TINY, "noise"),
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )

    class Filling(Source):
        def __call__(self, start, last):
            for step, batch in enumerate(super().__call__(start, last), start):
                if step == 3:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
                yield batch

    try:
        with pytest.raises(OSError, match=r"checkpoint.pt cannot be written: .*still what it was"):
            run.go(model, Filling(), TINY, same)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert load_checkpoint(tmp_path / "checkpoint.pt", same)["step"] == 2
    assert not list(tmp_path.glob(".*part"))


def test_what_a_killed_process_was_writing_is_swept_away(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (tmp_path / f".checkpoint.pt.{process.pid}.part").write_text("half")
    theirs = tmp_path / ".movie.mkv.part"
    theirs.touch()
    with engine.Run(tmp_path):
        assert {path.name for path in tmp_path.glob("*.part")} == {theirs.name}
    assert list(tmp_path.iterdir()) == [theirs]


@pytest.mark.parametrize("text", ["", "step,loss,clips/s\n", "step,loss,clips/s\n0,1,9\n1,"])
def test_a_log_cut_off_anywhere_goes_on(text, tmp_path):
    (tmp_path / "log.csv").write_text(text)
    with RunLog(tmp_path, "going on", steps=3, start=1) as log:
        log.add(1, 8, 2.0, {})
    assert read_log(tmp_path / "log.csv")["step"] == ([0, 1] if "0,1,9" in text else [1])


def test_a_clock_that_is_set_back_does_not_change_the_rate(tmp_path, monkeypatch):
    backwards, forwards = count(1e9, -3600), count(0, 2)
    clocks = SimpleNamespace(time=lambda: next(backwards), monotonic=lambda: next(forwards))
    monkeypatch.setattr(runs, "time", clocks)
    with RunLog(tmp_path, "backwards", steps=3) as log:
        for step in range(3):
            log.add(step, 8, 2.0, {})
    assert read_log(tmp_path / "log.csv")["clips/s"] == [4, 4, 4]


def test_a_finished_run_is_not_trained_again(tmp_path):
    model = tiny_adapter()
    same = engine.run_signature(model, TINY, "noise")
    run = engine.Run(tmp_path)
    run.go(model, Source(), TINY, same)
    run.finish(model, TINY, same)
    assert engine.Run(tmp_path, resume=True).finished(same)["settings"]["steps"] == 6
    other = same | dict(seed="1")
    with pytest.raises(ValueError, match=r"a finished result of another run.* --overwrite"):
        engine.Run(tmp_path, resume=True).finished(other)
    with pytest.raises(ValueError, match=r"a finished result, adapter\.json: add --overwrite"):
        engine.Run(tmp_path)
    assert engine.Run(tmp_path, resume=True, overwrite=True).finished(other) is None
    assert engine.Run(tmp_path, overwrite=True).finished(same) is None


# Moving Shapes


def trained(clip, groups, store, seed=0):
    torch.manual_seed(seed)
    model = BTAdapter(clip)
    config = PretrainConfig(steps=2, batch=36, seed=seed)
    room.pretrain(model, shapes.SceneBatches(clip, groups, store, batch=36, seed=seed), config)
    return weights(model)


def test_training_is_a_function_of_the_seed_and_of_the_branch_alone(clip, groups, store):
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    torch.manual_seed(0)
    start = weights(BTAdapter(clip))
    first, same, other = (trained(clip, groups, store, seed) for seed in (0, 0, 1))
    assert equal(first, same) and not equal(first, other)
    assert not [name for name in start if torch.equal(start[name], first[name])]
    assert all(torch.equal(before[name], value) for name, value in clip.state_dict().items())


def test_batches_hold_what_their_captions_say(clip, groups, store):
    source, reverse = shapes.backwards_order()
    batch = next(shapes.SceneBatches(clip, groups, store, batch=36, seed=3)(0, 5))
    assert len(set(batch.names)) == 36
    scenes = {world.caption(s): s for g in groups for s in g}
    for i, (name, states) in enumerate(zip(batch.names, batch.states)):
        m = i % 18
        clip_of = world.render(scenes[name])
        back = i < 18 and reverse[m]
        fresh = clip.layer_outputs(clip.transform(clip_of.flip(0) if back else clip_of)[None], 1)
        assert cosine_similarity(states[-1].float(), fresh[0][0], dim=-1).min() > 0.99
    motions = [scenes[name].things[0].motion for name in batch.names]
    names = list(world.MOTIONS)
    assert motions == [names[m] for m in source] + names


def test_every_object_comes_once_before_any_comes_again(clip, groups, store):
    rows = shapes.SceneBatches(clip, groups, store, batch=18).objects()
    drawn = [some[0] for some, _ in islice(rows, 6)]
    assert sorted(drawn[:3]) == sorted(drawn[3:]) == [0, 1, 2]


@pytest.mark.parametrize("groups", range(1, 8))
def test_every_group_comes_once_before_any_comes_again(clip, groups, monkeypatch):
    monkeypatch.setattr(
        shapes, "caption_table", lambda clip, groups: torch.zeros(len(groups), 18, 3)
    )
    scenes = shapes.training_scenes(np.random.default_rng(0), objects=1) * groups
    for n in range(1, groups + 1):
        rows = shapes.SceneBatches(clip, scenes, {}, batch=18 * n, seed=1).objects()
        drawn = [some for some, _ in islice(rows, 4 * groups)]
        assert all(len(set(some)) == n for some in drawn), "a group is twice in a batch"
        order = list(chain.from_iterable(drawn))
        for start in range(0, len(order), groups):
            assert sorted(order[start : start + groups]) == list(range(groups)), (groups, n)


def test_batches_of_whole_rounds_are_drawn_as_ever(clip, monkeypatch):
    """Where batches divide the groups, as in every recipe: shuffled, and cut into batches."""
    monkeypatch.setattr(
        shapes, "caption_table", lambda clip, groups: torch.zeros(len(groups), 18, 3)
    )
    scenes, rng = (
        shapes.training_scenes(np.random.default_rng(0), objects=6),
        np.random.default_rng(3),
    )
    drawn = shapes.SceneBatches(clip, scenes, {}, batch=36, seed=3).objects()
    for _ in range(3):
        order = rng.permutation(6)
        for start in (0, 2, 4):
            assert next(drawn) == (order[start : start + 2].tolist(), int(rng.integers(3)))
    for name in ("quick", "full"):
        recipe = PRESETS[name]
        takes = recipe.takes or shapes.SceneBatches.takes
        groups = shapes.training_scenes(np.random.default_rng(0), recipe.objects, takes)
        assert len(groups) % shapes.check_groups(recipe.batch, len(groups)) == 0


@pytest.mark.parametrize("batch", [17, 0, 72])
def test_a_batch_of_scenes_is_whole_groups(clip, groups, store, batch):
    with pytest.raises(ValueError, match=r"18 clips for each of 1 to 3 objects"):
        shapes.SceneBatches(clip, groups, store, batch=batch)


# Data sets


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    files = sorted((samples_folder() / "clips").glob("*.mp4"))
    found = [
        Example(f"{path.stem} {n}", str(path), (f"it can {path.stem}", "a thing"))
        for n in range(2)
        for path in files
    ]
    (folder / "text.mp4").write_text("no video")
    return [*found, Example("broken", str(folder / "text.mp4"), ("nothing",))]


DATA = PretrainConfig(steps=6, batch=5, mask_ratio=0.5, branch=BranchConfig(layers=2))


@pytest.mark.parametrize("views", [None, 1, 2])
def test_a_data_set_trains_through_a_broken_clip(clip, examples, tmp_path, views):
    store = tmp_path / "states" if views else None
    report = room.pretrain_clips(tmp_path / "out", clip, examples, DATA, store, views or 1)
    broken = list(csv.DictReader((tmp_path / "out/broken.csv").open()))
    assert report.failed and [row["path"] for row in broken] == [examples[-1].path]
    assert BTAdapter.from_pretrained(tmp_path / "out", clip).config.layers == 2
    assert read_log(tmp_path / "out/log.csv")["step"] == list(range(6))
    if views:
        assert len(list(store.glob("*/*.safetensors"))) == 24 * views


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_source_gives_a_strategy_the_states_it_reads(name, clip, examples):
    model = STRATEGIES[name].make(clip, 2)
    if hasattr(model.branch, "time"):  # positions that start at zero would hide a wrong entry
        torch.nn.init.normal_(getattr(model.branch.time, "rows", model.branch.time))
    last = model.config.states if hasattr(model, "config") else 1
    some, stores = examples[:4], ({}, {})
    dataset = ClipDataset(some, clip.image_size)
    live = room.LiveBatches(clip, loader(dataset, 4, clip.tokenizer))
    keys = [[room.Key(e.id) for e in some]]
    room.clip_states(clip, dataset, keys, stores[0], last)
    stores[1].update({key: states[:1] for key, states in stores[0].items()})  # of a small disk
    config, captions = replace(DATA, batch=4), [e.captions for e in some]
    stored = [room.StoredBatches(clip, captions, keys, store, config=config) for store in stores]
    with torch.no_grad():
        for source in (live, *stored):
            batch = next(source(0, last))
            rows = [[e.id for e in some].index(name) for name in batch.names]
            clips = torch.stack([clip.transform(read_clip(some[row].path)) for row in rows])
            found = model.encode_states(batch.states.float().unbind(1)).embedding
            cosines = (found * model.encode_video(clips).embedding).sum(-1)
            assert cosines.min() > 0.999, type(source).__name__  # half precision


def test_a_stored_run_decodes_nothing(clip, examples, tmp_path, monkeypatch):
    room.pretrain_clips(tmp_path / "first", clip, examples[:12], DATA, tmp_path / "states", 2)
    monkeypatch.setattr(datasets.loading, "read_clip", lambda *_: pytest.fail("a clip was decoded"))
    monkeypatch.setattr(room, "put_states", lambda *_: pytest.fail("CLIP ran"))
    room.pretrain_clips(tmp_path / "second", clip, examples[:12], DATA, tmp_path / "states", 2)
    first, second = (end_of(tmp_path / name) for name in ("first", "second"))
    assert equal(first[0], second[0])


@pytest.mark.parametrize("stored", [False, True])
def test_a_data_set_goes_on_where_it_was(clip, examples, stored):
    def source():
        dataset = ClipDataset(examples[:12], clip.image_size, training=True)
        if not stored:
            return room.LiveBatches(clip, loader(dataset, 4, clip.tokenizer))
        keys = [[room.Key(e.id, v) for e in examples[:12]] for v in range(2)]
        states = {}
        room.clip_states(clip, dataset, keys, states, 3)
        captions = [e.captions for e in examples[:12]]
        return room.StoredBatches(clip, captions, keys, states, config=replace(DATA, batch=4))

    whole = list(islice(source()(0, 3), 5))
    for start in (1, 4):
        later = next(source()(start, 3))
        assert later.names == whole[start].names
        assert torch.equal(later.states, whole[start].states)
        assert torch.equal(later.text, whole[start].text)
    assert sorted(chain.from_iterable(b.names for b in whole[:3])) == sorted(
        e.id for e in examples[:12]
    )


def test_a_store_filled_in_two_goes_is_the_store_filled_in_one(clip, examples, tmp_path):
    dataset = ClipDataset(examples, clip.image_size, training=True)
    keys = [[room.Key(e.id, v) for e in examples] for v in range(2)]
    once, twice = {}, {}
    report = room.clip_states(clip, dataset, keys, once, 3)
    assert report.tried >= 50 and len(once) == 48
    rng = np.random.default_rng(0)
    twice |= {key: once[key] for key in once if rng.uniform() < 0.5}
    room.clip_states(clip, dataset, keys, twice, 3, workers=1)
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[key], twice[key]) for key in once)


def test_what_is_stored_counts_as_tried(clip, examples, tmp_path):
    """A second run tries only the broken clip again, which is then no larger a share."""
    for out in ("first", "second"):
        report = room.pretrain_clips(tmp_path / out, clip, examples, DATA, tmp_path / "states")
        assert (report.tried, report.failed) == (25, 1)
    many = [replace(e, id=f"{e.id} {i}") for i in range(2) for e in [*examples[:6], examples[-1]]]
    for out, share in (("third", 0.1), ("fourth", 0.05)):  # one file of fourteen clips
        run = functools.partial(
            room.pretrain_clips, tmp_path / out, clip, many, DATA, tmp_path / "b"
        )
        if share == 0.1:
            run(broken=share)
        else:
            with pytest.raises(datasets.TooManyBroken, match="more than 5%"):
                run(broken=share)
        broken = list(csv.DictReader((tmp_path / out / "broken.csv").open()))
        assert [row["path"] for row in broken] == [examples[-1].path]


def test_another_part_of_a_clip_is_another_entry(clip, examples, tmp_path):
    def weights(out, span, store):
        parts = [replace(e, span=span) for e in examples[:12]]
        room.pretrain_clips(tmp_path / out, clip, parts, DATA, tmp_path / store)
        return end_of(tmp_path / out)[0]

    first = weights("a", (0, 0.5), "states")
    again, fresh = weights("b", (0.5, 9), "states"), weights("c", (0.5, 9), "fresh")
    assert equal(again, fresh) and not equal(first, again)


def test_a_finished_run_of_other_captions_is_another_run(clip, examples, tmp_path):
    run = functools.partial(room.pretrain_clips, tmp_path, clip, config=DATA, resume=True)
    assert run(examples[:12]) is not None and run(examples[:12]) is None
    said = [replace(e, captions=(f"not {e.captions[0]}",)) for e in examples[:12]]
    with pytest.raises(ValueError, match="a finished result of another run"):
        run(said)
    assert run(said, overwrite=True) is not None


def test_ids_that_name_two_clips(clip, examples, tmp_path):
    twice = [*examples[:12], replace(examples[3], id=examples[4].id)]
    with pytest.raises(ValueError, match=f"1 ids name more .* the first is {examples[4].id}"):
        room.pretrain_clips(tmp_path / "out", clip, twice, DATA, tmp_path / "states")


def test_epochs_and_a_batch_that_is_cut(clip, examples, tmp_path, capsys):
    config = replace(DATA, batch=99)
    how = dict(epochs=3, tell=print)
    room.pretrain_clips(tmp_path, clip, examples[:6], config, tmp_path / "states", **how)
    assert read_log(tmp_path / "log.csv")["step"] == [0, 1, 2]
    assert "6 clips in batches of 6 instead of 99: steps 3" in capsys.readouterr().out


def test_weights_are_saved_before_they_are_judged(clip, examples, tmp_path):
    def judge(model):
        raise ValueError("no clip can be read")

    with pytest.raises(ValueError, match="no clip can be read"):
        room.pretrain_clips(tmp_path, clip, examples[:12], DATA, judge=judge)
    assert BTAdapter.from_pretrained(tmp_path, clip).config.layers == 2


def test_a_damaged_entry_is_told_and_computed_again(clip, examples, tmp_path):
    first, store = tmp_path / "first", tmp_path / "states"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "store:")
        room.pretrain_clips(first, clip, examples[:12], DATA, store)
    entry = next(store.glob("*/*.safetensors"))
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-1])
    with pytest.warns(UserWarning, match="store: 1 entries were damaged, they are computed again"):
        room.pretrain_clips(tmp_path / "second", clip, examples[:12], DATA, store)
    assert entry.stat().st_size == len(whole)
    assert equal(end_of(first)[0], end_of(tmp_path / "second")[0])


def test_shards_are_data_as_well(clip, examples, tmp_path):
    write_shards(examples[:12], tmp_path / "shards", per_shard=5)
    shards = Shards(tmp_path / "shards")
    for out, store in (("live", None), ("stored", tmp_path / "states")):
        report = room.pretrain_clips(tmp_path / out, clip, shards, DATA, store)
        assert report.failed == 0 and read_log(tmp_path / out / "log.csv")["step"][-1] == 5


def test_a_clip_without_a_caption_is_named(clip, examples, tmp_path):
    silent = [replace(examples[0], captions=()), *examples[1:12]]
    room.pretrain_clips(tmp_path / "out", clip, silent, DATA, tmp_path / "states")
    (row,) = csv.DictReader((tmp_path / "out/broken.csv").open())
    reason = f"The clip {silent[0].id} has no caption to learn from."
    assert row == {"path": str(silent[0].path), "reason": reason}


def test_held_out_clips_are_judged_as_the_evaluation_judges_them(clip, examples, tmp_path):
    """The card's rows are recall of the model that was saved, on the clips that can be read."""
    held = [*examples[4:12], examples[-1]]  # the last is broken
    judge = functools.partial(room.held_out_scores, held=held, config=DATA)
    room.pretrain_clips(tmp_path, clip, examples[:4], replace(DATA, batch=4), judge=judge)
    rows = json.loads((tmp_path / "training.json").read_text())["validation"]
    model = BTAdapter.from_pretrained(tmp_path, clip)
    shown = torch.stack([clip.transform(read_clip(e.path)) for e in examples[4:12]])
    text = torch.cat([model.encode_text(list(e.captions)) for e in examples[4:12]])
    owner = torch.arange(8).repeat_interleave(2)
    with torch.no_grad():
        videos = clip.encode_video(shown), model.encode_video(shown).embedding
    for row, video in zip(rows, videos, strict=True):
        found = metrics.recall_at_k(text @ video.T, (1, 5), owner)
        assert [row["clips"], row["T2V R@1"], row["T2V R@5"]] == [8, found["R@1"], found["R@5"]]
        assert set(row) == {
            "method",
            "clips",
            *(f"{w} R@{k}" for w in ("T2V", "V2T") for k in (1, 5)),
        }


@pytest.mark.parametrize("packed", [False, True])
def test_a_clip_for_validation_is_not_trained_on(examples, tmp_path, packed):
    trained = examples[:6]
    if packed:
        write_shards(trained, tmp_path / "shards", per_shard=3)
        trained = Shards(tmp_path / "shards")
    room.check_apart(trained, examples[6:12])
    with pytest.raises(ValueError, match=f"1 clips .* trained on, the first is {examples[2].id}"):
        room.check_apart(trained, [*examples[6:12], examples[2]])
    (tmp_path / "link.mp4").symlink_to(examples[2].path)
    linked = Example("link", str(tmp_path / "link.mp4"), ("a thing",))
    if not packed:
        with pytest.raises(ValueError, match="the first is link"):
            room.check_apart(trained, [linked])


# The command


def two_objects():
    room.PRESETS["quick"] = replace(room.QUICK, objects=2)


def bta_pretrain(*arguments, cwd):
    return without_terminal(cwd, "pretrain", *arguments, before=two_objects)


@pytest.mark.slow
def test_command_writes_an_adapter_that_loads(tmp_path):
    done = bta_pretrain("--out", "new", "--steps", 2, "--preset", "quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "frozen CLIP" in done.stdout and "2/2" in done.stderr and "clips/s" in done.stderr
    card = json.loads((tmp_path / "new/training.json").read_text())
    assert card["clip"]["activation"] in ("gelu", "quickgelu")
    assert card["settings"]["steps"] == 2 and card["command"].startswith("bta-pretrain --out new")
    assert BTAdapter.from_pretrained(tmp_path / "new").config.layers == 4
    names = {path.name for path in (tmp_path / "new").iterdir()} - {"tensorboard"}
    pictures = {"losses.png", "gates.png"}
    assert names == {"adapter.json", "adapter.safetensors", "training.json", "log.csv", *pictures}


@pytest.mark.slow
def test_command_for_own_clips(examples, tmp_path):
    rows = "".join(f"{e.path},{e.captions[0]}\n" for e in examples)
    (tmp_path / "captions.csv").write_text("path,caption\n" + rows)
    arguments = ["--data", "captions.csv", "--clip", "moving-shapes", "--store", "states"]
    arguments += ["--batch", 6, "--steps", 2]
    done = bta_pretrain(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 clips could not be read: they are in runs/adapter/broken.csv" in done.stdout
    done = bta_pretrain("shards", "captions.csv", "packed", cwd=tmp_path)
    assert done.returncode == 2 and "--outside" in done.stderr  # the clips lie elsewhere
    done = bta_pretrain("shards", "captions.csv", "packed", "--outside", cwd=tmp_path)
    assert done.returncode == 0 and "12 clips are in packed" in done.stdout


@pytest.mark.slow
def test_command_judges_held_out_clips(examples, tmp_path):
    for name, some in (("train.csv", examples[:6]), ("others.csv", examples[6:12])):
        rows = "".join(f"{e.path},{e.captions[0]}\n" for e in some)
        (tmp_path / name).write_text("path,caption\n" + rows)
    arguments = ["--data", "train.csv", "--clip", "moving-shapes", "--batch", 3, "--steps", 1]
    arguments += ["--validation"]
    done = bta_pretrain(*arguments, "others.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("not trained on", "frozen CLIP", "BT-Adapter"))
    card = json.loads((tmp_path / "runs/adapter/training.json").read_text())
    assert [row["clips"] for row in card["validation"]] == [6, 6]
    done = bta_pretrain(*arguments, "train.csv", "--out", "new", cwd=tmp_path)
    assert done.returncode == 2 and "6 clips for validation are trained on" in done.stderr
    assert not (tmp_path / "new").exists()


def test_command_for_a_table_away_from_its_clips(tmp_path, capsys, monkeypatch):
    """A wrong folder is told before CLIP is loaded, and what there is nothing to resume of."""
    from bt_adapter.cli import pretrain as command

    monkeypatch.setattr(command, "clip_for_device", lambda *_, **__: 1 / 0)
    (tmp_path / "captions.csv").write_text("path,caption\nfar/a.mp4,a thing\nb.mp4,another\n")
    asked = command.Pretraining(
        out=tmp_path / "new",
        data=tmp_path / "captions.csv",
        clip="moving-shapes",
        preset="quick",
        resume=True,
    )
    with pytest.raises(ValueError, match=r"none of the 2 clips .*far/a\.mp4: .* --clips"):
        command.train_on_clips(asked)
    assert "new holds no run that was cut off" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--preset", "huge"], "no preset is called 'huge': use quick or full"),
        (["--clip", "nowhere"], "No CLIP is called 'nowhere'"),
        (["--out", "taken"], "taken"),
        (["--steps", "0"], "steps must be 1 or more"),
        (["--data", "missing.csv"], "There is no annotation missing.csv"),
        (["--validation", "v.csv"], "--validation belongs to --data"),
        (["--preset", "paper"], "18 clips for each of 1 to 240 objects, not 640 clips"),
        (["--save-every", "0"], "--save-every"),
        (["--data", "taken"], "has seen nothing of real clips: name another with --clip"),
        (["--data", "taken", "--clip", "ViT-B-32"], "ViT-B-32 alone has random weights: add --pre"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(arguments, message, tmp_path):
    (tmp_path / "taken").write_text("a file, no folder")
    done = bta_pretrain(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.rglob("*")] == ["taken"]
