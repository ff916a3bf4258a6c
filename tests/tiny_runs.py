"""Batches of noise and a tiny adapter: a training run of milliseconds."""

from itertools import count

import torch
from tiny import shake, tiny_clip

from bt_adapter.branch import BranchConfig, BTAdapter
from bt_adapter.trainer import Batch, ProcessInfo


def tiny_adapter(config: BranchConfig | None = None, seed: int = 0) -> BTAdapter:
    """Two branch layers beside the tiny CLIP, none of their weights zero."""
    model = BTAdapter(tiny_clip(), config or BranchConfig(layers=2))
    shake(model.branch, seed, std=0.1)
    return model


class Source:
    """Batches of 12 clips that are a function of the step: 3 frames, 4 patches."""

    def __init__(self, ranks: ProcessInfo | None = None):
        self.share = (ranks or ProcessInfo()).share(12)

    def __call__(self, start: int, last: int):
        for step in count(start):
            generator = torch.Generator().manual_seed(step)
            states = torch.randn(12, last, 3, 5, 24, generator=generator)
            text = torch.randn(12, 20, generator=generator)
            names = [f"clip {i}" for i in range(12)][self.share]
            yield Batch(names, states[self.share], text[self.share])


def problems(stderr):
    """What a command says on the standard error, but for the line that says what is begun."""
    lines = stderr.splitlines(keepends=True)
    return "".join(line for line in lines if not line.endswith(" ...\n"))
