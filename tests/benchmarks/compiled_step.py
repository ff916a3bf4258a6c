"""Does torch.compile make a training step faster, and after how many steps has it paid?

    python tests/benchmarks/compiled_step.py [CLIP ...] [--batch 36] [--steps 8] [--csv FILE]

A CLIP is "moving-shapes", which is the default, or a name of open_clip, which gets random weights:
how long a step takes does not depend on them. Plain and compiled steps take turns in one process,
on states that are drawn. On a machine with a GPU it runs there.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from temporal_attention import processor

from bt_adapter.backbone import FrozenCLIP, load_clip
from bt_adapter.branch import BTAdapter
from bt_adapter.ledger import append_csv, check_csv, command_line, today
from bt_adapter.recipes import PRESETS
from bt_adapter.shipped import SHIPPED
from bt_adapter.trainer import Batch, Trainer

SAME = ("date", "device", "torch", "command", "clip", "batch", "frames")
COLUMNS = (*SAME, "plain_s", "compiled_s", "ratio", "compiling_s", "pays_after_steps")


def drawn_batch(clip: FrozenCLIP, states: int, clips: int, frames: int) -> Batch:
    "States and captions that look like nothing."
    shape = clips, states, frames, len(clip.position), clip.width
    text = clip.project(torch.randn(clips, clip.width, device=clip.position.device))
    text = torch.nn.functional.normalize(text.detach().float(), dim=-1)
    return Batch([str(n) for n in range(clips)], torch.randn(shape).bfloat16(), text)


def seconds_of(trainer: Trainer, batch: Batch) -> float:
    "One step; `item` of the losses waits for a GPU."
    start = time.perf_counter()
    trainer.update(batch)
    return time.perf_counter() - start


def measured(name: str, args: argparse.Namespace) -> dict:
    "A row of the CSV."
    clip = load_clip(name, None if name in SHIPPED else "random")
    preset = PRESETS["full" if name in SHIPPED else "released"]
    config = replace(preset, steps=10**6, batch=args.batch, drop_path=0.0)
    trainers = []
    for backend in (None, "inductor"):
        own = replace(config, compile=backend)
        trainers.append(Trainer(BTAdapter(clip, own.branch), own))
    plain, compiled = trainers
    batch = drawn_batch(plain.model.clip, config.branch.states, args.batch, config.frames)
    seconds_of(plain, batch)
    compiling = seconds_of(compiled, batch)
    turns = [(seconds_of(plain, batch), seconds_of(compiled, batch)) for _ in range(args.steps)]
    before, after = (statistics.median(column) for column in zip(*turns))
    lost = compiling + sum(step for _, step in turns) - (args.steps + 1) * after  # also later on
    pays = f"{lost / (before - after):.0f}" if before > after else "never"
    same = today(), processor(), torch.__version__, command_line("compiled_step.py"), name
    found = f"{before:.3f}", f"{after:.3f}", f"{before / after:.2f}", f"{compiling:.0f}", pays
    return dict(zip(COLUMNS, (*same, args.batch, config.frames, *found)))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", nargs="*", default=["moving-shapes"])
    parser.add_argument("--batch", type=int, default=36, help="clips of a step")
    parser.add_argument("--steps", type=int, default=8, help="of each kind, in turns")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    for name in args.clips:
        row = measured(name, args)
        print(*(f"{column} {row[column]}" for column in COLUMNS[4:]), sep=", ", flush=True)
        if args.csv:
            append_csv(args.csv, [row])


if __name__ == "__main__":
    main()
