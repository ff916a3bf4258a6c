"""Six readers, each as a function of bytes: what it may do with them is read them or tell why not.

Any other end is a finding: another exception than ValueError and OSError, a sentence of more than
one line, or one that does not name the file.
"""

import logging
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tiny

import av
import mutate
import torch
from tiny import tiny_clip

from bt_adapter.branch import BTAdapter
from bt_adapter.datasets import Shards, index_shards, read_examples
from bt_adapter.datasets.annotations import Example
from bt_adapter.datasets.loading import check_example
from bt_adapter.released import load_released
from bt_adapter.video import ClipError, read_clip

LONGEST = 1000  # letters of a sentence


def be_quiet():
    """No warnings and no logs: what a reader says is in its errors."""
    warnings.simplefilter("ignore")
    av.logging.set_level(None)
    logging.getLogger("bt_adapter").setLevel(logging.ERROR)
    torch.set_num_threads(1)


def check_told(error: BaseException, name: str):
    """Fails if an error is not one sentence that names the file."""
    text = str(error)
    assert "\n" not in text.strip(), f"more than one line: {text[:200]!r}"
    assert name in text, f"{name} is not named: {text[:200]!r}"
    assert len(text) <= LONGEST, f"{len(text)} letters: {text[:200]!r}"


def attempt(read: Callable, *args, name: str | Path, **settings):
    """What a reader gives, None if it tells why it does not."""
    try:
        return read(*args, **settings)
    except (ValueError, OSError) as error:
        check_told(error, Path(name).name)


def clip(data: bytes, folder: Path) -> bool:
    path, kind = folder / "x.clip", zlib.crc32(data)
    path.write_bytes(data)
    settings = dict(frames=(1, 4, 8)[kind % 3], by=("frames", "time")[kind // 3 % 2])
    settings |= dict(span=(0, 1.5)) if kind // 6 % 4 == 0 else {}
    settings |= dict(pixels="stored") if kind // 24 % 4 == 0 else {}
    found = attempt(read_clip, path, name=path, **settings)
    if found is not None:
        assert found.dtype == torch.uint8 and found.ndim == 4 and found.shape[3] == 3
        assert len(found) == settings["frames"] and found.numel()
    return found is not None


KINDS = {  # the first line of an input: the format, and the file's name
    "csv": ("table", "x.csv"),
    "tsv": ("table", "x.tsv"),
    "jsonl": ("table", "x.jsonl"),
    "parquet": ("table", "x.parquet"),
    "webvid": ("webvid", "x.csv"),
    "msrvtt": ("msrvtt", "x.json"),
    "msrvtt-csv": ("msrvtt", "x.csv"),
    "didemo": ("didemo", "x.json"),
    "activitynet": ("activitynet", "x.json"),
    "lsmdc": ("lsmdc", "x.txt"),
    "kinetics400": ("kinetics400", "x.csv"),
    "ucf101": ("ucf101", "x.txt"),
    "hmdb51": ("hmdb51", "x_test_split1.txt"),
}


def check_examples(found: list[Example]):
    """Fails if examples are not what all that follows relies on."""
    for example in found:
        assert isinstance(example.id, str) and isinstance(example.path, str)
        texts = [*example.captions, *(text for turn in example.turns for text in turn)]
        assert all(isinstance(text, str) for text in texts)
        assert example.label is None or isinstance(example.label, str)
        assert example.span is None or 0 <= example.span[0] < example.span[1]
        if example.fault:
            check_told(ValueError(example.fault), "")
        try:
            check_example(example, captioned=True)
        except ValueError:
            pass


def captions(data: bytes, folder: Path) -> bool:
    kind, _, content = data.partition(b"\n")
    name, file = KINDS.get(kind.decode("latin-1"), KINDS["csv"])
    path = folder / file
    path.write_bytes(content)
    split = "train1" if name == "hmdb51" else None
    given = folder if name == "hmdb51" else path
    found = attempt(read_examples, given, name, folder / "clips", split, name=given)
    path.unlink()
    check_examples(found or [])
    return bool(found)


def mutate_captions(data: bytes, rng: Random) -> bytes:
    kind, _, content = data.partition(b"\n")
    change = mutate.table
    if KINDS.get(kind.decode("latin-1"), KINDS["csv"])[1].endswith("json"):
        change = rng.choice((mutate.json_tree,) * 3 + (mutate.some_bytes,))
    if kind == b"parquet":
        change = mutate.some_bytes
    return kind + b"\n" + change(content, rng)


def shards(data: bytes, folder: Path) -> bool:
    shards.number = getattr(shards, "number", 0) + 1  # members of a shard are kept by its name
    place = folder / f"s{shards.number % 100_000}"
    place.mkdir()
    try:
        if data[:1] in b"{[":
            (place / "index.json").write_bytes(data)
            (place / "x.tar").write_bytes(GOOD_SHARD)
            opened = attempt(Shards, place, name="index.json")
        else:
            (place / "x.tar").write_bytes(data)
            opened = attempt(index_shards, place, name=place) and Shards(place)
        for number in range(min(len(opened), 20) if opened else 0):
            try:
                check_examples([opened[number]])
            except ClipError as error:
                check_told(error, place.name)
        return bool(opened)
    finally:
        for file in place.iterdir():
            file.unlink()
        place.rmdir()


GOOD_SHARD = b""
for seed in sorted((Path(__file__).parent / "corpus/shards").glob("good*")):
    GOOD_SHARD = seed.read_bytes()
SMALL = dict(layers=3, width=8, head_width=4)
CLIP, QUICK = tiny_clip(**SMALL), tiny_clip(quick_gelu=True, **SMALL)


def adapter(data: bytes, folder: Path) -> bool:
    settings, weights = mutate.split_pair(data)
    (folder / "adapter.json").write_bytes(settings)
    (folder / "adapter.safetensors").write_bytes(weights)
    return attempt(BTAdapter.from_pretrained, folder, CLIP, name=folder) is not None


def released(data: bytes, folder: Path) -> bool:
    path = folder / ("x.pth" if data[:2] == b"PK" else "x.safetensors")
    path.write_bytes(data)
    beside = None if b"patch_embed" in data else QUICK  # the CLIP of a branch alone
    how = dict(heads=2, gated=zlib.crc32(data) % 4 > 0, clip=beside)
    return attempt(load_released, path, **how, name="") is not None


def dialogues(data: bytes, folder: Path) -> bool:
    path = folder / "x.json"
    path.write_bytes(data)
    found = attempt(read_examples, path, "instructions", name=path)
    check_examples(found or [])
    assert all(example.turns or example.fault for example in found or [])
    return bool(found)


class Target(NamedTuple):
    """A reader."""

    read: Callable[[bytes, Path], bool]  # in a folder of its own; was there anything to be read?
    mutate: Callable[[bytes, Random], bytes]
    largest: int  # bytes of an input


TARGETS = {
    "clip": Target(clip, mutate.film, 2**17),
    "captions": Target(captions, mutate_captions, 2**15),
    "shards": Target(shards, mutate.shard, 2**17),
    "adapter": Target(adapter, mutate.adapter, 2**17),
    "released": Target(released, mutate.checkpoint, 2**17),
    "dialogues": Target(dialogues, mutate.json_tree, 2**15),
}
