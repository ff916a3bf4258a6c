"""Every file in tests/faults: what it was kept for, and exactly what its reader makes of it."""

import gzip
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from test_datasets_faults import NAMES, pack

from bt_adapter.backbone import load_clip
from bt_adapter.benchmark import clip_paths, predict, read_score
from bt_adapter.benchmark.items import read_items
from bt_adapter.branch import BTAdapter
from bt_adapter.containers import find_clips, list_clips
from bt_adapter.datasets import (
    ClipDataset,
    Shards,
    index_shards,
    loader,
    read_examples,
    write_shards,
)
from bt_adapter.files import parse_json, read_json
from bt_adapter.runs import RunLog, read_log
from bt_adapter.shipped import samples_folder
from bt_adapter.store import FeatureStore, StoreSettings, kept_in
from bt_adapter.video import ClipError, DamageWarning, read_clip

FAULTS = Path(__file__).with_name("faults")
CLIPS = samples_folder() / "clips"
RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)


def refused(read, *args, name, match=None, error=ValueError):
    """A reader refuses in one sentence that names the file."""
    with pytest.raises(error, match=match) as caught:
        read(*args)
    text = str(caught.value)
    assert str(name) in text and "\n" not in text.strip(), text


# ---------- clips


def corners(path, height, width, *colors):
    (frame,) = read_clip(path, 1).int()
    assert frame.shape == (height, width, 3)
    places = [(y, x) for y in (8, height - 8) for x in (8, width - 8)]
    for place, color in zip(places, colors, strict=True):
        assert (frame[place] - torch.tensor(color)).abs().max() < 30, (place, color)


def found_everywhere(path, folder):
    """A kind of file that `read_clip` reads is found by every finder."""
    shutil.copy(path, folder)
    (clip,) = list_clips(folder)
    assert clip.name == path.name and find_clips(folder) == [clip]
    assert len(read_clip(clip)) == 8 and [*clip_paths(folder).values()] == [clip]
    (folder / "a.csv").write_text(f"file,caption\n{path.name},a test picture\n")
    (one,) = read_examples(folder / "a.csv")
    assert Path(one.path) == clip


def one_bad_frame(path, folder):
    for how in (dict(frames=1), dict(frames=2), dict(frames=8), dict(frames=8, span=(0, 2))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DamageWarning)
            assert len(read_clip(path, **how)) == how["frames"]


def many_frames(path, folder):
    assert read_clip("x.gif", data=gzip.decompress(path.read_bytes())).shape == (8, 2, 2, 3)


def reads(path, folder):
    clip = read_clip(path)
    assert len(clip) == 8 and clip.ndim == 4


# ---------- data sets


def run_of(source, share=0.7):
    """Ids read and reasons of those that are broken."""
    clip = load_clip("moving-shapes")
    batches = loader(ClipDataset(source, (32, 32), 2), 3, clip.tokenizer, share=share)
    read = [name for batch in batches if batch is not None for name in batch.ids]
    return read, batches.report.broken


def bad_sample(path, folder):
    """In a shard of its own beside a good one: the bad clip is named, the run goes on."""
    shutil.copy(path, folder / "0.tar")
    films = [(n, [("mp4", (CLIPS / f"{n}.mp4").read_bytes()), ("txt", b"a")]) for n in NAMES]
    pack(folder / "1.tar", films)
    count = index_shards(folder)
    read, broken = run_of(Shards(folder))
    assert {*NAMES} <= {*read} and len(read) + len(broken) == count
    ((name, reason),) = broken.items()
    assert str(folder / "0.tar") in name and reason and "\n" not in reason


def nul_path(path, folder):
    examples = read_examples(path, clips=CLIPS) + read_examples(
        CLIPS.parent / "captions.csv", clips=CLIPS
    )
    read, broken = run_of(examples)
    assert len(read) == len(examples) - 1 > 5 and len(broken) == 1


def passwd(path, folder):
    examples = read_examples(path, clips=CLIPS)
    refused(write_shards, examples, folder / "a", 1, 0, CLIPS, name="/etc/passwd", match="outside")
    refused(write_shards, examples, folder / "b", name="/etc/passwd", match="no video")
    assert not [*folder.iterdir()]


def didemo(path, folder):
    shutil.copy(FAULTS / "phone.3gp", folder)
    (one,) = read_examples(path, "didemo", folder)
    assert Path(one.path) == folder / "phone.3gp" and one.span == (0, 30)
    assert one.captions == ("a test picture numbers count up",)


def questions(path, folder):
    for name in ("v_abc.mp4", "clip7.mp4", "phone.3gp"):
        shutil.copy(FAULTS / "phone.3gp", folder / name)
    items = read_items(FAULTS / "qa_questions.json", FAULTS / "qa_answers.json")
    asked = []
    problems = predict(items, clip_paths(folder), lambda c, q: asked.append(c.name) or "a",
                       folder / "p.json")  # fmt: skip
    assert not problems and asked == ["v_abc.mp4", "clip7.mp4", "phone.3gp"]


def index(path, folder):
    shutil.copy(path, folder / "index.json")
    refused(Shards, folder, name=folder / "index.json")


# ---------- JSON, settings, runs


def deep(path, folder):
    for kind in (None, dict, list):
        refused(read_json, path, kind, name=path, match="nested too deeply")
    refused(parse_json, path.read_bytes(), "line 7", name="line 7")
    for name in ("adapter.json", "store.json", "index.json", "a.jsonl"):
        shutil.copy(path, folder / name)
    shutil.copy(samples_folder() / "adapter/adapter.safetensors", folder)
    refused(BTAdapter.from_pretrained, folder, name=folder)
    refused(kept_in, folder, name=folder)
    refused(Shards, folder, name=folder)
    refused(read_examples, folder / "a.jsonl", name=folder / "a.jsonl")
    refused(read_items, path, name=path)


def settings(path, folder):
    shutil.copy(samples_folder() / "adapter/adapter.safetensors", folder)
    shutil.copy(path, folder / "adapter.json")
    refused(BTAdapter.from_pretrained, folder, name=folder)


def merges(path, folder):
    shutil.copytree(samples_folder() / "clip", folder / "clip")
    shutil.copy(path, folder / "clip/merges.txt.gz")
    refused(load_clip, folder / "clip", name=folder / "clip")


def store(path, folder):
    shutil.copy(path, folder / "store.json")
    refused(kept_in, folder, name=folder)
    refused(FeatureStore, folder, StoreSettings("f", "float32", 2, 2, "x"), name=folder)


def log(path, folder):
    shutil.copy(path, folder / "log.csv")
    assert read_log(folder / "log.csv") == {}
    with RunLog(folder, "x", 1) as new:
        new.add(0, 1, 0.5, {})
    assert read_log(folder / "log.csv")["loss"] == [0.5]


def marks(path, folder):
    for row in json.loads(path.read_text()):
        assert read_score(row["reply"]) == row["score"], row


def predictions(path, folder):
    """test_benchmark_faults.py judges them with a server that answers 400."""
    assert len(read_items(path)) == 10


def broken_clip(match):
    return lambda path, folder: refused(read_clip, path, name=path, match=match, error=ClipError)


EXPECTED = {  # of tests/faults: what is done with each file, and what must come of it
    "mirror_h.mp4": lambda p, f: corners(p, 64, 96, GREEN, RED, GREY, BLUE),
    "transpose.mp4": lambda p, f: corners(p, 96, 64, RED, BLUE, GREEN, GREY),
    "rot90.mp4": lambda p, f: corners(p, 96, 64, BLUE, RED, GREY, GREEN),
    "sar_2x1.mp4": lambda p, f: read_clip(p).shape == (8, 64, 128, 3) or pytest.fail("not wide"),
    "cut_60s.mkv": broken_clip(r"was cut off, 10\.\d of 60\.0 seconds"),
    "whole.mkv": reads,
    "phone.3gp": found_everywhere,
    "anim.gif": found_everywhere,
    "tape.mxf": found_everywhere,
    "raw.y4m": found_everywhere,
    "anim.apng": found_everywhere,
    "one_bad_frame.mp4": one_bad_frame,
    "size-change.flv": broken_clip("two sizes"),
    "bomb-4000x4000.gif": broken_clip("max_pixels"),
    "bomb-many-frames.gif.gz": many_frames,
    "didemo_names.json": didemo,
    "qa_questions.json": questions,
    "qa_answers.json": questions,
    "judge_replies.json": marks,
    "ten_predictions.json": predictions,
    "captions-nul-path.csv": nul_path,
    "captions-passwd.csv": passwd,
    "captions-end-400-digits.jsonl": lambda p, f: refused(read_examples, p, name=p),
    "index-nsamples-1e12.json": index,
    "index-url-number.json": index,
    "deep.json": deep,
    "adapter-name-null.json": settings,
    "adapter-max-frames.json": settings,
    "merges-bomb.txt.gz": merges,
    "store-list.json": store,
    "log-blank.csv": log,
}
SAMPLES = ("bad_json", "blank_caption", "no_caption"), ("claims-8TB", "json-broken", "json-list")
EXPECTED |= {f"shard_{name}.tar": bad_sample for name in SAMPLES[0]}
EXPECTED |= {f"shard-{name}.tar": bad_sample for name in (*SAMPLES[1], "span-text")}


def test_each_file_has_its_expectation():
    assert {path.name for path in FAULTS.iterdir()} == {*EXPECTED}
    assert sum(path.stat().st_size for path in FAULTS.iterdir()) < 10**6


@pytest.mark.parametrize("name", EXPECTED)
def test_each_file_is_taken_as_it_must_be(name, tmp_path):
    EXPECTED[name](FAULTS / name, tmp_path)
