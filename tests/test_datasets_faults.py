"""Bad rows, samples and clips among good ones: each costs itself, by name, and no more."""

import gc
import io
import json
import os
import shutil
import signal
import tarfile
import weakref
from pathlib import Path

import pytest
import torch

from bt_adapter.backbone import load_clip
from bt_adapter.datasets import (
    ClipDataset,
    Example,
    Shards,
    TooManyBroken,
    index_shards,
    loader,
    read_examples,
    write_shards,
)
from bt_adapter.datasets.decoding import Decoder, DecoderEnded
from bt_adapter.shipped import samples_folder
from bt_adapter.trainer import PretrainConfig

FAULTS = Path(__file__).with_name("faults")
CLIPS = samples_folder() / "clips"
SIZE = (16, 16)
NAMES = ["grow", "shrink", "left", "right"]


@pytest.fixture(scope="module")
def clip():
    return load_clip("moving-shapes")


def good(*names):
    return [Example(n, str(CLIPS / f"{n}.mp4"), (f"a circle moves {n}",)) for n in names]


def words(run):
    """The ids that a loader gives, and what it says of those that it could not."""
    found = [name for batch in run for name in batch.ids]
    return found, run.report.broken


# ---------- rows of annotations

HEAD = "file,caption,start,end\n"
ROWS = {
    "blank caption": (b"x.mp4, ,,\n", "lacks its caption for x.mp4"),
    "no caption": (b"x.mp4\n", "lacks its caption"),
    "no file": (b",words,,\n", "lacks its file"),
    "too many fields": (b"x.mp4,a dog, a cat, a bird, a cow\n", "has 5 fields"),
    "latin-1": ("x.mp4,a café,,\n".encode("latin-1"), "save the table in UTF-8"),
    "open quotation": (b'x.mp4,"a dog,,\n', "quotation mark that is not closed"),
    "quotations": (b'x.mp4,"a dog,,\ngrow.mp4,"a circle",,\n', "quotation mark that is not closed"),
    "huge field": (b"x.mp4," + b"x" * 200_000 + b",,\n", "cannot be read"),
    "long name": (b"x" * 300 + b".mp4,words,,\n", "too long"),
    "long path": (b"x/" * 3000 + b"x.mp4,words,,\n", "too long"),
    "no number": (b"x.mp4,words,one,2\n", "could not convert"),
    "no length": (b"x.mp4,words,2,2\n", "no length"),
    "no time": (b"x.mp4,words,nan,2\n", "no length"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_of_a_table_costs_itself_and_is_named(name, tmp_path, clip):
    row, fault = ROWS[name]
    rows = [f"{n}.mp4,a circle moves {n},,\n".encode() for n in NAMES]
    (tmp_path / "t.csv").write_bytes(HEAD.encode() + b"".join([*rows[:2], row, *rows[2:]]))
    found = read_examples(tmp_path / "t.csv", clips=CLIPS)
    bad = [example for example in found if example.fault]
    assert [e.id.removesuffix(".mp4") for e in found if not e.fault][-2:] == NAMES[2:]
    assert len(bad) == 1 and fault in bad[0].fault and "row 3" in bad[0].path
    got, broken = words(loader(ClipDataset(found, SIZE), 3, clip.tokenizer, share=0.5))
    assert [Path(n).stem for n in got] == [e.id[:-4] for e in found if not e.fault]
    assert list(broken) == [bad[0].path] and fault in broken[bad[0].path]
    (tmp_path / "only.csv").write_bytes(HEAD.encode() + row.splitlines(True)[0])
    with pytest.raises(ValueError, match=r"only\.csv") as caught:
        read_examples(tmp_path / "only.csv")
    assert fault in str(caught.value) and "\n" not in str(caught.value)


LINES = {
    "cut": b'{"file": "x.mp4", "capt',
    "deep": b"[" * 20_000,
    "list": b'["x.mp4", "words"]',
    "number": b"7",
    "latin-1": '{"file": "x.mp4", "caption": "café"}'.encode("latin-1"),
    "caption is a number": b'{"file": "x.mp4", "caption": 5}',
    "caption in an object": b'{"file": "x.mp4", "caption": {"en": "a dog"}}',
    "captions of a number": b'{"file": "x.mp4", "caption": ["a dog", 5]}',
    "no captions": b'{"file": "x.mp4", "caption": []}',
    "null": b'{"file": "x.mp4", "caption": null}',
    "file is a number": b'{"file": 5, "caption": "words"}',
    "other columns": b'{"clip": "x.mp4", "words": "words"}',
    "400 digits": (FAULTS / "captions-end-400-digits.jsonl").read_bytes().strip(),
    "times are lists": b'{"file": "x.mp4", "caption": "words", "start": [0], "end": [1]}',
    "9,000 digits": b'{"file": "x.mp4", "caption": "words", "start": ' + b"9" * 9000 + b"}",
}


@pytest.mark.parametrize("name", LINES)
def test_a_bad_line_of_json_costs_itself_and_is_named(name, tmp_path, clip):
    lines = [json.dumps({"file": f"{n}.mp4", "caption": n}).encode() for n in NAMES]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join([*lines[:2], LINES[name], *lines[2:]]))
    found = read_examples(tmp_path / "t.jsonl", clips=CLIPS)
    assert [e.fault is None for e in found] == [True, True, False, True, True]
    got, broken = words(loader(ClipDataset(found, SIZE), 3, clip.tokenizer, share=0.5))
    assert len(got) == 4 and [*broken] == [f"{tmp_path}/t.jsonl row 3"]
    (tmp_path / "only.jsonl").write_bytes(LINES[name])
    with pytest.raises(ValueError, match=r"only\.jsonl"):
        read_examples(tmp_path / "only.jsonl")


ENTRIES = {
    "msrvtt": lambda good, bad: {
        "videos": [5, {}, *({"video_id": n, "split": "test"} for n in good)],
        "sentences": [
            {"video_id": good[0], "caption": "a"},
            *bad,
            {"video_id": good[1], "caption": "b"},
        ],
    },
    "didemo": lambda good, bad: [
        {"video": good[0], "description": "a"},
        *bad,
        {"video": good[1], "description": "b"},
    ],
    "activitynet": lambda good, bad: {
        good[0]: {"sentences": ["a"]},
        **{f"bad{i}": b for i, b in enumerate(bad)},
        good[1]: {"sentences": ["b", "c"]},
    },
    "instructions": lambda good, bad: [
        {"video_id": good[0], "q": "a", "a": "b"},
        *bad,
        {"video_id": good[1], "q": "a", "a": "b"},
    ],
}
ODD = [5, None, [], {}, "text", [[]], {"video_id": [], "caption": 5}, {"sentences": 5}]
ODD += [{"sentences": [5]}, {"sentences": []}, {"video": "left", "description": " "}]
ODD += [{"video_id": "gone", "caption": "x"}, {"video_id": "left", "q": 5, "a": "b"}]
ODD += [{"id": "left", "conversations": c} for c in (5, [5], [{"from": "human"}], [])]


@pytest.mark.parametrize("layout", ENTRIES)
def test_bad_entries_of_the_owners_json_cost_themselves(layout, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ENTRIES[layout](["grow", "left"], ODD)))
    found = read_examples(path, layout, CLIPS)
    assert [Path(e.path).stem for e in found if not e.fault] == ["grow", "left"]
    assert len([e for e in found if e.fault]) == len(ODD)
    for text in (b"[" * 20_000, b'{"videos": [', b"5", b"null", b"\xe9"):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=r"a\.json") as caught:
            read_examples(path, layout, CLIPS)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["kinetics400", "ucf101", "hmdb51", "lsmdc", "webvid"])
def test_bad_lines_of_the_other_formats_cost_themselves(layout, tmp_path):
    texts = {
        "kinetics400": "label,youtube_id,time_start,time_end\nup,a,0,1\nup,b,x,1\nup,c\nup,d,0,1\n",
        "ucf101": "Up/a.avi 1\nb.avi 1\nUp/Up/c.avi\nUp/d.avi 1\n",
        "hmdb51": "a.avi 1\nb.avi\nc d e\nd.avi 1\n",
        "lsmdc": "a\t1\t2\t3\t4\tup\nb\t1\t2\nc\t1\t2\t3\t4\t \nd\t1\t2\t3\t4\tup\n",
        "webvid": 'videoid,name,page_dir\n1,up,p\n2,up,p,too,much\n3,"up,p\n4,up,p\n',
    }
    path = tmp_path / ("a_test_split1.txt" if layout == "hmdb51" else "a.csv")
    path.write_text(texts[layout])
    where = tmp_path if layout == "hmdb51" else path
    found = read_examples(where, layout, split="train1" if layout == "hmdb51" else None)
    assert [bool(e.fault) for e in found] == [False, True, True, False]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_as_spreadsheets_write_them(delimiter, encoding, tmp_path):
    rows = [["file", "caption"], ["up.mp4", '"a café,; ""up"""'], ["left.mp4", '"two\nlines"']]
    text = "\r\n".join(map(delimiter.join, rows))
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    found = read_examples(tmp_path / "t.csv")
    assert [e.captions for e in found] == [('a café,; "up"',), ("two lines",)]


def test_a_table_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="a pipe or a device"):
        read_examples(tmp_path / "t.csv")


# ---------- clips


def hostile(tmp_path):
    """Examples that no file fits, as a table or a program may give them."""
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    names = ["nul\0.mp4", "half \ud800.mp4", "x" * 5000 + ".mp4", "", "../../etc/passwd"]
    names += ["pipe.mp4", "folder.mp4"]
    found = [Example(f"bad{i}", str(tmp_path / name), ("x",)) for i, name in enumerate(names)]
    found += [Example("zero", "/dev/zero", ("x",)), Example("number", 5, ("x",))]
    up = str(CLIPS / "grow.mp4")
    found += [
        Example(f"said{i}", up, said) for i, said in enumerate([(), (" ",), (5,), ("\ud800",)])
    ]
    found += [Example(f"span{i}", up, ("x",), None, s) for i, s in enumerate([("a", "b"), 5, (1,)])]
    return [*found, Example("bytes", "x.mp4", ("x",), data=5)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_whatever_a_clip_makes_a_reader_raise_costs_that_clip(workers, training, tmp_path, clip):
    bad = hostile(tmp_path)
    dataset = ClipDataset(bad + good(*NAMES), SIZE, 2, training=training)
    got, broken = words(loader(dataset, 4, clip.tokenizer, workers=workers, share=1.0))
    assert {*got} <= {*NAMES} and ({*got} == {*NAMES} or training)
    paths = {example.path for example in bad}
    if not training:
        assert {*broken} == paths
    assert {*broken} <= paths and all("\n" not in reason for reason in broken.values())


def test_a_report_with_names_that_are_no_text_is_written(tmp_path):
    run = loader(ClipDataset([*hostile(tmp_path)[:2], *good(*NAMES)], SIZE, 2), 3, share=0.5)
    words(run)
    run.report.write(tmp_path / "broken.csv")
    assert len((tmp_path / "broken.csv").read_text(encoding="utf-8").splitlines()) == 3


# ---------- samples of shards


def pack(path, samples):
    """A shard of samples: key -> {suffix: bytes}."""
    with tarfile.open(path, "w") as archive:
        for key, files in samples:
            for suffix, data in files:
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def told(**known):
    return [("json", json.dumps(known).encode())]


SAMPLES = {
    "list": [("json", b"[1]")],
    "number": [("json", b"5")],
    "cut": [("json", b'{"caption": "a')],
    "deep": [("json", b"[" * 20_000)],
    "latin-1 json": [("json", '{"caption": "café"}'.encode("latin-1"))],
    "latin-1": [("txt", "café".encode("latin-1"))],
    "none": [],
    "blank": [("txt", b" \n")],
    "captions 5": told(captions=5),
    "captions [1]": told(captions=[1]),
    "captions [{}]": told(captions=[{}]),
    "captions text": told(captions="a dog"),
    "caption 5": told(caption=5),
    "half": told(caption="\ud800"),
    "span 5": told(caption="x", span=5),
    "span text": told(caption="x", span=["a", "b"]),
    "span of one": told(caption="x", span=[1]),
    "span of digits": [("json", b'{"caption": "x", "span": [0, ' + b"9" * 400 + b"]}")],
    "turns 5": told(caption="x", turns=5),
    "turns of one": told(caption="x", turns=[["q"]]),
    "twice": [("txt", b"a"), ("txt", b"b")],
    "two films": [("txt", b"a"), ("mp4", b"another")],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_bad_sample_of_a_shard_costs_itself_and_is_named(name, tmp_path, clip):
    films = {n: (CLIPS / f"{n}.mp4").read_bytes() for n in NAMES}
    samples = [(n, [("mp4", films[n]), ("txt", b"a circle")]) for n in NAMES]
    samples.insert(2, ("bad", [("mp4", films["grow"]), *SAMPLES[name]]))
    pack(tmp_path / "0.tar", samples)
    assert index_shards(tmp_path) == 5
    got, broken = words(
        loader(ClipDataset(Shards(tmp_path), SIZE, 2), 3, clip.tokenizer, share=0.5)
    )
    assert got == NAMES and [*broken] == [f"{tmp_path}/0.tar/bad.mp4"]
    (reason,) = broken.values()
    assert not reason.endswith("..")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", sorted(p.name for p in FAULTS.glob("shard*.tar")))
def test_the_shards_that_ended_a_run(name, workers, tmp_path, clip):
    shutil.copy(FAULTS / name, tmp_path / "0.tar")
    pack(
        tmp_path / "1.tar",
        [(n, [("mp4", (CLIPS / f"{n}.mp4").read_bytes()), ("txt", b"a")]) for n in NAMES],
    )
    count = index_shards(tmp_path)
    dataset = ClipDataset(Shards(tmp_path), SIZE, 2)
    got, broken = words(loader(dataset, 3, clip.tokenizer, workers=workers, share=0.5))
    assert {*NAMES} <= {*got} and len(got) == count - 1 and len(broken) == 1
    assert str(tmp_path / "0.tar") in str(broken)


def test_claims_of_an_archive_are_held_against_the_file(tmp_path):
    """A long name of 8 TB, a size below nothing, a pipe under the name of a shard."""
    pack(tmp_path / "0.tar", [(n, [("mp4", b"film")]) for n in NAMES])
    whole = (tmp_path / "0.tar").read_bytes()
    for kind, size in ((b"L", 2**43), (b"L", 10**9), (b"0", -512), (b"x", 2**43), (b"0", 2**62)):
        header = tarfile.TarInfo("claim")
        header.type, header.size = kind, size
        header = header.tobuf(tarfile.GNU_FORMAT)
        (tmp_path / "0.tar").write_bytes(whole[:1024] + header + whole[1024:])
        assert index_shards(tmp_path) >= 1
        shards = Shards(tmp_path)
        assert shards[0].data == b"film"
    os.mkfifo(tmp_path / "1.tar")
    with pytest.raises(ValueError, match=r"1\.tar: it is no file"):
        index_shards(tmp_path)


INDEXES = [p.read_text() for p in sorted(FAULTS.glob("index-*.json"))]
INDEXES += ["[" * 20_000, "[]", "5", '{"shardlist": 5}', '{"shardlist": [5]}', '{"shardlist": {}}']
COUNTS = ["1e999", "1.5", "true", "null", '"3"', "-1", "0", "9" * 30, "9" * 9_000]
INDEXES += [f'{{"shardlist": [{{"url": "0.tar", "nsamples": {n}}}]}}' for n in COUNTS]
NAMES_OF_FILES = ["null", "[]", '"a\\u0000.tar"', '".."', '"/etc/passwd"', '""']
INDEXES += [f'{{"shardlist": [{{"url": {n}, "nsamples": 1}}]}}' for n in NAMES_OF_FILES]


@pytest.mark.parametrize("number", range(len(INDEXES)))
def test_an_index_that_claims_what_cannot_be(number, tmp_path):
    (tmp_path / "index.json").write_text(INDEXES[number])
    with pytest.raises(ValueError, match=r"index\.json") as caught:
        Shards(tmp_path)
    assert "\n" not in str(caught.value)


# ---------- packing


def test_only_clips_are_packed(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "empty.mp4").touch()
    bad = [
        "/etc/passwd",
        "/dev/zero",
        *(str(tmp_path / n) for n in ("pipe.mp4", "text.mp4", "empty.mp4")),
    ]
    found = [Example(name, name, ("x",)) for name in [*bad, "nul\0.mp4"]]
    found += [Example("row", "t.csv row 7", fault="lacks its caption")]
    report = write_shards([*found, *good(*NAMES)], tmp_path / "set")
    assert {*report.broken} == {e.path for e in found} and len(Shards(tmp_path / "set")) == 4
    assert b"root:" not in (tmp_path / "set/000000.tar").read_bytes()
    with pytest.raises(ValueError, match="None of the 7 clips can be packed"):
        write_shards(found, tmp_path / "none")
    assert not list(tmp_path.glob(".*"))


def test_what_lies_outside_the_folder_is_packed_only_where_that_is_asked(tmp_path, monkeypatch):
    (tmp_path / "clips/deep").mkdir(parents=True)
    film = (CLIPS / "grow.mp4").read_bytes()
    for name in ("secret.mp4", "clips/a.mp4", "clips/deep/b.mp4"):
        (tmp_path / name).write_bytes(film)
    (tmp_path / "clips/link.mp4").symlink_to(CLIPS / "shrink.mp4")
    names = ["a.mp4", "deep/b.mp4", "link.mp4", "../secret.mp4", "deep/../../secret.mp4"]
    names += [str(tmp_path / "secret.mp4"), str(tmp_path / "clips/a.mp4")]
    (tmp_path / "t.csv").write_text(
        "id,file,caption\n" + "".join(f"{i},{n},x\n" for i, n in enumerate(names))
    )
    monkeypatch.chdir(tmp_path / "clips")
    for folder in (tmp_path / "clips", Path("../clips"), Path()):
        found = read_examples(tmp_path / "t.csv", clips=folder)
        out = tmp_path / f"set{len(str(folder))}"
        report = write_shards(found, out, inside=folder)
        stored = {e.id for e in map(Shards(out).example, range(report.tried - report.failed))}
        assert stored == {"0", "1", "2", "6"}
        assert all("lies outside" in reason for reason in report.broken.values())
    assert write_shards(found, tmp_path / "all").failed == 0


def test_a_full_disk_is_one_sentence_with_the_folder(tmp_path, monkeypatch):
    import webdataset

    def full(self, sample):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(webdataset.ShardWriter, "write", full)
    with pytest.raises(OSError, match=r"set cannot be written: No space left on device$"):
        write_shards(good(*NAMES), tmp_path / "set")
    assert not list(tmp_path.iterdir())


# ---------- a process that dies


class Deadly(ClipDataset):
    """Reading some clips ends the process that does it, as a fault in a decoder does."""

    deadly = ()

    def _frames(self, example, generator):
        if example.id in self.deadly:
            os.kill(os.getpid(), self.by)
        return super()._frames(example, generator)


def deadly(examples, *names, by=signal.SIGSEGV, **settings):
    found = Deadly(examples, SIZE, 2, **settings)
    kind = type("DeadlyNow", (Deadly,), {"deadly": names, "by": by})
    found.__class__ = kind
    return found


@pytest.mark.parametrize("by", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_clip_that_ends_its_process_costs_itself(by, clip):
    dataset = deadly(good(*NAMES), "shrink", "left", by=by)
    got, broken = words(loader(dataset, 2, clip.tokenizer, workers=2, share=0.5))
    assert got == ["grow", "right"]
    assert {Path(p).stem for p in broken} == {"shrink", "left"}
    assert all(by.name in reason and path in reason for path, reason in broken.items())


def test_with_a_clip_that_kills_a_resumed_run_is_the_same(clip):
    names = [p.stem for p in sorted(CLIPS.glob("*.mp4"))]
    make = lambda: deadly(good(*names), names[3], training=True)  # noqa: E731
    run = loader(make(), 4, clip.tokenizer, workers=1, share=0.5)
    straight = [(b.ids, b.frames) for _ in range(2) for b in run]
    stopped = loader(make(), 4, clip.tokenizer, workers=2, share=0.5)
    next(iter(stopped))
    resumed = loader(make(), 4, clip.tokenizer, workers=2, share=0.5)
    resumed.load_state_dict(stopped.state_dict())
    rest = [(b.ids, b.frames) for _ in range(2) for b in resumed]
    assert len(straight) == 6 and len(rest) == 5
    for (ids, frames), (theirs, others) in zip(straight[1:], rest, strict=True):
        assert ids == theirs and torch.equal(frames, others)


def test_apart_and_here_are_the_same(clip):
    """The process of its own draws as this one does, for good clips and for broken ones."""
    bad = [Example("text", __file__, ("x",)), Example("gone", "gone.mp4", ("x",))]
    make = lambda: ClipDataset([*bad, *good(*NAMES)], SIZE, 2, training=True, seed=3)  # noqa: E731
    runs = [loader(make(), 2, clip.tokenizer, workers=n, share=1.0) for n in (0, 2)]
    here, apart = ([b for _ in range(3) for b in run] for run in runs)
    for a, b in zip(here, apart, strict=True):
        assert a.ids == b.ids and a.captions == b.captions and torch.equal(a.frames, b.frames)
    assert runs[0].report == runs[1].report


def test_a_decoder_ends_with_its_parent_and_is_begun_anew():
    apart = Decoder(lambda n: ((n, os.getpid()), None) if n else os._exit(3), 1)
    (_, first), (_, same) = apart(1)[0], apart(2)[0]
    assert first == same != os.getpid()
    with pytest.raises(DecoderEnded, match="with status 3"):
        apart(0)
    assert apart(4)[0][1] != first and apart.close() == 0


def test_pixels_of_a_decoder_are_a_copy():
    apart = Decoder(lambda n: (n, torch.full((2, 3), n, dtype=torch.uint8).numpy()), 6)
    (one, ones), (two, twos) = apart(1), apart(2)
    assert (one, two) == (1, 2) and (ones == 1).all() and (twos == 2).all()
    assert apart.close() == 0


def test_too_many_are_still_too_many(clip):
    run = loader(deadly(good(*NAMES), *NAMES[:3]), 2, clip.tokenizer, workers=1, share=0.5)
    with pytest.raises(TooManyBroken):
        words(run)


# ---------- whole runs


def run_on(examples, clip, folder, **settings):
    from bt_adapter.pretrain import pretrain_clips

    config = PretrainConfig(steps=2, batch=3, frames=2)
    return pretrain_clips(folder, clip, examples, config, **settings)


@pytest.mark.parametrize("store", [None, "states"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["table", "shards"])
def test_a_run_goes_on_and_names_what_is_broken(kind, workers, store, tmp_path, clip):
    films = {n: (CLIPS / f"{n}.mp4").read_bytes() for n in NAMES}
    if kind == "table":
        rows = "".join(f"{n}.mp4,a circle moves {n}\n" for n in NAMES)
        bad = "nul\0.mp4,x\nblank.mp4, \n"
        (tmp_path / "t.csv").write_text(f"file,caption\n{bad}{rows}" + 'open.mp4,"x\n')
        examples = read_examples(tmp_path / "t.csv", clips=CLIPS)
    else:
        samples = [(n, [("mp4", films[n]), ("txt", b"a circle")]) for n in NAMES]
        samples += [("cut", [("mp4", films["grow"]), *SAMPLES["cut"]])]
        samples += [("blank", [("mp4", films["grow"]), *SAMPLES["blank"]])]
        samples += [("film", [("mp4", b"no film"), ("txt", b"x")])]
        pack(tmp_path / "0.tar", samples)
        index_shards(tmp_path)
        examples = Shards(tmp_path)
    report = run_on(
        examples,
        clip,
        tmp_path / "out",
        workers=workers,
        broken=0.6,
        store=store and tmp_path / store,
    )
    assert (tmp_path / "out/adapter.safetensors").is_file()
    assert {*report.broken} and "broken.csv" in os.listdir(tmp_path / "out")
    if store:
        assert len(report.broken) == 3


def test_a_loader_that_is_let_go_ends_its_workers_at_once(clip):
    """In a circle, Python would end their queues before torch could tell them to stop."""
    run = loader(ClipDataset(good(*NAMES), SIZE, 2), 3, clip.tokenizer, workers=2)
    assert len([*run]) == 2
    gone, workers = weakref.ref(run), run.loader._iterator._workers
    gc.disable()
    try:
        del run
        assert gone() is None and not any(worker.is_alive() for worker in workers)
    finally:
        gc.enable()
