"""What pretraining costs: with a store and without, masked and unmasked, in time, memory and FLOPs.

    python tests/benchmarks/pretraining.py store [--preset quick]   an epoch with and without
    python tests/benchmarks/pretraining.py mask [--clips 4]         a step, 70% hidden and nothing
    python tests/benchmarks/pretraining.py flops                    a step, beside the released code
    python tests/benchmarks/pretraining.py kill [--trials 10]       runs killed and resumed
    python tests/benchmarks/pretraining.py muon [--seeds 0 1 2] [--steps 300]  torch's Muon and ours

Each takes --csv FILE to append its rows to. Times are CPU time on one thread, cases take turns in
a round, the least of the rounds counts. `mask` is a whole step of AdamW in bf16 beside the last
layers of a B/16; its memory is what the process grows by at its peak during the step. `kill`
compares the weights of runs of `bta-pretrain --data` on the shipped clips, killed once at a random
moment, with those of a run that was left alone. `muon` trains two adapters on the same batches,
step by step in turns: one with torch's Muon, whose products are in bf16, one with ours in the type
that the machine is fast in; it gives the time of a step and what each adapter is worth in the end.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from temporal_attention import processor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bt_adapter import backbone, moving_shapes, pretrain, trainer
from bt_adapter import scenes as shapes
from bt_adapter.branch import BTAdapter
from bt_adapter.ledger import append_csv, check_csv, today
from bt_adapter.masking import kept_patches
from bt_adapter.muon import Muon
from bt_adapter.precision import fast_copy
from bt_adapter.shipped import samples_folder
from bt_adapter.store import FeatureStore, frozen_states, store_settings

COLUMNS = ("date", "device", "torch", "command", "case", "measure", "value", "against", "ratio")
RELEASED = {"ViT-B-32": (70, 101), "ViT-B-16": (281, 399), "ViT-L-14": (1296, 1569)}  # GFLOP
SIZES = {"ViT-B-32": (32, 768, 12), "ViT-B-16": (16, 768, 12), "ViT-L-14": (14, 1024, 24)}
TEXT = dict(context_length=8, vocab_size=50, width=16, heads=2, layers=1)


def row(case, measure, value, against, ratio):
    "One row for the CSV file; `against` names what the ratio's 1 is."
    words = sys.argv[1 : sys.argv.index("--csv")] if "--csv" in sys.argv else sys.argv[1:]
    command = " ".join(["pretraining.py", *words])
    first = (today(), processor(), torch.__version__, command)
    return dict(zip(COLUMNS, (*first, case, measure, value, against, ratio), strict=True))


def computed_anew(scenes, fast, last):
    "The batches of a SceneBatches, whose states are computed for each batch."
    for some, template in scenes.objects():
        shown = list(chain.from_iterable(scenes.groups[g] for g in some))
        clips = torch.stack([fast.transform(moving_shapes.render(scene)) for scene in shown])
        text = scenes.text[some, :, template].flatten(0, 1)
        yield trainer.Batch([""] * len(shown), frozen_states(fast, clips, last), text)


def measure_store(args):
    "An epoch of a few objects."
    clip, config = backbone.load_clip("moving-shapes"), pretrain.PRESETS[args.preset]
    count = 3 * config.batch // 18
    groups, last = shapes.training_scenes(np.random.default_rng(0), count), config.branch.states
    folder = tempfile.TemporaryDirectory()
    fast = fast_copy(clip)
    store = FeatureStore(Path(folder.name), store_settings(fast, last))
    shapes.scene_states(clip, list(chain.from_iterable(groups)), last, store)
    scenes = shapes.SceneBatches(clip, groups, store, batch=config.batch)
    spent = {}
    for turn in range(args.rounds + 1):  # the first warms up
        for case in ("without", "with"):
            model = trainer.Trainer(BTAdapter(clip), config)
            source = scenes(0, last) if case == "with" else computed_anew(scenes, fast, last)
            start = time.process_time()
            for batch in islice(source, 3):
                model.update(batch)
            if turn:
                spent.setdefault(case, []).append(time.process_time() - start)
    without, with_store = min(spent["without"]), min(spent["with"])
    yield row(f"{args.preset}, without a store", "seconds an epoch", f"{without:.2f}", "", "")
    ratio = f"{without / with_store:.2f}"
    yield row(
        f"{args.preset}, with a store", "seconds an epoch", f"{with_store:.2f}", "without", ratio
    )


def last_layers(name, layers):
    "A CLIP of the sizes of `name` with its last layers alone and random weights."
    import open_clip

    patch, width, _ = SIZES[name]
    sizes = dict(image_size=224, patch_size=patch, width=width, layers=layers)
    return backbone.FrozenCLIP(open_clip.CLIP(512, sizes, TEXT, quick_gelu=True), None, name)


def in_child(work):
    "What a function prints in a process of its own, as floats."
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, " ".join(map(str, work())).encode())
        os._exit(0)
    os.close(write)
    found = os.read(read, 1000).decode()
    os.wait()
    return list(map(float, found.split()))


def memory(name):
    "MB: VmRSS is what the process has, VmHWM the most that it had."
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def measure_mask(args):
    "A step of the branch with masks and without, each in a process of its own."
    model = BTAdapter(last_layers("ViT-B-16", 5))
    states = torch.randn(args.clips, 5, 8, 197, 768, dtype=torch.bfloat16)
    batch = trainer.Batch([""] * args.clips, states, torch.randn(args.clips, 512))
    recipe = replace(pretrain.RELEASED, steps=10, precision="bf16")

    def step(ratio):
        run = trainer.Trainer(model, replace(recipe, mask_ratio=ratio))
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        before, start = memory("VmRSS"), time.process_time()
        run.update(batch)
        return time.process_time() - start, memory("VmHWM") - before

    found = {ratio: [] for ratio in (0.0, 0.7)}
    for _ in range(args.rounds):
        for ratio, rounds in found.items():
            rounds.append(in_child(lambda ratio=ratio: step(ratio)))
    for number, measure in enumerate(("seconds a step", "MB at the peak")):
        whole, masked = (min(r[number] for r in rounds) for rounds in found.values())
        clips = f"{args.clips} clips"
        yield row(f"nothing hidden, {clips}", measure, f"{whole:.2f}", "", "")
        yield row(
            f"70% hidden, {clips}",
            measure,
            f"{masked:.2f}",
            "nothing hidden",
            f"{masked / whole:.3f}",
        )


def measure_flops(args):
    "GFLOP of one clip of 8 frames, counted on tensors without numbers."
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    torch.backends.mha.set_fastpath_enabled(False)  # one operation, which the counter does not know
    for name, (clip_theirs, step_theirs) in RELEASED.items():
        model = BTAdapter(last_layers(name, SIZES[name][2]))
        masked = trainer.MaskedPass(model, torch.float32, "cosine")
        trained = list(model.branch.parameters())
        with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH):
            with FlopCounterMode(display=False) as clip_flops:
                states = torch.stack(model.clip.layer_outputs(torch.randn(1, 8, 3, 224, 224), 5), 1)
            keep = torch.zeros(1, kept_patches(states.shape[3] - 1, 0.7), dtype=torch.long)
            with FlopCounterMode(display=False) as branch_flops:
                video, tokens, mbta = masked(states, keep)
                torch.autograd.grad(video.sum() + tokens.sum() + mbta, trained)
        clip, branch = (f.get_total_flops() / 1e9 for f in (clip_flops, branch_flops))
        for case, ours, theirs in (
            ("CLIP", clip, clip_theirs),
            ("step", clip + branch, step_theirs),
            ("step with a store", branch, step_theirs),
        ):
            yield row(
                f"{name}, {case}", "GFLOP a clip", f"{ours:.0f}", theirs, f"{ours / theirs:.3f}"
            )


def command(folder, out, *more):
    "The process of a run on the shipped clips."
    start = "from bt_adapter.cli.pretrain import main"
    code = f"import sys; {start}; sys.argv[0] = 'bta-pretrain'; main()"
    arguments = ["--data", folder / "captions.csv", "--out", folder / out, "--preset", "quick"]
    arguments += [
        "--clip",
        "moving-shapes",
        "--batch",
        6,
        "--steps",
        24,
        "--save-every",
        2,
        "--store",
        folder / out / "states",
    ]
    words = [sys.executable, "-c", code, *map(str, [*arguments, *more])]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure_kill(args):
    "Runs that are killed at a random moment and resumed."
    random.seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = sorted((samples_folder() / "clips").glob("*.mp4"))
        lines = ["path,caption", *(f"{path},a thing: {path.stem}" for path in clips)]
        (folder / "captions.csv").write_text("\n".join(lines))
        start = time.time()
        assert command(folder, "whole").wait() == 0
        length, equal = time.time() - start, 0
        for trial in range(args.trials):
            run = command(folder, f"{trial}")
            time.sleep(random.uniform(0.3, 1) * length)
            run.kill()
            killed = run.wait() == -9
            assert command(folder, f"{trial}", "--resume").wait() == 0
            weights = [
                (folder / f / "adapter.safetensors").read_bytes() for f in ("whole", f"{trial}")
            ]
            equal += weights[0] == weights[1]
            print(f"{trial}: {'killed' if killed else 'had ended'}, {weights[0] == weights[1]}")
        yield row(
            "killed once and resumed",
            "runs of equal bytes",
            equal,
            args.trials,
            equal / args.trials,
        )


def in_turns(seed, config):
    """Two adapters trained on the same batches: by torch's Muon and by ours; rows, ms a step."""
    clip = backbone.load_clip("moving-shapes")
    takes = config.takes or shapes.SceneBatches.takes
    groups = shapes.training_scenes(np.random.default_rng(seed), config.objects, takes)
    states, last, trainers = {}, config.branch.states, {}
    shapes.scene_states(clip, list(chain.from_iterable(groups)), last, states, config.frames)
    for name, optimizer in (("torch's", torch.optim.Muon), ("ours", Muon)):
        torch.manual_seed(seed)
        with mock.patch.object(trainer, "Muon", optimizer):
            trainers[name] = trainer.Trainer(BTAdapter(clip, config.branch), config)
    spent = {name: [] for name in trainers}
    batches = shapes.SceneBatches(clip, groups, states, batch=config.batch, seed=seed)
    for step, batch in enumerate(islice(batches(0, last), config.steps)):
        for name, one in sorted(trainers.items(), reverse=step % 2):
            start = time.process_time()
            one.update(batch)
            spent[name].append(1000 * (time.process_time() - start))
    scores = {name: shapes.validate(one.model)[1] for name, one in trainers.items()}
    return scores, spent


def measure_muon(args):
    "Motion and direction on the validation clips after a run, and what a step costs."
    config = pretrain.PRESETS[args.preset]
    config = replace(config, steps=args.steps or config.steps)
    ratios, steps = [], f"{config.steps} steps"
    for seed in args.seeds:
        scores, spent = in_turns(seed, replace(config, seed=seed))
        for measure in ("motion", "direction"):
            theirs, ours = (scores[name][measure] for name in ("torch's", "ours"))
            case = f"{args.preset}, {steps}, seed {seed}"
            ratio = f"{ours / theirs:.3f}"
            yield row(case, f"{measure}, percent", f"{ours:.1f}", f"torch's {theirs:.1f}", ratio)
        ratios += [b / a for a, b in zip(spent["torch's"], spent["ours"], strict=True)]
        theirs, ours = (statistics.median(spent[name]) for name in ("torch's", "ours"))
        yield row(case, "ms a step", f"{ours:.0f}", f"torch's {theirs:.0f}", f"{ours / theirs:.3f}")
    low, middle, high = statistics.quantiles(ratios, n=4)
    yield row(
        f"{args.preset}, {steps}, {len(args.seeds)} seeds",
        "quartiles of the steps' ratios",
        f"{low:.2f} / {middle:.2f} / {high:.2f}",
        "torch's",
        f"{middle:.3f}",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("store", "mask", "flops", "kill", "muon"))
    parser.add_argument("--preset", default="quick", choices=("quick", "full"))
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of a run; default: the preset's")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    torch.set_num_threads(1)
    for one in globals()[f"measure_{args.what}"](args):
        print(
            f"{one['case']:34} {one['value']:>8} {one['measure']:18} "
            f"{one['ratio']} of {one['against']}",
            flush=True,
        )
        if args.csv:
            append_csv(args.csv, [one])


if __name__ == "__main__":
    main()
