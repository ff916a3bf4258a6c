"""Saved strategies as the eyes of a chat model: tokens by hand, unplugged exactly, refusals."""

import pytest
import torch
from test_chat import clip_logits, clips, image_logits, tower
from tiny import shake
from tiny_hosts import one_thread, tiny_host  # noqa: F401 one_thread is used by all tests here

from bt_adapter.branch import BranchConfig
from bt_adapter.chat import BranchPool, clip_of_host, load, plug, unplug
from bt_adapter.chat.strategy_pools import IN_PLACE, POOLED, SUMMED
from bt_adapter.in_place import entry_of, frame_by_frame
from bt_adapter.instruct.loop import branch_parameters_read
from bt_adapter.instruct.table_one import up_to
from bt_adapter.strategy_files import (
    NAMES,
    build_strategy,
    load_strategy,
    save_strategy,
    strategy_of,
)

LAYERS = 2  # K


def saved(name, model, folder):
    """A strategy beside the CLIP of a host, saved and loaded again."""
    clip = clip_of_host(model)
    made = build_strategy(name, clip, BranchConfig(layers=LAYERS))
    shake(made.branch, 1, std=0.05)
    save_strategy(made, folder)
    return load_strategy(folder, clip)


def changed(name, strategy, n, patches):
    """What stands before a layer of CLIP."""
    if name == "ST-Adapter":
        return strategy.branch.adapters[n](patches, strategy.clip.grid[0])
    return strategy.branch.temporal[n](patches)


def by_hand(name, strategy, frames, layer):
    """What is written in section 3.2: all patches of all frames, in front of them the CLS."""
    blocks = getattr(strategy.branch, "blocks", None)
    if name == "joint-ST":
        state = strategy.branch.time(entry_of(strategy.clip, frames, 5))
        tokens = torch.cat([state[:, :, 0].mean(1, keepdim=True), state[:, :, 1:].flatten(1, 2)], 1)
        for block in blocks[:layer]:
            tokens = block(tokens)
        return tokens
    state = entry_of(strategy.clip, frames, LAYERS)
    state = state if name == "ST-Adapter" else strategy.branch.time(state)
    for n in range(LAYERS - (5 - layer)):
        patches = changed(name, strategy, n, state[:, :, 1:])
        block = (blocks or strategy.clip.blocks[-LAYERS:])[n]
        state = frame_by_frame(block, torch.cat([state[:, :, :1], patches], 2))
    return torch.cat([state[:, :, 0].mean(1, keepdim=True), state[:, :, 1:].flatten(1, 2)], 1)


@pytest.mark.parametrize("host, layer", [("llava", 4), ("blip-2", 5)])
@pytest.mark.parametrize("name", IN_PLACE)
def test_the_tokens_are_those_computed_by_hand(name, host, layer, tmp_path):
    model, frames = tiny_host(host), clips(3)
    expected, before = image_logits(model), {n: w.clone() for n, w in model.state_dict().items()}
    strategy = saved(name, model, tmp_path)
    with torch.no_grad(), plug(model, strategy):
        found = tower(model).encode(frames)
        assert found.shape == (1, 1 + 3 * 4, 24)
        torch.testing.assert_close(found, by_hand(name, strategy, frames, layer))
        if layer == 5:  # nothing is left out: the strategy's own tokens
            torch.testing.assert_close(found[:, 1:], strategy.tokens(frames))
        assert clip_logits(model, frames).isfinite().all()
        assert torch.equal(image_logits(model), expected)
    assert torch.equal(image_logits(model), expected)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)


def one_less(strategy):
    """STAN with the first layer alone, beside a CLIP that ends there."""
    short = up_to(strategy.clip, 4)
    made = build_strategy(strategy_of(strategy), short, BranchConfig(layers=1))
    weights = strategy.branch.state_dict()
    weights = {name: weights[name] for name in made.branch.state_dict() if "gates" not in name}
    assert not made.branch.load_state_dict(weights, strict=False).unexpected_keys
    return made


@pytest.mark.parametrize("host, layer", [("llava", 4), ("blip-2", 5)])
@pytest.mark.parametrize("name", SUMMED)
def test_stan_hands_on_the_mean_of_branch_and_clip(name, host, layer, tmp_path):
    model, frames = tiny_host(host), clips(3)
    expected = image_logits(model)
    strategy = saved(name, model, tmp_path)
    with plug(model, strategy):
        found = tower(model).encode(frames)
        whole = strategy if layer == 5 else one_less(strategy)
        with torch.no_grad():
            torch.testing.assert_close(found[:, 1:], whole.tokens(frames))
        found.square().sum().backward()
        read = branch_parameters_read(tower(model).branch_pool)
        assert all(weight.grad is not None for weight in read.values())
        others = {*dict(strategy.branch.named_parameters())} - {*read}
        last = [name.split(".")[1] for name in others if "align" not in name]
        assert {*last} == (set() if layer == 5 else {"1"})
    assert torch.equal(image_logits(model), expected)


@pytest.mark.parametrize("name", POOLED)
def test_poolings_are_the_poolings_of_their_name(name, tmp_path):
    model, frames = tiny_host("llava"), clips(3)
    strategy = saved(name, model, tmp_path)
    with torch.no_grad():
        with plug(model, strategy):
            found = tower(model).encode(frames)
        with plug(model, POOLED[name]):
            assert torch.equal(tower(model).encode(frames), found)


def test_the_rest_is_refused_in_one_sentence(tmp_path):
    model = tiny_host("llava")
    refused = {*NAMES} - {*POOLED, *IN_PLACE, *SUMMED, "BT-Adapter"}
    assert refused == {"branch alone"}
    for number, name in enumerate(sorted(refused)):
        strategy = saved(name, model, tmp_path / str(number))
        with pytest.raises(ValueError, match=f"^{name} hands no tokens to a chat model: of the"):
            plug(model, strategy)
    few = build_strategy("separate-ST", clip_of_host(model), BranchConfig(layers=1))
    with pytest.raises(ValueError, match="must change more layers than its 1"):
        plug(model, few)
    assert image_logits(model).isfinite().all()  # nothing was plugged


def test_a_folder_is_loaded_as_what_it_holds(tmp_path, monkeypatch):
    """Behind `bta-chat --video FOLDER`, one way for adapters and strategies."""
    model, frames = tiny_host("llava"), clips(3)
    names = ("separate-ST, frozen", "BT-Adapter")
    made = {name: saved(name, model, tmp_path / name[:2]) for name in names}
    monkeypatch.setattr(load, "image_host", lambda name, dtype: (model, None))
    monkeypatch.setattr(load, "load_strategy", lambda f: load_strategy(f, clip_of_host(model)))
    for name, strategy in made.items():
        plugged, _ = load.load_chat("owner/name", str(tmp_path / name[:2]), dtype=torch.float32)
        with torch.no_grad():
            found = tower(plugged).encode(frames)
        assert isinstance(tower(plugged).branch_pool, BranchPool) == (name == "BT-Adapter")
        unplug(plugged)
        with torch.no_grad(), plug(model, strategy):
            assert torch.equal(tower(model).encode(frames), found)
