"""Compile the attention kernels for GPUs that need not be there, and read their machine code.

    python tests/benchmarks/kernels.py [--csv FILE] [--times FILE]

Prints a row for each kernel: registers, spills, shared memory, the width of accesses to global
memory, bytes and instructions. Ends with an error if one spills. --csv writes the rows
to a file. --times FILE instead times every backend on this machine's GPU, and appends the rows to
FILE. Rows are dated; those without a day in kernels.csv are older than the column.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
import triton

from bt_adapter.kernels import DTYPES, compile_report
from bt_adapter.ledger import append_csv, dated, write_csv
from bt_adapter.temporal_attention import BACKENDS, temporal_attention

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


def times(
    shape: tuple[int, int, int, int, int, int] = (
        16,
        8,
        256,
        3,
        16,
        64,
    ),  # of qkv: b, t, l, 3, h, c
    dtype: str = "fp16",  # or "bf16", "fp32"
) -> list[dict]:  # a row for each backend: device, versions, shape, milliseconds
    "Time every backend on this machine's GPU."
    if not torch.cuda.is_available():
        sys.exit("There is no GPU here: nothing was timed.")
    qkv = torch.randn(shape, device="cuda", dtype=DTYPES[dtype]).requires_grad_()
    where = dict(device=torch.cuda.get_device_name(), torch=torch.__version__)
    where |= dict(triton=triton.__version__, shape=" ".join(map(str, shape)), type=dtype)
    rows = []
    d_out = torch.randn_like(qkv[:, :, :, 0])
    for backend in BACKENDS:
        run = partial(temporal_attention, qkv, backend=backend)
        back = partial(torch.autograd.grad, run(), qkv, d_out, retain_graph=True)
        forward, backward = (triton.testing.do_bench(f, return_mode="median") for f in (run, back))
        rows.append(where | dict(backend=backend, forward_ms=forward, backward_ms=backward))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, help="write the rows to this file")
    parser.add_argument("--times", type=Path, help="time on this machine's GPU, append rows here")
    args = parser.parse_args()
    if args.times:
        return append_csv(args.times, times())
    table = []
    for row in rows():
        table.append(row)
        print(*list(row.values())[2:], flush=True)
    if args.csv:
        write_csv(args.csv, [dated(row) for row in table])
    if spilled := [row for row in table if row["spills"]]:
        sys.exit(f"{len(spilled)} of {len(table)} kernels spill registers")


if __name__ == "__main__":
    main()
