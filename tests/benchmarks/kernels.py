"""Compile the attention kernels for GPUs that need not be there, and read their machine code.

    python tests/benchmarks/kernels.py [--csv FILE]

Prints a row for each kernel: registers, spills, shared memory, the width of accesses to global
memory, bytes and instructions. Ends with an error if one spills. --csv writes the rows to a file.
"""

import argparse
import csv
import sys
from pathlib import Path

import torch
import triton

from bt_adapter.kernels import compile_report

HALVES = [(cc, kind) for cc in (80, 89, 90) for kind in ("fp16", "bf16")]
GRID = [(*half, t, maps) for maps in (0, 1) for half in HALVES for t in (8, 12, 16, 32, 64)]
GRID += [(75, "fp16", t, m) for m in (0, 1) for t in (8, 12, 16, 32)]
GRID += [(80, "fp32", t, 0) for t in (8, 16, 32)]


def rows():
    "One row for the CSV file a kernel."
    for cc, kind, frames, maps in GRID:
        for report in compile_report(cc, kind, frames, bool(maps)):
            yield {
                "torch": torch.__version__,
                "triton": triton.__version__,
                "cc": cc,
                "type": kind,
                "frames": frames,
                "maps": maps,
                "kernel": report.name,
                "registers": report.registers,
                "spills": report.spills,
                "shared": report.shared,
                "bits": " ".join(map(str, sorted(report.widths))),
                "bytes": report.bytes,
                "instructions": report.instructions,
                "rows": report.rows,
                "warps": report.warps,
            }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    table = []
    for row in rows():
        table.append(row)
        print(*list(row.values())[2:], flush=True)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, table[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    if spilled := [row for row in table if row["spills"]]:
        sys.exit(f"{len(spilled)} of {len(table)} kernels spill registers")


if __name__ == "__main__":
    main()
