"""What holds for every input: readers read or tell, what is written reads back, figures agree."""

import csv
import json
import os
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_datasets_faults import pack
from test_video import encode, numbered, numbers
from tiny import shake, tiny_clip

from bt_adapter.backbone import load_clip
from bt_adapter.benchmark.items import Item, official, read_items
from bt_adapter.benchmark.model_judge import Replies
from bt_adapter.branch import BranchConfig, BTAdapter
from bt_adapter.datasets import (
    Example,
    Shards,
    index_shards,
    read_examples,
    write_shards,
)
from bt_adapter.files import parse_json, read_json
from bt_adapter.masking import keep_patches, tube_mask
from bt_adapter.metrics import match_table, ranks, ranks_in_pieces, recall_at_k
from bt_adapter.plain_clip import read_config
from bt_adapter.released import load_released, released_tensors, save_released
from bt_adapter.runs import (
    RunLog,
    load_checkpoint,
    read_log,
    save_checkpoint,
    write_card,
)
from bt_adapter.shipped import samples_folder
from bt_adapter.store import FeatureStore, StoreSettings, kept_in
from bt_adapter.video import ClipError, read_clip, sample_indices, sample_times

FAULTS = Path(__file__).parent / "faults"
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", tempfile.gettempdir())  # not in the tree
settings.register_profile(  # the same examples each time
    "same",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("same")
SMALL = dict(layers=3, width=8, head_width=4)


@contextmanager
def folder():
    """A new one for each example."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Path(name)


def told(read, *args, name=None, **settings):
    """What a reader gives; None if it tells in one line, which names the file, why it does not."""
    try:
        return read(*args, **settings)
    except (ValueError, OSError) as error:
        text = str(error)
        assert text.strip() and "\n" not in text.strip(), text
        assert name is None or str(name) in text, (name, text)


# ---------- values of every kind

numbers_of_json = st.integers() | st.floats() | st.sampled_from([10**400, 2**63, 1e308, -0.0])
texts = st.text(max_size=20) | st.sampled_from(
    ["", " ", "\0", "\ud800", "../x", "/etc/passwd", "x" * 400]
)
scalars = st.none() | st.booleans() | numbers_of_json | texts


def lists_and_objects(inside):
    return st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=8), inside, max_size=4)


anything = st.recursive(scalars, lists_and_objects, max_leaves=12)


def rows_of(**fields):
    """Lists of objects with some of these fields, some of them of another kind."""
    row = st.fixed_dictionaries({}, optional={n: v | scalars for n, v in fields.items()})
    return st.lists(row | scalars, max_size=5)


def dump(value) -> bytes:
    return json.dumps(value).encode()


broken = (
    st.binary(max_size=200)
    | anything.map(dump)
    | st.text(max_size=60).map(lambda t: t.encode("utf-16", "surrogatepass"))
)
plain = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20)
words = plain.map(lambda text: " ".join(text.split())).filter(bool)


# ---------- frames


@given(st.integers(1, 10**9), st.integers(1, 64), st.none() | st.integers(0, 2**32))
def test_frames_by_number_are_one_of_each_segment_in_order(total, frames, seed):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    found = sample_indices(total, frames, generator).tolist()
    assert found == sorted(found) and len(found) == frames
    for i, index in enumerate(found):
        first, behind = Fraction(i * total, frames), Fraction((i + 1) * total, frames)
        assert first - 1 < index < behind and 0 <= index < total
    if total % frames == 0:
        assert [index * frames // total for index in found] == list(range(frames))
    again = None if seed is None else torch.Generator().manual_seed(seed)
    assert sample_indices(total, frames, again).tolist() == found


steps = st.lists(st.integers(1, 10**6), min_size=1, max_size=40)


@given(steps, st.integers(-(10**6), 10**6), st.integers(1, 32), st.none() | st.integers(0, 99))
def test_frames_by_time_are_those_shown_at_moments_of_each_segment(long, begin, frames, seed):
    starts = np.cumsum([begin, *long]).tolist()
    end = starts.pop()
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    found = sample_times(starts, end, frames, generator).tolist()
    assert found == sorted(found) and 0 <= found[0] and found[-1] < len(starts)
    for i, index in enumerate(found):
        shown = starts[index], [*starts, end][index + 1]
        segment = [begin + Fraction(k * (end - begin), frames) for k in (i, i + 1)]
        assert shown[0] < segment[1] and segment[0] - 1 < shown[1]  # they overlap
    even = [begin + 6 * k for k in range(2 * len(long))]  # by time is by number if all last as long
    by_number = sample_indices(len(even), frames)
    assert sample_times(even, even[0] + 6 * len(even), frames).equal(by_number)


@settings(max_examples=15)
@given(
    st.integers(1, 30), st.integers(1, 12), st.sampled_from(["frames", "time"]), st.integers(0, 3)
)
def test_a_written_clip_reads_back_frame_by_frame(total, frames, by, seed):
    with folder() as place:
        path = encode(place / "a.mp4", numbered(total, 32, 32))
        assert numbers(read_clip(path, total)) == list(range(total))
        found = numbers(read_clip(path, frames, torch.Generator().manual_seed(seed), by=by))
        assert found == sorted(found) and len(found) == frames
        if by == "frames":
            wanted = sample_indices(total, frames, torch.Generator().manual_seed(seed))
            assert found == wanted.tolist()


# ---------- masks


@given(
    st.integers(1, 5),
    st.integers(1, 60),
    st.integers(0, 99),
    st.integers(1, 4),
    st.integers(0, 2**32),
)
def test_a_tube_mask_hides_its_share_and_the_same_in_all_frames(
    batch, patches, percent, frames, seed
):
    keep = tube_mask(batch, patches, percent / 100, torch.Generator().manual_seed(seed))
    hidden = min(patches * percent // 100, patches - 1)
    assert keep.shape == (batch, patches - hidden)
    assert (keep.diff(dim=1) > 0).all() and 0 <= keep.min() and keep.max() < patches
    assert keep.equal(tube_mask(batch, patches, percent / 100, torch.Generator().manual_seed(seed)))
    clip = torch.arange(patches).expand(batch, frames, patches)[..., None]
    kept = keep_patches(clip, keep)[..., 0]
    assert all(kept[:, t].equal(keep) for t in range(frames))


# ---------- ranks

levels = st.integers(-3, 3)  # few values: many ties


@st.composite
def similarities(draw):
    queries, candidates = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    cells = st.lists(levels, min_size=candidates, max_size=candidates)
    matrix = draw(st.lists(cells, min_size=queries, max_size=queries))
    targets = draw(st.lists(st.integers(0, candidates - 1), min_size=queries, max_size=queries))
    return torch.tensor(matrix, dtype=torch.float32), torch.tensor(targets)


@given(similarities(), st.integers(1, 9))
def test_ranks_and_recall_are_those_of_a_plain_loop(given, k):
    similarity, targets = given
    naive = []
    for row, target in zip(similarity.tolist(), targets.tolist()):
        better = sum(value >= row[target] for i, value in enumerate(row) if i != target)
        naive.append(1 + better)
    assert ranks(similarity, targets).tolist() == naive
    (recall,) = recall_at_k(similarity, (k,), targets).values()
    assert recall == pytest.approx(100 * np.mean([n <= k for n in naive])) and 0 <= recall <= 100
    for monotone in (lambda s: 2 * s - 5, torch.exp, lambda s: s**3):  # only the order counts
        assert ranks(monotone(similarity), targets).tolist() == naive
    order = torch.randperm(similarity.shape[1], generator=torch.Generator().manual_seed(k))
    assert ranks(similarity[:, order], order.argsort()[targets]).tolist() == naive
    assert recall_at_k(similarity, (k, k + 1), targets)[f"R@{k + 1}"] >= recall


@given(similarities(), st.sampled_from([1e-5, 256]))
def test_ranks_in_pieces_are_the_same(given, megabytes):
    similarity, targets = given
    candidates = torch.eye(similarity.shape[1])
    found = ranks_in_pieces(similarity, candidates, targets, megabytes=megabytes)
    assert found.equal(ranks(similarity, targets))


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12), st.lists(st.integers(0, 4), max_size=8)
)
def test_matches_are_all_of_the_same_clip(offered, wanted):
    offered, wanted = torch.tensor(offered), torch.tensor(wanted, dtype=torch.long)
    if not len(wanted) or not set(wanted.tolist()) <= set(offered.tolist()):
        return
    places, valid = match_table(wanted, offered)
    for clip, row, counts in zip(wanted.tolist(), places, valid):
        assert sorted(row[counts].tolist()) == (offered == clip).nonzero()[:, 0].tolist()


# ---------- JSON


@given(broken)
@example((FAULTS / "deep.json").read_bytes())
def test_any_bytes_are_json_or_told(data):
    with folder() as place:
        (path := place / "a.json").write_bytes(data)
        found = told(read_json, path, (dict, list), name=path)
        assert found is None or isinstance(found, dict | list)
        assert told(parse_json, data, path, (dict, list), name=path) == found or found != found


@given(anything)
def test_written_json_reads_back(value):
    text = dump(value)
    assert dump(parse_json(text, "x")) == text


# ---------- captions


FORMATS_OF_JSON = {
    "msrvtt": st.fixed_dictionaries(
        dict(
            videos=rows_of(video_id=texts, split=texts) | scalars,
            sentences=rows_of(video_id=texts, caption=texts) | scalars,
        )
    ),
    "didemo": rows_of(video=texts, description=texts),
    "activitynet": st.dictionaries(texts, rows_of() | st.fixed_dictionaries(
        dict(sentences=st.lists(texts, max_size=3) | scalars)), max_size=4),
    "instructions": rows_of(
        video_id=texts, id=texts, q=texts, a=texts,
        conversations=rows_of(**{"from": st.sampled_from(["human", "gpt"]), "value": texts}),
    ),
}  # fmt: skip
FILES = {
    "table": ["a.csv", "a.tsv", "a.jsonl", "a.parquet"],
    "webvid": ["a.csv"],
    "msrvtt": ["a.json", "a.csv"],
    "lsmdc": ["a.txt"],
    "kinetics400": ["a.csv"],
    "ucf101": ["a.txt"],
    "hmdb51": ["a_test_split1.txt"],
    **{kind: ["a.json"] for kind in ("didemo", "activitynet", "instructions")},
}
HEADS = [b"", b"file,caption\n", b"file\tcaption\tstart\tend\n", b"videoid,name,page_dir\n"]
HEADS += [b"video_id,sentence\n", b"label,youtube_id,time_start,time_end\n"]


def check_found(path, kind):
    """An annotation is read or told, and its examples are what they say."""
    given = path.parent if kind == "hmdb51" else path
    split = "train1" if kind == "hmdb51" else None
    for found in told(read_examples, given, kind, split=split, name=given) or ():
        said = [*found.captions, *(text for turn in found.turns for text in turn)]
        assert all(isinstance(text, str) for text in (found.id, found.path, *said))
        assert found.span is None or 0 <= found.span[0] < found.span[1]
        assert found.fault is None or (found.fault and "\n" not in found.fault)


@pytest.mark.parametrize("kind, name", [(k, name) for k, names in FILES.items() for name in names])
@settings(max_examples=30)
@given(st.sampled_from(HEADS), broken | st.text(max_size=80).map(str.encode))
def test_any_bytes_are_an_annotation_or_told(kind, name, head, data):
    with folder() as place:
        (place / name).write_bytes(head + data)
        check_found(place / name, kind)


@pytest.mark.parametrize("kind", FORMATS_OF_JSON)
@settings(max_examples=40)
@given(st.data())
def test_any_json_is_an_annotation_or_told(kind, data):
    with folder() as place:
        (place / "a.json").write_bytes(dump(data.draw(FORMATS_OF_JSON[kind])))
        check_found(place / "a.json", kind)


@given(rows_of(file=texts, path=texts, caption=texts | st.lists(texts, max_size=3), id=texts,
               start=numbers_of_json, end=numbers_of_json, label=texts))  # fmt: skip
def test_any_json_lines_are_a_table_or_told(rows):
    with folder() as place:
        (place / "a.jsonl").write_bytes(b"\n".join(map(dump, rows)))
        check_found(place / "a.jsonl", "table")


@given(
    st.lists(st.tuples(words, st.integers(0, 99), st.integers(1, 9)), min_size=1, max_size=6),
    st.sampled_from([("a.csv", ","), ("b.csv", ";"), ("a.tsv", "\t"), ("a.jsonl", None)]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_a_written_table_reads_back(rows, kind, encoding):
    (name, delimiter), fields = kind, ("id", "file", "caption", "start", "end", "label")
    records = [
        (f"n{i}", f"{i}.mp4", text, start, start + long, f"l{long}")
        for i, (text, start, long) in enumerate(rows)
    ]
    with folder() as place:
        if delimiter:
            with (place / name).open("w", encoding=encoding, newline="") as file:
                csv.writer(file, delimiter=delimiter).writerows([fields, *records])
        else:
            lines = [json.dumps(dict(zip(fields, record))) for record in records]
            (place / name).write_text("\n".join(lines), encoding="utf-8")
        found = read_examples(place / name)
    for one, (key, file, text, start, end, label) in zip(found, records, strict=True):
        assert (one.id, Path(one.path).name, one.label) == (key, file, label) and not one.fault
        assert one.captions == (text,) and one.span == (start, end)


# ---------- shards


@given(broken | st.fixed_dictionaries(dict(shardlist=rows_of(url=texts, nsamples=numbers_of_json)))
       .map(dump))  # fmt: skip
def test_any_bytes_are_an_index_or_told(data):
    with folder() as place:
        (place / "index.json").write_bytes(data)
        shards = told(Shards, place, name="index.json")
        if shards is not None:
            told(shards.example, 0, name=place)


known = st.fixed_dictionaries(
    {},
    optional=dict(
        id=scalars,
        caption=scalars,
        captions=st.lists(scalars, max_size=3) | scalars,
        label=scalars,
        span=st.lists(scalars, max_size=3) | scalars,
        turns=st.lists(st.lists(scalars, max_size=3), max_size=3) | scalars,
    ),
)


@given(known.map(dump) | broken, st.none() | st.binary(max_size=20))
def test_any_member_is_an_example_or_told(told_of, text):
    files = [("mp4", b"film"), ("json", told_of), *([("txt", text)] if text is not None else [])]
    with folder() as place:
        pack(place / "0.tar", [("a", [("mp4", b"film"), ("txt", b"x")]), ("b", files)])
        assert index_shards(place) == 2
        shards = Shards(place)
        assert shards[0].captions == ("x",)
        found = told(shards.example, 1, name=place / "0.tar")
        assert found is None or found.data == b"film"


@given(st.binary(max_size=1500), st.integers(0, 5000), st.integers(0, 100))
def test_any_bytes_are_a_shard_or_told(rubbish, at, long):
    with folder() as place:
        pack(place / "0.tar", [(n, [("mp4", b"film"), ("txt", b"x")]) for n in "ab"])
        whole = (place / "0.tar").read_bytes()
        for number, data in enumerate((rubbish, whole[:at] + rubbish[:long] + whole[at + long :])):
            (place / "0.tar").rename(place / f"{number}.old")
            (place / "0.tar").write_bytes(data)
            os.utime(place / "0.tar", (number, number))
            for index in range(told(index_shards, place, name=place) or 0):
                try:
                    Shards(place).example(index)
                except ClipError as error:
                    assert "0.tar" in str(error) and "\n" not in str(error)


@settings(max_examples=15)
@given(st.lists(st.tuples(words, words, st.booleans()), min_size=1, max_size=4), st.integers(0, 9))
def test_written_shards_read_back(rows, seed):
    film = samples_folder() / "clips/grow.mp4"
    examples = [
        Example(f"{i}", str(film), (text,), label, (0.0, 1.5) if part else None, ((text, label),))
        for i, (text, label, part) in enumerate(rows)
    ]
    with folder() as place:
        assert write_shards(examples, place / "out", 2, seed).failed == 0
        shards = Shards(place / "out")
        found = {one.id: one for one in map(shards.example, range(len(shards)))}
    assert len(found) == len(examples)
    for one in examples:
        other = found[one.id]
        assert (one.captions, one.label, one.span, one.turns) == (
            other.captions, other.label, other.span, other.turns)  # fmt: skip
        assert other.data == film.read_bytes()


# ---------- adapters, CLIPs, released weights

CLIP, QUICK = tiny_clip(**SMALL), tiny_clip(quick_gelu=True, **SMALL)


def adapter(convention="paper", layers=2):
    model = BTAdapter(CLIP, BranchConfig(layers=layers, max_frames=4, convention=convention))
    shake(model.branch)
    return model


def saved(model, place):
    model.save_pretrained(place)
    return json.loads((place / "adapter.json").read_text())


def changed(tree, value, data):
    """A value of a tree of settings replaced, at any depth."""
    keys = [key for key in tree]
    key = data.draw(st.sampled_from(keys))
    if isinstance(tree[key], dict) and tree[key] and data.draw(st.booleans()):
        return tree | {key: changed(tree[key], value, data)}
    return tree | {key: value}


@given(anything, st.data())
def test_any_settings_of_an_adapter_are_taken_or_told(value, data):
    with folder() as place:
        settings_ = changed(saved(adapter(), place), value, data)
        (place / "adapter.json").write_bytes(dump(settings_))
        told(BTAdapter.from_pretrained, place, CLIP, name=place)


@given(st.binary(max_size=100), st.floats(0, 1), st.booleans())
def test_any_weights_of_an_adapter_are_taken_or_told(data, where, cut):
    with folder() as place:
        saved(adapter(), place)
        whole = (place / "adapter.safetensors").read_bytes()
        at = int(where * len(whole))
        rest = b"" if cut else whole[at + len(data) :]
        (place / "adapter.safetensors").write_bytes(whole[:at] + data + rest)
        told(BTAdapter.from_pretrained, place, CLIP, name=place)


@settings(max_examples=10)
@given(st.integers(1, 2), st.sampled_from(["paper", "released"]), st.integers(0, 99))
def test_a_saved_adapter_loads_bit_by_bit(layers, convention, seed):
    model = adapter(convention, layers)
    shake(model.branch, seed)
    with folder() as place:
        model.save_pretrained(place)
        again = BTAdapter.from_pretrained(place, CLIP)
    assert again.config == model.config
    theirs = again.branch.state_dict()
    assert all(v.equal(theirs[n]) for n, v in model.branch.state_dict().items())


@given(anything, st.data())
def test_any_settings_of_a_clip_are_taken_or_told(value, data):
    config = json.loads((samples_folder() / "clip/open_clip_config.json").read_text())
    with folder() as place:
        text = dump(changed(config, value, data))
        (place / "open_clip_config.json").write_bytes(text)
        (place / "open_clip_model.safetensors").write_bytes(bytes(1000))
        told(read_config, place)
        told(load_clip, place, name=place)


released_names = sorted(released_tensors(BTAdapter(
    QUICK, BranchConfig(layers=1, max_frames=4, convention="released"))))  # fmt: skip
shapes = st.lists(st.integers(0, 3), max_size=5)


@given(st.data(), st.sampled_from([".pth", ".safetensors"]))
def test_any_released_tensors_are_taken_or_told(data, suffix):
    model = BTAdapter(QUICK, BranchConfig(layers=1, max_frames=4, convention="released"))
    state = {n: t.detach().contiguous().clone() for n, t in released_tensors(model).items()}
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(released_names))
        way = data.draw(st.sampled_from(["gone", "shape", "kind", "name"]))
        tensor = state.pop(name, torch.ones(1))
        if way == "shape":
            state[name] = torch.ones(data.draw(shapes))
        elif way == "kind":
            kinds = (torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.float64)
            state[name] = tensor.to(data.draw(st.sampled_from(kinds)))
        elif way == "name":
            digit = str(data.draw(st.integers(0, 10**9)))
            other = data.draw(st.sampled_from(released_names)).replace("0", digit)
            state[other + data.draw(plain | st.just(""))] = tensor
    with folder() as place:
        path = place / f"a{suffix}"
        state = {name: tensor.contiguous() for name, tensor in state.items()}
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        told(load_released, path, heads=2)


@given(st.binary(max_size=200), st.sampled_from([".pth", ".pt", ".bin", ".safetensors"]))
def test_any_bytes_are_released_weights_or_told(data, suffix):
    with folder() as place:
        (path := place / f"a{suffix}").write_bytes(data)
        told(load_released, path, heads=2, name=path)


@settings(max_examples=6)
@given(st.sampled_from([".pth", ".safetensors"]), st.integers(0, 99))
def test_released_weights_read_back_bit_by_bit(suffix, seed):
    model = BTAdapter(QUICK, BranchConfig(layers=1, max_frames=4, convention="released"))
    shake(model.branch, seed)
    with folder() as place:
        save_released(model, path := place / f"a{suffix}")
        again = released_tensors(load_released(path, heads=2))
    theirs = released_tensors(model)
    assert again.keys() == theirs.keys()
    assert all(again[name].equal(theirs[name]) for name in theirs)


# ---------- benchmarks

FIELDS = dict(question_id=scalars, id=scalars, video_name=scalars, Q=texts, A=texts, question=texts)
FIELDS |= dict(answer=texts, pred=texts, Q1=texts, Q2=texts, pred1=scalars, pred2=scalars)


@given(broken | rows_of(**FIELDS).map(dump), st.none() | broken | rows_of(**FIELDS).map(dump))
@example((FAULTS / "deep.json").read_bytes(), None)
def test_any_bytes_are_questions_and_answers_or_told(questions, answers):
    with folder() as place:
        (place / "q.json").write_bytes(questions)
        (place / "a.json").write_bytes(answers or b"")
        both = [place / "q.json", *([place / "a.json"] if answers is not None else [])]
        for item in told(read_items, *both, name=place) or ():
            assert all(isinstance(value, str) for value in asdict(item).values())


items = st.builds(Item, words, words, words, words, st.text(max_size=9), words | st.just(""))


@given(st.lists(items, min_size=1, max_size=5, unique_by=lambda item: item.id))
def test_written_predictions_read_back(some):
    with folder() as place:
        (place / "p.json").write_bytes(dump([official(item) for item in some]))
        found = read_items(place / "p.json")
    for one, other in zip(some, found, strict=True):
        assert official(one) == official(other)


@given(st.lists(broken | st.fixed_dictionaries(dict(key=scalars, reply=scalars), optional=dict(
    version=scalars, date=scalars)).map(dump), max_size=5))  # fmt: skip
def test_any_lines_are_replies_or_told_and_cost_themselves(lines):
    row = dict(key="mine", reply="4", version="m", date="d")
    with folder() as place:
        (path := place / "r.jsonl").write_bytes(b"\n".join([*lines, dump(row)]))
        known = told(Replies, path, name=path).known
        assert known["mine"] == row
        for kept in known.values():
            assert isinstance(kept["reply"], str) and isinstance(kept["key"], str)
        Replies(path).add(row | dict(key="another", reply="\ud800"))
        assert Replies(path).known == known | {"another": row | dict(key="another", reply="\ud800")}


# ---------- runs

STORE = StoreSettings("f" * 12, "float32", 3, 8, "centre")


@given(broken | anything.map(dump), anything)
@example((FAULTS / "store-list.json").read_bytes(), None)
@example((FAULTS / "deep.json").read_bytes(), None)
def test_any_store_card_is_taken_or_told(data, value):
    with folder() as place:
        (place / "store.json").write_bytes(data)
        told(FeatureStore, place, STORE, name=place)
    with folder() as place:
        FeatureStore(place, STORE)
        assert kept_in(place) == "all" and len(FeatureStore(place, STORE)) == 0
        card = json.loads((place / "store.json").read_text()) | dict(kept=value)
        (place / "store.json").write_bytes(dump(card))
        told(kept_in, place, name=place)
        told(FeatureStore, place, STORE, name=place)


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode(errors="replace")))
@example((FAULTS / "log-blank.csv").read_bytes())
@example(b"step,loss\n0,1\n1,x\n\n2\n")
def test_any_bytes_are_a_log_or_left_out(data):
    with folder() as place:
        (path := place / "log.csv").write_bytes(data)
        columns = told(read_log, path) or {}
        assert len({len(values) for values in columns.values()}) <= 1


@given(st.lists(st.floats(-1e6, 1e6).map(lambda x: float(f"{x:.6g}")), min_size=1, max_size=6))
def test_a_written_log_reads_back(losses):
    with folder() as place:
        with RunLog(place, "x", len(losses)) as log:
            for step, loss in enumerate(losses):
                log.add(step, 1, loss, dict(vtc=loss))
        found = read_log(place / "log.csv")
        assert found["step"] == [*range(len(losses))] and found["loss"] == found["vtc"] == losses
        with RunLog(place, "x", len(losses), 1):  # begins anew behind step 0
            pass
        assert read_log(place / "log.csv")["loss"] == losses[:1]


@given(anything, words)
def test_a_written_card_reads_back(value, name):
    with folder() as place:
        write_card(place, "bta-pretrain", **{f"x{name}": value})
        found = read_json(place / "training.json", dict)
        assert dump(found[f"x{name}"]) == dump(value)


@given(st.binary(max_size=80), st.floats(0, 1))
def test_any_bytes_are_a_checkpoint_or_told(data, where):
    run = dict(seed=0)
    with folder() as place:
        save_checkpoint(path := place / "checkpoint.pt", run, dict(step=1, w=torch.ones(5)))
        assert load_checkpoint(path, run)["w"].equal(torch.ones(5))
        whole = path.read_bytes()
        at = int(where * len(whole))
        for damaged in (data, whole[:at] + data, whole[:at]):
            path.write_bytes(damaged)
            told(load_checkpoint, path, run, name=path)
        path.write_bytes(whole)
        assert told(load_checkpoint, path, dict(seed=1), name=path) is None


# ---------- clips


@settings(max_examples=100)
@given(st.sampled_from(sorted((FAULTS.parent / "fuzz/corpus/clip").glob("*.*"))), st.data())
def test_any_bytes_are_a_clip_or_told(path, data):
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clip = told(read_clip, "a.mp4", 3, data=bytes(whole), name="a.mp4")
    assert clip is None or (clip.dtype == torch.uint8 and clip.ndim == 4 and len(clip) == 3)
