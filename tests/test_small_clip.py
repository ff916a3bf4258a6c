"""The small CLIP: its words, its pictures, and the files that come with the package."""

import json
import os
import signal

import numpy as np
import open_clip
import pytest
import torch

from bt_adapter import scenes, small_clip
from bt_adapter.backbone import load_clip, load_tokenizer
from bt_adapter.moving_shapes import caption, gallery, pairs, static_caption
from bt_adapter.runs import load_checkpoint, read_log, save_checkpoint
from bt_adapter.shipped import samples_folder


def test_every_word_is_one_token(tmp_path):
    small_clip.new_clip(tmp_path)
    tokenize = load_tokenizer(tmp_path)
    for word in small_clip.vocabulary():
        assert len(tokenize.encode(word)) == 1, word
    longest = max(gallery("train"), key=lambda s: len(caption(s)))
    assert len(tokenize.encode(caption(longest))) + 2 <= tokenize.context_length


def test_open_clip_reads_the_folder_by_itself():
    folder = samples_folder() / "clip"
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    ours, images = load_clip("moving-shapes"), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(model.encode_image(images), dim=-1)
    torch.testing.assert_close(ours.encode_video(images[:, None]), theirs, atol=1e-6, rtol=0)


def test_training_is_a_function_of_the_seed(few, tmp_path):
    def weights(name, seed):
        small_clip.train_clip(tmp_path / name, steps=2, seed=seed)
        return (tmp_path / name / "open_clip_model.safetensors").read_bytes()

    assert weights("a", 0) == weights("b", 0) != weights("c", 1)


def test_no_test_pair_moves_in_training():
    rng = np.random.default_rng(0)
    held_out = {f"{color} {shape}" for color, shape in pairs("test")}
    for _ in range(20):
        for text in small_clip.trails(rng, groups=4)[1]:
            assert not any(pair in text for pair in held_out), text


def test_groups_differ_in_one_thing_only():
    _, captions, short = small_clip.stills(np.random.default_rng(0), groups=1)
    assert len(set(captions)) == len(set(short)) == 6
    _, captions, short = small_clip.trails(np.random.default_rng(0), groups=1)
    assert len(set(captions)) == len(set(short)) == 18


def test_the_shipped_clip_knows_frames_and_words():
    clip = load_clip("moving-shapes")
    assert small_clip.static_recall(clip, frames_per_caption=1, seed=77) >= 0.85
    assert small_clip.opposite_cosines(clip, gallery("test")).max() < 0.8  # every single caption


def test_the_shipped_card_says_how_it_was_made():
    card = json.loads((samples_folder() / "clip" / "training.json").read_text())
    assert card["command"].startswith("bta-pretrain clip") and "seed" in card["settings"]
    assert {"torch", "python"} <= set(card["versions"])


def test_static_captions_name_no_motion():
    motions = {m.phrase.split()[0] for m in small_clip.MOTIONS.values()}
    for scene in gallery("test", 50):
        assert not motions & set(static_caption(scene).split())


@pytest.mark.parametrize("harm", ["loss", "gradients"])
def test_a_loss_that_is_no_number_ends_the_training_and_writes_no_weights(
    harm, tmp_path, monkeypatch
):
    def clip_loss(model, *_):
        scale = model.logit_scale
        harmed = scale * float("nan") if harm == "loss" else (scale - scale.detach()).sqrt()
        return dict(contrast=harmed)

    monkeypatch.setattr(small_clip, "clip_loss", clip_loss)
    with pytest.raises(ValueError, match=r"no numbers? at step 0"):
        small_clip.train_clip(tmp_path, steps=1)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.fixture
def few(monkeypatch):
    """Steps of few pictures, and nothing judged."""
    monkeypatch.setattr(small_clip, "GROUPS", {1: (1, 1), 2: (1, 1)})
    monkeypatch.setattr(scenes, "clip_figures", lambda *_: dict(figure=1.0))


def cut_off(monkeypatch, last, end):
    """Let the run end in this way when a step is logged."""
    add = scenes.RunLog.add

    def log(self, step, *others):
        add(self, step, *others)
        if step == last:
            end()

    monkeypatch.setattr(scenes.RunLog, "add", log)


def die():
    raise MemoryError  # as if it were killed: nothing is saved


def ask_to_stop(number):
    os.kill(os.getpid(), number)


ENDS = {
    "killed": (1, die, MemoryError, 1),
    "SIGTERM": (2, lambda: ask_to_stop(signal.SIGTERM), SystemExit, 50),
    "SIGINT": (1, lambda: ask_to_stop(signal.SIGINT), KeyboardInterrupt, 50),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(how, few, tmp_path, monkeypatch):
    level, end, error, every = ENDS[how]
    settings = dict(steps=4, seed=3, level=level)
    scenes.pretrain_small_clip(tmp_path / "whole", **settings)
    with monkeypatch.context() as harm, pytest.raises(error):
        cut_off(harm, 2, end)
        scenes.pretrain_small_clip(tmp_path / "cut", **settings, save_every=every)
    names = {path.name for path in (tmp_path / "cut").iterdir()}
    assert "checkpoint.pt" in names and not names & {*small_clip.CLIP_FILES, "training.json"}
    torch.manual_seed(99)  # whatever another process began with
    with pytest.raises(ValueError, match="--resume"):
        scenes.pretrain_small_clip(tmp_path / "cut", **settings)
    scenes.pretrain_small_clip(tmp_path / "cut", **settings, resume=True)
    for name in small_clip.CLIP_FILES:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not [*(tmp_path / "cut").glob("checkpoint*")]
    logs = [read_log(tmp_path / name / "log.csv") for name in ("whole", "cut")]
    for log in logs:
        assert log.pop("pictures/s")
    assert str(logs[0]) == str(logs[1]) and logs[0]["step"] == [0, 1, 2, 3]
    assert (tmp_path / "cut" / "losses.png").is_file()


def test_a_checkpoint_of_another_clip_is_refused(few, tmp_path, monkeypatch):
    with monkeypatch.context() as harm, pytest.raises(MemoryError):
        cut_off(harm, 1, die)
        scenes.pretrain_small_clip(tmp_path, steps=2, save_every=1)
    for other in dict(steps=3), dict(steps=2, seed=1), dict(steps=2, level=2):
        with pytest.raises(ValueError, match=rf"another run: its {[*other][-1]} is"):
            scenes.pretrain_small_clip(tmp_path, **other, resume=True)
    run = dict(steps=2, seed=0, level=1)
    state = load_checkpoint(tmp_path / "checkpoint.pt", run)
    for harm in dict(step=7), dict(pictures={}), dict(optimizers=[]), dict(weights={}):
        save_checkpoint(tmp_path / "checkpoint.pt", run, state | harm)
        with pytest.raises(ValueError, match=r"checkpoint\.pt does not fit this run"):
            scenes.pretrain_small_clip(tmp_path, steps=2, resume=True)
    save_checkpoint(tmp_path / "checkpoint.pt", run, state)
    assert scenes.pretrain_small_clip(tmp_path, steps=2, resume=True) == dict(figure=1.0)


def test_a_finished_clip_is_not_trained_again(few, tmp_path, monkeypatch):
    scenes.pretrain_small_clip(tmp_path, steps=1)
    monkeypatch.setattr(scenes, "ClipTraining", None)
    assert scenes.pretrain_small_clip(tmp_path, steps=1, resume=True) == dict(figure=1.0)
    with pytest.raises(ValueError, match="finished result of another run"):
        scenes.pretrain_small_clip(tmp_path, steps=2, resume=True)


def test_the_log_holds_the_parts_of_the_loss(few, tmp_path):
    parts = [*small_clip.CLIP_PARTS[2]]
    for level, count in (1, 3), (2, 6):
        scenes.pretrain_small_clip(tmp_path / str(level), steps=1, level=level)
        log = read_log(tmp_path / str(level) / "log.csv")
        assert [*log] == ["step", "loss", *parts[:count], "pictures/s"]
        assert log["loss"][0] == pytest.approx(sum(log[name][0] for name in parts[:count]), 1e-5)
