"""Triton's interpreter runs kernels on a CPU; it is chosen before anything imports triton."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest


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
