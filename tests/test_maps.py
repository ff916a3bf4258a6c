"""Attention maps of other models than the shipped one: exact, and right in every shape."""

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from tiny import shake, tiny_clip, tiny_eva

from bt_adapter import map_figures, relevance
from bt_adapter import maps as m
from bt_adapter.backbone import record_outputs
from bt_adapter.branch import BranchConfig, BTAdapter, Gate

CLIPS = {
    "open_clip": tiny_clip,
    "rectangular": lambda: tiny_clip(image_size=(16, 32)),
    "EVA": tiny_eva,
    "B/32's grid": lambda: tiny_clip(image_size=224, patch_size=32),
    "L/14's grid": lambda: tiny_clip(image_size=224, patch_size=14),
}


def adapter(clip, **config):
    clip.preprocess = clip.preprocess | dict(mean=(0.5,) * 3, std=(0.25,) * 3)
    model = BTAdapter(clip, BranchConfig(**({"layers": 2, "max_frames": 16} | config)))
    shake(model.branch)
    return model.eval()


class Words(torch.nn.Module):
    """Stands for a text tower: a caption is its own seed."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def encode_text(self, texts):
        rows = [
            torch.randn(self.width, generator=torch.Generator().manual_seed(len(t))) for t in texts
        ]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def with_words(model):
    model.encode_text = Words(model.clip.joint_width).encode_text
    return model


@pytest.fixture(params=list(CLIPS))
def model(request):
    return with_words(adapter(CLIPS[request.param]()))


def noise(model, batch=2, frames=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, frames, 3, *model.clip.image_size, generator=generator)


def heard_in(modules, call):
    handles = record_outputs(modules, heard := [])
    call()
    for handle in handles:
        handle.remove()
    return heard


def test_temporal_weights_times_values_are_the_layer(model):
    frames = noise(model)
    maps = m.temporal_maps(model, frames)
    heads, patches = model.branch.spatial[0].heads, model.clip.grid[0] * model.clip.grid[1]
    assert maps.shape == (2, 2, patches, heads, 3, 3)
    for layer, weights in zip(model.branch.temporal, maps):
        (whole,) = heard_in([layer], lambda: model.encode_video(frames))
        normed, qkv = heard_in([layer.norm, layer.qkv], lambda: m.temporal_maps(model, frames))
        values = rearrange(qkv, "b t l (n h c) -> n b l h t c", n=3, h=heads)[2]
        update = layer.project(layer.out(rearrange(weights @ values, "b l h t c -> b t l (h c)")))
        (entering,) = inputs_of(layer, lambda: model.encode_video(frames))
        torch.testing.assert_close(entering + update, whole, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer.norm(entering), normed, atol=1e-5, rtol=1e-5)


def inputs_of(module, call):
    seen = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    call()
    handle.remove()
    return seen


@pytest.mark.parametrize("tower", ["branch", "clip"])
def test_spatial_weights_times_values_are_the_layer(model, tower):
    frames, layer = noise(model), 1
    block = model.branch.spatial[1] if tower == "branch" else model.clip.blocks[1]
    norm, weight, bias = m._entrance(block)
    out = block.out if tower == "branch" else block.attn
    tokens, given = heard_in(
        [norm, out],
        lambda: model.clip.encode_video(frames) if tower == "clip" else model.encode_video(frames),
    )
    given = given[0] if isinstance(given, tuple) else given
    maps = m.spatial_maps(model, frames, layer, tower)
    heads = maps.shape[2]
    values = torch.nn.functional.linear(tokens, weight, bias)
    values = rearrange(values, "n s (three h c) -> three n h s c", three=3, h=heads)[2]
    mixed = rearrange(maps.flatten(0, 1) @ values, "n h s c -> n s (h c)")
    project = (
        block.out if tower == "branch" else getattr(block.attn, "out_proj", None) or block.attn.proj
    )
    torch.testing.assert_close(project(mixed), given, atol=1e-5, rtol=1e-4)


def test_on_demand_is_a_part_of_all(model):
    frames = noise(model)
    for tower in ("branch", "clip"):
        every = m.spatial_maps(model, frames, 0, tower)
        torch.testing.assert_close(every.sum(-1), torch.ones(every.shape[:-1]))
        some = m.spatial_maps(model, frames, 0, tower, heads=[1, 0], at=[2], queries=[3, 0, 1])
        expected = every[:, [2]][:, :, [1, 0]][:, :, :, [3, 0, 1]]
        torch.testing.assert_close(some, expected, atol=1e-6, rtol=1e-5)


def explicit_relevance(model, frames, captions):
    """The same walk with matrices over all tokens, and autograd for the weights' gradient."""
    states = model.clip.layer_outputs(frames, model.config.states)
    _, heard = relevance.record_branch(model, states)
    shape = states[0][:, :, 1:, 0].shape
    pairs = zip(heard.time_qkv, heard.space_qkv)
    parts = [split(*pair, model.branch.spatial[0].heads, shape[0]) for pair in pairs]
    gradients = gradients_of_weights(model, states, captions)
    found, row = 0, torch.zeros(shape[0], 1, 1 + shape[1:].numel())
    row[:, :, 0] = 1
    for level in reversed(range(len(parts))):
        over_time, over_space = (
            (w * g).clamp(min=0).mean(2) for w, g in zip(parts[level], gradients[level])
        )
        row = row + row @ space_matrix(over_space)
        row = row + row @ time_matrix(over_time)
        gate = model.branch.gates[0 if model.branch.rules.one_gate else level - 1]
        share = relevance.branch_share(gate) if level else 0
        found, row = found + (1 - share) * row, share * row
    return found[:, 0, 1:].reshape(shape)


def split(time, space, heads, b):
    """Weights over time (b, l, h, t, t) and over space (b, t, h, s, s)."""
    time = rearrange(time, "b t l (n h c) -> n b l h t c", n=3, h=heads)
    space = rearrange(space, "(b t) s (n h c) -> n b t h s c", n=3, h=heads, b=b)
    return [(x[0] @ x[1].mT * x.shape[-1] ** -0.5).softmax(-1) for x in (time, space)]


def gradients_of_weights(model, states, captions):
    """d score / d weights of every layer, by putting the weights into the graph as leaves."""
    texts, leaves = model.encode_text(captions), []
    originals = [(layer.forward, layer) for layer in model.branch.temporal]
    attends = [(layer.attend, layer) for layer in model.branch.spatial]

    def time_forward(layer):
        def forward(x, maps=None):
            qkv = layer.qkv(layer.norm(x))
            q, k, v = rearrange(qkv, "b t l (n h c) -> n b l h t c", n=3, h=layer.heads)
            weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
            leaves.append(weights)
            mixed = rearrange(weights @ v, "b l h t c -> b t l (h c)")
            return x + layer.project(layer.out(mixed))

        return forward

    def space_attend(layer):
        def attend(tokens):
            q, k, v = rearrange(
                layer.qkv(layer.norm1(tokens)), "n s (i h c) -> i n h s c", i=3, h=layer.heads
            )
            weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
            leaves.append(weights)
            return layer.out(rearrange(weights @ v, "n h s c -> n s (h c)"))

        return attend

    for layer in model.branch.temporal:
        layer.forward = time_forward(layer)
    for layer in model.branch.spatial:
        layer.attend = space_attend(layer)
    score = (model.encode_states(states).embedding * texts).sum()
    gradients = torch.autograd.grad(score, leaves)
    for original, layer in originals:
        layer.forward = original
    for original, layer in attends:
        layer.attend = original
    b = len(texts)
    pairs = zip(gradients[::2], gradients[1::2])
    return [(time, rearrange(space, "(b t) h q s -> b t h q s", b=b)) for time, space in pairs]


def space_matrix(maps):
    """(b, t, s, s) of the frames as one matrix over (video CLS, t l)."""
    b, t, s, _ = maps.shape
    whole = torch.zeros(b, 1 + t * (s - 1), 1 + t * (s - 1))
    for i in range(t):
        places = [0, *range(1 + i * (s - 1), 1 + (i + 1) * (s - 1))]
        for q, place in enumerate(places):
            whole[:, place, places] += maps[:, i, q]
    return whole


def time_matrix(maps):
    """(b, l, t, t) as one matrix over (video CLS, t l)."""
    b, patches, frames, _ = maps.shape
    whole = torch.zeros(b, 1 + frames * patches, 1 + frames * patches)
    for j in range(patches):
        places = torch.tensor([1 + i * patches + j for i in range(frames)])
        whole[:, places[:, None], places] = maps[:, j]
    return whole


@pytest.mark.parametrize("convention", ["paper", "released"])
@pytest.mark.parametrize("kind", ["open_clip", "rectangular", "EVA"])
def test_relevance_is_the_walk_over_whole_matrices(kind, convention):
    model = with_words(adapter(CLIPS[kind](), layers=3, convention=convention))
    for gate in model.branch.gates:
        gate.w_b.data *= 0.02  # the released scales would close or open every channel
    frames, captions = noise(model), ["one", "seven"]
    found = relevance.relevance(model, frames, captions)
    expected = explicit_relevance(model, frames, captions)
    assert found.heat.max() > 0
    torch.testing.assert_close(found.heat, expected, atol=1e-7, rtol=1e-3)
    video = model.encode_video(frames).embedding
    torch.testing.assert_close(found.scores, (video * model.encode_text(captions)).sum(-1).detach())
    assert all(p.grad is None for p in model.parameters())


def test_relevance_needs_no_trainable_parameters():
    model = with_words(adapter(tiny_clip()))
    expected = relevance.relevance(model, noise(model), ["a", "bc"]).heat
    model.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(relevance.relevance(model, noise(model), ["a", "bc"]).heat, expected)


def test_rollout_hands_on_everything(model):
    frames = noise(model)
    shares = relevance.rollout(model, frames)
    assert shares.min() >= 0 and (shares.sum((1, 2)) < 1 + 1e-5).all()
    from_patch = relevance.rollout(model, frames, start=(1, 2)).sum((1, 2))
    assert (from_patch > 0.1).all() and (from_patch < 1 + 1e-5).all()
    # with CLS shut out of the attention, nothing is lost
    layers = [(torch.eye(3).expand(2, 4, 3, 3) / 2, torch.eye(5).expand(2, 3, 5, 5) / 2)] * 2
    patches = torch.rand(2, 3, 4)
    found = relevance.backtrack_branch(
        adapter(tiny_clip()), layers, torch.zeros(2), patches, stays=0.5
    )
    torch.testing.assert_close(found, patches)


@pytest.mark.parametrize("frames", [1, 2, 16])
def test_any_number_of_frames(frames):
    model = with_words(adapter(CLIPS["rectangular"]()))
    given = noise(model, batch=1, frames=frames)
    maps = m.temporal_maps(model, given)
    assert maps.shape[-2:] == (frames, frames)
    assert (
        m.attention_entropy(maps).isfinite().all() and m.attention_distance(maps).isfinite().all()
    )
    assert relevance.relevance(model, given, ["x"]).heat.shape == (1, frames, 8)
    sensitive = m.shuffle_sensitivity(model, given)
    assert sensitive.abs().max() < 1e-5 if frames == 1 else sensitive.min() > 0
    clip = torch.randint(256, (frames, 40, 100, 3), dtype=torch.uint8)
    pictures = [
        map_figures.patch_figure(model, clip, (1, 3), frames - 1),
        map_figures.time_figure(maps),
        map_figures.relevance_figure(model, clip, ["x", "$x^2$ <b>"]),
        map_figures.gate_figure(model),
    ]
    assert all(len(p.png()) > 1000 for p in pictures)


def test_half_precision():
    model = with_words(adapter(tiny_clip()).bfloat16())
    frames = noise(model).bfloat16()
    assert relevance.relevance(model, frames, ["a", "b"]).heat.isfinite().all()
    assert relevance.rollout(model, frames).isfinite().all()
    assert m.spatial_maps(model, frames, 0).sum(-1).float().sub(1).abs().max() < 0.05


def test_gate_shares_of_one_gate_for_all_layers():
    model = adapter(tiny_clip(), layers=3, convention="released")
    shares = m.gate_shares(model)
    assert shares.shape == (3, 24) and torch.equal(shares[0], shares[1])
    torch.testing.assert_close(shares[0], (-100 * model.branch.gates[0].w_b).sigmoid().detach())
    with pytest.raises(ValueError, match="adds or concatenates"):
        m.gate_shares(adapter(tiny_clip(), combination="addition"))
    assert (
        relevance.rollout(adapter(tiny_clip(), combination="concatenation"), noise(model)).sum() > 0
    )


def test_the_share_of_a_gate_has_one_formula(monkeypatch):
    model = adapter(tiny_clip())
    monkeypatch.setattr(Gate, "share", lambda gate: torch.full_like(gate.w_b, 0.25))
    assert (m.gate_shares(model) == 0.25).all()
    assert relevance.branch_share(model.branch.gates[0]) == 0.25


@pytest.mark.parametrize("size", [(16, 32), (32, 16), (16, 16)])
@pytest.mark.parametrize("shape", [(50, 90), (90, 50), (64, 64)])
def test_the_part_shown_is_the_part_seen(size, shape):
    """A bright dot in a corner of the part is in the corner of what CLIP takes."""
    clip = adapter(tiny_clip(image_size=size)).clip
    film = torch.zeros(1, *shape, 3, dtype=torch.uint8)
    part = m.seen_part(film, size)
    part[:, :8, :8] = 255  # a view: the film changes
    seen = clip.transform(film)[0].mean(0)
    assert seen.max() > 1 and max(divmod(int(seen.argmax()), size[1])) < 5
    assert abs(part.shape[1] * size[1] - part.shape[2] * size[0]) <= max(size)  # its proportions


def test_figures_are_as_wide_as_asked(tmp_path):
    model = with_words(adapter(tiny_clip()))
    clip = torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8)
    picture = map_figures.relevance_figure(model, clip, ["a caption of some length"])
    picture.save(tmp_path / "a.png", width=3.3, dpi=200)
    assert abs(Image.open(tmp_path / "a.png").width - 660) <= 2
    picture.save(tmp_path / "a.svg", width=3.3)
    assert 'width="237.60pt"' in (tmp_path / "a.svg").read_text()[:2000]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "a.svg"]


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x: m.spatial_maps(model, x, 2),
        lambda model, x: m.spatial_maps(model, x, -1),
        lambda model, x: m.spatial_maps(model, x, 0, "text"),
        lambda model, x: m.spatial_maps(model, x, 0, heads=[3]),
        lambda model, x: m.spatial_maps(model, x, 0, at=[3]),
        lambda model, x: m.spatial_maps(model, x, 0, queries=[5]),
        lambda model, x: relevance.rollout(model, x, start=(3, 0)),
        lambda model, x: relevance.rollout(model, x, start=(0, 4)),
        lambda model, x: relevance.relevance(model, x, ["one for two"]),
        lambda model, x: map_figures.patch_figure(
            model, torch.zeros(3, 16, 16, 3, dtype=torch.uint8), (2, 0), 0
        ),
        lambda model, x: m.temporal_maps(model, x[0]),
    ],
)
def test_refusals_are_one_sentence(call):
    model = with_words(adapter(tiny_clip()))
    with pytest.raises(ValueError) as raised:
        call(model, noise(model))
    assert "\n" not in str(raised.value) and str(raised.value).endswith(".")
    assert np.size(raised.value.args) == 1
