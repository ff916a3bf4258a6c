"""CPU time of the temporal attention backends, interleaved in one run on one thread.

    python tests/benchmarks/temporal_attention.py [--batch 2] [--frames 8 16 32] [--csv FILE]

Prints, for each shape, type and mode, the least CPU time of each backend over --rounds rounds, as a
multiple of what `choose_backend` picks too. --csv appends the rows to a file.
"""

import argparse
import csv
import datetime
import platform
import time
from pathlib import Path

import torch

from bt_adapter.temporal_attention import BACKENDS, choose_backend, temporal_attention

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def processor() -> str:
    "The processor's name, as far as the system tells it, and its bf16 instructions."
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    bf16 = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in text]
    return " ".join([names[0] if names else platform.processor() or platform.machine(), *bf16])


def forward(qkv, backend):
    "Seconds of CPU time for a forward pass, up to the memory layout the next layer reads."
    with torch.no_grad():
        start = time.process_time()
        temporal_attention(qkv, backend=backend).contiguous()
        return time.process_time() - start


def training(qkv, backend):
    "Seconds of CPU time for a forward and a backward pass."
    qkv.grad = None
    start = time.process_time()
    out = temporal_attention(qkv, backend=backend).contiguous()
    out.backward(out.detach())
    return time.process_time() - start


def measure(shape, kind, rounds):
    "The least seconds of each backend, by mode; all backends take turns within a round."
    torch.manual_seed(0)
    qkv = torch.randn(shape).to(TYPES[kind]).requires_grad_()
    best = {}
    for _ in range(rounds + 1):  # the first round warms up, and minimum forgets it
        for mode in (forward, training):
            for backend in BACKENDS:
                seconds = mode(qkv, backend)
                key = mode.__name__, backend
                best[key] = min(best.get(key, seconds), seconds)
    return best


def picked(shape, kind, mode):
    "What choose_backend says for this case."
    qkv = torch.empty(shape, dtype=TYPES[kind], requires_grad=True)
    with torch.set_grad_enabled(mode == "training"):
        return choose_backend(qkv)


def rows(shape, kind, rounds):
    "One row for the CSV file a mode and backend."
    best = measure(shape, kind, rounds)
    for (mode, backend), seconds in best.items():
        choice = picked(shape, kind, mode)
        yield {
            "date": datetime.date.today().isoformat(),
            "device": processor(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "b t l 3 h d/h": " ".join(map(str, shape)),
            "type": kind,
            "mode": mode,
            "backend": backend,
            "milliseconds": f"{1e3 * seconds:.3f}",
            "against the pick": f"{seconds / best[mode, choice]:.2f}",
            "picked": int(backend == choice),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--patches", type=int, default=256)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, torch {torch.__version__}, 1 thread, least of {args.rounds} rounds")
    table = []
    for frames in args.frames:
        shape = (args.batch, frames, args.patches, 3, args.heads, args.width // args.heads)
        for kind in TYPES:
            for row in rows(shape, kind, args.rounds):
                table.append(row)
                mark = "<- picked" if row["picked"] else ""
                print(
                    f"t {frames:3}  {kind}  {row['mode']:9} {row['backend']:10} "
                    f"{row['milliseconds']:>9} ms  {row['against the pick']:>5}x {mark}"
                )
    if args.csv:
        new = not args.csv.exists()
        with args.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, table[0], lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
