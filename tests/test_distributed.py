"""Several processes at their shares are one process at the whole: in training, in evaluation."""

import csv
import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from tiny_runs import Source, tiny_adapter

from bt_adapter import trainer as engine
from bt_adapter.masking import tube_mask
from bt_adapter.shipped import samples_folder

WORK = """
import os, sys, torch, torch._dynamo, torchvision  # what each child would import anew
from accelerate import Accelerator
from tiny_runs import Source, tiny_adapter
from bt_adapter import trainer as engine
from bt_adapter.masking import tube_mask
torch.set_num_threads(1)

def work(rank, world, out):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == world and accelerator.process_index == rank
    found = {}
    for chunk in (None, 2):
        config = engine.PretrainConfig(steps=2, batch=12, chunk=chunk, **SETTINGS)
        # Other processes begin with other weights: they must get the first one's.
        trainer = engine.Trainer(tiny_adapter(seed=rank), config, accelerator)
        batch = next(Source(engine.ProcessInfo(rank, world))(0, 3))
        keep = tube_mask(12, 4, 0.5, trainer.masks)[engine.ProcessInfo(rank, world).share(12)]
        found[f"{chunk} losses"] = engine.backward_in_chunks(
            trainer.passes, batch, keep, config, accelerator
        )
        for name, parameter in trainer.model.branch.named_parameters():
            found[f"{chunk} {name}"] = parameter.grad.clone()
    found["stop"] = torch.tensor(trainer.asked_to_stop(15 if rank == world - 1 else 0))
    try:
        broken = batch._replace(states=batch.states * float("nan")) if rank else batch
        trainer.update(broken)
    except ValueError as error:
        found["told"] = str(error)
    torch.save(found, f"{out}/{rank} of {world}.pt")
    os._exit(0)

for world, os.environ["MASTER_PORT"] in zip((2, 4), sys.argv[2:]):
    for rank in range(world):
        if os.fork() == 0:
            work(rank, world, sys.argv[1])
    if any(os.wait()[1] for _ in range(world)):
        sys.exit(1)
"""
SETTINGS = dict(precision="fp32", mask_ratio=0.5, tau=0.5, weights=(1.0, 0.7, 0.3))


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def alone():
    "Losses and gradients of one process."
    config = engine.PretrainConfig(steps=2, batch=12, **SETTINGS)
    trainer = engine.Trainer(tiny_adapter(), config)
    batch, keep = next(Source()(0, 3)), tube_mask(12, 4, 0.5, trainer.masks)
    losses = engine.backward_in_chunks(trainer.passes, batch, keep, config, trainer.accelerator)
    return dict(losses=losses) | {n: p.grad for n, p in trainer.model.branch.named_parameters()}


@pytest.fixture(scope="module")
def ranks(made_once):
    "What each of two and of four processes found."

    def run(folder):
        paths = [os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = os.environ | dict(MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
        env |= dict(PYTHONPATH=os.pathsep.join(paths))
        code = WORK.replace("**SETTINGS", f"**{SETTINGS!r}")
        command = [sys.executable, "-c", code, str(folder), str(free_port()), str(free_port())]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr

    return made_once("ranks", run)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_give_the_losses_and_gradients_of_one(world, alone, ranks):
    for rank in range(world):
        found = torch.load(ranks / f"{rank} of {world}.pt", weights_only=True)
        for name, expected in alone.items():
            for chunk in (None, 2):
                own = found[f"{chunk} {name}"]
                torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5, msg=name)
        assert found["stop"] == 15
        first = 12 // world  # of the clips that are broken, all but the first process's
        assert f"the clips were clip {first}; clip {first + 1}" in found["told"]


LOST = """
import json, os, signal, sys, time, torch, torch._dynamo  # which optimisers import
from pathlib import Path
from accelerate import Accelerator, InitProcessGroupKwargs
from tiny_runs import Source, tiny_adapter
from bt_adapter import trainer as engine
from bt_adapter.processes import together
torch.set_num_threads(1)
try:
    import torch.utils.tensorboard  # once, for all children
except ImportError:
    pass
engine.save_curves = lambda *_: None  # pictures take longer than the run
SIGNALS = dict(dies=signal.SIGKILL, hangs=signal.SIGSTOP)

def work(how, rank, port):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_PORT=port)
    config = engine.PretrainConfig(steps=6, batch=12, precision="fp32", mask_ratio=0.5, tau=0.5)

    class Harmed(Source):
        def __call__(self, start, last):
            for step, batch in enumerate(super().__call__(start, last), start):
                if step == 3 and rank == 1 and how in SIGNALS:
                    os.kill(os.getpid(), SIGNALS[how])
                if step == 3 and rank == 1 and how == "fails":
                    raise RuntimeError("an error of its own")
                yield batch

    model, found = tiny_adapter(), {}
    same = engine.run_signature(model, config, "noise")
    try:
        with engine.Run(Path(sys.argv[1], how), save_every=2, wait=0.1) as run:
            found["items"] = [*together(run.accelerator, range(20 if rank else 3), every=4)]
            run.go(model, Harmed(run.ranks), config, same)
            run.finish(model, config, same)
            if rank == 0 and how == "fine":
                time.sleep(8)  # longer than the others would wait: what the first does at the end
    except Exception as error:
        found["told"] = f"{type(error).__name__}: {error}"
    Path(sys.argv[1], f"{how} {rank}.json").write_text(json.dumps(found))
    os._exit(0)

children = {}
for how, port in zip(("dies", "hangs", "fails", "fine"), sys.argv[2:]):
    for rank in range(2):
        number = os.fork()
        if number == 0:
            work(how, rank, port)
        children[how, rank] = number
hung = children.pop(("hangs", 1))
for number in children.values():
    os.waitpid(number, 0)
os.kill(hung, signal.SIGKILL)
"""


def test_a_lost_process_is_one_sentence_and_the_checkpoint_stays(tmp_path):
    paths = [os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | dict(MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
    env |= dict(PYTHONPATH=os.pathsep.join(paths))
    ports = [str(free_port()) for _ in range(4)]
    command = [sys.executable, "-c", LOST, str(tmp_path), *ports]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert found.keys() == {f"{how} {n}" for how in ("fails", "fine") for n in (0, 1)} | {
        "dies 0",
        "hangs 0",
    }
    for how, state in dict(dies="has ended", hangs="does not answer", fails="has ended").items():
        told = found[f"{how} 0"]["told"]
        assert told.startswith(f"ConnectionError: process 1 of 2 {state}"), told
        assert "with --resume; the checkpoint is kept" in told and "gloo" not in told
        assert (tmp_path / how / "checkpoint.pt").is_file()
        assert not (tmp_path / how / ".bt_adapter.lock").exists()
    assert found["fails 1"]["told"] == "RuntimeError: an error of its own"
    for rank, items in ((0, 3), (1, 20)):
        assert found[f"fine {rank}"] == dict(items=[*range(items)])
    assert (tmp_path / "fine" / "training.json").is_file()


EVALUATED = """
import json, os, sys, accelerate, torch
from contextlib import redirect_stderr, redirect_stdout
from bt_adapter import retrieval, zero_shot
from bt_adapter.cli.evaluate import main
torch.set_num_threads(1)

def work(name, rank, world, port, options):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_PORT=port)
    os.environ.update(WORLD_SIZE=str(world))
    sys.argv = ["bta-evaluate", *options]
    embed, embedded = retrieval.embed, []

    def counted(clip, frames, *how):
        if name == "lost" and rank == 1 and len(embedded) == 1:
            os._exit(9)
        embedded.append(len(frames))
        return embed(clip, frames, *how)

    retrieval.embed, ended = counted, 0
    with open(f"{name} {rank}.out", "w") as out, open(f"{name} {rank}.err", "w") as err:
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main()
            except SystemExit as left:
                ended = left.code or 0
    with open(f"{name} {rank}.json", "w") as file:
        json.dump(dict(ended=ended, embedded=embedded), file)
    os._exit(0)

for name, world, port, options in json.loads(sys.argv[1]):
    children = []
    for rank in range(world):
        number = os.fork()
        if number == 0:
            work(name, rank, world, port, options)
        children.append(number)
    for number in children:
        os.waitpid(number, 0)
"""


@pytest.fixture(scope="module")
def evaluated(made_once):
    """A folder of evaluations by one process and by two: what each printed, wrote and did."""
    return made_once("evaluated", evaluate)


def evaluate(folder):
    """Fill that folder."""
    clips = sorted((samples_folder() / "clips").glob("*.mp4"))[:5]
    lines = ["path,caption", *(f"{clip},it can {clip.stem}" for clip in clips)]
    (folder / "whole.csv").write_text("\n".join(lines) + "\n")
    (folder / "broken.mp4").write_bytes(b"no video")
    lines[4] = f"{folder / 'broken.mp4'},it is broken"  # of the second process in its second round
    (folder / "broken.csv").write_text("\n".join(lines) + "\n")
    jobs = []

    def job(name, world, data, *options):
        how = ["moving-shapes", "--data", data, "--frames", "3", "--batch", "1", "--json"]
        jobs.append((name, world, str(free_port()), [*how, *options]))

    for name, data, options in (("whole", "whole.csv", ()), ("skip", "broken.csv", ("--skip",))):
        for world in (1, 2):
            own = f"{name}-{world}"
            files = ("--csv", f"{own}-rows.csv", "--queries", f"{own}-queries.csv", "--keep", own)
            job(own, world, data, *options, *files)
    job("whole-again", 2, "whole.csv", "--keep", "whole-1")
    job("refused", 2, "broken.csv")
    job("lost", 2, "whole.csv")
    job("shapes", 2, "whole.csv")
    jobs[-1][3][1:] = ["--limit", "4", "--frames", "2", "--csv", "shapes.csv", "--json"]
    env = os.environ | dict(MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
    command = [sys.executable, "-c", EVALUATED, json.dumps(jobs)]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def told(folder, name, rank=0):
    """Standard output and error of one process, exit status, and clips of each batch."""
    ended = json.loads((folder / f"{name} {rank}.json").read_text())
    texts = [(folder / f"{name} {rank}.{end}").read_text() for end in ("out", "err")]
    return *texts, ended["ended"], ended["embedded"]


@pytest.mark.parametrize(("name", "shares"), [("whole", (3, 2)), ("skip", (3, 1))])
def test_an_evaluation_by_two_processes_is_that_of_one(name, shares, evaluated):
    """With a round that not all have a clip in, and one in which a clip is broken."""
    alone, _, ended, embedded = told(evaluated, f"{name}-1")
    assert ended == 0 and sum(embedded) == sum(shares) and len(json.loads(alone)["percent"]) == 3
    for rank, share in enumerate(shares):
        printed, errors, ended, embedded = told(evaluated, f"{name}-2", rank)
        assert (printed, ended, len(embedded)) == (alone if rank == 0 else "", 0, share), errors
        assert "Traceback" not in errors and (rank == 0 or not errors)
    queries = [(evaluated / f"{name}-{n}-queries.csv").read_bytes() for n in (1, 2)]
    assert queries[0] == queries[1] and queries[0].count(b"\n") == 1 + 3 * 2 * sum(shares)
    rows = [list(csv.DictReader(open(evaluated / f"{name}-{n}-rows.csv"))) for n in (1, 2)]
    for row in rows[0] + rows[1]:
        del row["command"]  # names its own files
    assert rows[0] == rows[1] and len(rows[0]) == 3


def test_two_processes_go_on_with_what_one_has_kept(evaluated):
    printed, _, ended, embedded = told(evaluated, "whole-again")
    assert printed == told(evaluated, "whole-1")[0] and ended == 0
    assert len(embedded) == 1 and not told(evaluated, "whole-again", 1)[3]  # of the last round
    kept = [
        {f.name: f.read_bytes() for f in (evaluated / f"whole-{n}/0").iterdir()} for n in (1, 2)
    ]
    assert kept[0] == kept[1] and len(kept[0]) == 6


def test_what_one_of_two_evaluating_processes_meets_is_told(evaluated):
    for rank in (0, 1):
        printed, errors, ended, _ = told(evaluated, "refused", rank)
        assert not printed and ended == 2 and "broken.mp4 cannot be read (" in errors
    printed, errors, ended, _ = told(evaluated, "lost")
    assert not printed and ended == 2
    assert "error: process 1 of 2 has ended" in errors and "gloo" not in errors
    assert "Run the same command again." in errors and "Traceback" not in errors


def test_the_first_of_two_processes_judges_moving_shapes(evaluated):
    assert len(json.loads(told(evaluated, "shapes")[0])["percent"]) == 3
    assert told(evaluated, "shapes", 1)[0] == ""
    assert (evaluated / "shapes.csv").read_text().count("\n") == 1 + 3
