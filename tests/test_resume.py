"""A run that was cut off goes on anywhere: other processes, workers and chunks, the same curve."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from whole_runs import START

from bt_adapter import pretrain
from bt_adapter.ledger import read_csv
from bt_adapter.recipes import PretrainConfig
from bt_adapter.runs import save_checkpoint
from bt_adapter.trainer import ProcessInfo

TESTS = Path(__file__).parent
LEGS = """
import json, os, signal, socket, sys, torch
from pathlib import Path
import whole_runs
from bt_adapter import pretrain, trainer
torch.set_num_threads(1)

def in_float64():
    "Everything that a step computes."
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float, torch.Tensor.bfloat16 = torch.Tensor.double, torch.Tensor.double
    pretrain.fast_copy = lambda clip: clip
    whole_runs.CLIP.double()

def work(folder, kind, exact, leg, rank):
    "One process of a leg, which is killed when it has come to a step."
    if exact:
        in_float64()
    if rank and "other" in leg:  # its start is another one: it must get the first one's
        whole_runs.shake(whole_runs.START.branch, rank)
    true, curve = trainer.Trainer.update, Path(f"{folder}.jsonl")

    def update(self, batch):
        if self.step == leg.get("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.step == 0 and self.mean:
            begun = self.model.branch.state_dict(), self.mean.module.state_dict()
            torch.save(begun, f"{folder} {rank}.pt")
        step, figures = self.step, true(self, batch)
        if self.accelerator.is_main_process:
            with curve.open("a") as file:
                file.write(json.dumps(dict(step=step, world=leg["world"]) | figures) + "\\n")
        return figures

    trainer.Trainer.update = update
    own = whole_runs.FROM_START.get(kind, {})
    recipe = trainer.replace(whole_runs.RECIPE, chunk=leg.get("chunk"), **own)
    how = dict(workers=leg.get("workers", 0), start=whole_runs.START if own else None)
    data = whole_runs.TABLE if own else getattr(whole_runs, kind.upper(), whole_runs.TABLE)
    states = Path(folder, "states") if kind == "store" else None
    whole_runs.go_on(folder, data, recipe, states, **how)

def leg_of(folder, kind, exact, leg):
    "All processes of a leg."
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    children = []
    for rank in range(leg["world"]):
        number = os.fork()
        if number == 0:
            status = 1
            try:
                if leg["world"] > 1:
                    told = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=leg["world"])
                    told |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
                    os.environ.update({name: str(value) for name, value in told.items()})
                work(folder, kind, exact, leg, rank)
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(number)
    for number in children:
        status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
        assert status == (-signal.SIGKILL if "killed" in leg else 0), (folder, leg, status)

for name, (kind, exact, legs) in json.loads(sys.argv[2]).items():
    for leg in legs:
        leg_of(os.path.join(sys.argv[1], name), kind, exact, leg)
"""
WHOLE = [dict(world=1)]
CHAIN = [  # saved after every second step
    dict(world=1, killed=3),
    dict(world=2, chunk=1, killed=5),
    dict(world=4, killed=7),
    dict(world=1, workers=1, chunk=3),
]
KINDS = [("table", 0), ("shards", 0), ("stream", 0), ("store", 0), ("table", 1)]
JOBS = {
    f"{kind} {exact} {name}": (kind, exact, legs)
    for kind, exact in KINDS
    for name, legs in (("whole", WHOLE), ("chain", CHAIN))
}
JOBS |= {"dataset": ("dataset", 0, WHOLE)}
FROM_WEIGHTS = {  # with a running mean of the weights; the last two in half precision
    "start whole": ("start", 0, WHOLE),
    "start chain": ("start", 0, [CHAIN[0], dict(world=2, chunk=1, killed=5), dict(world=1)]),
    "half whole": ("half", 0, [dict(world=2, other=True)]),
    "half cut": ("half", 0, [dict(world=2, killed=3), dict(world=2)]),
}
JOBS |= FROM_WEIGHTS
JOBS |= {
    f"{world} {name}": ("store", 0, legs)
    for world in (2, 4)
    for name, legs in (
        ("whole", [dict(world=world)]),
        ("cut", [dict(world=world, killed=3), dict(world=world)]),
    )
}


@pytest.fixture(scope="module")
def runs(made_once):
    "The folder of all runs."

    def run(folder):
        paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-c", LEGS, str(folder), json.dumps(JOBS)]
        env = os.environ | dict(PYTHONPATH=paths)
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr

    return made_once("runs", run)


def curve(folder, name):
    "The last figures of each step, by step."
    rows = map(json.loads, Path(folder, f"{name}.jsonl").read_text().splitlines())
    return {row.pop("step"): row for row in rows}


@pytest.mark.parametrize(("kind", "exact"), KINDS)
def test_other_processes_workers_and_chunks_go_on_with_the_curve(kind, exact, runs):
    whole, chain = (curve(runs, f"{kind} {exact} {name}") for name in ("whole", "chain"))
    assert [*whole] == [*chain] == [*range(8)]
    assert [row["world"] for row in chain.values()] == [1, 1, 2, 2, 4, 4, 1, 1]
    for step, row in chain.items():
        first = step in (2, 4)  # of as many processes
        near = 1e-6 if exact or first else 1e-3
        for name, value in row.items():
            if name != "world":
                assert value == pytest.approx(whole[step][name], rel=near, abs=near), (step, name)


def test_a_dataset_is_trained_on_as_the_table_of_its_clips(runs):
    table, own = (runs / name / "adapter.safetensors" for name in ("table 0 whole", "dataset"))
    assert table.read_bytes() == own.read_bytes()


@pytest.mark.parametrize("world", [2, 4])
def test_as_many_processes_go_on_to_the_same_weights(world, runs):
    whole, cut = (runs / f"{world} {name}" / "adapter.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_begins_with_the_weights_of_the_first_ones_start(rank, runs):
    """So does the running mean. The second one's start was another, and neither had W'."""
    branch, mean = torch.load(runs / f"half whole {rank}.pt", weights_only=True)
    first, _ = torch.load(runs / "half whole 0.pt", weights_only=True)
    for name, weight in START.branch.state_dict().items():
        assert torch.equal(branch[name], weight), name
    assert {name.split(".")[0] for name in branch.keys() - START.branch.state_dict()} == {"align"}
    for name, weight in branch.items():
        assert torch.equal(weight, first[name]) and torch.equal(weight, mean[name]), name


def test_a_run_from_weights_goes_on_by_other_processes(runs):
    """The curve is one process's, and so is the running mean of the weights, which is saved."""
    whole, chain = (curve(runs, f"start {name}") for name in ("whole", "chain"))
    assert [row["world"] for row in chain.values()] == [1, 1, 2, 2, 1, 1]
    for step, row in chain.items():
        near = 1e-6 if step in (2, 4) else 1e-3
        for name in row.keys() - {"world"}:
            assert row[name] == pytest.approx(whole[step][name], rel=near, abs=near), (step, name)
    whole, chain = (load_file(runs / f"start {n}/adapter.safetensors") for n in ("whole", "chain"))
    begun = START.branch.state_dict()
    learned = sum((whole[name] - weight).square().sum() for name, weight in begun.items())
    apart = sum((whole[name] - chain[name]).square().sum() for name in begun)
    assert apart < learned / 100  # a mean that forgot the steps before a cut is far off


def test_half_precision_by_two_processes_is_nearly_full_precision_by_one(runs):
    half, full = curve(runs, "half whole"), curve(runs, "start whole")
    pairs = [(half[step][n], full[step][n]) for step in full for n in ("vtc", "mbta", "mbca")]
    for one, other in pairs:
        assert one == pytest.approx(other, rel=0.005)
    assert any(one != pytest.approx(other, rel=1e-5) for one, other in pairs)  # it is half


def test_half_precision_goes_on_from_weights_to_the_same_bits(runs):
    whole, cut = (runs / f"half {name}" / "adapter.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def test_five_kills_of_a_table_and_of_any_command(tmp_path):
    "The script that has killed a hundred runs: its table says so, and five more are."
    script = TESTS / "benchmarks" / "kills.py"
    kept = read_csv(script.with_suffix(".csv"))
    assert len(kept) == 100 and {row["equal"] for row in kept} == {"True"}
    kinds = {row["trainer"].partition(":")[2] for row in kept}
    assert kinds == {"table", "shards", "stream", "store"}
    table = tmp_path / "kills.csv"
    command = [sys.executable, script, f"{TESTS}/whole_runs.py:table"]
    command += ["--kills", "5", "--seed", "1", "--csv", table]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["equal"] for row in read_csv(table)] == ["True"] * 5


FORGETS = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
begun = folder / "begun"
told = "again" if begun.exists() else "once"
begun.touch()
time.sleep(0.5)
(folder / "weights").write_text(told)
"""


def test_a_trainer_that_comes_to_another_end_is_told(tmp_path):
    (tmp_path / "forgets.py").write_text(FORGETS)
    trainer = f"{sys.executable} -S {tmp_path / 'forgets.py'} {{}}"
    command = [sys.executable, TESTS / "benchmarks" / "kills.py", trainer]
    command += ["--kills", "2", "--same", "weights"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "False" in done.stdout, done.stdout + done.stderr
    assert "of 2 kills" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("asked", "begun", "world", "batch"),
    [
        (16, None, 1, 12),
        (16, None, 5, 10),
        (16, [16, 10], 1, 10),
        (16, [32, 10], 1, 12),
        (12, [12, 10], 2, 10),
        (6, [6, 6], 2, 6),
        (16, {}, 1, 12),
    ],
)
def test_a_batch_that_was_cut_stays_as_it_was_begun(asked, begun, world, batch, tmp_path):
    "Of twelve clips five processes share ten, and any other number goes on with these."
    path, config = tmp_path / "checkpoint.pt", PretrainConfig(batch=asked)
    run = SimpleNamespace(cut_off=begun is not None, ranks=ProcessInfo(0, world), checkpoint=path)
    if begun is not None:  # {}: of a checkpoint of before
        save_checkpoint(path, {}, dict(batches=begun) if begun else {})
    assert pretrain._batch_of(config, 12, run) == batch and run.asked == asked


def test_a_batch_that_cannot_be_shared_is_told(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {}, dict(batches=[16, 10]))
    run = SimpleNamespace(cut_off=True, ranks=ProcessInfo(0, 4), checkpoint=path)
    with pytest.raises(ValueError, match=r"which 4 processes cannot share .* one of 1, 2, 5, 10"):
        pretrain._batch_of(PretrainConfig(batch=16), 12, run)
