"""Seconds until the commands say something, and until they say what one waits for.

    python tests/benchmarks/startup.py [COMMAND ...] [--rounds 5] [--threads N] [--against FOLDER]
                                       [--csv FILE]

`bta-demo` is waited for until its table of scores, `bta-chat` until its prompt, and both then, from
a question, until the first words of the answer: `bta-chat` is asked one at its prompt, and
`bta-demo` asks its own. Both run in a pseudo-terminal. FOLDER is another
checkout of this repository, such as one made by `git worktree add`: the two take turns, and the
ratio is this one's median over the other's. On a machine that does other things as well, seconds of
the processor say what an idle one would need with one thread (Linux only).
"""

import argparse
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from configparser import ConfigParser
from itertools import product
from pathlib import Path

import numpy as np
import torch
from temporal_attention import processor

from bt_adapter.ledger import append_csv, check_csv, today

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("date", "device", "torch", "command", "case", "measure", "value", "against", "ratio")
CLIP = str(ROOT / "data_samples/clips/right.mp4")
WAITED = {  # command: (its arguments, what ends the waiting, the question then, is it typed)
    "bta-demo": ([], b"T2V R@1", b"Which shape is it?", False),
    "bta-chat": ([CLIP], b"\n> ", b"What does it do?", True),
}
STEERING = re.compile(rb"\x1b\[[?0-9;]*[a-zA-Z]")  # of a line editor
MEASURES = ("the first line", "what one waits for", "the first words of an answer")
CLOCKS = ("seconds", "seconds of the processor")


def entry_point(root, command):
    "Code that runs a command of a checkout."
    settings = ConfigParser(delimiters=("=",), interpolation=None)
    settings.read(root / "settings.ini", encoding="utf-8")
    lines = settings["DEFAULT"]["console_scripts"].strip().splitlines()
    module, function = dict(line.split(" = ") for line in lines)[command].split(":")
    return f"from {module} import {function}; {function}()"


class Screen:
    "A command in a pseudo-terminal, and what it has written."

    def __init__(self, root, command, arguments, folder):
        self.terminal, theirs = pty.openpty()
        code = [sys.executable, "-c", entry_point(root, command), *arguments]
        env, ends = os.environ | {"PYTHONPATH": str(root)}, dict(stdin=theirs, stdout=theirs)
        self.name, self.seen = f"{command} of {root}", b""
        self.process = subprocess.Popen(code, cwd=folder, env=env, stderr=theirs, **ends)
        os.close(theirs)

    def clocks(self):
        "What each of CLOCKS shows."
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])  # of the program, and of the system for it
        return np.array([time.monotonic(), ticks / os.sysconf("SC_CLK_TCK")])

    def until(self, done):
        "How far each of CLOCKS went until `done` was true of what was written."
        start = self.clocks()
        while not done(self.seen):
            ready, _, _ = select.select([self.terminal], [], [], 0.05)
            if not ready and self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended early:\n{self.seen.decode()}")
            self.seen += os.read(self.terminal, 65536).replace(b"\r", b"") if ready else b""
        return self.clocks() - start

    def ask(self, question):
        "Type a question."
        time.sleep(0.5)  # as a reader would; the line editor is ready then, and echoes once
        self.seen = b""
        os.write(self.terminal, question + b"\n")

    def answer(self, question):
        "How far each of CLOCKS went from a question to the first words behind it."
        return self.until(lambda seen: STEERING.sub(b"", seen.partition(question)[2]).strip())

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


def waiting(root, command):
    "What each of CLOCKS shows at each of MEASURES."
    arguments, end, question, typed = WAITED[command]
    with tempfile.TemporaryDirectory() as folder:
        screen = Screen(root, command, arguments, folder)
        first = screen.until(bytes.strip)
        last = first + screen.until(lambda seen: end in seen)
        if typed:
            screen.ask(question)
        else:
            screen.until(lambda seen: question in seen)
        words = screen.answer(question)
        screen.close()
    return np.stack([first, last, words])


def measure(args):
    "Rows for the CSV file: this checkout, and its ratio to the other one."
    roots = [ROOT, *([args.against.resolve()] if args.against else [])]
    words = " ".join(["startup.py", *args.commands, f"--rounds {args.rounds}"])
    words += f" --threads {args.threads}" if args.threads else ""
    words += " --against FOLDER" * bool(args.against)
    os.environ |= {"OMP_NUM_THREADS": str(args.threads)} if args.threads else {}
    same = (today(), processor(), torch.__version__, words)
    for command in args.commands or WAITED:
        rounds = [[waiting(root, command) for root in roots] for _ in range(args.rounds + 1)]
        medians = np.median(rounds[1:], axis=0)  # of each checkout; the first round warms up
        for (number, name), (clock, unit) in product(enumerate(MEASURES), enumerate(CLOCKS)):
            own, *other = medians[:, number, clock]
            against = f"{other[0]:.2f} s before" if other else ""
            ratio = f"{own / other[0]:.2f}" if other else ""
            row = (*same, command, f"{unit} to {name}", f"{own:.2f}", against, ratio)
            yield dict(zip(COLUMNS, row, strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commands", nargs="*", choices=[[], *WAITED], metavar="COMMAND")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; default: all cores")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    rows = list(measure(args))
    for row in rows:
        print(f"{row['case']:10}{row['measure']:54}{row['value']:>8}  {row['ratio']}")
    if args.csv:
        append_csv(args.csv, rows)
