"""The short run of the lesson on pretraining, with three seeds and with the exercises' changes.

    python tests/benchmarks/short_run.py [seed 0] [seed 1] ... [--csv FILE]    some rows, or all

The code is the lesson's own: its cells are run up to the exam, and each row trains a branch with
`train` of the lesson (40 seconds of CPU) and lets it sit `exam`, with `exam_after`. A seed is that
of the fresh branch, of the batches and of the masks. Rows of a changed run have seed 0.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from temporal_attention import processor

from bt_adapter.ledger import append_csv, check_csv, today

LESSON = Path(__file__).resolve().parents[2] / "nbs" / "20_pretraining.ipynb"
COLUMNS = ("date", "device", "torch", "command", "row", "clips", "motion", "direction")


def lesson():
    "The names that the lesson has defined when its exam can be sat."
    names = {}
    for cell in json.loads(LESSON.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)  # the lesson itself
        if "exam_after" in names:
            return names
    raise ValueError(f"{LESSON} defines no exam_after")


def shuffled(batches):
    "Each clip's frames in an order of its own."
    for states, text in batches:
        order = torch.rand(len(states), states.shape[2]).argsort(1)
        yield torch.stack([s[:, o] for s, o in zip(states, order)]), text


def all_right(stored, text):
    "Batches of things that all move right."
    rng = np.random.default_rng(0)
    while True:
        some = rng.choice(len(stored), 24, replace=False)
        yield stored[some, 0], text[some, 0]


def rows(names):
    "Row -> a function that trains and returns the marks."
    fresh, batches, exam_after, recipe, stored, text = (
        names[name] for name in ("fresh", "batches", "exam_after", "recipe", "stored", "text")
    )

    def seed(number):
        own = replace(recipe, seed=number)
        return exam_after(fresh(number), batches(number), recipe=own)

    def closed_gate():
        model = fresh()
        with torch.no_grad():
            model.branch.gates[-1].w_b.fill_(-20)
        model.branch.gates[-1].requires_grad_(False)
        return exam_after(model, batches(0))

    whole = replace(recipe, mask_ratio=0.0, steps=34)  # 34 steps of 1.05 s for 240 of .15 s
    found = {f"seed {number}": lambda number=number: seed(number) for number in range(3)}
    return found | {
        "closed gate": closed_gate,
        "shuffled frames": lambda: exam_after(fresh(), shuffled(batches(0))),
        "all move right": lambda: exam_after(fresh(), all_right(stored, text)),
        "no mask, as long": lambda: exam_after(fresh(), batches(0), 34, whole),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help="all by default")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    names = lesson()
    found = rows(names)
    for name in args.rows or found:
        marks = {measure: f"{share:.1f}" for measure, share in found[name]().items()}
        print(f"{name:18} motion {marks['motion']}%, direction {marks['direction']}%", flush=True)
        if args.csv:
            first = (today(), processor(), torch.__version__, "short_run.py", name, names["n"])
            append_csv(args.csv, [dict(zip(COLUMNS, first)) | marks])


if __name__ == "__main__":
    sys.exit(main())
