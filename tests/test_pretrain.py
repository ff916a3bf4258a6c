"""Pretraining: what is stored, what moves and what does not, and the command's mistakes."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from bt_adapter import moving_shapes as world
from bt_adapter import pretrain as room
from bt_adapter.backbone import load_clip
from bt_adapter.branch import BTAdapter
from bt_adapter.pretrain import PretrainConfig

TINY = PretrainConfig(steps=3, objects=3, groups=2)


@pytest.fixture(scope="module")
def clip():
    return load_clip("moving-shapes")


@pytest.fixture(scope="module")
def store(clip):
    return room.make_store(clip, room.training_scenes(np.random.default_rng(0), 3), layers=4)


def trained(clip, store, config=TINY):
    torch.manual_seed(config.seed)
    model = BTAdapter(clip)
    room.pretrain(model, store, config)
    return model


def test_store_holds_what_the_branch_would_compute(clip, store):
    scenes = room.training_scenes(np.random.default_rng(0), 3)
    frames = clip.transform(world.render(scenes[1][4]))[None]
    torch.manual_seed(0)
    model = BTAdapter(clip)
    stored = model.encode_states(store.states[1, 4][:, None].unbind(0)).embedding
    fresh = model.encode_video(frames).embedding
    assert torch.nn.functional.cosine_similarity(stored, fresh) > 0.999  # bf16
    assert store.states.dtype == torch.bfloat16


def test_every_object_comes_once_before_any_comes_again(store):
    source = room.batches(store, 1, np.random.default_rng(0))
    seen = [next(source)[0][0][0, 0, 0, 0].item() for _ in range(6)]
    assert sorted(seen[:3]) == sorted(seen[3:]) and len(set(seen)) == 3


def test_training_is_a_function_of_the_seed(clip, store):
    models = [trained(clip, store, replace(TINY, seed=seed)) for seed in (0, 0, 1)]
    first, same, other = (m.branch.state_dict() for m in models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_clip_stays_bit_equal_and_the_whole_branch_moves(clip, store):
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    torch.manual_seed(0)
    start = BTAdapter(clip).branch.state_dict()
    after = trained(clip, store).branch.state_dict()
    assert all(torch.equal(before[name], value) for name, value in clip.state_dict().items())
    still = [name for name in start if torch.equal(start[name], after[name])]
    assert not still


def test_losses_are_the_papers_on_the_masked_pass(clip, store):
    torch.manual_seed(0)
    model = BTAdapter(clip)
    states, text = next(room.batches(store, 2, np.random.default_rng(0)))
    keep = room.tube_mask(len(text), 64, 0.7, torch.Generator().manual_seed(0))
    losses = room.training_losses(model, states, text, keep, tau=0.02)
    with torch.no_grad():
        features = model.encode_states(states, keep)
        teacher = clip.project(clip.norm(room.keep_patches(states[-1][:, :, 1:].float(), keep)))
        student = features.patches @ model.branch.align.weight.T
    expected = 2 - 2 * torch.nn.functional.cosine_similarity(teacher, student, dim=-1).mean()
    torch.testing.assert_close(losses["mbta"], expected, rtol=0.02, atol=0)  # Eq. 7, unit length
    logits = features.embedding @ text.T / 0.02  # Eq. 6
    pairs = logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()
    torch.testing.assert_close(losses["vtc"], -pairs.mean(), rtol=0.02, atol=0)


def test_a_loss_that_is_no_number_stops_the_run(clip, store):
    with pytest.raises(ValueError, match="a loss is no number at step 0"):
        trained(clip, store, replace(TINY, tau=1e-45))


def test_too_many_groups(store):
    with pytest.raises(ValueError, match="1 to 3 groups"):
        next(room.batches(store, 4, np.random.default_rng(0)))


def bta_pretrain(*arguments, cwd):
    code = "import sys; from bt_adapter.pretrain import main; sys.argv[0] = 'bta-pretrain'; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.slow
def test_command_writes_an_adapter_that_loads(tmp_path):
    done = bta_pretrain("--out", "new", "--steps", 2, "--preset", "quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "frozen CLIP" in done.stdout and "step 2 of 2" in done.stderr
    card = json.loads((tmp_path / "new/training.json").read_text())
    assert card["settings"]["steps"] == 2 and card["command"].startswith("bta-pretrain --out new")
    assert BTAdapter.from_pretrained(tmp_path / "new").config.layers == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--preset", "huge"], "no preset is called 'huge': use quick or full"),
        (["--clip", "nowhere"], "No CLIP is called 'nowhere'"),
        (["--out", "taken"], "taken"),
        (["--steps", "0"], "steps must be 1 or more"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(arguments, message, tmp_path):
    (tmp_path / "taken").write_text("a file, no folder")
    done = bta_pretrain(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.rglob("*")] == ["taken"]
