"""What the time check says of encoders at the size that it has without options.

    python tests/benchmarks/verdicts.py [--kinds random frozen shuffled adapter] [--seeds 0 1 2]
                                        [--csv FILE]

Frozen CLIP, the adapter on shuffled frames, the shipped adapter, and five video models of
transformers with random weights, of which X-CLIP has a text tower. A seed draws the clips, and of
random models the weights, too. The rows of verdicts.csv are made so; all of it takes ten minutes
of one core.
"""

import argparse
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from temporal_attention import processor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_video import tiny_encoders

from bt_adapter import timecheck
from bt_adapter.branch import BTAdapter
from bt_adapter.ledger import append_csv, check_csv, command_line, today
from bt_adapter.retrieval import wrong_orders
from bt_adapter.timecheck.encoders import encoder_of, of_adapter

SHARES = ("reversed", "shuffled", "probe", "direction", "motion", "binding")
PARTS = [f"{share}{end}" for share in SHARES for end in ("", " low", " high")]
SAME = ("date", "device", "torch", "command", "encoder", "seed")
COLUMNS = (*SAME, "pairs", "frames", "size", "degree", *PARTS, "unrest", "verdict")


@cache
def shipped() -> BTAdapter:
    return BTAdapter.from_pretrained("moving-shapes")


def shuffling(seed: int):
    "The shipped adapter, which sees each clip with its frames in an order that is drawn anew."
    rng, own = np.random.default_rng(seed), of_adapter(shipped(), "the adapter, frames shuffled")

    def embed(clips):
        orders = wrong_orders(*clips.shape[:2], rng)
        return own.embed(clips[torch.arange(len(clips))[:, None], orders])

    return replace(own, embed=embed)


KINDS = {
    "random": tiny_encoders,
    "frozen": lambda seed: [encoder_of(shipped().clip, name="frozen CLIP")],
    "shuffled": lambda seed: [shuffling(seed)],
    "adapter": lambda seed: [of_adapter(shipped())],
}


def row_of(encoder, seed: int, pairs: int) -> dict:
    "What the check says, in percent."
    report = timecheck.check(encoder, pairs=pairs, seed=seed)
    row = {row["measure"]: row for row in report.rows()}
    told = dict(degree=report.verdict.degree, unrest=f"{report.unrest:.4f}")
    told |= dict(frames=report.frames, size=report.size, verdict=report.verdict.sentence)
    for share in SHARES:
        if share in row:
            keys = {"": "percent", " low": "low", " high": "high"}
            told |= {f"{share}{end}": row[share][key] for end, key in keys.items()}
    return told


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=[*KINDS])
    parser.add_argument("--seeds", type=int, nargs="*", default=range(3))
    parser.add_argument("--pairs", type=int, default=24, help="of clips for each of eight motions")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    for kind in args.kinds:
        for seed in args.seeds:
            for encoder in KINDS[kind](seed):
                same = (today(), processor(), torch.__version__, command_line("verdicts.py"))
                same = (*same, encoder.name, seed)
                row = dict.fromkeys(COLUMNS, "") | dict(zip(SAME, same)) | dict(pairs=args.pairs)
                row |= row_of(encoder, seed, args.pairs)
                print(encoder.name, seed, row["degree"], row["verdict"], flush=True)
                if args.csv:
                    append_csv(args.csv, [row])


if __name__ == "__main__":
    main()
