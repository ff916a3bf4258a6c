"""Triton's interpreter runs kernels on a CPU; it is chosen before anything imports triton."""

import os
import shutil
from itertools import count

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from filelock import FileLock


@pytest.fixture
def mended():
    """The interpreter without its errors in bfloat16."""
    pytest.importorskip("triton")
    from bt_adapter.kernels import mended_interpreter

    with mended_interpreter():
        yield


@pytest.fixture
def poisoned():
    """New memory is NaN until it is written: what a kernel leaves out is seen."""
    import torch

    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def few_numbers(monkeypatch):
    """Uniform numbers from a million of them, cut anew for each tensor: a billion take long."""
    import torch

    drawn, calls = torch.rand(2**20 - 3), count(1)

    def uniform_(tensor, low=0.0, high=1.0, generator=None):
        flat, start = tensor.detach().view(-1), 7919 * next(calls) % len(drawn)
        for part in flat.split(len(drawn)):
            first = drawn[start:][: len(part)]
            part[: len(first)] = first
            part[len(first) :] = drawn[: len(part) - len(first)]
        flat.mul_(high - low).add_(low)
        return tensor

    monkeypatch.setattr(torch.Tensor, "uniform_", uniform_)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """`made_once(name, fill)` -> a folder that `fill(folder)` has filled, for all workers together.

    A fixture of a module is made anew by each worker that takes a test of it, and by each that
    comes back to it.
    """
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent

    def made(name, fill):
        folder, done = place / name, place / f"{name}.done"
        with FileLock(place / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return made
