"""Feed six readers with damaged input; what they cannot take is kept with a command to replay it.

python tests/fuzz/run.py --minutes 30            all readers, five minutes each
python tests/fuzz/run.py clip shards --seed 1    some of them, other inputs
python tests/fuzz/run.py --keep FOLDER           go on from what an earlier run has learned there
python tests/fuzz/run.py --replay FILE           one input again, with its traceback

A finding is an exception other than ValueError and OSError, a sentence that does not name the
file or has more than one line, a signal, more than 10 seconds, or more than 1 GB of memory. The
status is then 1. Guided by the coverage of bt_adapter where atheris is installed, else by chance.
"""

import argparse
import json
import mmap
import os
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from hashlib import blake2b
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_NUM_THREADS", "1")
try:
    import atheris
except ImportError:
    atheris = None

from mutate import some_bytes

if atheris:
    with atheris.instrument_imports(include=["bt_adapter"], enable_loader_override=False):
        from targets import TARGETS, be_quiet
else:
    from targets import TARGETS, be_quiet

CORPUS = Path(__file__).parent / "corpus"
SLOW, LARGE = 10, 2**30  # seconds, bytes
ROUND = 300  # seconds a process lives: what leaks somewhere is not taken for a peak
TOO_LARGE = 77  # the status of a process that ends itself, since a peak does not go down again
FIELDS = struct.Struct("=QQQQQdQ")  # executions, new, read, crashes, peak bytes, since, length


def digest(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()


class Desk:
    """What a reader's process and its watcher share: counts, and the input that is being read."""

    def __init__(self, largest: int):
        self.memory = mmap.mmap(-1, FIELDS.size + largest)
        self.executions = self.new = self.read = self.crashes = self.peak = self.long = 0
        self.since = 0.0

    def put(self):
        counts = self.executions, self.new, self.read, self.crashes, self.peak
        FIELDS.pack_into(self.memory, 0, *counts, self.since, self.long)

    def begin(self, data: bytes):
        self.memory[FIELDS.size : FIELDS.size + len(data)] = data
        self.long, self.since = len(data), time.monotonic()
        self.put()

    def end(self):
        self.since = 0.0
        self.put()

    def look(self) -> "Desk":
        found = FIELDS.unpack_from(self.memory)
        self.executions, self.new, self.read, self.crashes, self.peak, *rest = found
        self.since, self.long = rest
        return self

    def input(self) -> bytes:
        return self.memory[FIELDS.size : FIELDS.size + self.long]


def seeds(*folders: Path) -> list[bytes]:
    """The inputs in some folders, each once."""
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())]
    return [*dict.fromkeys(file.read_bytes() for file in files)]


class Reading:
    """One reader in a process of its own: each input, counted and judged."""

    def __init__(self, name: str, desk: Desk, found: Path, known: set[str]):
        self.name, self.desk, self.found, self.seen = name, desk, found, known
        self.target, self.folder = TARGETS[name], Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.places = Counter()

    def __call__(self, data: bytes) -> str:
        """Read an input; says where it ended."""
        data, outcome, desk = bytes(data[: self.target.largest]), "read", self.desk
        desk.begin(data)
        mark = digest(data)
        desk.executions += 1
        desk.new += mark not in self.seen
        self.seen.add(mark)
        try:
            desk.read += self.target.read(data, self.folder)
        except Exception as error:
            outcome = self.keep(data, error)
        desk.peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if desk.peak > LARGE:
            save(self.found, self.name, "peak", data)
            os._exit(TOO_LARGE)
        desk.end()
        return outcome

    def keep(self, data: bytes, error: Exception) -> str:
        """Save an input that ends in an exception, the first one for each place in the code."""
        last = traceback.extract_tb(error.__traceback__)
        place = next((f for f in reversed(last) if "/bt_adapter/" in f.filename), last[-1])
        own = isinstance(error, AssertionError)  # one of the fuzzer: it stands for the sentence
        sort = re.sub(r"\W.*|\d+", "", str(error), flags=re.DOTALL) if own else ""
        where = f"{type(error).__name__} {place.filename}:{place.lineno} {sort}"
        self.places[where] += 1
        self.desk.crashes += self.places[where] == 1
        if self.places[where] == 1:
            path = save(self.found, self.name, "crash", data)
            told = "".join(traceback.format_exception(error)).encode(errors="backslashreplace")
            path.with_suffix(".txt").write_bytes(told)
        return where


def save(folder: Path, name: str, kind: str, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{kind}-{digest(data)}"
    path.write_bytes(data)
    return path


def changed(target, data: bytes, rng: Random) -> bytes:
    """An input changed in one place or a few."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        try:
            data = target.mutate(data, rng)
        except Exception:  # what a change makes of damaged input is no finding
            data = some_bytes(data, rng)
    return data


def by_chance(reading: Reading, inputs: list[bytes], rng: Random, seconds: float):
    """Without atheris: inputs changed at random; those that end elsewhere are changed further."""
    end, known = time.monotonic() + seconds, {reading(data) for data in inputs}
    while time.monotonic() < end:
        data = changed(reading.target, rng.choice(inputs), rng)
        outcome = reading(data)
        if outcome not in known:
            known.add(outcome)
            inputs.append(data)


def by_coverage(reading: Reading, folders: list[Path], seed: int, seconds: float):
    """With atheris: inputs that reach new lines of bt_adapter are changed further."""

    def change(data, largest, seed):
        rng = Random(seed)
        if rng.random() < 0.1:
            return atheris.Mutate(data, largest)
        return changed(reading.target, bytes(data), rng)[:largest]

    options = dict(max_total_time=max(1, int(seconds)), seed=seed, max_len=reading.target.largest)
    options |= dict(rss_limit_mb=0, malloc_limit_mb=0, timeout=10**6, verbosity=0, reload=0)
    signals = "abrt bus fpe ill int segv term trap usr1 usr2 xfsz".split()
    options |= {f"handle_{name}": 0 for name in signals}
    flags = [f"-{name}={value}" for name, value in options.items()]
    command = [sys.argv[0], *flags, *map(str, folders)]
    atheris.Setup(command, lambda data: reading(data) and None, custom_mutator=change)
    atheris.Fuzz()


def serve(name, desk, arguments, seconds, seed):
    """The process of a reader, until its time is over."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (size + 4 * LARGE,) * 2)
    kept = arguments.keep / name
    kept.mkdir(parents=True, exist_ok=True)
    inputs = seeds(kept, CORPUS / name)
    reading = Reading(name, desk, arguments.out, {digest(data) for data in inputs})
    try:
        if atheris:
            by_coverage(reading, [kept, CORPUS / name], seed, seconds)
        else:
            by_chance(reading, inputs, Random(seed), seconds)
    except BaseException:
        (arguments.out / f"{name}-fuzzer.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


class Watch:
    """One reader under watch: begun anew when it dies, ended when it hangs, for its time."""

    def __init__(self, name: str, arguments):
        self.name, self.arguments, self.left = name, arguments, arguments.seconds
        self.desk, self.crashes, self.hangs, self.peaks = Desk(TARGETS[name].largest), 0, 0, 0
        self.round, self.spent, self.pid, self.broken = 0, 0.0, None, False

    def begin(self):
        self.round += 1
        self.share, self.began = min(self.left, ROUND), time.monotonic()
        self.desk.look().end()
        self.pid = os.fork()
        if not self.pid:
            seed = 1000 * self.arguments.seed + self.round
            serve(self.name, self.desk, self.arguments, self.share, seed)

    def step(self) -> bool:
        """Is there more to do?"""
        if self.pid is None:
            if self.left < 1 or self.broken:
                return False
            self.begin()
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.ended(os.waitstatus_to_exitcode(status))
        elif (since := self.desk.look().since) and time.monotonic() - since > SLOW:
            self.hangs += 1
            self.tell(save(self.arguments.out, self.name, "hang", self.desk.input()))
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.over()
        elif time.monotonic() - self.began > self.share + (2 if self.row["executions"] else 60):
            # It has no time limit itself, and where others take the cores it begins late.
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.over()
        return True

    def ended(self, code: int):
        busy = bool(self.desk.look().since)
        if code == TOO_LARGE:
            self.peaks += 1
            self.tell(save(self.arguments.out, self.name, "peak", self.desk.input()))
        elif code < 0 or (code and busy):
            self.crashes += 1
            path = save(self.arguments.out, self.name, "crash", self.desk.input())
            path.with_suffix(".txt").write_text(f"ended with {code}\n")
        elif code:
            self.broken = True
            print(f"{self.name}: the fuzzer itself failed, see {self.arguments.out}")
        self.over()

    def over(self):
        gone = time.monotonic() - self.began
        self.left, self.spent, self.pid = self.left - max(gone, 1), self.spent + gone, None

    def tell(self, path: Path):
        print(f"found {path}\n  python tests/fuzz/run.py --replay {path}", flush=True)

    @property
    def row(self) -> dict:
        desk = self.desk.look()
        row = dict(reader=self.name, executions=desk.executions, new=desk.new, read=desk.read)
        row |= dict(crashes=self.crashes + desk.crashes, hangs=self.hangs, peaks=self.peaks)
        return row | {"peak MB": desk.peak >> 20, "minutes": round(self.spent / 60, 2)}

    @property
    def failed(self) -> bool:
        return bool(self.row["crashes"] or self.hangs or self.peaks or self.broken)


def replay(path: Path):
    """One input again; its traceback is shown."""
    name = path.name.split("-")[0]
    if name not in TARGETS:
        raise SystemExit(f"{path} does not begin with the name of a reader, such as clip-...")
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        TARGETS[name].read(path.read_bytes(), Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"no fault; {time.monotonic() - begun:.1f} s, {peak} MB with all that is imported")


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("readers", nargs="*", metavar="READER", help=f"{', '.join(TARGETS)}; none: all")
    add("--minutes", type=float, default=1.0, help="of all readers together (1)")
    add("--seed", type=int, default=0, help="another one makes other inputs (0)")
    add("--jobs", type=int, default=min(2, os.cpu_count()), help="readers at a time (%(default)s)")
    add("--keep", type=Path, metavar="FOLDER", help="inputs that reach new code are kept there")
    add("--out", type=Path, default=Path("runs/fuzz"), help="receives findings (%(default)s)")
    add("--replay", type=Path, metavar="FILE", help="one input again, whose name begins READER-")
    add("--json", action="store_true", help="the table as JSON")
    chosen = parser.parse_args()
    if unknown := {*chosen.readers} - {*TARGETS}:
        parser.error(f"no reader is called {', '.join(unknown)}: choose from {', '.join(TARGETS)}")
    chosen.readers = chosen.readers or [*TARGETS]
    chosen.seconds = chosen.minutes * 60 / len(chosen.readers)
    return chosen


def fuzz(chosen) -> list[Watch]:
    """All readers, some at a time."""
    waiting, running = [Watch(name, chosen) for name in chosen.readers], []
    watches = [*waiting]
    try:
        while waiting or running:
            while waiting and len(running) < chosen.jobs:
                running.append(waiting.pop(0))
            running = [watch for watch in running if watch.step()]
            time.sleep(0.05)
    finally:
        for watch in running:
            if watch.pid:
                os.kill(watch.pid, signal.SIGKILL)
    return watches


def main():
    chosen = arguments()
    be_quiet()
    if chosen.replay:
        return replay(chosen.replay)
    chosen.out.mkdir(parents=True, exist_ok=True)
    temporary = None if chosen.keep else tempfile.mkdtemp(prefix="fuzz-keep-")
    chosen.keep = chosen.keep or Path(temporary)
    before = {*chosen.out.iterdir()}
    try:
        watches = fuzz(chosen)
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    rows = [watch.row for watch in watches]
    if chosen.json:
        print(json.dumps(rows))
    else:
        print(f"{'guided by coverage' if atheris else 'by chance'}, seed {chosen.seed}")
        print(" ".join(f"{name:>11}" for name in rows[0]))
        for row in rows:
            print(" ".join(f"{value!s:>11}" for value in row.values()))
    for path in sorted({*chosen.out.iterdir()} - before):
        if path.suffix == ".txt" and not chosen.json:
            what = path.read_text().strip().splitlines()[-1][:200]
            print(f"found {path.with_suffix('')}: {what}\n  python tests/fuzz/run.py --replay "
                  f"{path.with_suffix('')}")  # fmt: skip
    sys.exit(any(watch.failed for watch in watches))


if __name__ == "__main__":
    main()
