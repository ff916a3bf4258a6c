"""Eq. 1 to 5 written out a second time, without the package's layers, and what must always hold."""

import json
import math
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import shake, tiny_clip, tiny_eva

from bt_adapter.branch import (
    COMBINATIONS,
    CONVENTIONS,
    Branch,
    BranchConfig,
    BTAdapter,
    Gate,
    SpatialLayer,
    TemporalLayer,
    gather_kept,
)
from bt_adapter.branch_layers import copy_of_block
from bt_adapter.masking import tube_mask
from bt_adapter.traffic import operation_bytes

T, L, D, H, K = 3, 4, 24, 3, 4


def random_frames(batch=2, frames=T, seed=0):
    return torch.randn(batch, frames, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def adapter(clip=None, seed=1, **settings):
    """An adapter in which every parameter is random and none is zero."""
    model = BTAdapter(clip or tiny_clip(), BranchConfig(**settings))
    shake(model.branch, seed)
    return model


@pytest.fixture
def float64():
    "Equations are compared where no processor's way of rounding counts."
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_close(found, expected):
    "Equal but for rounding: to float64, and to float32 where an embedding is that."
    limit = 1e-10 if found.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(found.double(), expected.double(), atol=limit, rtol=limit)


# --- the equations, in einsum ---


def layer_norm(x, weight, bias):
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def linear(x, weight, bias):
    return torch.einsum("...i, oi -> ...o", x, weight) + bias


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def self_attention(x, weights, name):
    """Over the axis before the last of (..., n, d)."""
    qkv = linear(x, weights[f"{name}.qkv.weight"], weights[f"{name}.qkv.bias"])
    query, key, value = qkv.unflatten(-1, (3, H, D // H)).unbind(-3)
    scores = torch.einsum("...qhc, ...khc -> ...hqk", query, key) / math.sqrt(D // H)
    maps = scores.exp() / scores.exp().sum(-1, keepdim=True)
    mixed = torch.einsum("...hqk, ...khc -> ...qhc", maps, value).flatten(-2)
    return linear(mixed, weights[f"{name}.out.weight"], weights[f"{name}.out.bias"])


def normed(x, weights, name):
    return layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def feed_forward(x, weights, name):
    hidden = gelu(linear(x, weights[f"{name}.fc1.weight"], weights[f"{name}.fc1.bias"]))
    return linear(hidden, weights[f"{name}.fc2.weight"], weights[f"{name}.fc2.bias"])


def equation_1(tokens, weights, name):
    """(..., n, d): attention over the n tokens of a frame, then the feed-forward network."""
    tokens = self_attention(normed(tokens, weights, f"{name}.norm1"), weights, name) + tokens
    return feed_forward(normed(tokens, weights, f"{name}.norm2"), weights, name) + tokens


def equation_2(patches, weights, name):
    """(b, t, l, d): every patch over the frames."""
    series = torch.einsum("btld -> bltd", patches)
    attended = self_attention(normed(series, weights, f"{name}.norm"), weights, name)
    projected = linear(attended, weights[f"{name}.project.weight"], weights[f"{name}.project.bias"])
    return torch.einsum("bltd -> btld", projected) + patches


def spatial(cls, patches, weights, name):
    """Eq. 1 in a loop over frames; the video CLS takes the mean of what frames tell it."""
    told, new = [], []
    for frame in patches.unbind(1):
        tokens = torch.cat([cls[:, None], frame], 1)
        update = self_attention(normed(tokens, weights, f"{name}.norm1"), weights, name)
        told.append(update[:, 0])
        new.append(frame + update[:, 1:])
    cls, patches = cls + sum(told) / len(told), torch.stack(new, 1)
    return [
        x + feed_forward(normed(x, weights, f"{name}.norm2"), weights, name) for x in (cls, patches)
    ]


def equation_3(state, weights, position):
    """v + P^t + P^s for every patch of every frame, one at a time."""
    out = torch.zeros_like(state[:, :, 1:])
    for i in range(state.shape[1]):
        for j in range(1, state.shape[2]):
            out[:, i, j - 1] = state[:, i, j] + weights["time"][i] + position[j]
    return out


def equation_4(branch, backbone, w_b):
    share = 1 / (1 + (-w_b).exp())
    return share * branch + (1 - share) * backbone


def whole_branch(states, weights, position):
    """Eq. 3, then Eq. 2 and Eq. 1 with Eq. 4 in front of all layers but the first."""
    patches = equation_3(states[0], weights, position)
    cls = weights["video_cls"].expand(len(patches), -1)
    for n in range(K):
        if n:
            w_b = weights[f"gates.{n - 1}.w_b"]
            cls = equation_4(cls, states[n][:, :, 0].mean(1), w_b)
            patches = equation_4(patches, states[n][:, :, 1:], w_b)
        patches = equation_2(patches, weights, f"temporal.{n}")
        cls, patches = spatial(cls, patches, weights, f"spatial.{n}")
    return cls, patches


# --- each equation alone ---


@pytest.mark.usefixtures("float64")
def test_equation_1_is_what_a_spatial_layer_and_the_clip_layer_it_copies_compute():
    clip = tiny_clip()
    layer, tokens = copy_of_block(clip.blocks[2]), torch.randn(5, 1 + L, D)
    weights = {f"s.{name}": value for name, value in layer.state_dict().items()}
    expected = equation_1(tokens, weights, "s")
    assert_close(clip.blocks[2](tokens), expected)
    cls, patches = layer(tokens[:, 0], tokens[:, None, 1:])
    assert_close(torch.cat([cls[:, None], patches[:, 0]], 1), expected)


@pytest.mark.usefixtures("float64")
def test_the_video_cls_takes_the_mean_of_what_the_frames_tell_it():
    layer = SpatialLayer(D, H, 40, torch.nn.GELU(), 1e-5)
    shake(layer)
    weights = {f"s.{name}": value for name, value in layer.state_dict().items()}
    cls, patches = torch.randn(2, D), torch.randn(2, T, L, D)
    for ours, expected in zip(layer(cls, patches), spatial(cls, patches, weights, "s")):
        assert_close(ours, expected)


@pytest.mark.usefixtures("float64")
def test_equation_2():
    layer, patches = TemporalLayer(D, H, "zero"), torch.randn(2, T, L, D)
    assert torch.equal(layer(patches), patches)  # the temporal projection starts from zero
    shake(layer)
    weights = {f"t.{name}": value for name, value in layer.state_dict().items()}
    assert_close(layer(patches), equation_2(patches, weights, "t"))


@pytest.mark.usefixtures("float64")
def test_equation_3():
    model, state = adapter(), torch.randn(2, T, 1 + L, D)
    weights, position = model.branch.state_dict(), model.clip.position
    ours = state[:, :, 1:] + model.branch.position_embedding(position, T, None)
    assert_close(ours, equation_3(state, weights, position))


@pytest.mark.usefixtures("float64")
def test_equation_4():
    gate, (branch, backbone) = Gate(D, "weighted"), torch.randn(2, 5, D)
    assert_close(gate(branch, backbone), (branch + backbone) / 2)
    shake(gate, std=3)
    expected = equation_4(branch, backbone, gate.w_b.detach())
    assert_close(gate(branch, backbone), expected)


@pytest.mark.usefixtures("float64")
def test_equation_5():
    model, cls, frames = adapter(), torch.randn(2, D), torch.randn(2, T, 1 + L, D)
    visual, last = model.clip.model.visual, model.branch.state_dict()[f"gates.{K - 1}.w_b"]
    mean = sum(frames[:, i, 0] for i in range(T)) / T
    combined = layer_norm(equation_4(cls, mean, last), visual.ln_post.weight, visual.ln_post.bias)
    expected = torch.einsum("bd, dc -> bc", combined, visual.proj)
    assert_close(model.embed(cls, frames), expected)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("frames", [1, 3, 7])
def test_all_equations_together(frames):
    model, video = adapter(), random_frames(frames=frames)
    states = model.clip.layer_outputs(video, K + 1)
    weights, position = model.branch.state_dict(), model.clip.position
    cls, patches = whole_branch(states, weights, position)
    features = model.encode_video(video)
    assert_close(features.patches, patches)
    expected = model.embed(cls, states[-1])
    expected = expected / expected.square().sum(-1, keepdim=True).sqrt()
    assert_close(features.embedding, expected)
    assert torch.equal(features.frames, states[-1])


@pytest.mark.usefixtures("float64")
def test_gradients_of_all_parameters_are_those_of_the_equations():
    model, video = adapter(), random_frames()
    states, names = model.clip.layer_outputs(video, K + 1), dict(model.branch.named_parameters())
    weights = {name: value.detach().clone().requires_grad_() for name, value in names.items()}
    losses = []
    for cls, patches in (
        whole_branch(states, weights, model.clip.position),
        list(model.branch.layers(states, model.clip.position))[-1],
    ):
        losses.append(cls.sin().sum() + patches.cos().sum())
    used = [n for n in weights if not n.startswith(("align", f"gates.{K - 1}"))]
    expected = torch.autograd.grad(losses[0], [weights[n] for n in used])
    found = torch.autograd.grad(losses[1], [names[n] for n in used])
    for name, a, b in zip(used, found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max() + 1e-10, name


# --- what must always hold ---


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("final", [None, "weighted"])
def test_with_the_gate_closed_it_is_frozen_clip_with_its_frames_averaged(final):
    model = adapter(final=final, combination="addition" if final else "weighted")
    model.branch.gates[-1].w_b.data.fill_(-1e3)
    video = random_frames()
    mean = model.clip.layer_outputs(video, 1)[0][:, :, 0].mean(1)
    frozen = model.clip.project(model.clip.norm(mean))
    found = model.encode_video(video).embedding
    assert_close(found, frozen / frozen.norm(dim=-1, keepdim=True))


def test_a_temporal_projection_of_zero_is_a_branch_without_temporal_attention():
    model = BTAdapter(tiny_clip())
    for layer in [*model.branch.spatial, *model.branch.gates]:
        shake(layer)
    found = model.encode_video(random_frames())
    for layer in model.branch.temporal:
        layer.forward = lambda patches, maps: patches
    without = model.encode_video(random_frames())
    assert all(torch.equal(a, b) for a, b in zip(found, without, strict=True))


def order_matters(model):
    video = random_frames()
    shuffled = model.encode_video(video[:, [2, 0, 1]]).embedding
    return not torch.allclose(model.encode_video(video).embedding, shuffled, atol=1e-5)


@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("projection", [False, True])
def test_frame_order_matters_through_the_temporal_embedding_alone(projection, embedding):
    model = adapter()
    for layer in model.branch.temporal:
        layer.project.weight.data *= projection
        layer.project.bias.data *= projection
    model.branch.time.data *= embedding
    assert order_matters(model) == embedding


def test_temporal_attention_lets_a_frame_know_of_the_others():
    """Without the temporal embedding order is lost, but frames still exchange what they show."""
    model, video = adapter(), random_frames()
    model.branch.time.data.zero_()
    changed = video.clone()
    changed[:, 2] += 1
    a, b = (model.encode_video(v).patches[:, 0] for v in (video, changed))
    assert not torch.allclose(a, b, atol=1e-4)


def test_the_adapter_is_a_module_like_any_other():
    model, video, keep = adapter(), random_frames(), tube_mask(2, L, 0.5)
    expected = model.encode_video(video)
    assert all(map(torch.equal, model(video), expected))
    assert all(map(torch.equal, model(video, keep), model.encode_video(video, keep)))
    seen = []
    for name in ("", "branch", "branch.temporal.0", "branch.gates.0"):
        part = model.get_submodule(name)
        part.register_forward_hook(lambda module, args, out, name=name: seen.append(name))
    model(video)
    assert [name for name in seen if name != "branch.gates.0"] == [
        "branch.temporal.0",
        "branch",
        "",
    ]
    assert seen.count("branch.gates.0") == 2  # the video CLS and the patches


@pytest.mark.filterwarnings("ignore")
def test_the_adapter_compiles():
    """Layers are alike, and each is traced anew: two of the branch, behind one of CLIP alone."""
    model = adapter(tiny_clip(layers=3), layers=2)
    video, keep = random_frames(), tube_mask(2, L, 0.5)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        for given in ((video,), (video, keep)):
            for ours, expected in zip(compiled(*given), model(*given), strict=True):
                torch.testing.assert_close(ours, expected)
    states = model.clip.layer_outputs(video, model.config.states)
    whole = torch.compile(model.encode_states, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(states, keep), model.encode_states(states, keep))
    with pytest.raises(RuntimeError, match="keep must hold whole numbers from 0 to 3"):
        whole(states, keep + 4)


def test_clip_stays_in_evaluation_mode():
    model = BTAdapter(tiny_clip().train())
    for mode in (True, False, True):
        assert model.train(mode) is model and model.training == model.branch.training == mode
        assert not any(m.training for m in model.clip.modules())
    model.clip.train()
    assert not any(m.training for m in model.train().clip.modules())


def test_a_training_step_leaves_clip_bit_equal():
    model = adapter()
    before = {name: value.clone() for name, value in model.clip.state_dict().items()}
    training = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    model.train()
    model.encode_video(random_frames()).embedding.sum().backward()
    moved = model.branch.time.clone()
    training.step()
    assert not torch.equal(moved, model.branch.time)
    after = model.clip.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(m.training for m in model.clip.modules())


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_clip_states_at_hidden_places_are_never_read(convention):
    model, video = adapter(convention=convention), random_frames()
    states = model.clip.layer_outputs(video, model.config.states)
    keep = torch.tensor([[0, 2], [1, 3]])
    spoilt = [state.clone() for state in states]
    for state in spoilt:
        state[0, :, [2, 4]] = torch.nan
        state[1, :, [1, 3]] = torch.nan
    found, expected = model.encode_states(spoilt, keep), model.encode_states(states, keep)
    assert torch.equal(found.embedding, expected.embedding)
    assert torch.equal(found.patches, expected.patches)
    assert not found.patches.isnan().any() and found.frames.isnan().any()


def test_clip_itself_sees_everything():
    model, video = adapter(), random_frames()
    full = model.encode_video(video).frames
    assert torch.equal(model.encode_video(video, tube_mask(2, L, 0.5)).frames, full)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_mask_that_keeps_all_is_no_mask(convention):
    model, video = adapter(convention=convention), random_frames()
    plain = model.encode_video(video)
    tube = torch.arange(L).expand(2, L)
    listed = (torch.arange(T)[:, None] * L + torch.arange(L)).expand(2, T, L)
    for keep in (tube, listed):
        masked = model.encode_video(video, keep)
        assert_close(masked.embedding, plain.embedding)
        assert_close(masked.patches, plain.patches)


@pytest.mark.usefixtures("float64")
def test_a_masked_branch_equals_the_equations_on_the_kept_patches():
    model, video = adapter(), random_frames()
    states = model.clip.layer_outputs(video, K + 1)
    weights, position = model.branch.state_dict(), model.clip.position
    keep = torch.tensor([[0, 3], [0, 3]])
    chosen = [0, 1, 4]  # the CLS token and the kept patches
    cls, patches = whole_branch([s[:, :, chosen] for s in states], weights, position[chosen])
    found = model.encode_states(states, keep)
    assert_close(found.patches, patches)
    expected = model.embed(cls, states[-1])
    assert_close(found.embedding, torch.nn.functional.normalize(expected, dim=-1))


def test_tokens_of_a_loose_mask_are_those_it_lists():
    patches = torch.arange(2 * T * L).reshape(2, T, L, 1)
    keep = torch.stack([torch.randperm(T * L)[:6].reshape(T, 2) for _ in range(2)])
    taken = gather_kept(patches, keep)
    for b in range(2):
        for t in range(T):
            for k in range(2):
                frame, place = divmod(keep[b, t, k].item(), L)
                assert taken[b, t, k] == patches[b, frame, place]


# --- settings ---


def test_the_first_branch_layer_reads_where_the_convention_says():
    for convention, first in (("paper", 0), ("released", 1)):
        model, video = adapter(convention=convention), random_frames()
        states = model.clip.layer_outputs(video, K + 1)
        assert model.config.states == K + 1 - first
        plain = model.encode_states(states).embedding
        for n, state in enumerate(states):
            changed = [s + (1.0 if i == n else 0.0) for i, s in enumerate(states)]
            changed[n] = changed[n] + torch.randn_like(state)
            same = torch.equal(model.encode_states(changed).embedding, plain)
            assert same == (n < first), (convention, n)


@pytest.mark.parametrize("projection", ["zero", "random", "none"])
@pytest.mark.parametrize("combination", ["weighted", "addition", "concatenation"])
def test_every_projection_with_every_combination(projection, combination):
    model = BTAdapter(tiny_clip(), BranchConfig(projection=projection, combination=combination))
    features = model.encode_video(random_frames())
    features.embedding[:, 0].sum().backward()
    layer = model.branch.temporal[0]
    assert hasattr(layer.project, "weight") == (projection != "none")
    if projection != "none":
        assert (layer.project.weight == 0).all() == (projection == "zero")
    names = [name for name, _ in model.branch.gates.named_parameters()]
    parameters = dict(weighted=1, addition=0, concatenation=2)[combination]
    assert len(names) == K * parameters
    moved = layer.qkv.weight.grad.abs().max() > 0
    assert moved == (projection != "zero")  # behind a zero, in the first step


@pytest.mark.usefixtures("float64")
def test_addition_is_a_sum_and_concatenation_a_linear_layer():
    branch, backbone = torch.randn(2, 5, D)
    assert torch.equal(Gate(D, "addition")(branch, backbone), branch + backbone)
    gate = Gate(D, "concatenation")
    expected = linear(torch.cat([branch, backbone], -1), gate.linear.weight, gate.linear.bias)
    assert_close(gate(branch, backbone), expected)


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_any_number_of_layers(layers, convention):
    model = adapter(layers=layers, convention=convention)
    assert model.temporal_maps(random_frames()).shape == (layers, 2, L, H, T, T)
    assert model.encode_video(random_frames()).embedding.shape == (2, 20)


def test_as_many_layers_as_clip_has_need_the_released_pairing():
    assert BTAdapter(tiny_clip(), BranchConfig(layers=5, convention="released"))
    with pytest.raises(ValueError, match="A branch of K = 5 needs 6 CLIP layers: this CLIP has 5"):
        BTAdapter(tiny_clip(), BranchConfig(layers=5))


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_no_trained_parameter_is_left_without_a_gradient(combination, convention, layers):
    """DistributedDataParallel stops at a parameter that no loss reaches."""
    model = adapter(combination=combination, layers=layers, convention=convention, align=False)
    features = model(random_frames())
    (features.embedding.sum() + features.patches.sin().sum()).backward()
    assert all(p.grad is not None for p in model.branch.parameters() if p.requires_grad)
    still = [name for name, p in model.branch.named_parameters() if not p.requires_grad]
    unread = layers == 1 and convention == "released"  # the authors' files hold this gate, too
    assert all(name.startswith("gates.0.") for name in still)
    assert bool(still) == (unread and combination != "addition")


def test_max_frames():
    model = BTAdapter(tiny_clip(), BranchConfig(max_frames=3))
    assert model.encode_video(random_frames(frames=3)).patches.shape == (2, 3, L, D)
    with pytest.raises(ValueError, match="built for at most 3 frames, not 4"):
        model.encode_video(random_frames(frames=4))


@pytest.mark.usefixtures("float64")
def test_maps_are_those_of_the_equation_and_recording_changes_nothing():
    model, video = adapter(), random_frames()
    maps = model.temporal_maps(video)
    torch.testing.assert_close(maps.sum(-1), torch.ones(K, 2, L, H, T))
    states = model.clip.layer_outputs(video, K + 1)
    patches = equation_3(states[0], model.branch.state_dict(), model.clip.position)
    layer = model.branch.temporal[0]
    qkv = layer.qkv(layer.norm(patches)).unflatten(-1, (3, H, D // H))
    scores = torch.einsum("bqlhc, bklhc -> blhqk", qkv[:, :, :, 0], qkv[:, :, :, 1])
    assert_close(maps[0], (scores / math.sqrt(D // H)).softmax(-1))
    recorded = model.encode_states(states, maps=[]).embedding
    assert_close(recorded, model.encode_states(states).embedding)


@pytest.mark.usefixtures("float64")
def test_an_eva_tower_has_a_branch_too():
    clip = tiny_eva()
    model, video = adapter(clip), random_frames()
    layer, tokens = copy_of_block(clip.blocks[0]), torch.randn(5, 1 + L, D)
    cls, patches = layer(tokens[:, 0], tokens[:, None, 1:])
    expected = clip.blocks[0](tokens)
    assert_close(torch.cat([cls[:, None], patches[:, 0]], 1), expected)
    assert layer.norm1.eps == model.branch.temporal[0].norm.eps == 1e-6
    assert model.encode_video(video).embedding.shape == (2, 20)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float64])
def test_other_precisions_agree_in_direction(precision):
    model, video = BTAdapter(tiny_clip()), random_frames()
    expected = model.encode_video(video).embedding
    other = model.to(precision).encode_video(video.to(precision)).embedding
    assert other.dtype == torch.float32 and (other.norm(dim=-1) - 1).abs().max() < 1e-6
    assert torch.nn.functional.cosine_similarity(other.float(), expected).min() > 0.99


def test_training_under_autocast():
    model, video = adapter(), random_frames()
    for combination in ("weighted", "addition", "concatenation"):
        model = adapter(combination=combination)
        with torch.autocast("cpu", torch.bfloat16):
            model.encode_video(video).embedding.sum().backward()
        assert all(
            p.grad.isfinite().all() for n, p in model.branch.named_parameters() if "align" not in n
        )


# --- files ---


def small_folder(folder, clip=None):
    BTAdapter(clip or tiny_clip(), BranchConfig(layers=2)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_saved_and_loaded_is_bit_equal(tmp_path, convention):
    clip = tiny_clip()
    model = adapter(clip, layers=3, max_frames=9, convention=convention, final="addition")
    model.save_pretrained(tmp_path / "made" / "on the way")
    again = BTAdapter.from_pretrained(tmp_path / "made" / "on the way", clip)
    assert again.config == model.config and not any(m.training for m in again.modules())
    pairs = zip(model.branch.state_dict().items(), again.branch.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    video = random_frames()
    assert torch.equal(again.encode_video(video).embedding, model.encode_video(video).embedding)
    assert not list((tmp_path / "made" / "on the way").glob("*.part"))


def test_another_clip_of_the_same_sizes_is_refused(tmp_path):
    small_folder(tmp_path)
    with pytest.raises(ValueError, match=r"tiny with [0-9a-f]{12} is another CLIP"):
        BTAdapter.from_pretrained(tmp_path, tiny_clip(seed=1))


@pytest.mark.parametrize("pretrained", ["random", None])
def test_a_refusal_says_that_the_saved_clip_had_random_weights(tmp_path, pretrained):
    clip = tiny_clip()
    clip.name, clip.pretrained = "ViT-S-32-alt", pretrained
    small_folder(tmp_path, clip)
    assert BTAdapter.from_pretrained(tmp_path, clip).clip is clip
    with pytest.raises(ValueError, match="It had random weights, which are drawn anew"):
        BTAdapter.from_pretrained(tmp_path, tiny_clip(seed=1))


def test_an_adapter_keeps_the_activation_of_its_clip(tmp_path):
    small_folder(tmp_path, tiny_clip())
    settings = json.loads((tmp_path / "adapter.json").read_text())
    assert settings["backbone"]["activation"] == "gelu"
    with pytest.raises(ValueError, match="activation gelu, and this tiny runs with quickgelu"):
        BTAdapter.from_pretrained(tmp_path, tiny_clip(quick_gelu=True))
    del settings["backbone"]["activation"]  # as folders were written before
    (tmp_path / "adapter.json").write_text(json.dumps(settings))
    BTAdapter.from_pretrained(tmp_path, tiny_clip())


def test_adapter_weights_that_are_no_numbers_are_told_with_file_and_tensor(tmp_path):
    clip = tiny_clip()
    model = BTAdapter(clip, BranchConfig(layers=2))
    model.branch.video_cls.data[3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="safetensors holds NaN or infinity, first in video_cls"):
        BTAdapter.from_pretrained(tmp_path, clip)


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_cut_file_is_one_sentence(tmp_path, name, share):
    path = small_folder(tmp_path) / name
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"is damaged and cannot be read: \S"):
        BTAdapter.from_pretrained(tmp_path, tiny_clip())


def test_a_repository_of_the_hub_is_a_folder(tmp_path, monkeypatch):
    import huggingface_hub

    clip = tiny_clip()
    BTAdapter(clip, BranchConfig(layers=1)).save_pretrained(tmp_path)
    asked = []

    def fetch(name, revision, allow_patterns):
        asked.append((name, revision))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    again = BTAdapter.from_pretrained("someone/an-adapter", clip)
    assert again.config.layers == 1
    BTAdapter.from_pretrained("someone/an-adapter@v1.0", clip)
    BTAdapter.from_pretrained("someone/an-adapter", clip, revision="0123abc")
    BTAdapter.from_pretrained("someone/an-adapter@v1.0", clip, revision="v1.0")
    assert asked == [("someone/an-adapter", r) for r in (None, "v1.0", "0123abc", "v1.0")]
    with pytest.raises(ValueError, match="names another revision than 'v2'"):
        BTAdapter.from_pretrained("someone/an-adapter@v1.0", clip, revision="v2")
    with pytest.raises(ValueError, match="Only a hub's OWNER/NAME has revisions"):
        BTAdapter.from_pretrained(tmp_path, clip, revision="v2")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: 1 / 0)
    with pytest.raises(ValueError, match="no folder here, and the model hub does not give it"):
        BTAdapter.from_pretrained("someone/nothing", clip)


class FakeHub:
    "Keeps what would be sent to the hub."

    def __init__(self, token=None):
        self.calls.append(("token", token))

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("repository", repo_id, private, exist_ok))

    def create_branch(self, repo_id, *, branch, exist_ok):
        self.calls.append(("branch", repo_id, branch, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.calls.append(("files", repo_id, revision, files))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


def test_an_adapter_goes_to_the_hub_in_one_commit_with_a_card(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(FakeHub, "calls", [], raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    clip = tiny_clip()
    model = adapter(clip, layers=2, max_frames=9)
    told = dict(made="40 steps on 3 clips", license_id="apache-2.0", private=True, token="secret")
    where = model.push_to_hub("someone/small", revision="v1", **told)
    assert where == "https://hub/someone/small/commit/1"
    token, repository, branch, (kind, name, revision, files) = FakeHub.calls
    assert token == ("token", "secret") and repository == (
        "repository",
        "someone/small",
        True,
        True,
    )
    assert branch == ("branch", "someone/small", "v1", True)
    assert (kind, name, revision) == ("files", "someone/small", "v1")
    assert sorted(files) == ["README.md", "adapter.json", "adapter.safetensors"]
    card = files.pop("README.md").decode()
    for part in ("tiny", clip.fingerprint, "max_frames 9", "40 steps on 3 clips", "apache-2.0"):
        assert part in card
    assert huggingface_hub.ModelCard(card).data.license == "apache-2.0"
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    again = BTAdapter.from_pretrained(tmp_path, clip)
    assert all(map(torch.equal, again.branch.parameters(), model.branch.parameters()))
    FakeHub.calls.clear()
    model.push_to_hub("someone/small")
    *_, (_, _, revision, files) = FakeHub.calls
    assert revision is None and "its maker has named none" in files["README.md"].decode()
    assert huggingface_hub.ModelCard(files["README.md"].decode()).data.license is None


@pytest.mark.parametrize("fails", [0, 1, 2, 3])
def test_no_interruption_leaves_new_weights_beside_old_settings(tmp_path, monkeypatch, fails):
    """The disk is full at the first or second file, or the process ends at either replacement."""
    clip = tiny_clip()
    old, new = adapter(clip, layers=2), adapter(clip, seed=2, layers=2, combination="addition")
    old.save_pretrained(tmp_path)
    steps, write, replace = [], Path.write_bytes, os.replace

    def counted(step, error):
        def act(*args):
            steps.append(step)
            if len(steps) == fails + 1:
                raise error
            return step(*args)

        return act

    error = OSError(28, "No space left on device") if fails < 2 else KeyboardInterrupt()
    monkeypatch.setattr(Path, "write_bytes", counted(write, error))
    monkeypatch.setattr(os, "replace", counted(replace, error))
    sentence = "cannot be written: No space left" if fails < 2 else None
    with pytest.raises(type(error), match=sentence):
        new.save_pretrained(tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob(".*"))
    if fails < 2:
        found = BTAdapter.from_pretrained(tmp_path, clip)
        assert found.config == old.config
        assert torch.equal(found.branch.time, old.branch.time)
    else:
        with pytest.raises(ValueError, match=r"adapter\.json missing"):
            BTAdapter.from_pretrained(tmp_path, clip)


def test_a_missing_folder_and_a_missing_file_are_told_apart_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"adapter\.json and adapter\.safetensors missing"):
        BTAdapter.from_pretrained(tmp_path / "nowhere", tiny_clip())
    (small_folder(tmp_path) / "adapter.json").unlink()
    with pytest.raises(ValueError, match=r"no adapter folder: adapter\.json missing\.$"):
        BTAdapter.from_pretrained(tmp_path, tiny_clip())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (dict(layers=3), "does not fit its own configuration: "),
        (dict(max_frames=2), "does not fit its own configuration: "),
        (dict(combination="sum"), "combination must be one of"),
        (dict(colour="blue"), "cannot be read"),
    ],
)
def test_a_changed_configuration_is_one_sentence(tmp_path, change, sentence):
    path = small_folder(tmp_path) / "adapter.json"
    settings = json.loads(path.read_text())
    settings["branch"] |= change
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=sentence) as caught:
        BTAdapter.from_pretrained(tmp_path, tiny_clip())
    assert "\n" not in str(caught.value)


def test_weights_that_are_nearly_all_missing_are_one_short_sentence(tmp_path):
    from hashlib import sha256

    from safetensors.torch import load_file, save

    folder = small_folder(tmp_path)
    settings = json.loads((folder / "adapter.json").read_text())
    weights = save({"time": load_file(folder / "adapter.safetensors")["time"]})
    (folder / "adapter.safetensors").write_bytes(weights)
    (folder / "adapter.json").write_text(
        json.dumps(settings | dict(sha256=sha256(weights).hexdigest()))
    )
    with pytest.raises(ValueError, match="does not fit its own configuration: Missing") as caught:
        BTAdapter.from_pretrained(folder, tiny_clip())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(folder))


# --- refusals ---


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(projection="big"), "projection must be one of zero, random, none, not 'big'"),
        (dict(combination="sum"), "combination must be one of weighted, addition, concatenation"),
        (dict(final="sum"), "final must be one of None, weighted"),
        (dict(convention="mine"), "convention must be one of paper, released"),
        (dict(layers=0), "layers must be a whole number, 1 or more, not 0"),
        (dict(layers=True), "layers must be a whole number"),
        (dict(max_frames=2.5), "max_frames must be a whole number, 1 or more, not 2.5"),
    ],
    ids=str,
)
def test_a_setting_that_does_not_exist_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        BranchConfig(**settings)


@pytest.mark.parametrize(
    "frames",
    [torch.zeros(2, 3, 16, 16), torch.zeros(1, 2, 3, 8, 8), torch.zeros(1, 0, 3, 16, 16)],
    ids=lambda x: str(tuple(x.shape)),
)
def test_frames_of_a_wrong_shape_are_one_sentence(frames):
    with pytest.raises(ValueError, match=r"^frames must be \(b, t, 3, 16, 16\)"):
        BTAdapter(tiny_clip()).encode_video(frames)


def test_too_few_states_and_a_mask_of_another_clip_are_refused():
    model = BTAdapter(tiny_clip())
    states = model.clip.layer_outputs(random_frames(), K + 1)
    with pytest.raises(ValueError, match="reads 5 states, not 4"):
        model.encode_states(states[1:])
    for keep in (torch.tensor([[0, 1]]), torch.tensor([[0], [9]]), torch.zeros(2, 1, 1, 1).long()):
        with pytest.raises(ValueError, match=r"^keep must"):
            model.encode_states(states, keep)


@pytest.mark.parametrize("kernels", [False, True])
def test_places_that_are_not_there_are_refused_before_anything_reads_them(kernels):
    model = by_kernels(adapter()) if kernels else adapter()
    states = model.clip.layer_outputs(random_frames(), K + 1)
    tube, loose = torch.tensor([[0, 2], [1, 3]]), torch.zeros(2, T, 2, dtype=torch.long)
    for keep, last in ((tube, L), (loose, T * L)):
        model.encode_states(states, keep)
        for wrong in (-1, last):
            keep = keep.clone()
            keep[1, 0] = wrong
            with pytest.raises(
                ValueError, match=f"^keep must hold whole numbers from 0 to {last - 1}"
            ):
                model.encode_states(states, keep)
    for mask in (torch.ones(2, L, dtype=torch.bool), torch.ones(2, T, L, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"mask\.nonzero\(\)\[:, 1\]"):
            model.encode_states(states, mask)


def test_layers_of_another_design_are_refused_by_name():
    with pytest.raises(ValueError, match="EVA-01, not Linear"):
        Branch([torch.nn.Linear(2, 2)], BranchConfig(layers=1), 2)
    with pytest.raises(ValueError, match="EVA-01, not EvaBlock"):
        BTAdapter(tiny_eva(swiglu_mlp=True))
    with pytest.raises(ValueError, match="not ResidualAttentionBlock"):
        BTAdapter(tiny_clip(ls_init_value=0.1))


def test_importing_the_branch_needs_neither_open_clip_nor_matplotlib():
    code = (
        "import bt_adapter.branch, sys; print(sorted({'open_clip', 'matplotlib'} & {*sys.modules}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# --- by kernels ---


def by_kernels(model):
    pytest.importorskip("triton")
    for layer in model.branch.temporal:
        layer.backend = "triton"
    return model


@pytest.mark.usefixtures("mended")
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("masked", [False, True])
def test_the_branch_by_kernels_is_the_branch(masked, convention):
    keep, video = torch.tensor([[0, 2], [1, 3]]) if masked else None, random_frames()
    results = []
    for prepare in (lambda model: model, by_kernels):
        model = prepare(adapter(convention=convention))
        features, maps = model.encode_video(video, keep), []
        parameters = dict(model.branch.named_parameters())
        used = [p for name, p in parameters.items() if not name.startswith("align")]
        loss = features.embedding.sin().sum() + features.patches.cos().sum()
        gradients = torch.autograd.grad(loss, used)
        states = model.clip.layer_outputs(video, model.config.states)
        model.encode_states(states, keep, maps)
        results.append([features.embedding, features.patches, *gradients, *maps])
    for ours, expected in zip(*results, strict=True):
        assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-5


def test_the_backend_of_a_layer_decides_on_a_gpu_too():
    pytest.importorskip("triton")
    layer = TemporalLayer(D, H, "random")
    patches = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    assert layer.by_kernels(patches)
    for layer.backend in ("reference", "bmm", "sdpa"):
        assert not layer.by_kernels(patches)
    layer.backend = "triton"
    assert layer.by_kernels(patches)
    patches.dtype = torch.float64
    assert not layer.by_kernels(patches)
    layer.backend = "cuda"
    with pytest.raises(ValueError, match="backend must be one of reference, sdpa, bmm, triton"):
        layer(torch.zeros(1, T, L, D))


def test_the_model_and_its_settings_come_from_one_module():
    branch, layers, settings = (
        import_module(f"bt_adapter.{name}") for name in ("branch", "branch_layers", "branch_config")
    )
    for home, names in (
        (layers, ["Gate", "SpatialLayer", "TemporalLayer"]),
        (settings, ["BranchConfig", "COMBINATIONS", "CONVENTIONS", "Convention"]),
    ):
        assert all(getattr(branch, name) is getattr(home, name) for name in names)
        assert {*names} <= {*branch.__all__}


@pytest.mark.parametrize("autocast", [False, True])
def test_weights_are_folded_in_fp32_where_bf16_is_emulated(autocast, monkeypatch):
    from bt_adapter import folding

    module, seen = import_module("bt_adapter.temporal_attention"), []
    kind = torch.float32 if autocast else torch.bfloat16
    a, b = torch.randn(2, D, D).to(kind).unbind()

    class Products(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if op._schema.name == "aten::mm":
                seen.append(args[0].dtype)
            return op(*args, **(kwargs or {}))

    results = []
    for fast in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(module, "fast_dtype", lambda fast=fast: fast)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Products():
            results.append(folding.weight_product(a, b))
    assert seen == [torch.bfloat16, torch.float32]
    assert results[1].dtype == kind
    exact = a.double() @ b.double()
    assert (results[1] - exact).abs().max() <= 4e-3 * exact.abs().max()


@pytest.mark.usefixtures("mended")
@pytest.mark.parametrize("combination", ["addition", "concatenation"])
def test_other_combinations_by_kernels(combination):
    plain, kernels = (adapter(combination=combination) for _ in range(2))
    by_kernels(kernels)
    loose = (torch.arange(T)[:, None] * L + torch.tensor([1, 3])).expand(2, T, 2)
    for keep in (None, loose):
        ours, expected = (m.encode_video(random_frames(), keep) for m in (kernels, plain))
        largest = expected.patches.abs().max()
        assert (ours.patches - expected.patches).abs().max() <= 1e-5 * largest


def test_by_kernels_a_clip_that_is_too_long_is_refused():
    model = by_kernels(adapter(max_frames=2))
    with pytest.raises(ValueError, match="at most 2 frames, not 3"):
        model.encode_video(random_frames())


@pytest.mark.parametrize("projection", ["zero", "random", "none"])
@pytest.mark.parametrize("patches", [2, 40])  # fewer tokens than the width, and more
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_folding_changes_nothing(kind, patches, projection):
    layer, x = TemporalLayer(D, H, projection).to(kind), torch.randn(1, T, patches, D).to(kind)
    if projection != "zero":
        shake(layer)
    x.requires_grad_()
    unfolded = x + layer.project(layer.out(layer.attend(layer.norm(x))))
    assert (x.numel() < layer.out.weight.numel()) == (patches == 2)
    limit = 1e-5 if kind == torch.float32 else 3e-2
    assert (layer(x) - unfolded).abs().max() <= limit * unfolded.abs().max()
    weights = [x, *(p for p in layer.parameters())]
    pairs = [torch.autograd.grad(y.float().sin().sum(), weights) for y in (layer(x), unfolded)]
    for ours, expected in zip(*pairs):
        assert (ours - expected).abs().max() <= 3 * limit * expected.abs().max() + limit


def test_autocast_does_not_round_the_residual():
    layer, x = TemporalLayer(D, H, "random"), torch.randn(1, T, 40, D)
    nothing = torch.zeros_like(layer.project.weight)
    layer.project.weight.data, layer.project.bias.data = nothing, nothing[0].clone()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), x)


# --- bytes ---


def clip_attention(layer, x):
    """Eq. 2 by CLIP's eager attention: three projections, products of permuted copies."""
    patches = x.permute(0, 2, 1, 3).flatten(0, 1)
    normed = layer.norm(patches.contiguous())
    weights, biases = layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3)
    split = [torch.nn.functional.linear(normed, w, b) for w, b in zip(weights, biases)]
    query, key, value = (y.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for y in split)
    maps = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
    mixed = layer.project(layer.out((maps @ value).transpose(1, 2).flatten(2)))
    return x + mixed.unflatten(0, (len(x), -1)).permute(0, 2, 1, 3)


def one_linear_and_sdpa(layer, x):
    patches = x.permute(0, 2, 1, 3).flatten(0, 1)
    qkv = layer.qkv(layer.norm(patches.contiguous())).unflatten(-1, (3, layer.heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    mixed = layer.project(layer.out(mixed.transpose(1, 2).flatten(2)))
    return x + mixed.unflatten(0, (len(x), -1)).permute(0, 2, 1, 3)


def layer_traffic(run, device):
    """Bytes of one temporal layer, forward and backward, in units of one activation."""
    layer = TemporalLayer(64, 4, "random").to(device)
    layer.backend = "triton"
    x = torch.randn(1, 8, 256, 64, device=device, requires_grad=True)
    upstream = torch.randn(1, 8, 256, 64, device=device)
    moved = operation_bytes(lambda: run(layer, x).backward(upstream))
    return moved.total() / (x.numel() * x.itemsize)


def test_a_temporal_layer_moves_less_than_half_of_the_bytes():
    pytest.importorskip("triton")
    fused = layer_traffic(TemporalLayer.forward, "meta")
    eager, sdpa = (layer_traffic(run, "cpu") for run in (clip_attention, one_linear_and_sdpa))
    assert eager >= 2.2 * fused and sdpa >= 1.6 * fused, (eager, sdpa, fused)


@pytest.mark.usefixtures("float64")
def test_the_layers_that_are_compared_compute_the_same():
    layer, x = TemporalLayer(D, H, "random"), torch.randn(2, T, L, D)
    for run in (clip_attention, one_linear_and_sdpa):
        assert_close(run(layer, x), layer(x))
