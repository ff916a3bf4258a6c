"""Seconds until the commands say something, and until they say what one waits for.

    python tests/benchmarks/startup.py [COMMAND ...] [--rounds 5] [--against FOLDER] [--csv FILE]

`bta-demo` is waited for until its table of scores, `bta-chat` until its prompt, and then, from a
question, until the first words of the answer; both run in a pseudo-terminal. FOLDER is another
checkout of this repository, such as one made by `git worktree add`: the two take turns, and the
ratio is this one's median over the other's.
"""

import argparse
import os
import pty
import re
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
WAITED = {  # command: (its arguments, what ends the waiting, what is asked then)
    "bta-demo": ([], b"T2V R@1", None),
    "bta-chat": ([CLIP], b"\n> ", b"What does it do?"),
}
STEERING = re.compile(rb"\x1b\[[?0-9;]*[a-zA-Z]")  # of a line editor
MEASURES = ("the first line", "what one waits for", "the first words of an answer")


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

    def until(self, done):
        "Seconds until `done` is true of what was written since the last call."
        start = time.monotonic()
        while not done(self.seen):
            ready, _, _ = select.select([self.terminal], [], [], 0.05)
            if not ready and self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended early:\n{self.seen.decode()}")
            self.seen += os.read(self.terminal, 65536).replace(b"\r", b"") if ready else b""
        return time.monotonic() - start

    def ask(self, question):
        "Seconds from a question to the first words behind it."
        time.sleep(0.5)  # as a reader would; the line editor is ready then, and echoes once
        self.seen = b""
        os.write(self.terminal, question + b"\n")
        return self.until(lambda seen: STEERING.sub(b"", seen.partition(question)[2]).strip())

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


def waiting(root, command):
    "Seconds for each of MEASURES that this command has."
    arguments, end, question = WAITED[command]
    with tempfile.TemporaryDirectory() as folder:
        screen = Screen(root, command, arguments, folder)
        first = screen.until(bytes.strip)
        last = first + screen.until(lambda seen: end in seen)
        words = [screen.ask(question)] if question else []
        screen.close()
    return first, last, *words


def measure(args):
    "Rows for the CSV file: this checkout, and its ratio to the other one."
    roots = [ROOT, *([args.against.resolve()] if args.against else [])]
    words = " ".join(["startup.py", *args.commands, f"--rounds {args.rounds}"])
    words += " --against FOLDER" * bool(args.against)
    same = (today(), processor(), torch.__version__, words)
    for command in args.commands or WAITED:
        rounds = [[waiting(root, command) for root in roots] for _ in range(args.rounds + 1)]
        for number, name in enumerate(MEASURES[: len(rounds[0][0])]):
            each = zip(*([own[number] for own in turn] for turn in rounds[1:]), strict=True)
            own, *other = map(statistics.median, each)
            against = f"{other[0]:.2f} s before" if other else ""
            ratio = f"{own / other[0]:.2f}" if other else ""
            row = (*same, command, f"seconds to {name}", f"{own:.2f}", against, ratio)
            yield dict(zip(COLUMNS, row, strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commands", nargs="*", choices=[[], *WAITED], metavar="COMMAND")
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
