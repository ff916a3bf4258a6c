"""Sends the curves of short runs to the real trackio and wandb, and reads them back from there.

    python tests/benchmarks/trackers_once.py FOLDER [--csv FILE]

FOLDER is new, or empty; an environment with both trackers is made in it, beside the packages of the
Python that runs this script. Each tracker follows two runs of `bta-pretrain` on Moving Shapes,
which are cut off in the middle and go on: one is asked to end (SIGTERM), the other killed
(SIGKILL). Nothing leaves this machine: wandb is offline, and trackio's database lies in FOLDER.
What the trackers' own commands read back must be log.csv, to its six digits. The rows of
trackers_once.csv are made so: `missing` are steps that the tracker never had, and `twice` those
that were taken and sent again after the cut; a run that is asked to end must have neither.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from beside import make_environment, versions
from temporal_attention import processor

import bt_adapter
from bt_adapter.files import read_json
from bt_adapter.folders import make_folder
from bt_adapter.ledger import append_csv, check_csv, command_line, read_csv, today

TRACKERS = ("trackio", "wandb")
TOLD = (*TRACKERS, "accelerate", "torch")  # versions in the rows
CUTS = (signal.SIGTERM, signal.SIGKILL)
STEPS, SAVED, CUT = 60, 20, 30  # steps, those between checkpoints, and rows of the log at the cut
RUN = ("--batch", "18", "--steps", f"{STEPS}", "--save-every", f"{SAVED}")
SAME = ("date", "device", "command", "versions", "tracker", "cut off by", "steps")
COLUMNS = (*SAME, "values", "largest relative difference", "missing", "twice")


def cut_off_and_go_on(train: list, log: Path, cut: signal.Signals, said: Path, env: dict):
    "Train until the log has so many rows, cut the training off, and let it go on to its end."
    with said.open("w") as told:
        going = subprocess.Popen(train, env=env, stdout=told, stderr=told)
        while going.poll() is None and not (log.is_file() and log.read_text().count("\n") > CUT):
            time.sleep(0.005)
        going.send_signal(cut)
        if going.wait() not in (128 + cut, -cut):
            sys.exit(f"The run was not cut off: {said.read_text()}")
        subprocess.run([*train, "--resume"], env=env, stdout=told, stderr=told, check=True)


def read_trackio(run: Path, bin: Path, env: dict) -> list[tuple[int, dict]]:
    "Steps and their values as trackio's own command reads them."
    name = read_json(run / "tracked.json", dict)["run"]
    sql = f"select step, metrics from metrics where run_name = '{name}' order by id"
    ask = [bin / "trackio", "query", "project", "--project", "bt-adapter", "--sql", sql, "--json"]
    found = subprocess.run(ask, env=env, check=True, capture_output=True, text=True).stdout
    return [(row["step"], json.loads(row["metrics"])) for row in json.loads(found)["rows"]]


def read_wandb(run: Path, bin: Path, env: dict) -> list[tuple[int, dict]]:
    "Steps and their values as wandb's own command reads them: a file each time the run began."
    rows = []
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        ask = [bin / "wandb", "leet", "inspect", "--json", path]
        found = subprocess.run(ask, env=env, check=True, capture_output=True, text=True).stdout
        records = map(json.loads, filter(None, found.splitlines()))
        rows += [r["history"]["item"] for r in records if r["type"] == "history"]
    return [
        (row["_step"], {name: x for name, x in row.items() if not name.startswith("_")})
        for row in rows
    ]


def compared(found: list[tuple[int, dict]], log: list[dict[str, str]]) -> dict:
    "Part of a row. Ends the program if a value is another one, or one too many."
    rows, largest, values = dict(found), 0.0, 0
    for row in log:
        step = int(row.pop("step"))
        if step not in rows:
            continue
        if rows[step].keys() != row.keys():
            sys.exit(f"step {step} has {', '.join(rows[step])}, the log {', '.join(row)}")
        for name, written in row.items():
            if f"{rows[step][name]:.6g}" != written:
                sys.exit(f"{name} of step {step} is {rows[step][name]}, in the log {written}")
            value = float(written)
            largest = max(largest, abs(rows[step][name] - value) / (abs(value) or 1))
            values += 1
    missing = STEPS - len(rows)
    return dict(zip(COLUMNS[-4:], (values, f"{largest:.1e}", missing, len(found) - len(rows))))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    make_folder(folder := args.folder.resolve())
    python = make_environment(folder / "environment", TRACKERS)
    alone = dict(TRACKIO_DIR=str(folder / "trackio"), WANDB_MODE="offline", HF_HUB_OFFLINE="1")
    env = os.environ | alone | dict(PYTHONPATH=str(Path(bt_adapter.__file__).parents[1]))
    code, rows = "from bt_adapter.cli.pretrain import main; main()", []
    for tracker, read in zip(TRACKERS, (read_trackio, read_wandb)):
        for cut in CUTS:
            run = folder / f"{tracker}-{cut.name}"
            train = [python, "-c", code, *RUN, "--track", tracker, "--out", run]
            cut_off_and_go_on(train, run / "log.csv", cut, run.with_suffix(".txt"), env)
            row = compared(read(run, python.parent, env), read_csv(run / "log.csv"))
            same = (today(), processor(), command_line(), versions(python, TOLD), tracker, cut.name)
            rows.append(dict(zip(SAME, (*same, STEPS))) | row)
            print(json.dumps(rows[-1], indent=1))
            if cut == signal.SIGTERM and (row["missing"] or row["twice"]):
                sys.exit(f"{tracker} lacks steps of a run that was asked to end, or has them twice")
    if args.csv:
        append_csv(args.csv, rows)


if __name__ == "__main__":
    main()
