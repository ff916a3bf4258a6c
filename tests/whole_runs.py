"""Whole pretraining runs in a second: the shipped clips beside a CLIP of a few thousand weights.

What is made here when it is imported is there for all processes that are forked afterwards.
"""

import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import datasets
import torch
from tiny import shake, tiny_clip

from bt_adapter import trainer
from bt_adapter.branch import BranchConfig
from bt_adapter.datasets import Example, Shards, write_shards
from bt_adapter.pretrain import pretrain_clips
from bt_adapter.recipes import ParamGroup, PretrainConfig, Schedule
from bt_adapter.shipped import samples_folder
from bt_adapter.strategy_files import build_strategy

for name in ("accelerate", "torch._dynamo", "torchvision.transforms", "torch.utils.tensorboard"):
    with suppress(ImportError):  # TensorBoard need not be there
        import_module(name)  # once, and not in each child
trainer.save_curves = lambda *_: None  # pictures take longer than a run


class Words:
    "Each word is a number below the end token's, which is the highest."

    context_length = 8

    def __call__(self, texts, context_length):
        ids = torch.zeros(len(texts), context_length, dtype=torch.long)
        for row, text in zip(ids, texts):
            words = [sum(map(ord, word)) % 47 + 2 for word in text.split()]
            row[: len(words) + 2] = torch.tensor([1, *words, 49])
        return ids


CLIP = tiny_clip()
CLIP.tokenizer = Words()
TABLE = [
    Example(path.stem, str(path), (f"it can {path.stem}", f"see it {path.stem}"))
    for path in sorted((samples_folder() / "clips").glob("*.mp4"))
]
PLACE = tempfile.TemporaryDirectory()
write_shards(TABLE, Path(PLACE.name) / "shards", per_shard=5)
SHARDS = Shards(Path(PLACE.name) / "shards")
datasets.disable_progress_bars()
ROWS = dict(
    video=[Path(e.path).read_bytes() for e in TABLE], caption=[list(e.captions) for e in TABLE]
)
KINDS = datasets.Features(video=datasets.Video(), caption=[datasets.Value("string")])
datasets.Dataset.from_dict(ROWS, KINDS).save_to_disk(Path(PLACE.name) / "dataset")
DATASET = datasets.load_from_disk(str(Path(PLACE.name) / "dataset"))
STREAM = DATASET.to_iterable_dataset(3).shuffle(seed=0, buffer_size=5)
RECIPE = PretrainConfig(
    steps=8,
    batch=4,
    frames=2,
    rates=(ParamGroup(("",), 1e-3),),
    schedule=Schedule(warmup=0.5, period=1),
    mask_ratio=0.5,
    tau=0.5,
    precision="fp32",
    branch=BranchConfig(layers=1),
)
START = build_strategy("BT-Adapter", CLIP, BranchConfig(layers=1, align=False))
shake(START.branch, std=0.1)
FROM_START = dict(  # what is set where a run goes on from START
    start=dict(steps=6, ema=0.9), half=dict(steps=6, ema=0.9, precision="bf16")
)


def go_on(folder, examples=TABLE, config=RECIPE, store=None, **how):
    "Train there, or go on with what is there."
    how = dict(views=2 if store else 1, resume=True, save_every=2) | how
    return pretrain_clips(Path(folder), CLIP, examples, config, store, **how)


def table(folder):
    "Clips decoded as they come."
    go_on(folder)


def shards(folder):
    "The same from WebDataset shards, read as a stream."
    go_on(folder, SHARDS)


def stream(folder):
    "The same from a stream of Hugging Face's datasets, which is shuffled anew in each epoch."
    go_on(folder, STREAM)


def store(folder):
    "Two views of each clip, whose frozen states are kept beside the run."
    go_on(folder, store=Path(folder, "states"))
