"""Several processes at their shares of a batch are one process at the whole batch."""

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
import os, sys, torch
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
