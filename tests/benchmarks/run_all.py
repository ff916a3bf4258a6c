"""How long *Restart and Run All* of a lesson takes, with a language model that answers.

    python tests/benchmarks/run_all.py [LESSON ...] [--threads N] [--csv FILE]

LESSON is a part of a notebook's name, as 50_chat; without one, the lessons on chat are timed. All
cells of a copy run in a kernel of its own, those with `eval: false`, too. SmolLM2 must be in the
cache folder, where a first run of `bta-demo` leaves it: a download is not what is timed. Seconds on
the wall count from the start of the kernel; seconds of the processor (its own and those of all that
it started) say what an otherwise idle machine would need with one thread.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import nbformat
import torch
from nbclient import NotebookClient
from temporal_attention import processor

from bt_adapter.chat import cache_folder
from bt_adapter.ledger import append_csv

ROOT = Path(__file__).resolve().parents[2]
LESSONS = ("50_chat", "52_instruction_tuning", "56_gallery")


def lesson_of(name):
    """The one lesson with this in its name."""
    found = [path for path in (ROOT / "nbs").glob("*.ipynb") if name in path.stem]
    if len(found) != 1:
        raise SystemExit(f"error: {name} is the name of {len(found)} lessons: write more of it")
    return found[0]


def spent():
    """Seconds on the wall, and of the processor by programs that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic(), ended.ru_utime + ended.ru_stime


def timed(path):
    """A row of the file. Raises CellExecutionError for a cell that fails."""
    notebook = nbformat.read(path, as_version=4)
    before = spent()
    with tempfile.TemporaryDirectory() as folder:
        where = dict(metadata=dict(path=folder))
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    wall, own = (now - then for now, then in zip(spent(), before))
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    seconds = {"seconds": f"{wall:.0f}", "seconds of the processor": f"{own:.0f}"}
    return dict(lesson=path.stem, cells=cells) | seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lessons", nargs="*", metavar="LESSON", default=LESSONS)
    parser.add_argument("--threads", type=int, help="of torch; default: all cores")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if not (cache_folder() / "SmolLM2-135M-Instruct").is_dir():
        raise SystemExit("error: SmolLM2 is not in the cache folder: run bta-demo first")
    os.environ |= {"PYTHONPATH": str(ROOT)}
    os.environ |= {"OMP_NUM_THREADS": str(args.threads)} if args.threads else {}
    same = dict(processor=processor(), torch=torch.__version__, threads=args.threads or "all")
    rows = [same | timed(lesson_of(name)) for name in args.lessons]
    print(*rows, sep="\n")
    if args.csv:
        append_csv(args.csv, rows)


if __name__ == "__main__":
    main()
