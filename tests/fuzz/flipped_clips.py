"""Read clips of which some bits were turned, as a data set with workers: does the run finish?

python tests/fuzz/flipped_clips.py                 1,000 clips, 2 workers
python tests/fuzz/flipped_clips.py --clips 5000 --seed 1 --out FOLDER

Each is one of the shipped clips, or of the small ones in tests/fuzz/corpus, in any container; 1 to
20 of its bits are turned, the same ones each time. A clip is either handed out or named in
broken.csv with its reason; the status is 1 where that does not hold.
"""

import argparse
import csv
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from random import Random

from mutate import flipped

from bt_adapter.datasets import ClipDataset, Example, loader

HERE = Path(__file__).resolve().parent
BASES = sorted((HERE.parents[1] / "data_samples/clips").glob("*.mp4"))
BAD = ("bomb-4000x4000.gif", "cut_60s.mkv", "size-change.flv")  # before any bit is turned
BASES += sorted(path for path in (HERE / "corpus/clip").glob("*.*") if path.name not in BAD)


def make(folder: Path, count: int, seed: int) -> list[Example]:
    """Damaged clips in a folder."""
    rng, made = Random(seed), []
    for number in range(count):
        base = rng.choice(BASES)
        path = folder / f"{number:05}-{base.name}"
        path.write_bytes(flipped(base.read_bytes(), rng, rng.randint(1, 20)))
        made.append(Example(path.name, str(path), ("a clip",)))
    return made


def kind_of(reason: str) -> str:
    """A reason without the file it names."""
    return reason.partition(": ")[2] or reason


def run(folder: Path, count: int = 1000, workers: int = 2, seed: int = 0) -> dict:
    """What becomes of them: numbers, and the reasons for those that are broken."""
    examples, begun = make(folder, count, seed), time.monotonic()
    batches = loader(ClipDataset(examples, (32, 32), 4), 10, workers=workers, share=1.0)
    read = [name for batch in batches if batch is not None for name in batch.ids]
    seconds = time.monotonic() - begun
    batches.report.write(folder / "broken.csv")
    with (folder / "broken.csv").open(newline="") as file:
        broken = {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}
    names = [example.id for example in examples]
    unclear = [n for n, reason in broken.items() if n not in reason or "\n" in reason.strip()]
    return dict(
        clips=count,
        read=len(read),
        broken=len(broken),
        lost=sorted({*names} - {*read} - {*broken}),
        twice=len(read) + len(broken) - count,
        unclear=unclear,
        died=sum("was ended" in reason for reason in broken.values()),
        seconds=round(seconds, 1),
        reasons=Counter(map(kind_of, broken.values())),
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a folder that keeps clips and broken.csv")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = run(folder, chosen.clips, chosen.workers, chosen.seed)
    for name, value in found.items():
        if name != "reasons":
            print(f"{name:>8}: {value}")
    for reason, count in found["reasons"].most_common(25):
        print(f"{count:>8}  {reason}")
    sys.exit(bool(found["lost"] or found["twice"] or found["unclear"]))


if __name__ == "__main__":
    main()
