"""Interventions: exact, exact when undone, in any order, on any adapter; and what they refuse."""

from contextlib import ExitStack
from copy import deepcopy

import pytest
import torch
from einops import rearrange
from test_maps import CLIPS, adapter, noise
from tiny import tiny_clip

from bt_adapter import interventions as iv
from bt_adapter.branch import BTAdapter

FRAMES = 3
ODD = {
    "open_clip": lambda: adapter(tiny_clip(), layers=3),
    "rectangular": lambda: adapter(CLIPS["rectangular"](), layers=2),
    "EVA": lambda: adapter(CLIPS["EVA"](), layers=3, combination="addition"),
    "released": lambda: adapter(tiny_clip(), layers=3, convention="released"),
    "one layer, no W_t": lambda: adapter(tiny_clip(), layers=1, projection="none"),
    "one head": lambda: adapter(tiny_clip(head_width=24), layers=2, combination="concatenation"),
}
KINDS = {
    "knock_out": lambda model, x: iv.knock_out(model, [(0, 0)]),
    "knock_out all": lambda model, x: iv.knock_out(model, None),
    "block": lambda model, x: iv.block(model, 0, None, [1]),
    "block_patches": lambda model, x: iv.block_patches(model, 0, 0, [1, 3], frames=[0, 2]),
    "patch_from": lambda model, x: iv.patch_from(model, x, x.flip(1), [(0, 0)]),
    "patch in places": lambda model, x: iv.patch_from(model, x, x.flip(1), None, 0, [2, 3]),
    "freeze_time": lambda model, x: iv.freeze_time(model),
    "freeze_time at a frame": lambda model, x: iv.freeze_time(model, 1),
    "shuffle": lambda model, x: iv.shuffle(model, seed=3),
}


@pytest.fixture(params=list(ODD))
def model(request):
    return ODD[request.param]()


@pytest.fixture
def plain():
    return ODD["open_clip"]()


def left_behind(model):
    """Methods that hide those of a class."""
    modules = model.branch.modules()
    return [(type(m).__name__, n) for m in modules for n in vars(m) if hasattr(type(m), n)]


@torch.no_grad()
def run(model, x, keep=None):
    found = model.encode_video(x, keep)
    return found.embedding, found.patches


def same(one, two):
    return all(map(torch.equal, one, two))


@pytest.mark.parametrize("kind", list(KINDS))
def test_undone_is_undone(model, kind):
    x, weights = noise(model, frames=FRAMES), deepcopy(model.state_dict())
    before, attributes = run(model, x), left_behind(model)
    with KINDS[kind](model, x):
        changed = run(model, x)
    assert not torch.allclose(changed[1], before[1], atol=1e-4), "nothing was changed"
    assert same(run(model, x), before)
    with pytest.raises(ZeroDivisionError), KINDS[kind](model, x):
        run(model, x)
        raise ZeroDivisionError
    assert same(run(model, x), before) and left_behind(model) == attributes
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def test_an_error_while_the_model_runs_leaves_nothing(plain):
    x = noise(plain, frames=FRAMES)
    before = run(plain, x)
    for change, wrong in (
        (iv.block(plain, 1, 0, [0, 1, 2]), x),
        (iv.patch_from(plain, x, x.flip(1)), x[:1]),
        (iv.shuffle(plain, [1, 0]), x),
        (iv.shuffle(plain), x[:, :1]),
        (iv.freeze_time(plain, 9), x),
    ):
        with pytest.raises(ValueError) as told, change:
            run(plain, wrong)
        assert "\n" not in str(told.value) and str(told.value).endswith(".")
        assert same(run(plain, x), before) and not left_behind(plain)


def slow_layer(layer, out=(), blocked=(), donor=None):
    """Eq. 2 frame by frame, patch by patch and head by head."""

    def forward(x, maps=None):
        qkv = rearrange(
            layer.qkv(layer.norm(x)), "b t l (k h n) -> k b t l h n", k=3, h=layer.heads
        )
        query, key, value = qkv
        found = torch.zeros_like(value)
        for head in set(range(layer.heads)) - set(out):
            seen = [j for j in range(x.shape[1]) if (head, j) not in blocked]
            for i in range(x.shape[1]):
                scores = [(query[:, i, :, head] * key[:, j, :, head]).sum(-1) for j in seen]
                shares = (torch.stack(scores) / query.shape[-1] ** 0.5).softmax(0)
                found[:, i, :, head] = sum(
                    share[..., None] * value[:, j, :, head] for share, j in zip(shares, seen)
                )
        if len(set(out)) == layer.heads:
            return x
        return x + layer.project(layer.out(found.flatten(3)))

    return forward


def slowly(model, x, level, **changes):
    """A run with one layer computed by `slow_layer`."""
    layer = model.branch.temporal[level]
    layer.forward = slow_layer(layer, **changes)
    try:
        return run(model, x)
    finally:
        del layer.forward


def close(found, expected, tolerance=2e-5):
    for one, two in zip(found, expected, strict=True):
        scale = max(1.0, two.abs().max().item())
        torch.testing.assert_close(one, two, atol=tolerance * scale, rtol=tolerance)


def test_knocked_out_as_the_slow_layer_says(model):
    x = noise(model, frames=FRAMES)
    for level, layer in enumerate(model.branch.temporal):
        close(slowly(model, x, level), run(model, x))
        for out in ([0], [layer.heads - 1], range(layer.heads)):
            with iv.knock_out(model, [(level, head) for head in out]):
                found = run(model, x)
            close(found, slowly(model, x, level, out=out))


def test_a_head_without_its_columns_is_knocked_out(plain):
    x, cut = noise(plain, frames=FRAMES), deepcopy(plain)
    with torch.no_grad():
        cut.branch.temporal[1].out.weight[:, 8:16] = 0
    with iv.knock_out(plain, [(1, 1)]):
        close(run(plain, x), run(cut, x), 1e-6)


def test_all_heads_of_a_layer_are_its_temporal_part(model):
    x = noise(model, frames=FRAMES)
    for level in range(model.config.layers):
        cut = deepcopy(model)
        cut.branch.temporal[level].forward = lambda patches, maps=None: patches
        with iv.knock_out(model, iv.time_heads(model, level)):
            close(run(model, x), run(cut, x), 1e-6)
        parts = [iv.knock_out(model, [head]) for head in iv.time_heads(model, level)]
        with ExitStack() as stack:
            for part in reversed(parts):
                stack.enter_context(part)
            close(run(model, x), run(cut, x), 1e-6)


def test_blocked_as_the_slow_layer_says(model):
    x = noise(model, frames=FRAMES)
    for level, layer in enumerate(model.branch.temporal):
        last = layer.heads - 1
        with iv.block(model, level, last, [0, 2]):
            close(run(model, x), slowly(model, x, level, blocked={(last, 0), (last, 2)}))
        with iv.block(model, level, None, 1), torch.no_grad():
            maps = model.temporal_maps(x)[level]
            blocked = {(head, 1) for head in range(layer.heads)}
            close(run(model, x), slowly(model, x, level, blocked=blocked))
        assert (maps[..., 1] == 0).all()
        torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))


def test_blocked_patches_are_renormalised(plain):
    """Against Eq. 1 with rows of the map set to zero and divided by what is left."""
    x, layer, seen = noise(plain, frames=FRAMES), plain.branch.spatial[1], {}
    hooks = [
        part.register_forward_hook(lambda _m, _i, given, name=name: seen.update({name: given}))
        for name, part in dict(qkv=layer.qkv, out=layer.out).items()
    ]
    with iv.block_patches(plain, 1, 2, [0, 3], frames=[1]):
        run(plain, x)
    for hook in hooks:
        hook.remove()
    query, key, value = rearrange(seen["qkv"], "(b t) s (k h n) -> k b t h s n", k=3, h=3, t=FRAMES)
    maps = (query @ key.mT * 8**-0.5).softmax(-1)
    maps[:, 1, 2, :, [1, 4]] = 0
    maps = maps / maps.sum(-1, keepdim=True)
    expected = layer.out(rearrange(maps @ value, "b t h s n -> (b t) s (h n)"))
    torch.testing.assert_close(seen["out"], expected, atol=1e-5, rtol=1e-5)


def test_a_clip_patched_with_itself_is_the_clip(model):
    x = noise(model, frames=FRAMES)
    before, states = run(model, x), model.clip.layer_outputs(x, model.config.states)
    for where in ({}, dict(heads=[(0, 0)]), dict(frames=[2], patches=[1])):
        for own in (x, states):
            with iv.patch_from(model, own, own, **where):
                assert same(run(model, x), before)
    for kind in ("knock_out", "block", "block_patches", "freeze_time", "shuffle"):
        with KINDS[kind](model, x):
            changed = run(model, x)
            with iv.patch_from(model, x, x):
                assert same(run(model, x), changed), kind


def test_patched_is_what_heads_find_in_the_other_clip(plain):
    x, level, head = noise(plain, frames=FRAMES), 1, 2
    heads = plain.branch.temporal[level].heads

    def found_in(clip):
        outputs, attend = [], plain.branch.temporal[level].attend
        plain.branch.temporal[level].attend = lambda *a: outputs.append(attend(*a)) or outputs[-1]
        run(plain, clip)
        del plain.branch.temporal[level].attend
        return rearrange(outputs[0], "b t l (h n) -> b t l h n", h=heads)

    here, there = found_in(x), found_in(x.flip(1))
    mixed = here.clone()
    mixed[:, [0, 2], 1, head] = there[:, [0, 2], 1, head]
    plain.branch.temporal[level].attend = lambda *a: mixed.flatten(3)
    expected = run(plain, x)
    del plain.branch.temporal[level].attend
    with iv.patch_from(plain, x, x.flip(1), [(level, head)], frames=[0, 2], patches=1):
        assert same(run(plain, x), expected)


def test_every_part_from_the_other_clip_is_all_of_it(plain):
    x = noise(plain, frames=FRAMES)
    with iv.patch_from(plain, x, x.flip(1)):
        whole = run(plain, x)
    with ExitStack() as stack:
        for level in range(3):
            for frame in range(FRAMES):
                part = iv.patch_from(
                    plain, x, x.flip(1), iv.time_heads(plain, level), frame, range(4)
                )
                stack.enter_context(part)
        assert same(run(plain, x), whole)


def test_frozen_time_and_another_order(model):
    x, moved = noise(model, frames=FRAMES), deepcopy(model)
    with torch.no_grad():
        moved.branch.time[:] = model.branch.time[:FRAMES].mean(0)
    with iv.freeze_time(model):
        close(run(model, x), run(moved, x), 1e-6)
    with iv.shuffle(model, [2, 0, 1]):
        shuffled = run(model, x)
    close(shuffled, run(model, x[:, [2, 0, 1]]))
    with iv.shuffle(model, [2, 0, 1]), iv.freeze_time(model):
        found = run(model, x)[0]
    torch.testing.assert_close(found, run(moved, x)[0], atol=1e-5, rtol=1e-5)
    orders = {tuple(iv.Shuffle(None, seed).drawn(2).tolist()) for seed in range(8)}
    assert orders == {(1, 0)}


def test_any_order_and_no_order_of_ending(plain):
    x = noise(plain, frames=FRAMES)
    before, found = run(plain, x), []
    names = [n for n in KINDS if n not in ("knock_out all", "freeze_time", "patch in places")]
    for turn in range(4):
        order = [names[(turn * 5 + i) % len(names)] for i in range(len(names))]
        blocks = [KINDS[name](plain, x) for name in (order[::-1] if turn % 2 else order)]
        for block in blocks:
            block.__enter__()
        found.append(run(plain, x))
        for block in blocks[turn:] + blocks[:turn]:
            block.__exit__(None, None, None)
        assert same(run(plain, x), before) and not left_behind(plain)
    assert all(same(one, found[0]) for one in found)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("backend", ["reference", "bmm", "triton"])
def test_every_backend_gives_the_same(kind, backend, mended):
    model = ODD["open_clip"]()
    x = noise(model, frames=FRAMES)
    with KINDS[kind](model, x):
        expected = run(model, x)
        for layer in model.branch.temporal:
            layer.backend = backend
        if backend == "triton":
            by_kernels = model.branch.temporal[1].by_kernels(torch.zeros(2, 3, 4, 24))
            assert by_kernels == (kind != "knock_out all")
        close(run(model, x), expected, 1e-4)
    for layer in model.branch.temporal:
        assert layer.backend == backend


@pytest.mark.parametrize("frames", [1, 2, 16])
def test_any_number_of_frames(plain, frames):
    x = noise(plain, batch=1, frames=frames)
    for change in (iv.knock_out(plain, None), iv.freeze_time(plain), iv.patch_from(plain, x, -x)):
        with change:
            assert run(plain, x)[0].isfinite().all()
    if frames == 1:  # P^t of its only frame is the mean, and no head has another to attend to
        with iv.freeze_time(plain):
            found = run(plain, x)
        assert same(found, run(plain, x))
        with pytest.raises(ValueError, match="Every frame is blocked"), iv.block(plain, 0, 0, 0):
            run(plain, x)


def test_masked_clips(plain):
    x, tube = noise(plain, frames=FRAMES), torch.tensor([[0, 2], [1, 3]])
    tokens = torch.tensor([[[0, 5], [3, 7], [6, 11]]] * 2)
    for keep in (tube, tokens):
        before = run(plain, x, keep)
        with iv.patch_from(plain, x, x):
            assert same(run(plain, x, keep), before)
        with iv.knock_out(plain, [(0, 1)]), iv.block(plain, 1, 0, 2):
            assert not torch.allclose(run(plain, x, keep)[0], before[0])
        moved = deepcopy(plain)
        with torch.no_grad():
            moved.branch.time[:] = plain.branch.time[1]
        with iv.freeze_time(plain, 1):
            close(run(plain, x, keep), run(moved, x, keep), 1e-6)
        named = iv.block_patches(plain, 0, 0, 1), iv.patch_from(plain, x, -x, patches=[1])
        for change in named:
            with change, pytest.raises(ValueError, match="leave out keep"):
                run(plain, x, keep)
        assert same(run(plain, x, keep), before)


def test_gradients_do_not_reach_what_is_knocked_out(plain):
    x = noise(plain, frames=FRAMES)
    with iv.knock_out(plain, [(1, 0)]), iv.patch_from(plain, x, x.flip(1), [(1, 1)]):
        plain.encode_video(x).embedding[:, 0].sum().backward()
    weight = plain.branch.temporal[1].qkv.weight.grad.reshape(3, 3, 8, 24)
    assert (weight[:, :2] == 0).all() and (weight[:, 2] != 0).any()


def test_half_precision_and_doubles(plain):
    for dtype in (torch.bfloat16, torch.float64):
        model = deepcopy(plain).to(dtype)
        x = noise(model, frames=FRAMES).to(dtype)
        before = run(model, x)
        for kind in KINDS.values():
            with kind(model, x):
                found = run(model, x)
                assert found[1].dtype == before[1].dtype and found[0].isfinite().all()
        with iv.patch_from(model, x, x):
            assert same(run(model, x), before)
        assert same(run(model, x), before)


def test_a_block_can_be_used_again(plain):
    x, change = noise(plain, frames=FRAMES), iv.knock_out(plain, [(0, 1)])
    before = run(plain, x)
    with change:
        changed = run(plain, x)
        with change:
            assert same(run(plain, x), changed)
        assert same(run(plain, x), changed)
    assert same(run(plain, x), before) and not left_behind(plain)
    assert same(change(run)(plain, x), changed) and same(run(plain, x), before)


def test_two_models_at_once_and_a_copy_inside(plain):
    other, x = deepcopy(plain), noise(plain, frames=FRAMES)
    before = run(plain, x)
    with iv.knock_out(plain, None):
        assert same(run(other, x), before)
        copied = deepcopy(plain)
        inside = run(plain, x)
    assert same(run(plain, x), before) and same(run(copied, x), inside)


def test_a_saved_adapter_knows_nothing_of_it(plain, tmp_path):
    with iv.knock_out(plain, None), iv.freeze_time(plain):
        plain.save_pretrained(tmp_path)
    x = noise(plain, frames=FRAMES)
    assert same(run(BTAdapter.from_pretrained(tmp_path, plain.clip), x), run(plain, x))


WRONG = {
    "more heads than there are": lambda model, x: iv.knock_out(model, [(0, 3)]),
    "no such layer": lambda model, x: iv.knock_out(model, [(3, 0)]),
    "counted from the end": lambda model, x: iv.knock_out(model, [(0, -1)]),
    "no pairs": lambda model, x: iv.knock_out(model, [0, 1]),
    "one pair": lambda model, x: iv.knock_out(model, (0, 1)),
    "a number": lambda model, x: iv.knock_out(model, 3),
    "text": lambda model, x: iv.knock_out(model, "all"),
    "no whole number": lambda model, x: iv.knock_out(model, [(0, 0.5)]),
    "truth": lambda model, x: iv.knock_out(model, [(True, False)]),
    "three": lambda model, x: iv.knock_out(model, [(0, 1, 2)]),
    "all heads of a layer": lambda model, x: iv.knock_out(model, [(0, None)]),
    "no time axis": lambda model, x: iv.knock_out(model.clip, [(0, 0)]),
    "no model": lambda model, x: iv.knock_out(None, [(0, 0)]),
    "block in no layer": lambda model, x: iv.block(model, 3, 0, [0]),
    "block in no head": lambda model, x: iv.block(model, 0, 3, [0]),
    "more frames than P^t has": lambda model, x: iv.block(model, 0, 0, [16]),
    "all frames": lambda model, x: iv.block(model, 0, 0, None),
    "frames as text": lambda model, x: iv.block(model, 0, 0, "01"),
    "half a frame": lambda model, x: iv.block(model, 0, 0, 0.5),
    "no such patch": lambda model, x: iv.block_patches(model, 0, 0, [4]),
    "patches in no frame": lambda model, x: iv.block_patches(model, 0, 0, [0], [16]),
    "another length": lambda model, x: iv.patch_from(model, x, x[:, :2]),
    "another number": lambda model, x: iv.patch_from(model, x, x[:1]),
    "another size": lambda model, x: iv.patch_from(model, x, x[..., :8]),
    "NaN": lambda model, x: iv.patch_from(model, x, x * torch.nan),
    "pixels": lambda model, x: iv.patch_from(model, x, torch.zeros(3, 9, 9, 3, dtype=torch.uint8)),
    "no clip": lambda model, x: iv.patch_from(model, x, None),
    "too few states": lambda model, x: iv.patch_from(model, x, [torch.zeros(2, 3, 5, 24)]),
    "states of another CLIP": lambda model, x: iv.patch_from(
        model, x, [torch.zeros(2, 3, 9, 9)] * 4
    ),
    "patched in no frame": lambda model, x: iv.patch_from(model, x, x, frames=[3]),
    "patched in no patch": lambda model, x: iv.patch_from(model, x, x, patches=[4]),
    "no such P^t": lambda model, x: iv.freeze_time(model, 16),
    "no time to freeze": lambda model, x: iv.freeze_time(model.clip),
    "twice the same frame": lambda model, x: iv.shuffle(model, [0, 0, 1]),
    "no such frame": lambda model, x: iv.shuffle(model, [1, 2, 3]),
    "no order": lambda model, x: iv.shuffle(model, 7),
    "a number of frames": lambda model, x: iv.shuffle(model, 0.5),
    "a seed that is none": lambda model, x: iv.shuffle(model, seed="first"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_refused_at_once_and_in_a_sentence(plain, case):
    x = noise(plain, frames=FRAMES)
    with pytest.raises(ValueError) as told:
        WRONG[case](plain, x)
    assert (
        "\n" not in str(told.value) and str(told.value).endswith(".") and len(str(told.value)) > 20
    )


def test_numbers_of_other_libraries_are_numbers(plain):
    np = pytest.importorskip("numpy")
    x = noise(plain, frames=FRAMES)
    with iv.knock_out(plain, [(0, 1)]), iv.block(plain, 1, 2, [0, 2]):
        expected = run(plain, x)
    with (
        iv.knock_out(plain, np.array([[0, 1]])),
        iv.block(plain, np.int64(1), torch.tensor(2), np.array([0, 2])),
    ):
        assert same(run(plain, x), expected)
    with (
        iv.knock_out(plain, torch.tensor([[0, 1]])),
        iv.block(plain, [1], {2}, (i for i in (0, 2))),
    ):
        assert same(run(plain, x), expected)


def test_nothing_named_is_nothing_changed(plain):
    x = noise(plain, frames=FRAMES)
    before = run(plain, x)
    with iv.knock_out(plain, []), iv.block(plain, [], 0, [0]), iv.patch_from(plain, x, -x, []):
        assert same(run(plain, x), before)
    with iv.patch_from(plain, x, -x, patches=[]), iv.block(plain, 0, 0, []):
        close(run(plain, x), before, 1e-5)
