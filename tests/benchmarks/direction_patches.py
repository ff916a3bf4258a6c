"""Which patches of a clip carry the direction of its motion, for an adapter?

    python tests/benchmarks/direction_patches.py [ADAPTER] [--csv FILE]

For one test clip of each motion that has a reversal, heads find in some patches what they find in
the clip played backwards: in each patch alone, in all of them, in those that the thing touches in
some frame, in all others, and in as many as it touches, drawn by chance five times. A row is a
clip, and what changes is its margin: how much nearer it is to its own caption than to the opposite
one. Patches go row by row. An adapter is a folder, or "moving-shapes", the shipped one, which is
the default. The rows of data_samples/direction_patches.csv are made so, in a minute of one core.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from einops import reduce
from temporal_attention import processor

from bt_adapter.branch import BTAdapter
from bt_adapter.circuit import by_patch, from_reversed, nothing, sweep
from bt_adapter.ledger import append_csv, check_csv, command_line, today
from bt_adapter.moving_shapes import Scene, gallery, motions_of, render
from bt_adapter.progress import progress
from bt_adapter.retrieval import weights_hash
from bt_adapter.seeing_direction import scene_cases

SAME = ("date", "device", "torch", "command", "adapter", "weights", "fingerprint")
SETS = ("all", "of the thing", "all others")
COLUMNS = (*SAME, "motion", "thing", "margin", *SETS, "drawn", "one by one")


def touched(scene: Scene, grid: tuple[int, int]) -> torch.Tensor:  # bool (patches,)
    "Where the picture changes in some frame, if the only thing in it gets another color."
    (thing,) = scene.things
    painted = replace(thing, color="red" if thing.color == "cyan" else "cyan")
    differs = (render(scene) != render(replace(scene, things=(painted,)))).any(-1)
    return reduce(differs, "t (gh p) (gw q) -> (gh gw)", "max", gh=grid[0], gw=grid[1])


def numbers(values) -> str:
    return " ".join(f"{value:.4f}" for value in values)


def row_of(model: BTAdapter, scene: Scene) -> dict:
    "What each set of patches does to the margin of a clip."
    thing = touched(scene, model.clip.grid)
    count, size = len(thing), int(thing.sum())
    drawn = [torch.randperm(count, generator=torch.Generator().manual_seed(s)) for s in range(5)]
    sets = dict(zip(SETS, (range(count), thing.nonzero()[:, 0].tolist())))
    sets[SETS[2]] = (~thing).nonzero()[:, 0].tolist()
    sets |= {f"drawn {seed}": order[:size].tolist() for seed, order in enumerate(drawn)}
    changes = {name: from_reversed(model, patches=some) for name, some in sets.items()}
    parts = list(scene_cases(model, [scene]))
    answers = sweep(model, parts, {"whole": nothing} | changes | by_patch(model))
    whole = answers.margins("whole").item()
    change = {name: answers.margins(name).item() - whole for name in answers.video}
    return dict(
        motion=scene.things[0].motion,
        thing="".join(map(str, thing.int().tolist())),
        margin=f"{whole:.4f}",
        **{name: f"{change[name]:.4f}" for name in SETS},
        drawn=numbers(change[f"drawn {seed}"] for seed in range(5)),
    ) | {"one by one": numbers(change[place] for place in range(count))}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapter", nargs="?", default="moving-shapes")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    torch.set_num_threads(1)
    model = BTAdapter.from_pretrained(args.adapter)
    same = (today(), processor(), torch.__version__, command_line("direction_patches.py"))
    same = (*same, args.adapter, weights_hash(model.branch), model.clip.fingerprint)
    scenes = {scene.things[0].motion: scene for scene in gallery("test", 240)}
    for motion in progress(motions_of(2), "clips"):
        row = dict(zip(SAME, same)) | row_of(model, scenes[motion])
        print(f"{motion:18}", *(f"{name} {row[name]}" for name in (*SETS, "drawn")), flush=True)
        if args.csv:
            append_csv(args.csv, [row])


if __name__ == "__main__":
    sys.exit(main())
