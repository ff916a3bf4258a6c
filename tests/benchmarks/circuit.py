"""Which heads of an adapter carry the direction of motions, and what is left without them?

    python tests/benchmarks/circuit.py [ADAPTER ...] [--seeds 0 1 ...] [--clips 1200] [--csv FILE]

The set is searched on validation clips (`--search`, drawn by the seed) and judged on test clips. An
adapter is a folder, or "moving-shapes", the shipped one, which is the default. A seed draws the
sizes, places and colors of all clips; the control draws five sets of as many heads for each seed.
Without arguments it makes the rows of data_samples/direction.csv.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from temporal_attention import processor

from bt_adapter.branch import BTAdapter
from bt_adapter.ledger import append_csv, check_csv, command_line, today
from bt_adapter.retrieval import weights_hash
from bt_adapter.seeing_direction import MEASURES, chosen_set, scenes_of, study

FIGURES = ("carried", "margin", *MEASURES, "low", "high")
SAME = ("date", "device", "torch", "command", "adapter", "weights", "fingerprint", "seed")
COLUMNS = (*SAME, "clips", "row", "heads", *FIGURES)


def words(heads) -> str:
    "Layer and head of each, counted from 0."
    return " ".join(f"{layer}.{head}" for layer, head in heads)


def rows_of(model: BTAdapter, seed: int, args: argparse.Namespace):
    "The curve, then the study."
    start = time.perf_counter()
    found, curve = chosen_set(model, args.search, seed, args.goal, args.exact, args.frames)
    for heads, share in curve:
        kept = dict(row=f"best {len(heads)} alone", heads=words(heads), clips=args.search)
        yield kept | dict(carried=f"{share:.3f}")
    print(f"  chosen: {words(found)}, {time.perf_counter() - start:.0f} s", flush=True)
    judged = study(model, found, scenes_of("test", args.clips, seed), range(5), args.frames)
    all_heads, none = (judged[name]["margin"] for name in ("all heads", "no head"))
    for name, row in judged.items():
        share = (row["margin"] - none) / (all_heads - none)
        figures = {figure: f"{row[figure]:.1f}" for figure in (*MEASURES, "low", "high")}
        named = words(found) if "the set" in name else ""
        same = dict(row=name, heads=named, clips=args.clips, margin=f"{row['margin']:.4f}")
        yield same | figures | dict(carried=f"{share:.3f}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapters", nargs="*", default=["moving-shapes"])
    parser.add_argument("--seeds", type=int, nargs="*", default=range(5))
    parser.add_argument("--clips", type=int, default=1200, help="of the test split")
    parser.add_argument("--search", type=int, default=54, help="of the validation split")
    parser.add_argument("--goal", type=float, default=0.8, help="of the margin")
    parser.add_argument("--exact", type=int, default=2, help="all sets up to this size are tried")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    torch.set_num_threads(1)
    for name in args.adapters:
        model = BTAdapter.from_pretrained(name)
        for seed in args.seeds:
            print(name, "seed", seed, flush=True)
            same = (today(), processor(), torch.__version__, command_line("circuit.py"), name)
            same = (*same, weights_hash(model.branch), model.clip.fingerprint, seed)
            for row in rows_of(model, seed, args):
                row = dict.fromkeys(COLUMNS, "") | dict(zip(SAME, same)) | row
                told = [f"{measure} {row[measure]}" for measure in FIGURES if row[measure]]
                print(f"  {row['row']:28} {row['heads']:16}", *told, flush=True)
                if args.csv:
                    append_csv(args.csv, [row])


if __name__ == "__main__":
    sys.exit(main())
