"""Runs the time check's folder for lmms-eval in lmms-eval itself, in an environment of its own.

    python tests/benchmarks/lmms_eval_once.py FOLDER [--csv FILE]

FOLDER is new, or empty; the environment and the task are made in it. lmms-eval wants PyAV below 16
and an older filelock than this project, so those two and what it imports to start are installed
there; torch, transformers and datasets are those of the Python that runs this script. What only
other tasks and models of lmms-eval need stays away. Asked is lmms-eval's model `dummy`, which opens
every clip and always says A: half of the clips must be right, no pair, and all replies read. The
row of lmms_eval_once.csv is made so.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from beside import make_environment, versions
from temporal_attention import processor

from bt_adapter.folders import make_folder
from bt_adapter.ledger import append_csv, check_csv, command_line, today
from bt_adapter.timecheck.for_lmms_eval import TASK, write_lmms_eval

LMMS_EVAL = "lmms-eval==0.7.3"  # without what it names, see above
BESIDE = ("av<16", "filelock<3.20", "evaluate", "jsonlines", "loguru", "pytablewriter", "sacrebleu")
BESIDE += ("tenacity",)
TOLD = ("lmms_eval", "av", "filelock", "torch", "transformers", "datasets")  # versions in the row
SCORES = {"direction": 0.5, "both_directions": 0.0, "answered": 1.0}  # of who always says A
CLIPS = dict(pairs=4, frames=8, size=64)
SAME = ("date", "device", "command", "versions", "model", *CLIPS, "clips")
COLUMNS = (*SAME, *SCORES, "seconds of the processor")


def judged(python: Path, task: Path, out: Path) -> dict[str, float]:
    "The scores that lmms-eval wrote."
    asked = ["--model", "dummy", "--model_args", "response=A,decode_num_frames=4", "--tasks", TASK]
    places = ["--include_path", task, "--output_path", out / "scores", "--batch_size", "1"]
    alone = dict(HF_HOME=str(out / "cache"), HF_HUB_OFFLINE="1")  # it reads nothing from a network
    subprocess.run([python, "-m", "lmms_eval", *asked, *places], check=True, env=os.environ | alone)
    (written,) = (out / "scores").rglob("*results.json")
    scores = json.loads(written.read_text(encoding="utf-8"))["results"][TASK]
    return {name: scores[f"{name},none"] for name in SCORES}


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
    python = make_environment(folder / "environment", BESIDE, [LMMS_EVAL])
    task = write_lmms_eval(folder / "task", **CLIPS)
    before = os.times()
    scores = judged(python, task, folder / "out")
    spent = os.times().children_user + os.times().children_system
    spent -= before.children_user + before.children_system
    same = (
        today(),
        processor(),
        command_line("lmms_eval_once.py"),
        versions(python, TOLD),
        "dummy: A",
    )
    same = (*same, *CLIPS.values(), sum(1 for _ in (task / "questions.jsonl").open()))
    row = dict(zip(COLUMNS, (*same, *(f"{s:g}" for s in scores.values()), f"{spent:.0f}")))
    print(json.dumps(row, indent=1))
    if scores != SCORES:
        sys.exit(f"Who always says A has other scores: {SCORES}")
    if args.csv:
        append_csv(args.csv, [row])


if __name__ == "__main__":
    main()
