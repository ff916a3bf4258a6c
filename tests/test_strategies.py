"""Each strategy by what defines it: where it starts, what it trains, and what it can see."""

import math

import numpy as np
import pytest
import torch
from tiny import shake, tiny_clip, tiny_eva
from torch import nn

from bt_adapter.branch import BranchConfig, BTAdapter
from bt_adapter.costs import flops, strategy_costs
from bt_adapter.in_place import entry_of
from bt_adapter.strategies import (
    STAN,
    STRATEGIES,
    Branching,
    JointST,
    MeanPooling,
    OpenSTAN,
    SeparateST,
    SpatioTemporalPooling,
    STAdapter,
)
from bt_adapter.strategy_figures import notice_cube, strategy_bars

FROM_CLIP = ["mean pooling", "ST pooling", "separate-ST", "separate-ST, frozen", "ST-Adapter"]
OPEN = ["joint-ST", "separate-ST", "STAN"]


@pytest.fixture(params=[tiny_clip, tiny_eva], ids=["clip", "eva"])
def clip(request):
    return request.param()


def video(clip, frames=4, batch=2):
    return torch.randn(
        batch, frames, 3, *clip.image_size, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_interface(name, clip):
    strategy, frames = STRATEGIES[name].make(clip, 2), video(clip)
    found = strategy.encode_video(frames)
    assert found.embedding.shape == (2, clip.joint_width)
    torch.testing.assert_close(found.embedding.norm(dim=-1), torch.ones(2))
    tokens = {"ST pooling": 4 + 4, "mean pooling": 4, "STAN": 4, "STAN, frozen": 4, "BT-Adapter": 4}
    assert strategy.tokens(frames).shape == (2, tokens.get(name, 4 * 4), clip.width)
    again = strategy.encode_states(clip.layer_outputs(frames, 6))  # all that there are
    for field in found._fields:
        torch.testing.assert_close(getattr(again, field), getattr(found, field))


@pytest.mark.parametrize("name", FROM_CLIP)
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_what_extends_clip_begins_as_clip(name, layers, clip):
    frames = video(clip)
    found = STRATEGIES[name].make(clip, layers).encode_video(frames).embedding
    torch.testing.assert_close(found, clip.encode_video(frames))


def test_joint_attention_begins_as_clip_on_one_frame_and_forgets_the_order_of_several(clip):
    joint, frames = JointST(clip, 3), video(clip)
    one = joint.encode_video(frames[:, :1]).embedding
    torch.testing.assert_close(one, clip.encode_video(frames[:, :1]))
    shuffled = joint.encode_video(frames[:, [2, 0, 3, 1]]).embedding
    torch.testing.assert_close(joint.encode_video(frames).embedding, shuffled)
    assert not torch.allclose(shuffled, clip.encode_video(frames), atol=1e-3)
    shake(joint.branch.time)
    turned = joint.encode_video(frames.flip(1)).embedding
    assert not torch.allclose(joint.encode_video(frames).embedding, turned, atol=1e-4)


def test_stan_is_a_branch_of_plain_sums(clip):
    torch.manual_seed(0)
    config = BranchConfig(2, combination="addition", convention="released")
    plain, frames = BTAdapter(clip, config), video(clip)
    shake(plain.branch)
    for stan in STAN(clip, 2), OpenSTAN(clip, 2):
        missing = stan.branch.load_state_dict(plain.branch.state_dict(), strict=False)
        assert not missing.unexpected_keys
        assert all(key.startswith("blocks.") for key in missing.missing_keys)
        found = stan.encode_video(frames)
        torch.testing.assert_close(found.embedding, plain.encode_video(frames).embedding)
        torch.testing.assert_close(found.patches, plain.encode_video(frames).patches)


def test_bt_adapter_is_itself(clip):
    model, frames = Branching(clip, BranchConfig(2)), video(clip)
    plain = BTAdapter(clip, BranchConfig(2))
    plain.branch.load_state_dict(model.branch.state_dict())
    ours, theirs = model.encode_video(frames), plain.encode_video(frames)
    assert torch.equal(ours.embedding, theirs.embedding)
    tokens = (theirs.patches + theirs.frames[:, :, 1:]).mean(1) / 2
    torch.testing.assert_close(model.tokens(frames), tokens)


@pytest.mark.parametrize("name", [n for n in STRATEGIES if "pooling" not in n])
def test_a_step_changes_the_branch_and_nothing_of_clip(name, clip):
    torch.manual_seed(0)
    strategy, frames = STRATEGIES[name].make(clip, 2), video(clip)
    before = {n: p.detach().clone() for n, p in strategy.named_parameters()}
    trained = [p for p in strategy.parameters() if p.requires_grad]
    assert {*map(id, trained)} == {*map(id, strategy.branch.parameters())}
    for _ in range(2):  # a projection that starts at zero hides the rest from the first step
        loss = strategy.encode_video(frames).embedding[:, ::2].sum()
        loss.backward()
        torch.optim.AdamW(trained, 0.01, weight_decay=0).step()
    changed = {n for n, p in strategy.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(n.startswith("branch.") for n in changed)
    unused = ("align", "k_bias")
    still = {n for n in before if n.startswith("branch.") and not any(u in n for u in unused)}
    dead = {n for n in still - changed if "video_cls" not in n}
    assert not dead, dead
    opened = {n for n in changed if n.startswith("branch.blocks.")}
    assert bool(opened) is (name in OPEN)


def test_parameters_are_as_counted_by_hand():
    clip, d, joint = tiny_clip(), 24, 20
    layer = 12 * d * d + 13 * d  # of CLIP: qkv, out, the two of the feed-forward, two norms
    temporal = 5 * d * d + 7 * d
    bottleneck = d * d + d // 2 + 28 * d // 2 + d
    expected = {
        "mean pooling": 0,
        "ST pooling": 0,
        "joint-ST": 5 * layer + 64 * d,
        "separate-ST": 2 * (layer + temporal) + 64 * d,
        "separate-ST, frozen": 2 * temporal + 64 * d,
        "ST-Adapter": 2 * bottleneck,
        "STAN": 2 * (2 * layer + temporal) + 64 * d + d,
        "STAN, frozen": 2 * (layer + temporal) + 64 * d + d,
        "BT-Adapter": 2 * (layer + temporal) + 64 * d + d + 2 * d,
    }
    assert {row["strategy"]: row["parameters"] for row in strategy_costs(clip, 2)} == expected
    assert STAdapter(clip, 2).branch.align.weight.shape == (joint, d)


def test_costs_are_those_of_the_products():
    clip = tiny_clip()
    frames, d, n = video(clip, frames=3, batch=1), 24, 5
    layer = 2 * n * 12 * d * d + 4 * n * n * d  # products with weights; attention, twice
    patches, project = 2 * 4 * 3 * 64 * d, 2 * d * 20
    whole = 5 * layer + patches + 2 * project  # CLIP's tower projects by itself, and then we do
    assert flops(MeanPooling(clip), frames) == 3 * whole
    separate = flops(SeparateST(clip, 2), frames) - flops(MeanPooling(clip), frames)
    assert separate == 2 * (2 * 3 * 4 * 5 * d * d + 4 * 3 * 3 * 4 * d) - 3 * project
    joint = [flops(JointST(clip, 5), video(clip, frames=t, batch=1)) for t in (2, 4, 8)]
    assert joint[2] - joint[1] > 2.2 * (joint[1] - joint[0])  # grows faster than the clip


def test_a_temporal_layer_sees_its_own_place_and_a_convolution_its_cube():
    clip = tiny_clip(image_size=40)  # 5 x 5 patches
    separate, convolved = SeparateST(clip, 1), STAdapter(clip, 1)
    shake(separate.branch)
    shake(convolved.branch)
    still = torch.zeros(2, 7, 25, 24)
    still[1, 3, 12] = torch.randn(24)
    with torch.no_grad():
        seen = separate.branch.temporal[0](still)
        cube = convolved.branch.adapters[0](still, 5)
    seen, cube = ((x[1] != x[0]).any(-1) for x in (seen, cube))
    assert seen.any(0).nonzero().flatten().tolist() == [12] and seen[:, 12].all()
    assert cube.any(1).nonzero().flatten().tolist() == [2, 3, 4]
    assert cube[2].nonzero().flatten().tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18]


def test_spatio_temporal_tokens_are_means(clip):
    frames = video(clip)
    states, tokens = clip.layer_outputs(frames, 1)[0], SpatioTemporalPooling(clip).tokens(frames)
    for t in range(4):
        torch.testing.assert_close(tokens[:, t], states[:, t, 1:].mean(1))
    for place in range(4):
        torch.testing.assert_close(tokens[:, 4 + place], states[:, :, 1 + place].mean(1))


def test_what_is_not_possible_is_told():
    clip = tiny_clip()
    for layers in (0, 6):
        with pytest.raises(ValueError, match=f"layers must lie in 1..5, not {layers}"):
            SeparateST(clip, layers)
    with pytest.raises(ValueError, match="built for at most 64 frames, not 65"):
        SeparateST(clip, 2).encode_video(video(clip, 65, 1))
    states = clip.layer_outputs(video(clip), 3)
    for name in ("joint-ST", "STAN", "separate-ST"):
        strategy = STRATEGIES[name].make(clip, 3)
        with pytest.raises(ValueError, match=rf"reads {strategy.config.states} states, not 3"):
            strategy.encode_states(states)
    masked = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="train this strategy with mask_ratio=0"):
        SeparateST(clip, 2).encode_states(states, masked)
    everything = torch.arange(4).expand(2, -1)
    whole = SeparateST(clip, 2).encode_states(states, everything).embedding
    torch.testing.assert_close(whole, clip.encode_video(video(clip)))


def test_bars_and_cubes_say_what_they_cannot_draw():
    drawn = strategy_bars({"tokens": {"BT-Adapter": 64}, "odd": {"joint-ST": math.nan}})
    assert [text.get_text() for text in drawn.axes[0].texts] == ["64", ""]
    frames, told = np.zeros((8, 40, 40, 3), np.uint8), np.zeros((8, 64), bool)
    assert notice_cube(told, (0, 0, 0), frames).alt == "0 of 512 tokens noticed, in 0 frames."
    bad = {
        "A strategy is one of mean pooling": lambda: strategy_bars({"": {"BT": 1}}),
        "nothing to draw": lambda: strategy_bars({"tokens": {}}),
        r"l in rows of 8, not \(8, 60\)": lambda: notice_cube(told[:, :60], (0, 0, 0), frames),
        "t must be a whole number from 1": lambda: notice_cube(told[:0], (0, 0, 0), frames[:0]),
        "has 8 frames, not t = 4": lambda: notice_cube(told[:4], (0, 0, 0), frames),
        "is no .frame, row, column.": lambda: notice_cube(told, (0, 8, 0), frames),
    }
    for words, call in bad.items():
        with pytest.raises(ValueError, match=words):
            call()


def test_only_the_branch_is_named_so():
    for kind in STRATEGIES.values():
        strategy = kind.make(tiny_clip(), 2)
        assert isinstance(strategy.branch, nn.Module)
        assert not any(p.requires_grad for p in strategy.clip.parameters())


def test_an_entry_is_looked_up_without_running_or_touching_the_last_layers(clip):
    frames, ran = video(clip), []
    wanted, parts = clip.encode_video(frames), [*clip.modules()]
    before = clip.layer_outputs(frames, 3)[0]  # with which the last two begin

    def another(_module, _inputs):  # uses CLIP while an entry is being looked up
        handle.remove()
        ran.append(clip.encode_video(frames))

    for block in clip.blocks[-2:]:
        block.register_forward_hook(lambda module, _inputs, _output: ran.append(module))
    clip.blocks[0].register_forward_hook(lambda *_: ran.append("first"))
    entered = entry_of(clip, frames, 2)
    assert torch.equal(entered, before) and ran == ["first"]
    handle = clip.blocks[0].register_forward_pre_hook(another)
    assert torch.equal(entry_of(clip, frames, 2), before)
    assert torch.equal(ran[4], wanted) and ran[1:4] == ["first", *clip.blocks[-2:]]
    assert all(a is b for a, b in zip(clip.modules(), parts, strict=True))
    assert not entry_of(clip, frames, 5).requires_grad
