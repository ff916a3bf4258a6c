"""Kills a training at random moments, goes on each time, and looks whether the same comes out.

    python tests/benchmarks/kills.py [TRAINER ...] [--kills 100] [--seed 0] [--csv FILE]
        [--same FILE[:COLUMN,COLUMN] ...]

A TRAINER is FILE.py:FUNCTION, which is called with a folder, or a command in quotes that has {} in
the folder's place. It trains there, or goes on with what it finds there. Each is first left alone
in a folder of its own; then it is killed (SIGKILL, with all processes that it has started) as many
seconds after its start as were drawn at random, up to the length of the undisturbed run; and it is
started again and perhaps killed again, until it comes to its end. Then the files of --same must be
those of the undisturbed run, byte for byte; of a CSV file only some columns, if they are named.
Trainers take turns until there were as many kills. Functions run in forks of this one process:
what their file imports and makes when it is imported is made once.

Without a TRAINER: a table of clips, shards, a stream and a store, of tests/whole_runs.py.
"""

import argparse
import os
import random
import shlex
import signal
import sys
import tempfile
import time
from contextlib import suppress
from importlib import import_module
from itertools import cycle
from pathlib import Path

import torch
from temporal_attention import processor

from bt_adapter.ledger import append_csv, check_csv, command_line, read_csv, today

COLUMNS = ("date", "device", "torch", "command", "trainer", "run", "kill")
COLUMNS += ("second", "of", "steps", "found", "equal")
RUNS = Path(__file__).resolve().parents[1] / "whole_runs.py"
SAME = ["adapter.safetensors", "log.csv:step,loss,vtc,mbta,mbca,norm,rate"]


def work_of(trainer):
    "What a child does for a trainer: a function of the folder."
    path, colon, name = trainer.rpartition(":")
    if colon and path.endswith(".py"):
        sys.path.insert(0, str(Path(path).resolve().parent))
        return getattr(import_module(Path(path).stem), name)
    if "{}" not in trainer:
        raise SystemExit(f"{trainer} is neither FILE.py:FUNCTION nor a command with {{}} in it")

    def run(folder):
        words = [word.replace("{}", str(folder)) for word in shlex.split(trainer)]
        os.execvp(words[0], words)

    return run


def start(work, folder):
    "The number of a child that trains in a folder, in a group of its own; it says nothing here."
    number = os.fork()
    if number:
        with suppress(PermissionError):  # it runs another program, and has done so itself
            os.setpgid(number, number)
        return number
    status = 1
    try:
        os.setpgid(0, 0)
        said = os.open(f"{folder}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(said, stream)
        torch.set_num_threads(1)
        work(folder)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def ended(number, folder, seconds=float("inf")):
    "Has a child come to its end within so many seconds? SystemExit with what it said if it failed."
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        child, status = os.waitpid(number, os.WNOHANG)
        if status:
            raise SystemExit(Path(f"{folder}.txt").read_text(errors="replace"))
        if child:
            return True
        time.sleep(0.002)
    return False


def kill(number):
    "Kill a child and what it has started."
    os.killpg(number, signal.SIGKILL)
    os.waitpid(number, 0)


def outcome(folder, same):
    "What must be the same: of each file its bytes, or some columns."
    found = {}
    for name, _, columns in (each.partition(":") for each in same):
        path = folder / name
        rows = read_csv(path) if columns else []
        found[name] = [[row[c] for c in columns.split(",")] for row in rows] or path.read_bytes()
    return found


def killed_run(work, folder, moments, most):
    "A row for each kill of a run that comes to its end at last, or sooner after so many."
    rows = []
    while True:
        number, second = start(work, folder), next(moments)
        if ended(number, folder, second if len(rows) < most else float("inf")):
            return rows
        kill(number)
        log = folder / "log.csv"
        lines = log.read_bytes().count(b"\n") if log.is_file() else 1
        found = sorted(p.name for p in folder.glob("*")) if folder.is_dir() else []
        rows.append(dict(second=round(second, 2), steps=max(0, lines - 1), found=" ".join(found)))


def kills(trainer, work, place, same, draw):
    "Kill one run of a trainer after another; rows, when it is asked for at most so many."
    whole, before = place / "whole", time.monotonic()
    ended(start(work, whole), whole)
    lasted, expected, run, rows = time.monotonic() - before, outcome(whole, same), 0, []
    moments = iter(lambda: draw.uniform(0, lasted), None)
    while True:
        most = yield rows
        run += 1
        folder = place / str(run)
        rows = killed_run(work, folder, moments, most)
        equal = outcome(folder, same) == expected
        told = dict(trainer=trainer, run=run, of=round(lasted, 2), equal=equal)
        rows = [told | row | dict(kill=n) for n, row in enumerate(rows, 1)]


def all_kills(trainers, most, same, seed):
    "The rows of all trainers, run after run, in turns."
    left = most
    with tempfile.TemporaryDirectory() as place:
        running = []
        for n, trainer in enumerate(trainers):
            own = Path(place, str(n))
            own.mkdir()
            draw = random.Random(f"{seed} {n}")
            running.append(kills(Path(trainer).name, work_of(trainer), own, same, draw))
            next(running[-1])
        for trainer in cycle(running):
            rows = trainer.send(left)
            left -= len(rows)
            yield from rows
            if not left:
                return


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ours = [f"{RUNS}:{name}" for name in ("table", "shards", "stream", "store")]
    parser.add_argument("trainers", nargs="*", default=ours, metavar="TRAINER")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--same", nargs="+", default=SAME, metavar="FILE[:COLUMN,COLUMN]")
    parser.add_argument("--csv", type=Path)
    asked = parser.parse_args()
    if asked.csv:
        check_csv(asked.csv, COLUMNS)
    same = dict(date=today(), device=processor(), torch=torch.__version__, command=command_line())
    good = 0
    for row in all_kills(asked.trainers, asked.kills, asked.same, asked.seed):
        row = {column: (same | row)[column] for column in COLUMNS}
        print(*(row[column] for column in COLUMNS[4:]), sep=", ", flush=True)
        if asked.csv:
            append_csv(asked.csv, [row])
        good += row["equal"]
    print(f"{good} of {asked.kills} kills: what came out is that of the undisturbed run")
    sys.exit(good < asked.kills)


if __name__ == "__main__":
    main()
