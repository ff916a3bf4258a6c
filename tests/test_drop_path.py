"""DropPath: the authors' formula, one draw for the whole batch, and nothing of it elsewhere."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import Source, tiny_adapter

from bt_adapter.branch import BranchConfig
from bt_adapter.drop_path import Paths, draw_paths, dropping
from bt_adapter.masking import tube_mask
from bt_adapter.recipes import PRESETS, ParamGroup, PretrainConfig, Schedule, for_strategy
from bt_adapter.settings import check_strategy
from bt_adapter.strategy_files import build_strategy
from bt_adapter.trainer import Trainer, run_signature

RATES, FLAT = (ParamGroup(("",), 1e-2),), Schedule()
TINY = PretrainConfig(steps=4, batch=12, precision="fp32", mask_ratio=0.5, drop_path=0.5)
TINY = replace(TINY, rates=RATES, schedule=FLAT, tau=0.5)


def losses(config, steps=3, trainer=None):
    """What a run says step by step, and its trainer."""
    torch.manual_seed(0)
    trainer = trainer or Trainer(tiny_adapter(), config)
    batches = Source()(trainer.step, trainer.model.config.states)
    return [trainer.update(next(batches)) for _ in range(steps)], trainer


def weights(trainer):
    return [w.detach().clone() for w in trainer.model.branch.parameters()]


def by_hand(model, states, keep, paths):
    """Eq. 1 to 4 as the released code computes them, DropPath on both attentions."""
    branch, position = model.branch, model.clip.position
    frames = states[0].shape[1]
    for n, state in enumerate(states):
        seen = torch.stack([s[:, 1:][:, k] for s, k in zip(state, keep)])  # (b, t, kept, d)
        mean = state[:, :, 0].mean(1)
        if n == 0:
            places = torch.stack([position[1:][k] for k in keep])[:, None]
            patches = seen + places + branch.time[:frames, None]
            cls = (branch.video_cls + position[0] + mean) / 2
        else:
            cls, patches = branch.gates[0](cls, mean), branch.gates[0](patches, seen)
        time, space = branch.temporal[n], branch.spatial[n]
        tubes, of_frames = (p[:, n - 1] if n else torch.ones_like(p[:, 0]) for p in paths)
        update = time.out(time.attend(time.norm(patches)))
        patches = patches + time.project(tubes[:, None, :, None] * update)
        tokens = torch.cat([cls[:, None, None].expand(-1, frames, -1, -1), patches], 2)
        update = space.attend(tokens.flatten(0, 1)).view_as(tokens) * of_frames[:, :, None, None]
        cls, patches = cls + update[:, :, 0].mean(1), patches + update[:, :, 1:]
        cls, patches = cls + space.feed(cls), patches + space.feed(patches)
    return cls, patches


def test_a_step_is_the_authors_formula():
    model = tiny_adapter(BranchConfig(layers=3, convention="released"))
    states = next(Source()(0, 3)).states.unbind(1)
    keep = tube_mask(12, 4, 0.5, torch.Generator().manual_seed(1))
    paths = draw_paths(0.6, 3, 12, 2, 3, torch.Generator().manual_seed(2))
    assert all((p == 0).any() and (p > 2).any() for p in paths)
    with dropping(model.branch, paths):
        found = model.branch(list(states), model.clip.position, keep)
    for ours, theirs in zip(found, by_hand(model, states, keep, paths), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_rates_rise_evenly_and_the_mean_stays():
    paths = draw_paths(0.1, 4, 4000, 3, 2, torch.Generator().manual_seed(0))
    assert paths.tubes.shape == (4000, 3, 3) and paths.frames.shape == (4000, 3, 2)
    for layer, rate in enumerate((0.1 / 3, 0.2 / 3, 0.1)):
        found = torch.cat([factors[:, layer] for factors in paths], 1)
        values = torch.tensor([0, 1 / (1 - rate)])
        torch.testing.assert_close(found.unique(), values)
        assert (found == 0).float().mean().item() == pytest.approx(rate, abs=0.008)
        assert found.mean().item() == pytest.approx(1, abs=0.008)
    assert draw_paths(0.1, 1, 5, 3, 2).tubes.shape == (5, 0, 3)  # one layer: it is the first


def test_gradients_pass_only_where_an_update_is_kept():
    model = tiny_adapter()
    time, space = model.branch.temporal[1], model.branch.spatial[1]
    patches = torch.randn(2, 3, 4, 24, requires_grad=True)
    cls = torch.randn(2, 24, requires_grad=True)
    tubes = torch.tensor([[0.0, 2, 0, 2], [0, 0, 0, 0]])[:, None]
    with dropping(model.branch, Paths(tubes, torch.zeros(2, 1, 3))):
        (grad,) = torch.autograd.grad(time(patches).sum(), patches)
        alone = space(cls, patches)[1].sum()
        assert torch.autograd.grad(alone, cls, allow_unused=True)[0].eq(0).all()
        (space(cls, patches)[1] + time(patches)).sum().backward()
    assert space.qkv.weight.grad.eq(0).all() and space.fc1.weight.grad.any()
    left_out = tubes[:, 0, None, :, None].eq(0).expand_as(grad)
    assert grad[left_out].eq(1).all() and (grad[~left_out] != 1).any()
    assert time.qkv.weight.grad.any()  # through the tubes that are kept


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_nothing(chunk):
    """Gradient caching computes each chunk twice: both times with the same factors."""
    whole, _ = losses(TINY)
    parts, _ = losses(replace(TINY, chunk=chunk))
    for one, other in zip(whole, parts, strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)
    assert whole != losses(replace(TINY, drop_path=0.0))[0]


def test_a_run_that_goes_on_draws_what_comes_next():
    whole, first = losses(TINY, 4)
    _, cut = losses(TINY, 2)
    again = Trainer(tiny_adapter(seed=5), TINY)
    again.load_state_dict(cut.state_dict())
    batches = Source()(2, 3)
    assert [again.update(next(batches)) for _ in range(2)] == whole[2:]
    assert all(map(torch.equal, weights(again), weights(first)))


def test_processes_share_one_draw():
    batch = next(Source()(0, 3))
    whole = Trainer(tiny_adapter(), TINY).hidden(batch)
    parts = []
    for rank in range(2):
        trainer = Trainer(tiny_adapter(), TINY)
        trainer.accelerator = SimpleNamespace(process_index=rank, num_processes=2)
        own = slice(6 * rank, 6 * rank + 6)
        parts.append(trainer.hidden(batch._replace(states=batch.states[own], text=batch.text[own])))
    (left, left_paths), (right, right_paths) = parts
    assert torch.equal(torch.cat([left, right]), whole[0])
    for one, two, both in zip(left_paths, right_paths, whole[1], strict=True):
        assert torch.equal(torch.cat([one, two]), both) and not torch.equal(one, two)


def test_without_a_rate_nothing_is_drawn_and_nothing_is_another():
    config = replace(TINY, drop_path=0.0)
    found, trainer = losses(config, 1)
    masks = torch.Generator().manual_seed(config.seed)
    batch, plain = next(Source()(0, 3)), Trainer(tiny_adapter(), config)
    keep = tube_mask(12, 4, 0.5, masks)
    assert torch.equal(trainer.masks.get_state(), masks.get_state())
    assert plain.hidden(batch)[1] is None
    video, _, mbta = plain.passes(batch.states, keep)
    assert mbta.item() == found[0]["mbta"]
    exact = plain.model.encode_states(batch.states.unbind(1), keep).embedding
    torch.testing.assert_close(video, exact)
    assert "drop_path" not in run_signature(plain.model, config, "noise")
    assert run_signature(plain.model, TINY, "noise")["drop_path"] == "0.5"


def test_a_compiled_step_is_the_step():
    """The same losses and weights, with DropPath, too; a run goes on in either way."""
    small = BranchConfig(layers=1)  # a layer is traced for half a dozen seconds
    torch._dynamo.utils.counters.clear()
    compiled, kinds = replace(TINY, compile="eager", branch=small), []
    for config in (compiled, replace(compiled, compile=None)):
        kinds.append(losses(config, 2, Trainer(tiny_adapter(small), config)))
    (found, ours), (wanted, theirs) = kinds
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert found == [pytest.approx(step, rel=1e-5) for step in wanted]
    for one, other in zip(weights(ours), weights(theirs)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    signed = [run_signature(theirs.model, trainer.config, "data") for trainer in (ours, theirs)]
    assert signed[0] == signed[1]


def test_where_nothing_can_be_compiled_it_is_one_sentence(monkeypatch):
    """As on a machine without a compiler."""

    def broken(*_, **__):
        raise RuntimeError("no compiler is found")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", broken)
    torch._dynamo.reset()
    config = replace(TINY, compile="inductor", branch=BranchConfig(layers=1))
    with pytest.raises(
        ValueError, match=r"compile this step here: .*no compiler.*compile=inductor"
    ):
        losses(config, 1, Trainer(tiny_adapter(config.branch), config))
    torch._dynamo.reset()


def test_evaluation_never_leaves_anything_out():
    _, trainer = losses(TINY, 1)
    model, states = trainer.model, next(Source()(3, 3)).states.unbind(1)
    for layer in (*model.branch.temporal, *model.branch.spatial):
        assert not {"attend", "add_projected", "by_kernels"} & vars(layer).keys()
    same = tiny_adapter()
    same.branch.load_state_dict(model.branch.state_dict())
    found = [m.encode_states(states).embedding for m in (model.train(), model.eval(), same)]
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[2])


def test_a_step_that_fails_leaves_the_branch_as_it_was():
    model = tiny_adapter()
    paths = draw_paths(0.5, 2, 1, 2, 3)
    with pytest.raises(KeyError), dropping(model.branch, paths):
        assert "attend" in vars(model.branch.spatial[1])
        raise KeyError
    assert "attend" not in vars(model.branch.spatial[1])


def test_strategies_without_a_branch_have_none():
    for name in ("joint-ST", "separate-ST", "ST-Adapter", "STAN"):
        assert for_strategy(PRESETS["released"], name).drop_path == 0
    assert for_strategy(PRESETS["released"], "branch alone").drop_path == 0.1
    with pytest.raises(ValueError, match="ST-Adapter has no branch, which DropPath is for"):
        check_strategy({"drop_path": 0.1}, "ST-Adapter")
    check_strategy({"drop_path": 0.1}, "STAN")
    clip = tiny_adapter().clip
    with pytest.raises(ValueError, match="DropPath is for a branch: train this strategy with"):
        Trainer(build_strategy("ST-Adapter", clip, BranchConfig(layers=2)), TINY)


def test_the_released_recipes_have_the_authors_numbers():
    """Read off the authors' configurations for CLIP and for EVA-CLIP."""
    released, eva = PRESETS["released"], PRESETS["released-eva"]
    for recipe in (released, eva):
        assert (recipe.drop_path, recipe.tau, recipe.weight_decay) == (0.1, 0.01, 0.05)
        assert (recipe.frames, recipe.mask_ratio, recipe.clip_norm) == (8, 0.7, 5)
        assert recipe.branch.layers == 4 and recipe.branch.convention == "released"
        assert recipe.token_loss == "cosine" and recipe.teacher_norm
    assert (released.batch, released.tokens, released.weights) == (8 * 52, 64, (1, 0.1, 0.1))
    assert (eva.batch, eva.tokens, eva.weights) == (8 * 16, 77, (1, 0, 0.1))
    assert eva.branch.combination == "addition" and [g.lr for g in eva.rates] == [2e-5]
    assert released.branch.combination == "weighted" and released.schedule == eva.schedule


def test_the_recipe_for_eva_trains_a_branch_of_plain_sums():
    recipe = PRESETS["released-eva"]
    small = replace(recipe, steps=2, batch=12, precision="fp32", tau=0.5)
    model = tiny_adapter(replace(recipe.branch, layers=3))
    trainer = Trainer(model, small)
    names = {name for name, _ in model.branch.named_parameters()}
    assert not any("gates" in name for name in names)
    figures = trainer.update(next(Source()(0, 3)))
    assert all(torch.isfinite(torch.tensor([*figures.values()])))
