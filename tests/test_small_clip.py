"""The small CLIP: its words, its pictures, and the files that come with the package."""

import json

import numpy as np
import open_clip
import pytest
import torch

from bt_adapter import small_clip
from bt_adapter.backbone import load_clip, load_tokenizer, samples_folder
from bt_adapter.moving_shapes import caption, gallery, pairs, static_caption


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


def test_training_is_a_function_of_the_seed(tmp_path):
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
        return scale * float("nan") if harm == "loss" else (scale - scale.detach()).sqrt()

    monkeypatch.setattr(small_clip, "clip_loss", clip_loss)
    with pytest.raises(ValueError, match=r"no numbers? at step 0"):
        small_clip.train_clip(tmp_path, steps=1)
    assert not list(tmp_path.glob("*.safetensors"))
