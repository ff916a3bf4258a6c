"""The memory plan: its terms beside real tensors, what it picks, and what it refuses."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_clip

from bt_adapter import memory_plan
from bt_adapter.cli.pretrain import Pretraining, tell_plan
from bt_adapter.gpus import GPUS, Device, find_device
from bt_adapter.ledger import read_csv
from bt_adapter.memory_plan import Setting, constant_terms, fits, peak_bytes, phases, pick
from bt_adapter.recipes import RELEASED, choose_recipe, for_strategy
from bt_adapter.store import entry_bytes
from bt_adapter.strategy_files import NAMES, build_strategy, is_trained
from bt_adapter.traffic import LiveBytes
from bt_adapter.trainer import Trainer

CPU = Device("cpu", 2**33, gpu=False)
TINY = replace(RELEASED, batch=4, frames=4, precision="fp32")


@pytest.fixture(scope="module")
def clip():
    return tiny_clip().to("meta")


def of(clip, name="BT-Adapter", device=CPU, store=False, **changes):
    return Setting(clip, replace(for_strategy(TINY, name), **changes), name, device, store)


@pytest.mark.parametrize("name", [n for n in NAMES if "pooling" not in n])
def test_terms_are_the_bytes_of_real_tensors(clip, name):
    config = for_strategy(TINY, name)
    real = tiny_clip()
    model = build_strategy(name, real, config.branch)
    trainer = Trainer(model, config)
    for weight in model.branch.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    for optimizer in trainer.optimizers:
        optimizer.step()
    state = [x for o in trainer.optimizers for s in o.state.values() for x in s.values()]
    terms = constant_terms(of(clip, name))
    assert terms["weights"] == sum(p.nbytes for p in model.branch.parameters())
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert terms["gradients"] == sum(grad.nbytes for grad in grads)
    assert terms["optimizer"] == sum(x.nbytes for x in state if x.ndim)
    own = [*real.model.parameters(), *real.model.buffers()]
    assert terms["clip"] == sum(p.nbytes for p in own)


def test_muon_keeps_half_of_adamw(clip):
    quick = choose_recipe("quick")
    muon = constant_terms(of(clip, rates=quick.rates))["optimizer"]
    adamw = constant_terms(of(clip))["optimizer"]
    assert adamw / 2 < muon < adamw


def test_states_are_as_large_as_entries_of_a_store(clip):
    setting = of(clip)
    real = tiny_clip()
    states = setting.config.branch.states
    assert memory_plan.state_bytes(setting) == entry_bytes(real, states, setting.config.frames)


def test_what_is_held_is_counted_and_what_is_let_go_is_not():
    with LiveBytes() as live:
        a = torch.zeros(256, dtype=torch.float32)
        b = a[:128]
        assert live.now == a.nbytes
        a = a + 1
        assert live.now == 2 * a.nbytes  # b still looks at the first
        del b
        assert live.now == a.nbytes and live.peak == 2 * a.nbytes


@pytest.mark.parametrize("store", (False, True))
def test_peaks_grow_with_the_batch_the_frames_and_the_width_of_numbers(clip, store):
    peaks = [peak_bytes(of(clip, store=store, batch=n)) for n in (1, 2, 4, 16, 64)]
    assert peaks == sorted(peaks) and peaks[0] < peaks[-1]
    assert peak_bytes(of(clip, frames=8)) > peak_bytes(of(clip, frames=4))
    short = memory_plan.pass_bytes(of(clip, precision="bf16"), 64, True)
    assert short < memory_plan.pass_bytes(of(clip), 64, True)


def test_a_chunk_needs_less_than_all_at_once(clip):
    assert peak_bytes(of(clip, batch=64, chunk=4)) < peak_bytes(of(clip, batch=64))


def forget():
    for found in (memory_plan._trained, memory_plan._pass_bytes):
        found.cache_clear()


def test_what_is_computed_twice_is_not_kept(clip, monkeypatch):
    kept = memory_plan.pass_bytes(of(clip, "joint-ST", frames=5), 32, True)
    once = memory_plan.build_strategy
    monkeypatch.setattr(
        memory_plan, "build_strategy", lambda *a, checkpointing: once(*a, checkpointing=False)
    )
    forget()
    assert kept < memory_plan.pass_bytes(of(clip, "joint-ST", frames=5), 32, True)
    forget()


@pytest.mark.parametrize("name", ("BT-Adapter", "ST-Adapter"))
@pytest.mark.parametrize("store", (False, True))
def test_what_is_picked_fits_and_twice_of_it_does_not(clip, name, store):
    least = peak_bytes(of(clip, name, store=store, batch=1))
    device = Device("small", 4 * least, gpu=False)
    found = pick(of(clip, name, device, store, batch=512))
    assert fits(found) and found.config.batch <= 512
    if found.chunk < found.config.batch:
        assert not fits(replace(found, config=replace(found.config, chunk=2 * found.chunk)))
    asked = pick(of(clip, name, device, store, batch=512, chunk=1))
    assert asked.chunk == 1


def test_a_gpu_keeps_the_batch_and_makes_the_chunk_small(clip):
    base = peak_bytes(of(clip, device=GPUS["T4"], batch=1))
    tight = GPUS["T4"]._replace(memory=int((base + 10**6) / memory_plan.USED))
    found = pick(of(clip, device=tight, batch=256))
    assert found.config.batch == 256 and found.config.chunk and fits(found)


def test_nothing_fits(clip, monkeypatch):
    asked = []

    def counted(setting):
        asked.append(setting.config.batch)
        return peak_bytes(setting)

    monkeypatch.setattr(memory_plan, "peak_bytes", counted)
    with pytest.raises(ValueError, match="not even one clip fits: BT-Adapter beside tiny needs"):
        pick(of(clip, device=Device("nothing", 1000, gpu=False)))
    assert set(asked) == {1}  # what one clip needs says it, and no larger batch is counted


def test_a_real_step_holds_what_was_counted(clip):
    """The pass of a real model on real numbers, by the same listener, beside the count."""
    setting = of(clip, batch=16)
    model = build_strategy("BT-Adapter", tiny_clip(), setting.config.branch, checkpointing=True)
    passes = memory_plan.MaskedPass(model, torch.float32, "cosine")
    states = torch.randn(16, 5, 4, 5, 24).bfloat16()
    keep = memory_plan.kept_patches(4, setting.config.mask_ratio)
    keep = torch.arange(keep).expand(16, keep).contiguous()
    with LiveBytes() as live:
        video, tokens, mbta = passes(states, keep)
        (video.sum() + tokens.sum() + mbta).backward()
    counted = memory_plan.pass_bytes(setting, 16, True)
    assert counted == pytest.approx(live.peak, rel=0.05)


def test_phases_of_a_store(clip):
    assert "fill" in phases(of(clip, store=True)) and "fill" not in phases(of(clip))


@pytest.mark.parametrize("name", ("T5", "A1000x", "-1", "0", "nan", ""))
def test_no_such_gpu(name):
    with pytest.raises(ValueError, match=r"no GPU called|more than 0 GB"):
        find_device(name)


def test_a_strategy_that_trains_nothing_is_not_planned(monkeypatch):
    with pytest.raises(ValueError, match="nothing to plan"):
        memory_plan.plan(["moving-shapes"], for_strategy(TINY, "ST pooling"), CPU, "ST pooling")
    assert not is_trained(build_strategy("ST pooling", tiny_clip()))


def test_rows_name_batch_chunk_peak_and_minutes():
    rows, reasons = memory_plan.plan(["moving-shapes"], TINY, find_device("T4"))
    assert not reasons and [row["store"] for row in rows] == ["no", "yes"]
    for row in rows:
        low, high = map(float, row["minutes"].split(" to "))
        assert 0 < low < high and float(row["peak GB"]) > 0.6 and row["chunk"] == "all"
    assert "10% to 40% of 65 TFLOP/s" in memory_plan.assumptions(find_device("T4"))
    rows, _ = memory_plan.plan(["moving-shapes"], TINY, find_device("24"), stores=(False,))
    assert rows[0]["minutes"] == "not known"


def test_the_command_tells_a_plan_and_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory_plan, "NAMED", ())
    told = dict(plan=True, gpu="T4", clip="moving-shapes", strategy="STAN", batch=8)
    tell_plan(Pretraining(**told, setting=["frames=4"]))
    said = capsys.readouterr().out
    assert "STAN on T4, 1000 clips" in said and "minutes assume 10% to 40%" in said
    assert said.count("moving-shapes") == 2 and not any(tmp_path.iterdir())
    tell_plan(Pretraining(**told, store=tmp_path / "store", steps=10))
    said = capsys.readouterr().out
    assert "80 clips" in said and said.count("moving-shapes") == 1


def test_a_plan_of_the_named_clip_alone_that_does_not_fit_is_one_sentence(monkeypatch):
    monkeypatch.setattr(memory_plan, "NAMED", ())
    with pytest.raises(ValueError, match="not even one clip fits: BT-Adapter beside moving-sha"):
        tell_plan(Pretraining(plan=True, gpu="0.6", clip="moving-shapes"))


def test_measured_peaks_are_within_a_tenth():
    rows = read_csv(Path(__file__).parent / "benchmarks" / "memory_plan.csv")
    assert [row["setting"] for row in rows] == [str(n) for n in range(1, 13)]
    for row in rows:
        ratio = float(row["planned_MB"]) / float(row["measured_MB"])
        assert abs(ratio - 1) < 0.1 and abs(ratio - float(row["ratio"])) < 0.002


def test_a_peak_is_measured_here_as_well(tmp_path):
    """The script that wrote these rows still does, and the plan holds on this machine, too."""
    script = Path(__file__).parent / "benchmarks" / "memory_plan.py"
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    command = [sys.executable, script, "1", "--csv", tmp_path / "rows.csv"]
    subprocess.run(command, env=environment, check=True, timeout=240)
    (row,) = read_csv(tmp_path / "rows.csv")
    assert abs(float(row["ratio"]) - 1) < 0.1


def test_a_gpu_without_a_plan_is_refused():
    with pytest.raises(ValueError, match="--gpu belongs to --plan"):
        Pretraining(gpu="T4")
    with pytest.raises(ValueError, match="leave --resume out"):
        Pretraining(plan=True, resume=True)
