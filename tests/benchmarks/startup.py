"""Seconds until the commands say something, and until they say what one waits for.

    python tests/benchmarks/startup.py [--rounds 5] [--against FOLDER] [--csv FILE]

`bta-demo` is waited for until its table of scores, `bta-chat` until its prompt; both run in a
pseudo-terminal. FOLDER is another checkout of this repository, such as one made by
`git worktree add`: the two take turns, and the ratio is this one's median over the other's.
"""

import argparse
import os
import pty
import select
import statistics
import subprocess
import sys
import tempfile
import time
from configparser import ConfigParser
from pathlib import Path

import torch
from temporal_attention import processor

from bt_adapter.ledger import append_csv, check_csv, today

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("date", "device", "torch", "command", "case", "measure", "value", "against", "ratio")
CLIP = str(ROOT / "data_samples/clips/right.mp4")
WAITED = {  # command: (its arguments, what ends the waiting)
    "bta-demo": ([], b"T2V R@1"),
    "bta-chat": ([CLIP], b"\n> "),
}
MEASURES = ("the first line", "what one waits for")


def entry_point(root, command):
    "Code that runs a command of a checkout."
    settings = ConfigParser(delimiters=("=",), interpolation=None)
    settings.read(root / "settings.ini", encoding="utf-8")
    lines = settings["DEFAULT"]["console_scripts"].strip().splitlines()
    module, function = dict(line.split(" = ") for line in lines)[command].split(":")
    return f"from {module} import {function}; {function}()"


def waiting(root, command):
    "Seconds until the first character that is no blank, and until what one waits for."
    arguments, end = WAITED[command]
    ours, theirs = pty.openpty()
    env = os.environ | {"PYTHONPATH": str(root)}
    with tempfile.TemporaryDirectory() as folder:
        start, seen, first = time.monotonic(), b"", None
        code = [sys.executable, "-c", entry_point(root, command), *arguments]
        ends = dict(stdin=theirs, stdout=theirs, stderr=theirs)
        process = subprocess.Popen(code, cwd=folder, env=env, **ends)
        while end not in seen.replace(b"\r", b""):
            ready, _, _ = select.select([ours], [], [], 0.05)
            if not ready and process.poll() is not None:
                raise SystemExit(f"{command} of {root} ended early:\n{seen.decode()}")
            seen += os.read(ours, 65536) if ready else b""
            first = first or (time.monotonic() - start if seen.strip() else None)
        last = time.monotonic() - start
        process.kill()
        process.wait()
    os.close(ours)
    os.close(theirs)
    return first, last


def measure(args):
    "Rows for the CSV file: this checkout, and its ratio to the other one."
    roots = [ROOT, *([args.against.resolve()] if args.against else [])]
    words = f"startup.py --rounds {args.rounds}" + " --against FOLDER" * bool(args.against)
    same = (today(), processor(), torch.__version__, words)
    for command in WAITED:
        rounds = [[waiting(root, command) for root in roots] for _ in range(args.rounds + 1)]
        for number, name in enumerate(MEASURES):
            each = zip(*([own[number] for own in turn] for turn in rounds[1:]), strict=True)
            own, *other = map(statistics.median, each)
            against = f"{other[0]:.2f} s before" if other else ""
            ratio = f"{own / other[0]:.2f}" if other else ""
            row = (*same, command, f"seconds to {name}", f"{own:.2f}", against, ratio)
            yield dict(zip(COLUMNS, row, strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    rows = list(measure(args))
    for row in rows:
        print(f"{row['case']:10}{row['measure']:34}{row['value']:>8}  {row['ratio']}")
    if args.csv:
        append_csv(args.csv, rows)
