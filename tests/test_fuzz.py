"""The readers under damaged input: a minute of fuzzing, and what it found before."""

import json
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz"
sys.path.insert(0, str(FUZZ))

import flipped_clips  # noqa: E402
import run as fuzzer  # noqa: E402
from targets import TARGETS  # noqa: E402

CORPUS = sorted((FUZZ / "corpus").glob("*/*"))
REFUSED = {  # seeds that no reader takes; all others are read, or nothing deeper would be tried
    "clip": {"bomb-4000x4000.gif", "cut_60s.mkv", "size-change.flv"},
    "captions": {"captions-end-400-digits"},
    "shards": {"index-nsamples-1e12", "index-url-number"},
    "adapter": {"adapter-max-frames", "adapter-name-null"},
    "released": {"nested", "strange"},
    "dialogues": set(),
}


def run_apart(code, *options, cwd=None):
    """A fuzzer in a process of its own, without this run's coverage."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    command = [sys.executable, *([code] if isinstance(code, Path) else ["-c", code]), *options]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("reader", TARGETS)
def test_the_corpus_is_read_or_told(reader, tmp_path):
    inputs = [path for path in CORPUS if path.parent.name == reader]
    read = {path.name: TARGETS[reader].read(path.read_bytes(), tmp_path) for path in inputs}
    made = {name: was_read for name, was_read in read.items() if not name.startswith("found-")}
    assert made and {name for name, was_read in made.items() if not was_read} == REFUSED[reader]


def test_the_corpus_is_small_and_holds_nothing_twice():
    assert {path.parent.name for path in CORPUS} == {*TARGETS}
    assert sum(path.stat().st_size for path in CORPUS) < 2 * 2**20
    assert len({(path.parent, path.read_bytes()) for path in CORPUS}) == len(CORPUS)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_half_a_minute_of_fuzzing_finds_nothing(tmp_path):
    done = run_apart(FUZZ / "run.py", "--minutes", "0.5", "--json", "--out", str(tmp_path))
    found = [path.read_text() for path in tmp_path.glob("*.txt")]
    assert not done.returncode and not [*tmp_path.iterdir()], (done.stdout, found)
    for row in json.loads(done.stdout):
        print(row)
        assert row["new"] > 20 and row["new"] < row["executions"] and 0 < row["peak MB"] < 1024
        assert not row["crashes"] + row["hangs"] + row["peaks"]


FAULTY = """
import os, resource, signal, sys, time
sys.path.insert(0, sys.argv[1])
import run, targets
run.SLOW, kept = 1, []
resident = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
run.LARGE = resident + 2**28

def foreign(data, folder):
    raise KeyError("x")

def nameless(data, folder):
    return targets.attempt(int, "x", name="a.json")

def dies(data, folder):
    os.kill(os.getpid(), signal.SIGSEGV)

def hangs(data, folder):
    time.sleep(9)

def grows(data, folder):
    kept.append(b"x" * 2**25)
    return False

faults = dict(clip=foreign, captions=nameless, shards=dies, dialogues=hangs, adapter=grows)
for name, read in (faults | dict(released=lambda data, folder: True)).items():
    run.TARGETS[name] = run.TARGETS[name]._replace(read=read)
for way in sys.argv[2].split():
    run.atheris = run.atheris if way == "coverage" else None
    sys.argv[1:] = ["--minutes", "0.2", "--json", "--out", way]
    try:
        run.main()
    except SystemExit as ended:
        assert ended.code == 1
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="readers run in forks")
def test_each_kind_of_fault_is_found_kept_and_fails_the_run(tmp_path):
    ways = ["chance", *(["coverage"] if find_spec("atheris") else [])]
    done = run_apart(FAULTY, str(FUZZ), " ".join(reversed(ways)), cwd=tmp_path)
    assert not done.returncode, done.stderr
    tables = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    kinds = dict(clip="crash", captions="crash", shards="crash", dialogues="hang", adapter="peak")
    for way, table in zip(reversed(ways), tables, strict=True):
        rows, kept = {row["reader"]: row for row in table}, tmp_path / way
        for name, kind in kinds.items():
            counted = rows[name][dict(crash="crashes", hang="hangs", peak="peaks")[kind]]
            assert counted and [*kept.glob(f"{name}-{kind}-*")], rows
        good = rows["released"]
        assert not good["crashes"] + good["hangs"] + good["peaks"] and good["read"]
        assert not [*kept.glob("released-*")] and not [*kept.glob("*-fuzzer*")]
        assert rows["clip"]["crashes"] == 1 < rows["clip"]["executions"]  # a place in the code once


def test_a_finding_is_replayed_by_its_file(tmp_path, capsys):
    (tmp_path / "dialogues-crash-1").write_text("[]")
    fuzzer.replay(tmp_path / "dialogues-crash-1")
    assert "no fault" in capsys.readouterr().out
    (tmp_path / "nobody-crash-1").touch()
    with pytest.raises(SystemExit, match="does not begin with the name of a reader"):
        fuzzer.replay(tmp_path / "nobody-crash-1")


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_with_turned_bits_are_read_or_named(workers, tmp_path):
    """python tests/fuzz/flipped_clips.py does so with 1,000."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = flipped_clips.run(tmp_path, 60, workers)
    assert found["read"] > 10 and found["broken"] > 3
    assert not found["lost"] and not found["twice"] and not found["unclear"], found
