"""How long does `bta-timecheck` take for an encoder at the size that it has without options?

    python tests/benchmarks/timecheck.py [NAME ...] [--threads 2] [--csv FILE]

The command runs as a person runs it, in a process of its own, so that starting and importing count.
NAME is what the command takes, "moving-shapes", the shipped adapter, by default. On a machine that
does other things as well, the seconds of the processor say what an idle one needs at most: those of
all threads together (Linux only). The rows of timecheck.csv are made so.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from startup import entry_point
from temporal_attention import processor

from bt_adapter.ledger import append_csv, check_csv, command_line, today

ROOT = Path(__file__).resolve().parents[2]
SAME = ("date", "device", "torch", "command", "threads", "encoder")
TIMES = ("seconds", "seconds of the processor")
COLUMNS = (*SAME, "degree", "frames", "size", "pairs", *TIMES)


def timed(name: str, threads: int) -> dict:
    "What the command says of an encoder, and what that took."
    env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    code = entry_point(ROOT, "bta-timecheck")
    before, began = os.times(), time.perf_counter()
    command = [sys.executable, "-c", code, name, "--json"]
    told = subprocess.run(command, check=True, env=env, cwd=ROOT, stdout=subprocess.PIPE).stdout
    seconds, after = time.perf_counter() - began, os.times()
    spent = after.children_user + after.children_system
    spent -= before.children_user + before.children_system
    card = json.loads(told)
    row = dict(degree=card["verdict"]["degree"], frames=card["frames"], size=card["size"])
    row |= dict(pairs=card["settings"]["pairs"])
    return row | dict(zip(TIMES, (f"{seconds:.1f}", f"{spent:.1f}")))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=["moving-shapes"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    for name in args.names:
        same = (today(), processor(), torch.__version__, command_line("timecheck.py"))
        row = dict(zip(SAME, (*same, args.threads, name))) | timed(name, args.threads)
        print(*(f"{key} {row[key]}" for key in ("encoder", "degree", *TIMES)), sep=", ")
        if args.csv:
            append_csv(args.csv, [row])


if __name__ == "__main__":
    main()
