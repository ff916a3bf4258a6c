"""CPU time of `read_clip` on good files, against another checkout of this repository.

    python tests/benchmarks/reading.py --against FOLDER [--rounds 15] [--csv FILE]

Each checkout reads in a process of its own, one thread each; the two take turns, file by file and
round by round. The ratio is the other's time over this one's, each the fastest of its rounds: below
1 this one is slower. Wanted: 0.95 or more over all files together.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from loader import draw_clip
from temporal_attention import processor

from bt_adapter.ledger import append_csv, check_csv, today

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("date", "device", "torch", "command", "case", "measure", "value", "against", "ratio")
KINDS = {  # of 150 frames, 360 x 640
    "H.264 in MP4": ("a.mp4", "libx264", {}),
    "H.264 in Matroska": ("a.mkv", "libx264", {}),
    "HEVC in MP4": ("b.mp4", "libx265", {"x265-params": "log-level=none"}),
    "VP9 in WebM": ("a.webm", "libvpx-vp9", {"deadline": "realtime"}),
    "MPEG-4 in AVI": ("a.avi", "mpeg4", {}),
    "H.264 in a transport stream": ("a.ts", "libx264", {}),
}
READER = """
import json, sys, time
import torch
torch.set_num_threads(1)
from bt_adapter.video import read_clip
for line in sys.stdin:
    path, times = json.loads(line)
    begun = time.process_time()
    for _ in range(times):
        read_clip(path)
    print((time.process_time() - begun) / times, flush=True)
"""


class Checkout:
    "A process that reads clips with the package of a folder."

    def __init__(self, folder):
        env = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen([sys.executable, "-c", READER], env=env, cwd="/", **pipes)

    def seconds(self, path, times):
        "CPU seconds of one reading."
        print(json.dumps([str(path), times]), file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def files(folder):
    "The shipped clips under one name, and larger ones of each kind: name -> paths."
    found = {"shipped, 96 x 96": sorted((ROOT / "data_samples/clips").glob("*.mp4"))}
    for name, (file, codec, options) in KINDS.items():
        draw_clip(folder / file, 360, 640, 150, codec, **options)
        found[name] = [folder / file]
    return found


def compare(against, rounds):
    "Seconds of both, for each kind of file."
    here, other = Checkout(ROOT), Checkout(against)
    with tempfile.TemporaryDirectory() as folder:
        kinds = files(Path(folder))
        best = {}
        for round in range(rounds):
            for name, paths in kinds.items():
                for path in paths:
                    pair = [(here, 0), (other, 1)]
                    for checkout, which in pair if round % 2 else reversed(pair):
                        seconds = checkout.seconds(path, 1 if len(paths) == 1 else 5)
                        key = name, path, which
                        best[key] = min(seconds, best.get(key, seconds))
    for checkout in (here, other):
        checkout.process.stdin.close()
        checkout.process.wait()
    sums = lambda name, which: sum(best[name, p, which] for p in kinds[name])  # noqa: E731
    return {name: (sums(name, 0), sums(name, 1)) for name in kinds}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, required=True, help="another checkout")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--csv", type=Path, help="append the figures to this file")
    chosen = parser.parse_args()
    found = compare(chosen.against.resolve(), chosen.rounds)
    found["all"] = tuple(map(sum, zip(*found.values())))
    rows = []
    for name, (mine, theirs) in found.items():
        ratio = round(theirs / mine, 3)
        print(f"{name:>28}: {1000 * mine:8.1f} ms, before {1000 * theirs:8.1f} ms, ratio {ratio}")
        values = name, "ms of CPU", round(1000 * mine, 2), f"{1000 * theirs:.2f} ms before", ratio
        first = [today(), processor(), torch.__version__, "reading.py --against FOLDER"]
        rows.append(dict(zip(COLUMNS, (*first, *values), strict=True)))
    if chosen.csv:
        check_csv(chosen.csv, COLUMNS)
        append_csv(chosen.csv, rows)
    sys.exit(found["all"][1] / found["all"][0] < 0.95)


if __name__ == "__main__":
    main()
