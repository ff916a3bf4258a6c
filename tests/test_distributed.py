"""Several processes at their shares of a batch are one process at the whole batch."""

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
    torch.save(found, f"{out}/{rank}.pt")
    os._exit(0)

world, out = int(sys.argv[1]), sys.argv[2]
for rank in range(world):
    if os.fork() == 0:
        work(rank, world, out)
sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(world)))
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


@pytest.mark.parametrize("world", [2, 4])
def test_processes_give_the_losses_and_gradients_of_one(world, alone, tmp_path):
    address = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), OMP_NUM_THREADS="1")
    paths = [os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | address | dict(PYTHONPATH=os.pathsep.join(paths))
    code = WORK.replace("**SETTINGS", f"**{SETTINGS!r}")
    command = [sys.executable, "-c", code, str(world), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
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
