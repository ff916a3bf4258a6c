"""Peaks of memory that real training steps reach on a processor, beside those of the plan.

    python tests/benchmarks/memory_plan.py [NUMBER ...] [--malloc] [--csv memory_plan.csv]

Each setting is two steps of `trainer.train` in a process of its own, forked from one that has
imported everything. It first takes two steps with a tiny tower, and two of its own, so that all
code is there: for the shapes that it meets oneDNN compiles some, 31 MB of it where a processor
multiplies in bf16, once for a process and not for a clip. Then clips of random pixels go through
`LiveBatches`, or their states come from a `FeatureStore` on the disk. Towers are small ones with
random weights, and twice a ViT-B/32. Measured is the highest resident memory of the process
(VmHWM) above what it had before, since that is what a system counts when it ends a process, and it
holds what PyTorch's own counters do not see, such as the buffers of oneDNN. glibc's malloc keeps
blocks that were freed, and from the first large one on asks the system for larger ones only: the
peak then is that of its heap, not of what is held. So the threshold from which on a block is
mapped by itself is set to 64 KiB, as MALLOC_MMAP_THRESHOLD_=65536 does for any command; with
--malloc it is left as it comes.
"""

import argparse
import ctypes
import gc
import json
import os
import tempfile
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import open_clip
import torch

from bt_adapter import memory_plan
from bt_adapter.backbone import FrozenCLIP
from bt_adapter.gpus import this_machine
from bt_adapter.ledger import append_csv
from bt_adapter.precision import fast_copy
from bt_adapter.pretrain import LiveBatches, choose_recipe
from bt_adapter.recipes import for_strategy
from bt_adapter.store import FeatureStore, Key, put_states, read_states, store_settings
from bt_adapter.strategy_files import build_strategy, reads_entry
from bt_adapter.trainer import Batch, Trainer, train

TEXT = dict(context_length=8, vocab_size=50, width=64, heads=2, layers=1)
TOWERS = {  # width, layers, patch and size in pixels
    "small": (256, 6, 16, 112),
    "wide": (512, 5, 16, 96),
    "tiny": (64, 5, 16, 32),
}
SETTINGS = [  # tower, strategy, with a store, changes of the recipe
    ("small", "BT-Adapter", False, dict(batch=8)),
    ("small", "BT-Adapter", True, dict(batch=16)),
    ("small", "BT-Adapter", False, dict(batch=16, chunk=4)),
    ("small", "BT-Adapter", True, dict(batch=16, chunk=4)),
    ("small", "BT-Adapter", True, dict(batch=4, precision="fp32", mask_ratio=0.0)),
    ("small", "BT-Adapter", False, dict(batch=4, precision="bf16", ema=0.9)),
    ("small", "STAN", False, dict(batch=4)),
    ("small", "joint-ST", False, dict(batch=4)),
    ("small", "separate-ST", True, dict(batch=4)),
    ("wide", "ST-Adapter", False, dict(batch=8, chunk=4)),
    ("ViT-B-32", "BT-Adapter", False, dict(batch=2)),
    ("ViT-B-32", "BT-Adapter", True, dict(batch=4, chunk=2)),
]


def tower(name: str) -> FrozenCLIP:
    "A CLIP with random weights, on the device that is the default."
    if name not in TOWERS:
        where = torch.get_default_device()
        return FrozenCLIP(open_clip.create_model(name, device=where), None, name)
    width, layers, patch, size = TOWERS[name]
    vision = dict(image_size=size, patch_size=patch, width=width, layers=layers, head_width=64)
    return FrozenCLIP(open_clip.CLIP(64, vision, TEXT), None, name)


def recipe(strategy: str, changes: dict):
    "The released recipe with changes, for a strategy."
    config = for_strategy(choose_recipe("released", steps=2), strategy)
    return replace(config, **changes)


class Pixels:
    "A loader of random pixels."

    def __init__(self, clip, config):
        self.clip, self.config, self.epoch, self.position = clip, config, 0, 0

    def __len__(self):
        return self.config.steps

    def go_to(self, step):
        "There is no order to keep."

    def __iter__(self):
        shape = self.config.batch, self.config.frames, 3, *self.clip.image_size
        tokens = torch.ones(self.config.batch, self.clip.model.context_length, dtype=torch.long)
        while True:
            frames = torch.randint(0, 255, shape, dtype=torch.uint8)
            yield SimpleNamespace(ids=[""] * len(frames), frames=frames, tokens=tokens)


def filled(folder, clip, model, config):
    "A store with a batch of clips in it."
    last, entry = model.config.states, reads_entry(model)
    fast, keys = fast_copy(clip), [Key(str(n)) for n in range(config.batch)]
    kept = "first" if entry else "all"
    store = FeatureStore(folder, store_settings(fast, last, config.frames, "random", kept))
    for first in range(0, len(keys), memory_plan.STORING):
        some = keys[first : first + memory_plan.STORING]
        frames = [torch.rand(config.frames, 3, *clip.image_size, dtype=fast.dtype) for _ in some]
        put_states(store, fast, some, frames, last)
    return store, keys


def stored(store, keys, clip, entry, start, last):
    "Endless batches of a store."
    text = torch.ones(len(keys), clip.joint_width)
    while True:
        found = [store[key][:1] for key in keys] if entry else None
        states = torch.stack(found) if entry else read_states(store, keys, clip, last)
        del found
        yield Batch([""] * len(keys), states, text, entry)
        del states


def two_steps(name, strategy, store, changes, folder):
    "What is measured."
    config, clip = recipe(strategy, changes), tower(name)
    model = build_strategy(strategy, clip, config.branch, checkpointing=True)
    entry = reads_entry(model) and not config.weights[1]
    if store:
        source = partial(stored, *filled(folder, clip, model, config), clip, entry)
    else:
        source = LiveBatches(clip, Pixels(clip, config), config.chunk, entry)
    train(Trainer(model, config), source)


def status(name: str) -> int:
    "Bytes of a line of /proc/self/status."
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def measured(setting, as_it_comes: bool) -> int:
    "Bytes above the idle process, of a process of its own."
    inlet, outlet = os.pipe()
    if child := os.fork():
        os.close(outlet)
        with os.fdopen(inlet) as file:
            told = file.read()
        os.waitpid(child, 0)
        return json.loads(told)
    try:
        if not as_it_comes:
            ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD
        for store in (False, True):  # brings the pages of all code in
            with tempfile.TemporaryDirectory() as folder:
                two_steps("tiny", "BT-Adapter", store, dict(batch=2), Path(folder))
        with tempfile.TemporaryDirectory() as folder:  # and what oneDNN compiles for these shapes
            two_steps(*setting, Path(folder))
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        before = status("VmRSS")
        with tempfile.TemporaryDirectory() as folder:
            two_steps(*setting, Path(folder))
        os.write(outlet, json.dumps(status("VmHWM") - before).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def planned(name, strategy, store, changes) -> dict[str, int]:
    "Of each phase."
    with torch.device("meta"):
        clip = tower(name)
    config = recipe(strategy, changes)
    setting = memory_plan.Setting(clip, config, strategy, this_machine(), store)
    return memory_plan.phases(setting)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", type=int, help="of settings, from 1; none: all")
    parser.add_argument("--malloc", action="store_true", help="leave malloc as it comes")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for number in given.numbers or range(1, len(SETTINGS) + 1):
        name, strategy, store, changes = SETTINGS[number - 1]
        peak = measured(SETTINGS[number - 1], given.malloc)
        found = planned(*SETTINGS[number - 1])
        phase = max(found, key=found.get)
        row = dict(
            setting=number,
            clip=name,
            strategy=strategy,
            store=store,
            changes=", ".join(f"{k}={v}" for k, v in changes.items()),
            phase=phase,
            planned_MB=f"{found[phase] / 1e6:.1f}",
            measured_MB=f"{peak / 1e6:.1f}",
            ratio=f"{found[phase] / peak:.3f}",
            malloc="as it comes" if given.malloc else "maps from 64 KiB",
            torch=torch.__version__,
        )
        print(row, {k: round(v / 1e6, 1) for k, v in found.items()}, flush=True)
        if given.csv:
            append_csv(given.csv, [row])


if __name__ == "__main__":
    main()
