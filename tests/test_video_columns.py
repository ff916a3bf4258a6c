"""Datasets and streams of the library `datasets`: the same clips and promises, or a sentence."""

import json
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import datasets
import huggingface_hub
import pytest
import torch

from bt_adapter import retrieval
from bt_adapter.cli.options import check_format
from bt_adapter.cli.pretrain import shards
from bt_adapter.datasets import (
    ClipDataset,
    ClipSettings,
    DatasetClips,
    Shards,
    StreamClips,
    open_saved,
    read_examples,
    stream_loader,
    write_shards,
)
from bt_adapter.evaluation import Evaluation
from bt_adapter.pretrain import check_apart, pretrain_clips
from bt_adapter.recipes import PretrainConfig
from bt_adapter.shipped import samples_folder
from bt_adapter.video import read_clip
from bt_adapter.zero_shot import read_asked

datasets.disable_progress_bars()
FILMS = sorted((samples_folder() / "clips").glob("*.mp4"))[:6]
KINDS = datasets.Features(film=datasets.Video(), text=datasets.Value("string"))
WORDS = [f"it can {film.stem}" for film in FILMS]


def made(films, kinds=KINDS, words=WORDS):
    return datasets.Dataset.from_dict(dict(film=films, text=words[: len(films)]), kinds)


FILES = [film.read_bytes() for film in FILMS]
BYTES = made(FILES)


class Decoded:
    "A decoder with torchcodec's documented interface, over frames that are known."

    def __init__(self, film):
        self.frames = read_clip(film, 24).permute(0, 3, 1, 2)
        self.metadata = SimpleNamespace(
            num_frames=24, begin_stream_seconds=0.0, end_stream_seconds=3.0
        )

    def get_frames_at(self, indices):
        return SimpleNamespace(data=self.frames[indices])

    def get_frames_played_at(self, seconds):
        return self.get_frames_at([int(second * 8) for second in seconds])


def frames_of(source, number=2, **how):
    return ClipDataset(source, (32, 32), 4, **how)[number].frames


@pytest.mark.parametrize("training", [False, True])
def test_files_paths_and_decoders_give_the_frames_of_the_files(training):
    paths = made([str(film) for film in FILMS])
    plain = made([str(f) for f in FILMS], datasets.Features(film=KINDS["text"], text=KINDS["text"]))
    decoded = plain.with_transform(lambda rows: rows | dict(film=[*map(Decoded, rows["film"])]))
    expected = frames_of(DatasetClips(BYTES), training=training)
    assert torch.equal(expected, frames_of(DatasetClips(paths), training=training))
    assert torch.equal(expected, frames_of(DatasetClips(plain, "film"), training=training))
    assert torch.equal(expected, frames_of(DatasetClips(decoded, "film"), training=training))
    assert expected.shape == (4, 3, 32, 32)


def test_a_row_that_cannot_be_read_is_named():
    clips = DatasetClips(made([FILES[0], b"no film", str(FILMS[2].parent / "gone.mp4")]))
    reasons = [ClipDataset(clips, (32, 32), 2)[number].broken for number in range(3)]
    assert not reasons[0] and "row 1 of the dataset" in reasons[1][0][1]
    assert "gone.mp4" in reasons[2][0][1]


def test_a_saved_dataset_is_evaluated_by_its_splits(tmp_path):
    halves = dict(train=BYTES.select(range(4)), test=BYTES.select(range(4, 6)))
    datasets.DatasetDict(halves).save_to_disk(tmp_path / "films")
    asked = Evaluation(adapters=["x"], data=tmp_path / "films", split="test", video_column="film")
    source, listed, _ = read_asked(asked)
    assert listed == len(source) == 2 and source[1].data == FILES[5]
    with pytest.raises(ValueError, match="no video column is called 'flim': the nearest is film"):
        read_asked(replace(asked, video_column="flim"))
    with pytest.raises(ValueError, match="the splits train, test: name one"):
        read_asked(replace(asked, split=None))
    with pytest.raises(ValueError, match="holds its own clips: leave --clips out"):
        replace(asked, clips=tmp_path)
    train, test = (open_saved(tmp_path / "films", split) for split in halves)
    check_apart(train, test)
    with pytest.raises(ValueError, match="4 clips for validation are trained on"):
        check_apart(train, DatasetClips(BYTES))


@pytest.mark.parametrize("kind", ["files", "paths"])
def test_a_saved_dataset_goes_into_shards(kind, tmp_path, capsys):
    "A row that is no clip, or whose clip is not there, is left out and named."
    films = FILES[:4] if kind == "files" else [str(film) for film in FILMS[:4]]
    wrong = b"no film" if kind == "files" else str(Path(__file__))
    features = (
        KINDS if kind == "files" else datasets.Features(film=KINDS["text"], text=KINDS["text"])
    )
    rows = made([*films, wrong, None], features).rename_column("text", "told")
    rows.save_to_disk(tmp_path / "films")
    columns = dict(video_column="film", caption_column="told")
    shards(tmp_path / "films", tmp_path / "out", per_shard=3, outside=kind == "paths", **columns)
    packed = Shards(tmp_path / "out")
    found = {clip.captions[0]: clip.data for clip in map(packed.example, range(len(packed)))}
    assert found == dict(zip(WORDS[:4], FILES[:4])) and len(packed.names) == 2
    broken = (tmp_path / "out" / "broken.csv").read_text()
    assert ("row 4 of" if kind == "files" else "test_video_columns.py") in broken
    assert "row 5 of" in broken and "lacks its video" in broken
    assert "2 clips were left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no video column is called 'flim'"):
        shards(tmp_path / "films", tmp_path / "other", video_column="flim", caption_column="told")
    if kind == "paths":
        with pytest.raises(ValueError, match=r"None of the 6 clips.*--outside"):
            shards(tmp_path / "films", tmp_path / "inside", **columns)


def test_packing_says_what_it_cannot_pack(tmp_path):
    plain = made([str(f) for f in FILMS], datasets.Features(film=KINDS["text"], text=KINDS["text"]))
    decoded = plain.with_transform(lambda rows: rows | dict(film=[*map(Decoded, rows["film"])]))
    with pytest.raises(ValueError, match="is open in a decoder"):
        write_shards(DatasetClips(decoded, "film"), tmp_path / "decoded")
    with pytest.raises(ValueError, match="a stream has neither numbers nor an end"):
        write_shards(BYTES.to_iterable_dataset(), tmp_path / "stream")
    assert write_shards(BYTES, tmp_path / "whole").tried == len(FILES)


def test_evaluation_takes_a_dataset_and_refuses_a_stream():
    stream = BYTES.to_iterable_dataset()
    settings = ClipSettings(2, 8)
    for ask in (
        lambda: retrieval.check_examples(stream),
        lambda: retrieval.encode_examples(None, stream, {}, 1, settings),
        lambda: retrieval.evaluate_data({}, StreamClips(stream), settings, None),
    ):
        with pytest.raises(ValueError, match=r"a stream has neither numbers nor an end.*islice"):
            ask()
    assert retrieval.evaluate_data({}, BYTES, settings, None) == ([], [])
    clips = retrieval.listed_clips(BYTES)
    assert {clip.data for clip in clips} == {b""} and clips[3].data == FILES[3]
    assert len(retrieval.check_examples(BYTES)) == len(FILES)


def test_a_changed_file_is_another_dataset():
    clips, other = DatasetClips(BYTES), DatasetClips(made([*FILES[:5], FILES[0]]))
    assert clips.contents() == DatasetClips(made(FILES)).contents() != other.contents()


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (dict(size=[1], text=["a"]), "no column holds videos"),
        (dict(video=["a.mp4"], captions=["a"]), "the nearest is captions"),
        (dict(video=["a.mp4"], size=[1]), "no column is called caption, text or sentence, only"),
        (dict(video=[], text=[]), "is empty|is empty or damaged"),
    ],
)
def test_columns_that_are_not_there_are_told(columns, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        pretrain_clips(
            tmp_path / "run", None, datasets.Dataset.from_dict(columns), PretrainConfig()
        )
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=f"saved.*({told})"):
        open_saved(tmp_path / "saved")
    assert not (tmp_path / "run").exists()


def test_two_columns_of_videos_are_told():
    kinds = datasets.Features(KINDS, back=datasets.Video())
    both = datasets.Dataset.from_dict(dict(film=FILES, text=WORDS, back=FILES), kinds)
    with pytest.raises(ValueError, match="2 columns hold videos, film and back: name it"):
        DatasetClips(both)
    assert DatasetClips(both, "back")[3].data == FILES[3]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (dict(config=PretrainConfig(steps=None)), "give the number of steps"),
        (dict(config=PretrainConfig(steps=3), epochs=2), "not of epochs"),
        (dict(config=PretrainConfig(steps=3), store=Path("states")), "leave the store out"),
    ],
)
def test_where_a_length_is_needed_a_stream_is_refused(how, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        pretrain_clips(tmp_path / "run", None, BYTES.to_iterable_dataset(), **how)
    assert not (tmp_path / "run").exists()


def batches(stream, **how):
    how = dict(batch=2, share=1) | how
    return [*stream_loader(StreamClips(stream), (32, 32), 2, **how)]


def test_a_worker_gives_the_batches_that_none_gives():
    "Also of a clip that cannot be read, which another of its batch stands in for."
    broken = made([FILES[0], b"no film", *FILES[2:]]).to_iterable_dataset(2)
    alone, worked = batches(broken), batches(broken, workers=1)
    assert len(alone) == 3 and all(a.frames.equal(b.frames) for a, b in zip(alone, worked))
    assert alone[0].captions == 2 * [WORDS[0]] == worked[0].captions


def test_a_stream_shuffles_anew_and_comes_again():
    stream = BYTES.to_iterable_dataset(3).shuffle(seed=1, buffer_size=3)
    loader = stream_loader(StreamClips(stream), (32, 32), 2, batch=6)
    first, second = ([batch.captions for batch in loader] for _ in range(2))
    assert first != second and sorted(first[0]) == sorted(second[0]) == sorted(WORDS)
    loader.epoch = 0
    assert [batch.captions for batch in loader] == first


def test_a_stream_of_decoders_needs_no_worker():
    def rows():
        for film, words in zip(FILMS[:2], WORDS):
            yield dict(film=Decoded(film), text=words)

    stream = datasets.IterableDataset.from_generator(rows)
    (batch,) = batches(stream)
    assert batch.captions == WORDS[:2] and batch.frames.shape == (2, 2, 3, 32, 32)
    with pytest.raises(ValueError, match="hands out decoders, which cannot be given to workers"):
        batches(stream, workers=1)


def test_a_stream_of_nothing_readable_ends():
    nothing = made([b"no film"] * 4).to_iterable_dataset()
    with pytest.raises(ValueError, match="could not be read"):
        loader = stream_loader(StreamClips(nothing), (32, 32), 2, batch=2)
        for _ in range(3):
            assert not [*loader]


REPO = "datasets/somebody/films"


class Hub(BaseHTTPRequestHandler):
    "What the hub answers about one repository of files."

    files = {"clips.jsonl": b""} | {film.name: film.read_bytes() for film in FILMS[:2]}

    def do_GET(self):
        path = urlsplit(self.path).path
        found = None
        if path.startswith(f"/api/{REPO}"):
            files = [dict(type="file", path=n, size=len(d), oid=n) for n, d in self.files.items()]
            about = dict(id="somebody/films", sha=40 * "0")
            found = json.dumps(files if path.endswith("/tree/main") else about).encode()
        elif path.startswith(f"/{REPO}/resolve/main/"):
            found = self.files.get(path.rpartition("/")[2])
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Length", str(len(found or b"")))
        self.end_headers()
        self.wfile.write(found or b"")

    def log_message(self, *said):
        pass


@pytest.fixture
def hub(monkeypatch):
    "The real client of the hub, which asks a server of this machine."
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address, known = f"http://127.0.0.1:{server.server_port}", huggingface_hub.constants
    template = known.HUGGINGFACE_CO_URL_TEMPLATE.replace(known.ENDPOINT, address)
    monkeypatch.setattr(known, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(known, "ENDPOINT", address)
    monkeypatch.setattr(known, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    yield f"hf://{REPO}"
    server.shutdown()
    server.server_close()


def test_a_table_on_the_hub_whose_clips_are_there_too(hub, monkeypatch, tmp_path):
    rows = [dict(film=f"{hub}/{film.name}", text=w) for film, w in zip(FILMS[:2], WORDS)]
    table = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    monkeypatch.setitem(Hub.files, "clips.jsonl", table)
    how = dict(data_files=f"{hub}/clips.jsonl", split="train", streaming=True)
    stream = datasets.load_dataset("json", **how).cast_column("film", datasets.Video(decode=False))
    (batch,), (local,) = batches(stream), batches(made(FILES[:2]).to_iterable_dataset())
    assert torch.equal(batch.frames, local.frames) and batch.captions == WORDS[:2]
    packed = made([*(row["film"] for row in rows), f"{hub}/gone.mp4"])
    (reason,) = write_shards(DatasetClips(packed), tmp_path / "shards").broken.values()
    assert f"Cannot fetch {hub}/gone.mp4: FileNotFoundError" in reason
    shards = Shards(tmp_path / "shards")
    assert sorted(shards[number].data for number in (0, 1)) == sorted(FILES[:2])


@pytest.mark.parametrize("read", [read_examples, Shards, partial(check_format, layout="table")])
@pytest.mark.parametrize("kind", [str, Path])
def test_what_is_not_read_from_an_address_is_told_in_a_sentence(read, kind):
    """By commands, too, which make a path of it first."""
    with pytest.raises(ValueError, match=f"^hf://{REPO} is an address: fetch it first") as told:
        read(kind(f"hf://{REPO}"))
    assert "a stream of datasets.load_dataset" in str(told.value) and "\n" not in str(told.value)


def test_addresses_in_a_table_are_told_row_by_row(tmp_path):
    """They would be files of its folder otherwise, which no --clips could mend."""
    table, address = tmp_path / "a.csv", f"hf://{REPO}/a.mp4"
    table.write_text(f"path,caption\n{address},a dog\n")
    with pytest.raises(ValueError, match=rf"row 1 names {address}, an address: fetch the clip, or"):
        read_examples(table)
    table.write_text(f"path,caption\nb.mp4,a cat\n{address},a dog\n")
    good, bad = read_examples(table)
    assert good.path == str(tmp_path / "b.mp4") and bad.fault.startswith(f"names {address}")
