"""Datasets: bad annotations, broken clips and shards, workers, ranks and resuming."""

import csv
import functools
import http.server
import json
import os
import shutil
import signal
import tarfile
import threading
import time
from collections import Counter
from dataclasses import replace
from itertools import chain, islice
from multiprocessing import AuthenticationError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_video import only_sound

from bt_adapter.backbone import load_clip
from bt_adapter.datasets import (
    CLIP_PRESETS,
    FORMATS,
    ClipDataset,
    Example,
    Report,
    Shards,
    TooManyBroken,
    crop_frames,
    encode_texts,
    encode_tokens,
    index_shards,
    loader,
    loading,
    normalize_frames,
    read_examples,
    tokenize,
    write_shards,
)
from bt_adapter.pretrain import PRESETS, pretrain_clips
from bt_adapter.shipped import samples_folder
from bt_adapter.video import read_clip, write_clip

SIZE = (16, 16)


@pytest.fixture(scope="module")
def clip():
    return load_clip("moving-shapes")


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Sixteen clips of 16 frames, each in a grey of its own, with two captions."""
    folder, made = tmp_path_factory.mktemp("clips"), []
    for i in range(16):
        gray = torch.full((16, 16, 16, 3), 10 + 15 * i, dtype=torch.uint8)
        write_clip(folder / f"{i}.mp4", gray)
        captions = (f"grey {i}", f"the grey of {i}")
        made.append(Example(f"clip{i}", str(folder / f"{i}.mp4"), captions))
    return made


@pytest.fixture
def broken(tmp_path, examples):
    """A file cut off, an empty one, a text and sound."""
    whole = Path(examples[0].path).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("once upon a time\n" * 50)
    only_sound(tmp_path / "sound.mp4")
    names = ("cut", "empty", "text", "sound")
    return [Example(name, str(tmp_path / f"{name}.mp4"), (name,)) for name in names]


def training(examples, **settings):
    return ClipDataset(examples, SIZE, 4, training=True, **settings)


def ids(batches):
    return [batch.ids for batch in batches]


def flat(lists):
    return list(chain.from_iterable(lists))


# ---------- annotations


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


TABLE = "file,caption\n"
BAD = {
    "empty table": ("table", "a.csv", TABLE, "no clip"),
    "no columns": ("table", "a.csv", "clip,words\na.mp4,b\n", "no column is called"),
    "no caption": ("table", "a.csv", TABLE + "b.mp4, \n", "row 1 lacks its caption"),
    "no path": ("table", "a.csv", TABLE + ",b\n", "row 1 lacks"),
    "backwards": ("table", "a.csv", "file,caption,start,end\na.mp4,b,2,1\n", "no length"),
    "no number": ("table", "a.csv", "file,caption,start,end\na.mp4,b,x,1\n", "could not convert"),
    "suffix": ("table", "a.xlsx", "", "must end in"),
    "no json lines": ("table", "a.jsonl", "{file", "cannot be read"),
    "no parquet": ("table", "a.parquet", "PAR1", "cannot be read"),
    "no webvid": ("webvid", "a.csv", TABLE + "a.mp4,b\n", "KeyError: 'name'"),
    "no msrvtt": ("msrvtt", "a.json", '{"videos": []}', "KeyError: 'sentences'"),
    "msrvtt without the video": (
        "msrvtt",
        "a.json",
        '{"videos": [], "sentences": [{"video_id": "video7", "caption": "a"}]}',
        "a caption of video7, which is not among the videos",
    ),
    "msrvtt is a list": ("msrvtt", "a.json", "[]", "must hold an object, not a list"),
    "no didemo": ("didemo", "a.json", '{"a": 1}', "must hold a list, not an object"),
    "lsmdc without sentence": ("lsmdc", "a.csv", "a\t1\t2\t3\t4\n", "six columns"),
    "activitynet is a list": ("activitynet", "a.json", "[1]", "must hold an object"),
    "no kinetics": ("kinetics400", "a.csv", TABLE + "a,b\n", "KeyError"),
    "no ucf": ("ucf101", "a.txt", "clip.avi 1\n", "cannot be read"),
    "no instructions": ("instructions", "a.json", '[{"q": "?", "video_id": "v"}]', "KeyError: 'a'"),
    "one-sided": (
        "instructions",
        "a.json",
        '[{"id": "v", "conversations": [{"from": "gpt", "value": "hello"}]}]',
        "alternate",
    ),
    "no text": ("didemo", "a.json", "\x80", "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_annotation_is_one_sentence(tmp_path, case):
    format, name, text, words = BAD[case]
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=words) as error:
        read_examples(path, format)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_names_that_do_not_exist(tmp_path):
    path = write(tmp_path / "a.csv", TABLE + "a.mp4,b\n")
    with pytest.raises(ValueError, match="No format is called 'movies'"):
        read_examples(path, "movies")
    with pytest.raises(ValueError, match=r"no split 'train'.*give the file"):
        read_examples(path, "table", split="train")
    with pytest.raises(ValueError, match=r"no split 'dev'.*train, validate, test"):
        read_examples(path, "msrvtt", split="dev")
    with pytest.raises(ValueError, match="There is no annotation"):
        read_examples(tmp_path / "b.csv")
    with pytest.raises(ValueError, match="must be named, one of train1, test1"):
        read_examples(tmp_path, "hmdb51")


@pytest.mark.parametrize("second", ["b.mp4,0,2", "a.mp4,2,4"])
def test_an_id_names_one_clip(tmp_path, second):
    table = tmp_path / "captions.csv"
    table.write_text(f"id,path,start,end,caption\n1,a.mp4,0,2,red\n1,{second},blue\n")
    with pytest.raises(ValueError, match=r"the id '1' is given to different (files|stretches)"):
        read_examples(table)
    table.write_text("id,path,start,end,caption\n1,a.mp4,0,2,red\n1,a.mp4,0,2,blue\n")
    assert [example.captions for example in read_examples(table)] == [("red", "blue")]


def test_tables(tmp_path):
    """A mark of the encoding, quotes, several captions, an id, a class, moments."""
    text = (
        "\ufeffvideo,caption,id,label,start,end\n"
        'a.mp4,"a dog, and ""more""",x,pets,,\n'
        "b.mp4,a cat,y,,1,2.5\n"
        "a.mp4,a  hound,x,pets,,\n"
    )
    found = read_examples(write(tmp_path / "a.csv", text), clips="clips")
    assert found == [
        Example("x", "clips/a.mp4", ('a dog, and "more"', "a hound"), "pets"),
        Example("y", "clips/b.mp4", ("a cat",), "", (1.0, 2.5)),
    ]
    lines = '{"path": "a.mp4", "text": ["one", "two"]}\n\n{"path": "b.mp4", "text": "three"}\n'
    first, second = read_examples(write(tmp_path / "a.jsonl", lines))
    assert first.captions == ("one", "two") and second.path == str(tmp_path / "b.mp4")


def test_webvid_rows_of_no_use_are_left_out(tmp_path):
    text = "videoid,name,page_dir\n1,a sea,p\n2,,p\n3,a lake,\n1,the sea,p\n"
    (only,) = read_examples(write(tmp_path / "w.csv", text), "webvid")
    assert only == Example("1", str(tmp_path / "p/1.mp4"), ("a sea", "the sea"))


def test_clips_are_found_by_name_with_any_suffix(tmp_path, examples):
    (tmp_path / "deep/er").mkdir(parents=True)
    for name in ("v_a.webm", "b.mov.mp4", "c.mkv"):
        shutil.copy(examples[0].path, tmp_path / "deep/er" / name)
    entries = {name: {"sentences": ["x"]} for name in ("v_a", "b.mov", "c.avi", "v_gone")}
    path = write(tmp_path / "val_1.json", json.dumps(entries))
    found = read_examples(path, "activitynet")
    assert [Path(e.path).name for e in found] == ["v_a.webm", "b.mov.mp4", "c.mkv", "v_gone.mp4"]


def test_kinetics_and_msrvtt_by_split(tmp_path):
    text = "label,youtube_id,time_start,time_end,split\nrun,abc,7,17,train\nsit,def,0,10,val\n"
    path = write(tmp_path / "k.csv", text)
    assert [e.id for e in read_examples(path, "kinetics400")] == [
        "abc_000007_000017",
        "def_000000_000010",
    ]
    assert [e.label for e in read_examples(path, "kinetics400", split="val")] == ["sit"]
    videos = [{"video_id": "v1", "split": "train"}, {"video_id": "v2", "split": "test"}]
    sentences = [{"video_id": v, "caption": v} for v in ("v2", "v1", "v2")]
    path = write(tmp_path / "m.json", json.dumps({"videos": videos, "sentences": sentences}))
    assert [e.captions for e in read_examples(path, "msrvtt", split="test")] == [("v2", "v2")]
    with pytest.raises(ValueError, match="no clip of the split validate"):
        read_examples(path, "msrvtt", split="validate")


def test_msrvtt_is_1k_a_as_a_csv_and_all_captions_as_json(tmp_path):
    """A thousand clips with a caption each, or every clip with all of its captions."""
    names = [f"video{7010 + n}" for n in range(1000)]
    rows = [f"ret{n},msr{n},{name},caption {n}" for n, name in enumerate(names)]
    text = "\n".join(["key,vid_key,video_id,sentence", *rows])
    found = read_examples(write(tmp_path / "MSRVTT_JSFUSION_test.csv", text), "msrvtt")
    assert [e.id for e in found] == names
    assert [e.captions for e in found] == [(f"caption {n}",) for n in range(1000)]
    parts = dict(a="train", b="validate", c="test")
    videos = [dict(video_id=name, split=part) for name, part in parts.items()]
    said = [dict(video_id=name, caption=f"{name} {n}") for n in range(20) for name in parts]
    path = write(tmp_path / "m.json", json.dumps(dict(videos=videos, sentences=said)))
    assert [(e.id, len(e.captions)) for e in read_examples(path, "msrvtt")] == [
        (name, 20) for name in parts
    ]


def test_classes_in_words(tmp_path):
    folder = tmp_path / "splits"
    folder.mkdir()
    write(folder / "brush_hair_test_split2.txt", "a.avi 1\nb.avi 2\nc.avi 0\n")
    write(folder / "brush_hair_test_split1.txt", "d.avi 1\n")
    (clip,) = read_examples(folder, "hmdb51", tmp_path, "test2")
    assert (clip.captions, clip.label) == (("brush hair",), "brush_hair")
    assert clip.path == str(tmp_path / "brush_hair/b.avi")
    listed = write(tmp_path / "testlist01.txt", "YoYo/v_YoYo_g01_c01.avi\n")
    (clip,) = read_examples(listed, "ucf101")
    assert clip.captions == ("yo yo",) and clip.path.endswith("YoYo/v_YoYo_g01_c01.avi")


def test_conversations_of_several_turns(tmp_path):
    said = [("human", "<video>\nwhat?"), ("gpt", "this"), ("human", "why?"), ("gpt", "so")]
    entry = {"id": "v", "conversations": [{"from": f, "value": v} for f, v in said]}
    path = write(tmp_path / "a.json", json.dumps([entry, entry]))
    one, two = read_examples(path, "instructions")
    assert one.turns == two.turns == (("what?", "this"), ("why?", "so")) and one.id != two.id


def test_settings_of_paper_and_code():
    """Appendix A of the paper, and the authors' configurations."""
    as_tuple = {
        name: {d: (s.frames, s.tokens) for d, s in known.items()}
        for name, known in CLIP_PRESETS.items()
    }
    actions = ("kinetics400", "hmdb51", "ucf101")
    paper = {"webvid": (8, 32), "msrvtt": (12, 12), "didemo": (64, 64), "lsmdc": (12, 32)}
    paper |= {"activitynet": (64, 64), **dict.fromkeys(actions, (16, 12))}
    code = {"webvid": (8, 64), "msrvtt": (12, 32), **dict.fromkeys(actions, (16, 32))}
    code |= dict.fromkeys(("didemo", "lsmdc", "activitynet"), (64, 77))
    assert as_tuple == {"paper": paper, "released": code}
    wide = {d for d, s in CLIP_PRESETS["released"].items() if round(224 * s.margin) == 256}
    assert wide == {"didemo", "lsmdc", "activitynet"}
    assert {s.margin for s in CLIP_PRESETS["paper"].values()} == {1.0}
    assert set(paper) == set(FORMATS) - {"table", "instructions"}


# ---------- pixels and words


@pytest.mark.parametrize("height, width", [(64, 64), (48, 90), (131, 70), (20, 30), (64, 200)])
def test_evaluation_frames_are_clips_own(clip, height, width):
    pixels = torch.randint(0, 256, (3, height, width, 3), dtype=torch.uint8)
    ours = normalize_frames(crop_frames(pixels, clip.image_size)[None], clip)[0]
    assert torch.equal(ours, clip.transform(pixels))


def test_margin_is_the_middle_of_a_larger_picture():
    ramp = torch.arange(256, dtype=torch.uint8).expand(256, 256)[None, ..., None].repeat(1, 1, 1, 3)
    cut = crop_frames(ramp, (224, 224), 256 / 224)
    assert cut[0, 0, 0].tolist() == list(range(16, 240))


def test_random_crops_are_torchvisions_and_one_for_a_clip():
    from torchvision.transforms import RandomResizedCrop, v2

    pixels = torch.randint(0, 256, (5, 60, 80, 3), dtype=torch.uint8)
    before = torch.get_rng_state()
    ours = crop_frames(pixels, (32, 32), generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)
    seed = int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(3)))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        part = RandomResizedCrop.get_params(pixels.permute(0, 3, 1, 2), (0.08, 1), (3 / 4, 4 / 3))
    for frame, got in zip(pixels, ours, strict=True):
        bicubic = v2.InterpolationMode.BICUBIC
        one = v2.functional.resized_crop(frame.permute(2, 0, 1), *part, [32, 32], bicubic)
        assert (one.int() - got.int()).abs().max() <= 1


def test_areas_and_shapes_of_random_crops():
    parts = [
        loading._random_part(torch.zeros(1, 3, 120, 160), torch.Generator().manual_seed(i))
        for i in range(300)
    ]
    areas = np.array([h * w / (120 * 160) for *_, h, w in parts])
    assert 0.07 < areas.min() < 0.15 and areas.max() > 0.85 and 0.4 < areas.mean() < 0.6


@pytest.mark.parametrize("length", [3, 8, 24, 77, None])
def test_the_end_token_is_never_lost(clip, length):
    words = clip.tokenizer
    texts = ["red", "a red square moves left on a black background " * 9]
    tokens = tokenize(texts, words, length)
    assert tokens.shape == (2, words.context_length) and tokens.dtype == torch.long
    for row in tokens.tolist():
        assert row.count(words.eot_token_id) == 1 and max(row) == words.eot_token_id
        assert not any(row[row.index(words.eot_token_id) + 1 :])
    kept = min(length or 99, words.context_length)
    assert (tokens[1] > 0).sum() == kept
    assert torch.allclose(encode_tokens(clip, tokens).norm(dim=-1), torch.ones(2))


def test_texts_are_encoded_in_chunks_and_cut_to_a_length(clip):
    texts = [f"a {size} red star that moves left and then is gone" for size in ("big", "small", "")]
    for length in (None, 5):
        whole = encode_tokens(clip, tokenize(texts, clip.tokenizer, length)).float()
        for chunk in (1, 2, 3, 256):
            found = encode_texts(clip, texts, length, chunk=chunk)
            assert found.dtype == torch.float32 and found.device.type == "cpu"
            torch.testing.assert_close(found, whole)
    assert not torch.allclose(encode_texts(clip, texts), encode_texts(clip, texts, 5), atol=1e-3)


def test_all_that_encode_texts_say_the_same(clip):
    from bt_adapter.pretrain import caption_features
    from bt_adapter.recognition import class_features
    from bt_adapter.retrieval import encode_captions

    texts = ["a red circle", "a blue star", "a red star"]
    whole = encode_texts(clip, texts, 8)
    assert torch.equal(torch.stack([*caption_features(clip, texts, 8).values()]), whole)
    examples = [Example(f"{i}", f"{i}.mp4", (text,)) for i, text in enumerate(texts)]
    assert torch.equal(encode_captions(clip, examples, 8)[0], whole)
    torch.testing.assert_close(class_features(clip, texts, tokens=8), whole)


def test_captions_that_are_none(clip):
    for captions in (["a", " "], "a"):
        with pytest.raises(ValueError, match="none of them empty"):
            tokenize(captions, clip.tokenizer)
    with pytest.raises(ValueError, match="3 tokens or more"):
        tokenize(["a"], clip.tokenizer, 2)
    with pytest.raises(ValueError, match="A clip is uint8"):
        crop_frames(torch.zeros(3, 8, 8, 3), SIZE)


# ---------- items


def test_an_item_depends_on_seed_epoch_and_number_alone(examples):
    one, two, other = (training(examples, seed=seed) for seed in (0, 0, 1))
    torch.manual_seed(9)
    for epoch in range(2):
        for i in (15, 3):
            assert torch.equal(one[epoch, i].frames, two[epoch, i].frames)
    drawn = {
        (d.seed, e, one.examples[i].id): d[e, i].caption
        for d in (one, other)
        for e in range(9)
        for i in range(4)
    }
    for i in range(4):
        assert {c for key, c in drawn.items() if key[2] == f"clip{i}"} == set(examples[i].captions)
    assert any(drawn[0, e, "clip0"] != drawn[1, e, "clip0"] for e in range(9))


def test_frames_are_drawn_in_training_and_the_middle_in_evaluation(tmp_path):
    times = torch.arange(64, dtype=torch.uint8)[:, None, None, None] * 3 + 20
    write_clip(tmp_path / "time.mp4", times.expand(64, 16, 16, 3))
    example = [Example("time", str(tmp_path / "time.mp4"), ("time",))]

    def shown(item):
        return ((item.frames.float().mean((1, 2, 3)) - 20) / 3).round().long()

    assert (
        shown(ClipDataset(example, SIZE, 4)[0]).sub(torch.tensor([8, 24, 40, 56])).abs().max() <= 1
    )
    drawn = torch.stack([shown(training(example)[epoch, 0]) for epoch in range(30)])
    assert (drawn // 16 - torch.arange(4)).abs().float().mean() < 0.1
    assert all(len(column.unique()) > 8 for column in drawn.T)


def test_spans_reach_the_reader(examples):
    part = Example("part", examples[0].path, ("x",), span=(5.0, 6.0))
    (failure,) = ClipDataset([part], SIZE)[0].broken
    assert "no frame lies in seconds" in failure[1]


def test_the_reader_is_handed_on_to_datasets_shards_and_workers(tmp_path, examples):
    dice, wide = torch.Generator().manual_seed(0), []
    for i in range(4):
        noise = torch.randint(0, 256, (12, 16, 20, 3), generator=dice, dtype=torch.uint8)
        write_clip(tmp_path / f"{i}.mp4", noise)
        wide.append(Example(f"clip{i}", str(tmp_path / f"{i}.mp4"), ("noise",)))
    write_shards(wide, tmp_path / "shards")
    for source in (wide, Shards(tmp_path / "shards")):
        for settings in ({}, {"training": True}):
            ours = loader(ClipDataset(source, SIZE, 4, **settings), 2)
            theirs = loader(ClipDataset(source, SIZE, 4, **settings, reader="decord"), 2, workers=1)
            pairs = list(zip(ours, theirs, strict=True))
            assert len(pairs) == 2 and all(torch.equal(a.frames, b.frames) for a, b in pairs)
    (failure,) = ClipDataset(examples, SIZE, 4, reader="decord")[0].broken
    assert failure[0] == examples[0].path and "lines of 16 pixels" in failure[1]
    with pytest.raises(ValueError, match="No reader is called"):
        ClipDataset(examples, SIZE, reader="opencv")


def test_what_a_dataset_and_a_loader_refuse(examples, clip):
    for wrong in ({"frames": 0}, {"margin": 0.5}, {"examples": []}):
        with pytest.raises(ValueError, match="each of 1 or more"):
            ClipDataset(**({"examples": examples, "size": SIZE} | wrong))
    for wrong in ({"batch": 0}, {"workers": -1}, {"rank": 2, "world": 2}, {"share": 2}):
        with pytest.raises(ValueError, match="A loader needs"):
            loader(training(examples), **({"batch": 4} | wrong))
    with pytest.raises(ValueError, match="do not fill one batch of 20"):
        loader(training(examples), 5, world=4)
    silent = [Example("mute", examples[0].path)]
    with pytest.raises(TooManyBroken, match="The clip mute has no caption"):
        list(loader(ClipDataset(silent, SIZE), 1, clip.tokenizer))
    (batch,) = loader(ClipDataset(silent, SIZE), 1)
    assert batch.tokens.shape == (1, 0)


# ---------- the loader


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_workers_change_nothing_and_end(examples, clip, workers):
    wanted = list(loader(training(examples), 4, clip.tokenizer, 8))
    run = loader(training(examples), 4, clip.tokenizer, 8, workers)
    for _ in range(2):  # the second epoch reuses the workers
        got = list(run)
        assert len(got) == len(run) == 4
        if run.epoch == 1:
            for a, b in zip(wanted, got, strict=True):
                assert torch.equal(a.frames, b.frames) and torch.equal(a.tokens, b.tokens)
                assert torch.equal(a.index, b.index) and a[3:] == b[3:]
    assert run.report.tried == 32 and not run.report.broken


def test_evaluation_comes_in_order_and_whole(examples):
    run = loader(ClipDataset(examples, SIZE), 6)
    assert [len(b.ids) for b in run] == [6, 6, 4]
    assert [i for b in run for i in b.index.tolist()] == list(range(16))
    parts = [ids(loader(ClipDataset(examples, SIZE), 6, rank=r, world=2)) for r in range(2)]
    assert [[len(b) for b in part] for part in parts] == [[6, 4], [6]]
    assert sorted(flat(flat(parts))) == sorted(e.id for e in examples)


def test_every_clip_comes_once_in_an_epoch_and_epochs_differ(examples):
    run = loader(training(examples), 4)
    epochs = [flat(ids(run)) for _ in range(3)]
    assert all(sorted(epoch) == sorted(e.id for e in examples) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("world", [2, 4])
def test_processes_take_slices_of_the_same_batches(examples, world):
    whole = ids(loader(training(examples), 8))
    ranks = [ids(loader(training(examples), 8 // world, rank=r, world=world)) for r in range(world)]
    assert whole == [flat(parts) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 5, 7])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_anywhere_the_rest_is_the_same(examples, broken, stop, workers):
    mixed = examples + broken[:2]

    def fresh(**changes):
        return loader(training(mixed), 4, share=1, workers=workers, **changes)

    def endless(run):
        while True:
            yield from run

    straight = fresh()
    wanted = list(islice(endless(straight), 8))
    first = fresh()
    before = list(islice(endless(first), stop))
    state = json.loads(json.dumps(first.state_dict()))
    second = fresh()
    second.load_state_dict(state)
    after = list(islice(endless(second), 8 - stop))
    for a, b in zip(wanted, before + after, strict=True):
        assert torch.equal(a.frames, b.frames) and a.ids == b.ids
    assert second.report == straight.report


def test_a_loader_leaves_the_global_randomness_alone(examples):
    before = torch.get_rng_state()
    list(loader(training(examples), 4, workers=1))
    list(loader(training(examples), 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_of_another_run_is_refused(examples):
    state = loader(training(examples), 4).state_dict()
    for other, words in (
        (loader(training(examples, seed=1), 4), "seed 0, this one 1"),
        (loader(training(examples[:9]), 4), "clips 16, this one 9"),
        (loader(training(examples), 2), "global batch 4, this one 2"),
    ):
        with pytest.raises(ValueError, match=words):
            other.load_state_dict(state)
    loader(training(examples), 2, rank=1, world=2).load_state_dict(state)


def test_a_worker_that_is_killed_ends_the_run(examples):
    for moment in (0, 0.05):
        run = loader(training(examples), 2, workers=1)
        batches = iter(run)
        next(batches)
        with pytest.raises(RuntimeError, match="worker"):
            os.kill(run.loader._iterator._workers[0].pid, signal.SIGKILL)
            time.sleep(moment)
            list(batches)


@pytest.mark.parametrize(
    "error", [EOFError, ConnectionResetError, FileNotFoundError, AuthenticationError]
)
def test_a_hand_over_that_breaks_is_a_worker_that_was_killed(examples, error):
    """A process's sentinel is a pipe, which is closed when the process ends."""
    reading, writing = os.pipe()

    class Batches:
        _workers = (SimpleNamespace(sentinel=reading, join=lambda: None),)

        def __next__(self):
            raise error("the hand-over broke")

    run = loader(training(examples), 2)
    with pytest.raises(error, match="the hand-over broke"):
        run._next(Batches())
    os.close(writing)
    with pytest.raises(RuntimeError, match="worker was killed"):
        run._next(Batches())
    os.close(reading)


class Refusing(ClipDataset):
    def item(self, epoch, index):
        raise EOFError("my own file ended")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_set_stays_what_it_is(examples, workers):
    with pytest.raises(EOFError, match="my own file ended"):
        list(loader(Refusing(examples, SIZE, 4), 2, workers=workers))


def test_frames_of_many_batches_may_be_kept(examples):
    """A tensor from a worker is an open file until it goes; a process may have about a thousand."""
    import resource

    import psutil

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = psutil.Process().num_fds() + 120  # other tests have left files open
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, few), hard))
    try:
        run = loader(training(examples), 2, workers=1)
        kept = [batch for _ in range(3) for batch in run]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(kept) == 24


# ---------- broken clips


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_clips_are_replaced_in_training_and_named(examples, broken, workers):
    missing = [Example("missing", "nowhere/missing.mp4", ("x",))]
    run = loader(training(examples + broken + missing), 7, workers=workers, share=0.5)
    got = flat(ids(run))
    assert [len(got), len(run)] == [21, 3] and set(got) <= {e.id for e in examples}
    assert set(run.report.broken) == {e.path for e in broken + missing}
    assert run.report.failed >= 5 and run.report.tried == 21 + run.report.failed
    words = {"cut": "Cannot read", "empty": "is empty", "text": "no video file"}
    words |= {"sound": "no video", "missing": "no such file"}
    for path, reason in run.report.broken.items():
        assert words[Path(path).stem] in reason and path in reason


def test_broken_clips_are_left_out_in_evaluation(examples, broken):
    run = loader(ClipDataset(broken + examples[:4], SIZE), 4, share=0.5)
    assert ids(run) == [[e.id for e in examples[:4]]]  # the first batch is empty
    assert run.report.failed == 4 and run.report.tried == 8 and run.epoch == 1


def test_too_many_broken_clips_stop_the_run_with_the_list(examples, broken):
    for share, stops in ((0.1, True), (0.24, True), (0.5, False)):
        run = loader(ClipDataset(examples[:12] + broken, SIZE), 4, share=share)
        if stops:
            with pytest.raises(TooManyBroken) as error:
                list(run)
            assert all(e.path in str(error.value) for e in broken[: run.report.failed])
        else:
            list(run)
    with pytest.raises(TooManyBroken, match="of 80 clips tried"):
        list(loader(training(broken), 4))


def test_when_a_report_stops_a_run():
    def stops(tried, failed, clips, share=0.1):
        report = Report(share)
        report.add(tried, [(f"{i}.mp4", "x") for i in range(failed)])
        try:
            report.check(clips)
        except TooManyBroken:
            return True
        return False

    assert not stops(100, 100, 10_000) and stops(101, 101, 10_000)
    assert not stops(2000, 200, 10_000) and stops(2000, 201, 10_000)
    assert not stops(20, 2, 20) and stops(20, 3, 20)
    assert stops(1, 1, 50, share=0.0) and not stops(50, 50, 50, share=1.0)


def test_a_long_list_is_cut_and_written_whole(tmp_path):
    report = Report(0.0)
    names = [f'{i}, "odd".mp4' for i in range(60)]
    report.add(60, [(name, "it is\nempty") for name in names])
    with pytest.raises(TooManyBroken, match="and 10 more"):
        report.check(60)
    report.write(tmp_path / "broken.csv")
    with (tmp_path / "broken.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == names and rows[0]["reason"] == "it is\nempty"


# ---------- shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory, examples):
    folder = tmp_path_factory.mktemp("shards") / "100% set"
    report = write_shards(examples, folder, per_shard=3)
    assert (report.tried, report.failed) == (16, 0)
    return folder


def test_shards_hold_everything(shards, examples):
    stored = {e.id: e for e in map(Shards(shards).example, range(16))}
    for example in examples:
        kept = stored[example.id]
        assert kept.data == Path(example.path).read_bytes()
        assert (kept.captions, kept.span, kept.turns) == (example.captions, None, ())
    assert len(list(shards.glob("*.tar"))) == 6


def test_shards_without_contrast_are_refused(tmp_path, examples, clip):
    same = [replace(example, captions=("a hand",)) for example in examples[:3]]
    for some, told in (same[:1], "1 clip to learn from"), (same, "All 3 clips have the caption"):
        write_shards(some, tmp_path / f"{len(some)}")
        with pytest.raises(ValueError, match=told):
            pretrain_clips(
                tmp_path / "out", clip, Shards(tmp_path / f"{len(some)}"), PRESETS["quick"]
            )


def test_all_that_is_known_survives(tmp_path, examples):
    rich = Example("é", examples[0].path, ("ä", "b"), "class", (0.5, 1.0), (("q", "a"), ("r", "b")))
    write_shards([rich], tmp_path / "a")
    (kept,) = map(Shards(tmp_path / "a").example, range(1))
    assert (kept.id, kept.captions, kept.label, kept.span, kept.turns) == (
        rich.id,
        rich.captions,
        rich.label,
        rich.span,
        rich.turns,
    )
    write_shards([kept], tmp_path / "b")  # from shards again
    assert Shards(tmp_path / "b")[0].data == kept.data


def test_shards_are_the_same_every_time(tmp_path, examples, shards):
    write_shards(examples, tmp_path / "again", per_shard=3)
    for path in shards.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_webdataset_reads_the_shards(shards, examples):
    import webdataset

    names = sorted(str(path) for path in shards.glob("*.tar"))
    stream = webdataset.WebDataset(names, shardshuffle=False).decode()
    found = {sample["json"]["id"]: sample["mp4"] for sample in stream}
    assert found == {e.id: Path(e.path).read_bytes() for e in examples}


@pytest.mark.parametrize("workers, world", [(0, 1), (2, 1), (1, 2), (0, 4)])
def test_shards_come_whole_and_once(shards, examples, workers, world):
    runs = [
        loader(training(Shards(shards)), 4 // world, workers=workers, rank=r, world=world)
        for r in range(world)
    ]
    wanted = ids(loader(training(Shards(shards)), 4))
    got = [flat(parts) for parts in zip(*map(ids, runs), strict=True)]
    assert got == wanted and Counter(flat(got)) == Counter(e.id for e in examples)


def test_shards_resume(shards):
    straight = list(loader(training(Shards(shards)), 4))
    run = loader(training(Shards(shards)), 4, workers=1)
    next(iter(run))
    resumed = loader(training(Shards(shards)), 4)
    resumed.load_state_dict(run.state_dict())
    for a, b in zip(straight[1:], resumed, strict=True):
        assert torch.equal(a.frames, b.frames) and a.ids == b.ids


def test_shards_are_shuffled_in_windows(shards):
    source = Shards(shards)
    orders = [source.order(torch.Generator().manual_seed(i)) for i in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(16))
        shard = np.searchsorted(source.ends, order.numpy(), "right") - 1
        assert 1 < len(set(shard[:9].tolist())) <= 5 and set(shard[:4]) != {shard[0]}
    assert not torch.equal(orders[0], orders[1])


def test_broken_clips_in_shards_are_named(tmp_path, examples, broken):
    report = write_shards(examples + broken, tmp_path / "set", per_shard=6)
    assert {*report.broken} == {e.path for e in broken}  # what is no clip is not packed
    with tarfile.open(tmp_path / "set/000009.tar", "w") as archive:  # as others may pack it
        for example in broken:
            archive.add(example.path, f"{example.id}.mp4")
    index_shards(tmp_path / "set")
    run = loader(training(Shards(tmp_path / "set")), 5, share=0.5, workers=1)
    assert set(flat(ids(run))) <= {e.id for e in examples}
    assert len(run.report.broken) == 4 and all(".tar/" in path for path in run.report.broken)


def test_files_that_are_not_there_are_reported_when_writing(tmp_path, examples):
    gone = Example("gone", str(tmp_path / "gone.mp4"), ("x",))
    report = write_shards([gone, *examples[:3]], tmp_path / "set")
    assert report.tried == 4 and list(report.broken) == [gone.path]
    assert len(Shards(tmp_path / "set")) == 3
    with pytest.raises(ValueError, match=r"None of the 1 clips can be packed: .*no such file"):
        write_shards([gone], tmp_path / "none")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


def test_nothing_is_overwritten_and_nothing_left_behind(tmp_path, examples, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    for name in ("full", "file"):
        with pytest.raises(ValueError, match="is there already"):
            write_shards(examples, tmp_path / name)
    with pytest.raises(ValueError, match="Shards need examples"):
        write_shards([], tmp_path / "new")

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bt_adapter.datasets.shards.index_shards", full)
    with pytest.raises(OSError, match="No space left"):
        write_shards(examples, tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]
    monkeypatch.undo()
    (tmp_path / "empty").mkdir()
    assert write_shards(examples, tmp_path / "empty").tried == 16


def test_a_shard_that_was_cut_off(tmp_path, examples, shards):
    shutil.copytree(shards, tmp_path / "cut")
    path = tmp_path / "cut" / "000001.tar"
    with tarfile.open(path) as archive:
        second = [m for m in archive.getmembers() if m.name.endswith(".mp4")][1]
    for end in (second.offset_data + 100, second.offset, 700, 0):
        path.write_bytes((shards / "000001.tar").read_bytes()[:end])
        run = loader(ClipDataset(Shards(tmp_path / "cut"), SIZE, 4), 4, share=0.5)
        found = flat(ids(run))
        assert len(found) == (14 if end > 700 else 13) and "cut off" in str(run.report.broken)
    path.unlink()
    run = loader(ClipDataset(Shards(tmp_path / "cut"), SIZE, 4), 4, share=0.5)
    assert len(flat(ids(run))) == 13


def test_shards_of_others(tmp_path, examples):
    """As video2dataset makes them: a video, a text and JSON of its own, or no JSON."""
    with tarfile.open(tmp_path / "00000.tar", "w") as archive:
        for i, example in enumerate(examples[:3]):
            texts = {"txt": f"text {i}"}
            if i:
                texts["json"] = json.dumps({"caption": f"caption {i}", "videoid": 100 + i})
            for suffix, text in texts.items():
                write(tmp_path / "x", text)
                archive.add(tmp_path / "x", f"0000{i}.{suffix}")
            archive.add(example.path, f"0000{i}.mp4")
        archive.add(tmp_path / "x", "00009.txt")  # no video: no clip
    assert index_shards(tmp_path) == 3
    found = [Shards(tmp_path)[i] for i in range(3)]
    assert [e.id for e in found] == ["00000", "101", "102"]
    assert [e.captions for e in found] == [("text 0",), ("caption 1",), ("caption 2",)]


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "{}",
        '{"shardlist": []}',
        '{"shardlist": [{"url": "../a.tar", "nsamples": 1}]}',
        '{"shardlist": [{"url": "pipe:rm -r x", "nsamples": 0}]}',
        '{"shardlist": [{"url": "http://a/b.tar", "nsamples": 1}]}',
        '{"shardlist": [{"url": "a.tar", "nsamples": "many"}]}',
    ],
)
def test_an_index_that_is_none(tmp_path, index):
    write(tmp_path / "index.json", index)
    with pytest.raises(ValueError, match=r"index\.json"):
        Shards(tmp_path)


def test_folders_that_hold_no_shards(tmp_path):
    with pytest.raises(ValueError, match="There is no"):
        Shards(tmp_path)
    with pytest.raises(ValueError, match=r"no \.tar file"):
        index_shards(tmp_path)
    write(tmp_path / "a.tar", "no archive")
    with pytest.raises(ValueError, match=r"holds no clips: a\.tar"):
        index_shards(tmp_path)


def test_shards_written_anew_are_read_anew(tmp_path, examples):
    write_shards(examples[:2], tmp_path / "set")
    assert Shards(tmp_path / "set")[0].id in ("clip0", "clip1")
    shutil.rmtree(tmp_path / "set")
    write_shards(examples[4:6], tmp_path / "set", seed=1)
    kept = Shards(tmp_path / "set")[1]
    assert kept.data == Path(examples[int(kept.id[4:])].path).read_bytes()


@pytest.fixture
def served(shards):
    """The address of a server of the shards on this machine, and the paths asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(shards))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_shards_from_the_web_are_fetched_once(tmp_path, shards, served):
    address, asked = served
    with pytest.raises(ValueError, match="need a cache"):
        Shards(f"{address}/index.json")
    remote = Shards(f"{address}/index.json", tmp_path)
    assert remote[0].data == Shards(shards)[0].data
    assert asked == ["/index.json", "/000000.tar"]
    run = loader(training(remote), 4, workers=2)
    assert ids(run) == ids(loader(training(Shards(shards)), 4))
    assert not list(tmp_path.rglob("*.part"))
    for path in next(tmp_path.iterdir()).glob("*.tar"):
        assert path.read_bytes() == (shards / path.name).read_bytes()


def test_a_shard_that_cannot_be_fetched_is_a_broken_clip(tmp_path, shards, served):
    address, _ = served
    remote = Shards(f"{address}/index.json", tmp_path)
    remote.names[2] = "nowhere.tar"
    run = loader(ClipDataset(remote, SIZE, 4), 4, share=0.5)
    assert len(flat(ids(run))) == 13 and "404" in str(run.report.broken)


def test_the_shipped_clips(clip):
    """As the notebook reads them: every clip of the shipped table is a batch's."""
    folder = samples_folder()
    found = read_examples(folder / "captions.csv", clips=folder / "clips")
    (batch,) = loader(ClipDataset(found, clip.image_size), len(found), clip.tokenizer)
    wanted = torch.stack([clip.transform(read_clip(e.path)) for e in found])
    assert torch.equal(normalize_frames(batch.frames, clip), wanted)
    assert torch.equal(encode_tokens(clip, batch.tokens), clip.encode_text(batch.captions))
