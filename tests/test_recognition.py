"""The evaluation command on miniature data sets in the owners' formats, and recognition itself."""

import csv
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny_runs import problems

from bt_adapter import metrics, recognition, retrieval, zero_shot
from bt_adapter.backbone import load_clip
from bt_adapter.branch import BranchConfig, BTAdapter
from bt_adapter.cli.evaluate import main
from bt_adapter.datasets import (
    ClipSettings,
    crop_frames,
    encode_tokens,
    normalize_frames,
    read_examples,
    tokenize,
    write_shards,
)
from bt_adapter.metrics import rank_figures, ranks, recall_at_k
from bt_adapter.recognition import (
    accuracy,
    class_features,
    class_names,
    judge_recognition,
)
from bt_adapter.retrieval import wrong_orders
from bt_adapter.shipped import samples_folder
from bt_adapter.small_clip import new_clip
from bt_adapter.video import read_clip

WORDS = ["brush hair", "cartwheel", "ride bike", "apply eye makeup"]
LABELS = ["brush_hair", "cartwheel", "RideBike", "ApplyEyeMakeup"]
CLIPS = ["left", "grow", "orbit", "turn"]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A small CLIP with random weights and an adapter beside it."""
    root = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    (root / "clip").mkdir()
    state = {
        name: value.contiguous() for name, value in new_clip(root / "clip").state_dict().items()
    }
    save_file(state, root / "clip" / "open_clip_model.safetensors")
    clip = load_clip(str(root / "clip"))
    BTAdapter(clip, BranchConfig(layers=1, projection="random")).save_pretrained(root / "adapter")
    return root / "adapter"


@pytest.fixture(scope="module")
def model(adapter):
    return BTAdapter.from_pretrained(adapter)


# Miniature data sets: clips put where the owners' annotations expect them.


def place(folder, *names):
    """Copies of shipped clips under these names, extensions included."""
    for source, name in zip(CLIPS, names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(samples_folder() / "clips" / f"{source}.mp4", folder / name)
    return [folder / name for name in names]


def sentence(i):
    return f"a person {WORDS[i]} in the park"


def msrvtt(root):
    clips = place(root / "videos", *[f"video{7010 + i}.mp4" for i in range(4)])
    lines = ["key,vid_key,video_id,sentence"]
    lines += [f"ret{i},msr{i},{c.stem},{sentence(i)}" for i, c in enumerate(clips)]
    (root / "test.csv").write_text("\n".join(lines) + "\n")
    return ["--data", root / "test.csv"], clips, [[sentence(i)] for i in range(4)], 12, 12


def msrvtt_json(root):
    clips = place(root / "videos", *[f"video{i}.mp4" for i in range(4)])
    said = [[f"{sentence(i)}, take {n}" for n in range(2 + i % 2)] for i in range(4)]
    videos = [dict(video_id=c.stem, split="test") for c in clips]
    sentences = [
        dict(video_id=c.stem, caption=text, sen_id=0) for c, t in zip(clips, said) for text in t
    ]
    (root / "all.json").write_text(json.dumps(dict(videos=videos, sentences=sentences)))
    return ["--data", root / "all.json", "--split", "test"], clips, said, 12, 12


def didemo(root):
    clips = place(root / "videos", *[f"1234@N0{i}_5678.mp4" for i in range(4)])
    rows = [
        dict(video=c.name, description=f"{sentence(i)} {n}")
        for i, c in enumerate(clips)
        for n in "ab"
    ]
    (root / "test_data.json").write_text(json.dumps(rows))
    said = [[f"{sentence(i)} a {sentence(i)} b"] for i in range(4)]
    return ["--data", root / "test_data.json", "--frames", "4"], clips, said, 4, 64


def lsmdc(root):
    names = [f"0001_Film_00.0{i}.00.000-00.0{i}.05.000" for i in range(4)]
    clips = place(root / "videos", *[f"0001_Film/{name}.avi" for name in names])
    lines = ["\t".join([name, *["0"] * 4, sentence(i)]) for i, name in enumerate(names)]
    (root / "test.csv").write_text("\n".join(lines) + "\n")
    return ["--data", root / "test.csv"], clips, [[sentence(i)] for i in range(4)], 12, 32


def activitynet(root):
    clips = place(root / "videos", *[f"v_{i}abc.mp4" for i in range(4)])
    entries = {
        c.stem: dict(
            duration=9, timestamps=[[0, 3], [3, 9]], sentences=[sentence(i), "Then stops."]
        )
        for i, c in enumerate(clips)
    }
    (root / "val_1.json").write_text(json.dumps(entries))
    said = [[f"{sentence(i)} Then stops."] for i in range(4)]
    return ["--data", root / "val_1.json", "--frames", "4"], clips, said, 4, 64


def kinetics400(root):
    names = [f"{LABELS[i]}/id{i}_000001_000011.mp4" for i in range(4)]
    clips = place(root / "videos", *names)
    lines = ["label,youtube_id,time_start,time_end,split"]
    lines += [f"{LABELS[i]},id{i},1,11,validate" for i in range(4)]
    (root / "validate.csv").write_text("\n".join(lines) + "\n")
    return ["--data", root / "validate.csv"], clips, WORDS, 16, 12


def hmdb51(root):
    clips = place(root / "videos", *[f"{LABELS[i]}/clip{i}.avi" for i in range(4)])
    (root / "splits").mkdir()
    for label, clip in zip(LABELS, clips):
        (root / "splits" / f"{label}_test_split1.txt").write_text(f"{clip.name} 2\nother.avi 1\n")
    return ["--data", root / "splits", "--split", "test1"], clips, WORDS, 16, 12


def ucf101(root):
    names = [f"{label}/v_{label}_g01_c01.avi" for label in LABELS]
    clips = place(root / "videos", *names)
    (root / "testlist01.txt").write_text("\n".join(names) + "\n")
    return ["--data", root / "testlist01.txt"], clips, WORDS, 16, 12


FORMATS = dict(msrvtt=msrvtt, msrvtt_json=msrvtt_json, didemo=didemo, lsmdc=lsmdc)
FORMATS |= dict(activitynet=activitynet, kinetics400=kinetics400, hmdb51=hmdb51, ucf101=ucf101)


def run(monkeypatch, *arguments):
    """Exit status of `bta-evaluate`, 0 where it returns."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/bta-evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0


def features(model, clips, frames, margin=1.0):
    """Embeddings of CLIP, adapter and adapter with shuffled frames, clip by clip."""
    found = [read_clip(path, frames) for path in clips]
    found = [
        normalize_frames(crop_frames(f, model.clip.image_size, margin), model.clip) for f in found
    ]
    orders = wrong_orders(len(clips), frames, torch_rng())
    ways = {
        "frozen CLIP": [model.clip.encode_video(f[None])[0] for f in found],
        "BT-Adapter": [model.encode_video(f[None]).embedding[0] for f in found],
        "BT-Adapter, shuffled": [
            model.encode_video(f[None, order]).embedding[0] for f, order in zip(found, orders)
        ],
    }
    return {name: torch.stack(rows).detach() for name, rows in ways.items()}


def torch_rng():
    import numpy as np

    return np.random.default_rng(0)


def text_of(model, texts, tokens):
    return encode_tokens(model.clip, tokenize(texts, model.clip.tokenizer, tokens))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_end_to_end(name, adapter, model, monkeypatch, capsys, tmp_path):
    arguments, clips, texts, frames, tokens = FORMATS[name](tmp_path)
    options = ["--format", name.removesuffix("_json"), "--clips", tmp_path / "videos", "--json"]
    options += ["--csv", tmp_path / "rows.csv", "--queries", tmp_path / "queries.csv"]
    assert run(monkeypatch, adapter, *arguments, *options) == 0
    rows = json.loads(capsys.readouterr().out)["percent"]
    clips = sorted(clips) if name == "hmdb51" else clips
    for row, (way, video) in zip(rows, features(model, clips, frames).items(), strict=True):
        assert (row["method"], row["clips"], row["left out"]) == (way, 4, 0)
        if isinstance(texts[0], str):
            order = sorted(range(4), key=lambda i: LABELS[i])
            text = text_of(model, [texts[i] for i in order], tokens)
            truth = [order.index(i) for i in range(4)]
            truth = sorted(truth) if name == "hmdb51" else truth
            expected = recall_at_k(video @ text.T, (1, 5), torch.tensor(truth))
            assert [row["A@1"], row["A@5"]] == pytest.approx([*expected.values()])
        else:
            owner = torch.tensor([i for i, said in enumerate(texts) for _ in said])
            text = text_of(model, [one for said in texts for one in said], tokens)
            to_video = recall_at_k(text @ video.T, (1, 5, 10), owner)
            assert {k: row[f"T2V {k}"] for k in to_video} == pytest.approx(to_video)
            best = torch.stack([(video @ text.T)[:, owner == i].amax(1) for i in range(4)], 1)
            assert row["V2T R@1"] == pytest.approx(recall_at_k(best, (1,))["R@1"])
    check_files(tmp_path, rows, frames, tokens)


def check_files(folder, rows, frames, tokens):
    """The CSV files: a row a method, and a row a query whose ranks give the figures."""
    with (folder / "rows.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [(w["frames"], w["tokens"], w["clips"]) for w in written] == [
        (str(frames), str(tokens), "4")
    ] * 3
    assert all(w["command"].startswith("bta-evaluate ") for w in written)
    figures = [name for name in rows[0] if name not in written[0] or "@" in name or "rank" in name]
    for line, row in zip(written, rows, strict=True):
        assert {k: line[k] for k in figures} == {k: f"{row[k]:.2f}" for k in figures}
    with (folder / "queries.csv").open(newline="") as file:
        queries = list(csv.DictReader(file))
    for row in rows:
        mine = [q for q in queries if q["method"] == row["method"]]
        ways = {
            q.get("direction"): [
                int(p["rank"]) for p in mine if p.get("direction") == q.get("direction")
            ]
            for q in mine
        }
        for way, places in ways.items():
            first = row[f"{way} R@1"] if way else row["A@1"]
            assert 100 * sum(p == 1 for p in places) / len(places) == pytest.approx(first)
        assert all(len(json.loads(q["found"])) == min(5, len(json.loads(q["found"]))) for q in mine)


def test_the_readme_judges_msrvtt_by_1k_a_with_the_gates_it_names(monkeypatch, tmp_path):
    """Its command, and the next row's options, on four clips laid out as 1K-A is."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    pattern = r"`bta-evaluate ([^`]*--format msrvtt[^`]*)` \|\n.*`(--no-gates [^`]*)`"
    ((command, others),) = re.findall(pattern, page)
    msrvtt(tmp_path)
    (tmp_path / "test.csv").rename(tmp_path / "MSRVTT_JSFUSION_test.csv")
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr("bt_adapter.cli.evaluate.tell_results", lambda e, _: asked.append(e))
    for options in (command, f"{command} {others}"):
        assert run(monkeypatch, *options.split()) == 0
    for one in asked:
        examples, listed, _ = zero_shot.read_asked(one)
        assert [len(e.captions) for e in examples] == [1] * 4 and listed == 4
    settings = [(one.gates, one.ties, zero_shot.clip_settings(one)) for one in asked]
    paper, released = ClipSettings(12, 12), ClipSettings(12, 32, settings[1][2].margin)
    assert settings == [(True, "against", paper), (False, "released", released)]


# What goes wrong.


def refused(monkeypatch, capsys, message, *arguments):
    """One sentence, status 2, and no clip was encoded."""
    monkeypatch.setattr(retrieval, "embed", None)
    assert run(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    told = problems(printed.err)
    assert told.startswith("error: ") and told.count("\n") == 1, told
    assert message in told and not printed.out


@pytest.fixture
def table(tmp_path):
    """A table of four clips with labels."""
    clips = place(tmp_path, *[f"{i}.mp4" for i in range(4)])
    lines = ["path,caption,label"] + [
        f"{c.name},{sentence(i)},{LABELS[i]}" for i, c in enumerate(clips)
    ]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "plain.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")
    return tmp_path


def test_classes_whose_clips_are_left_out_are_classes(table, adapter, monkeypatch):
    """Fewer names to choose from would flatter."""
    (table / "1.mp4").unlink()
    names, judge = [], recognition.judge_recognition
    monkeypatch.setattr(
        zero_shot,
        "judge_recognition",
        lambda *a, classes, **how: names.append(classes) or judge(*a, classes=classes, **how),
    )
    for options in (["--skip"], ["--limit", "1"]):
        assert (
            run(monkeypatch, adapter, "--data", table / "table.csv", "--frames", 2, *options) == 0
        )
    assert [sorted(some) for some in names] == [sorted(LABELS)] * 2


def test_missing_clips_are_counted_and_left_out_only_when_asked(
    table, adapter, monkeypatch, capsys
):
    (table / "1.mp4").unlink()
    (table / "3.mp4").unlink()
    arguments = [adapter, "--data", table / "plain.csv", "--frames", 2]
    with monkeypatch.context() as patch:
        refused(patch, capsys, "2 of 4 captions have no clip", *arguments)
    assert run(monkeypatch, *arguments, "--skip", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["percent"]
    assert {(row["clips"], row["left out"]) for row in rows} == {(2, 2)}
    for name in "02":
        (table / f"{name}.mp4").unlink()
    refused(monkeypatch, capsys, "4 of 4 captions have no clip", *arguments, "--skip")


def test_broken_clips_are_named_and_left_out_only_when_asked(table, adapter, monkeypatch, capsys):
    (table / "2.mp4").write_bytes(b"no video")
    arguments = [adapter, "--data", table / "plain.csv", "--frames", 2, "--json"]
    assert run(monkeypatch, *arguments) == 2
    printed = capsys.readouterr().err
    assert "2.mp4 cannot be read (" in printed and "--skip" in printed and printed.count("\n") == 1
    assert run(monkeypatch, *arguments, "--skip") == 0
    rows = json.loads(capsys.readouterr().out)["percent"]
    assert {(row["clips"], row["left out"]) for row in rows} == {(3, 1)}


def test_an_evaluation_goes_on_where_it_was_stopped(table, adapter, monkeypatch, capsys):
    arguments = [adapter, "--data", table / "plain.csv", "--frames", 2, "--batch", 1, "--json"]
    assert run(monkeypatch, *arguments) == 0
    straight = capsys.readouterr().out
    arguments += ["--keep", table / "kept"]
    calls, embed = [], retrieval.embed

    def stopped(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(*args)

    monkeypatch.setattr(retrieval, "embed", stopped)
    assert run(monkeypatch, *arguments) != 0
    capsys.readouterr()
    (table / "kept" / "0" / "000001.safetensors").write_bytes(b"cut off")
    assert run(monkeypatch, *arguments) == 0
    assert len(calls) == 3 + 3  # clips 1 to 3; clip 0 was there
    resumed, straight = (json.loads(x)["percent"] for x in (capsys.readouterr().out, straight))
    assert resumed == straight  # wrong orders too: each clip has its own
    monkeypatch.setattr(retrieval, "embed", embed)
    refused(monkeypatch, capsys, "holds another evaluation", *arguments, "--frames", 3)


def percent(monkeypatch, capsys, *arguments):
    """The rows that are printed, shuffled frames left out: their orders depend on the clips'."""
    assert run(monkeypatch, *arguments, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["percent"]
    return [{k: v for k, v in row.items() if k != "data"} for row in rows[:2]]


@pytest.mark.parametrize("name", ["plain", "table"])
def test_shards_are_judged_as_what_they_were_made_of(name, table, adapter, monkeypatch, capsys):
    write_shards(read_examples(table / f"{name}.csv"), table / "shards", per_shard=3)
    options = ["--frames", 2, "--workers", 0]
    plain = percent(monkeypatch, capsys, adapter, "--data", table / f"{name}.csv", *options)
    for clip in table.glob("*.mp4"):
        clip.unlink()
    stored = percent(monkeypatch, capsys, adapter, "--data", table / "shards", *options)
    for ours, others in zip(stored, plain, strict=True):
        assert ours == pytest.approx(others)
    few = percent(monkeypatch, capsys, adapter, "--data", table / "shards", *options, "--limit", 3)
    assert {(row["clips"], row["left out"]) for row in few} == {(3, 0)}
    kept = [adapter, "--data", table / "shards", *options, "--keep", table / "kept"]
    assert percent(monkeypatch, capsys, *kept) == stored == percent(monkeypatch, capsys, *kept)


def test_shards_that_were_cut_off_and_options_they_have_no_use_for(
    table, adapter, monkeypatch, capsys
):
    write_shards(read_examples(table / "plain.csv"), table / "shards", per_shard=3)
    shard = max((table / "shards").glob("*.tar"))  # the last has a single clip
    shard.write_bytes(shard.read_bytes()[:100])
    arguments = [adapter, "--data", table / "shards", "--frames", 2]
    with monkeypatch.context() as patch:
        refused(patch, capsys, "the shard was cut off", *arguments)
        refused(patch, capsys, "leave --clips and --split out", *arguments, "--clips", table)
        refused(patch, capsys, "make shards with", adapter, "--data", table)
    rows = percent(monkeypatch, capsys, *arguments, "--skip")
    assert {(row["clips"], row["left out"]) for row in rows} == {(3, 1)}


def test_ranks_are_counted_on_the_device_of_the_model(monkeypatch):
    """`meta` stands for a GPU: what is counted there has no values, but a device."""
    clip, seen = SimpleNamespace(position=torch.empty(1, device="meta")), []
    example = SimpleNamespace(id="x", captions=("a",), label="x")
    encoded = retrieval.Encoded([example] * 2, {("", "m"): torch.eye(2)})

    def places(queries, candidates, *args, **options):
        seen.append((queries.device.type, candidates.device.type))
        return torch.ones(2, dtype=torch.long)

    def first(queries, candidates, *args):
        return places(queries, candidates), torch.zeros(2, 1, dtype=torch.long)

    both = lambda *args, **options: (places(*args, **options),) * 2  # noqa: E731
    for module in (metrics, retrieval):
        monkeypatch.setattr(module, "ranks_by_ties", both)
        monkeypatch.setattr(module, "nearest", first)
    monkeypatch.setattr(retrieval, "encode_captions", lambda *a: (torch.eye(2), torch.arange(2)))
    retrieval.judge_retrieval(clip, encoded)
    assert len(seen) == 4
    monkeypatch.setattr("bt_adapter.recognition.class_features", lambda *a: torch.eye(2))
    judge_recognition(clip, encoded, {"x": "x", "y": "y"})
    assert len(seen) == 6 and {*seen} == {("meta", "meta")}


@pytest.fixture
def counted(monkeypatch):
    """How often queries are ranked, and looked for to be listed."""
    calls = []
    for name in ("_both_ranks", "_pieces"):
        original = getattr(metrics, name)
        monkeypatch.setattr(
            metrics, name, lambda *a, name=name, do=original: calls.append(name) or do(*a)
        )
    return lambda: (calls.count("_both_ranks"), calls.count("_pieces"))


@pytest.mark.parametrize("ties", ["against", "released"])
def test_ranks_are_counted_once_and_queries_listed_when_asked_for(ties, counted, monkeypatch):
    """Small whole numbers: many ties, by which the two ways to count them differ."""
    draw = torch.Generator().manual_seed(0)
    video, text = (torch.randint(-1, 2, (n, 3), generator=draw).float() for n in (12, 30))
    owner = torch.cat([torch.arange(12), torch.randint(12, (18,), generator=draw)]).sort().values
    said = [[f"{i} {n}" for n in range(int((owner == i).sum()))] for i in range(12)]
    examples = [SimpleNamespace(id=f"c{i}", captions=words) for i, words in enumerate(said)]
    encoded = retrieval.Encoded(examples, {("", "m"): video})
    monkeypatch.setattr(retrieval, "encode_captions", lambda *args: (text, owner))
    clip = SimpleNamespace(position=torch.ones(1))
    figures, none = retrieval.judge_retrieval(clip, encoded, ties=ties, listed=False)
    assert none == [] and counted() == (2, 2)  # two directions
    same, rows = retrieval.judge_retrieval(clip, encoded, ties=ties)
    assert same == figures and counted() == (4, 6)  # and two directions to be listed
    ways = {"T2V": (text, video, owner), "V2T": (video, text, None, owner)}
    for way, which in ways.items():
        found = rank_figures(metrics.ranks_in_pieces(*which, ties=ties), len(which[1]))
        assert {name: figures["", "m"][f"{way} {name}"] for name in found} == found
        plain = metrics.ranks_in_pieces(*which).tolist()
        assert [row["rank"] for row in rows if row["direction"] == way] == plain


def test_recognition_ranks_once_and_lists_when_asked_for(counted, monkeypatch):
    video, names = torch.eye(4), {label: label for label in LABELS}
    examples = [SimpleNamespace(id=label, label=label) for label in LABELS]
    encoded = retrieval.Encoded(examples, {("", "m"): video})
    monkeypatch.setattr(recognition, "class_features", lambda *args: torch.eye(4).flip(0))
    clip = SimpleNamespace(position=torch.ones(1))
    figures, none = judge_recognition(clip, encoded, names, listed=False)
    assert none == [] and counted() == (1, 1)
    same, rows = judge_recognition(clip, encoded, names)
    assert same == figures == {("", "m"): {"A@1": 0.0, "A@5": 100.0}} and counted() == (2, 3)
    assert [row["rank"] for row in rows] == [4] * 4


def test_both_directions_are_printed_in_words_that_are_whole(table, adapter, monkeypatch, capsys):
    monkeypatch.chdir(adapter.parent)  # a short name
    assert run(monkeypatch, adapter.name, "--data", table / "plain.csv", "--frames", 2) == 0
    shown = capsys.readouterr().out
    titles = [shown.index(title) for title in ("text to video", "video to text", "evaluated")]
    assert titles == sorted(titles)
    for words in ("BT-Adapter, shuffled", "median rank", "mean rank", "left out"):
        assert shown.count(words) == 2, words


def test_faiss_finds_the_same(table, adapter, monkeypatch, capsys):
    arguments = [adapter, "--data", table / "plain.csv", "--frames", 2, "--faiss"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "faiss", None)
        missing = "FAISS is not installed: pip install faiss-cpu"
        refused(patch, capsys, missing, *arguments, "--queries", table / "no.csv")
    pytest.importorskip("faiss")
    for name, options in ("with", arguments), ("without", arguments[:-1]):
        assert run(monkeypatch, *options, "--queries", table / f"{name}.csv") == 0
    assert (table / "with.csv").read_text() == (table / "without.csv").read_text()
    capsys.readouterr()
    refused(monkeypatch, capsys, "--faiss belongs to --queries", adapter, "--faiss")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.csv"], "There is no annotation nowhere.csv"),
        (["--data", "plain.csv", "--format", "vatex"], "No format is called 'vatex'"),
        (["--data", "plain.csv", "--settings", "mine"], "--settings must be paper or released"),
        (["--data", "plain.csv", "--clips", "gone"], "4 of 4 captions have no clip"),
        (["--data", "twice.csv"], "1 ids occur more than once, the first is x"),
        (["--data", "plain.csv", "--classes", "few.txt"], "these have none"),
        (
            ["--data", "plain.csv", "--ties", "kind"],
            "--ties must be against or released, not 'kind'",
        ),
        (["--data", "table.csv", "--classes", "few.txt"], "lacks 3 classes of the clips, such as"),
        (["--data", "table.csv", "--classes", "twice.txt"], "names a class more than once"),
        (["--data", "table.csv", "--classes", "gone.txt"], "There is no file gone.txt"),
        (["--data", "table.csv", "--prompt", "a video"], "one {} for the name of the class"),
        (["--data", "plain.csv", "--csv", "plain.csv"], "has other columns"),
        (["--data", "plain.csv", "--queries", "gone/x.csv"], "a file in an existing folder"),
        (["--data", "plain.csv", "--device", "toaster"], "there is no device 'toaster'"),
        (["--data", "plain.csv", "--device", "meta"], "there is no device 'meta' that computes"),
        (["--data", "plain.csv", "--frames", "-1"], "--frames must be 1 or more, not -1"),
        (["--data", "plain.csv", "--limit", "0"], "--limit must be 1 or more, not 0"),
        (["--data", "plain.csv", "--tokens", "1"], "--tokens must be 3 or more, not 1"),
        (["--data", "plain.csv", "--queries", "plain.csv"], "would overwrite the file of --data"),
        (["--tokens", "3"], "--tokens belongs to --data"),
        (["--skip"], "--skip belongs to --data"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_mistakes_are_one_sentence_before_anything_is_encoded(
    arguments, message, table, adapter, monkeypatch, capsys
):
    monkeypatch.chdir(table)
    (table / "few.txt").write_text("brush_hair\n")
    (table / "twice.txt").write_text("\n".join([*LABELS, LABELS[0]]))
    lines = (table / "plain.csv").read_text().splitlines()
    (table / "twice.csv").write_text("path,caption\n")
    with (table / "twice.csv").open("a") as file:
        file.writelines(f"{line}\n" for line in lines[1:])
    if arguments[1:] == ["twice.csv"]:
        double = [SimpleNamespace(id="x", captions=("a",), data=b"", path="x")] * 2
        monkeypatch.setattr("bt_adapter.zero_shot.read_examples", lambda *a: double)
    refused(monkeypatch, capsys, message, adapter, *arguments)


# Recognition itself.


def test_ties_count_against_the_model():
    video, same = torch.eye(4), torch.ones(4, 4)
    assert accuracy(video, torch.eye(4), torch.arange(4)) == {"A@1": 100.0, "A@5": 100.0}
    assert accuracy(video, same, torch.arange(4)) == {"A@1": 0.0, "A@5": 100.0}
    assert accuracy(video * torch.nan, same, torch.arange(4)) == {"A@1": 0.0, "A@5": 0.0}


def test_prompts_are_averaged_and_classes_cut(model):
    single = [class_features(model.clip, WORDS, [p]) for p in ("{}", "a video of {}")]
    both = class_features(model.clip, WORDS, ["{}", "a video of {}"])
    torch.testing.assert_close(both, F.normalize(sum(single) / 2, dim=-1))
    long = class_features(model.clip, ["a b c d e f", "a b x y z"], tokens=4)
    assert torch.equal(long[0], long[1])  # start, a, b, end
    for wrong in ([], ["none"], ["{} and {}"]):
        with pytest.raises(ValueError, match=r"one \{\} for the name"):
            class_features(model.clip, WORDS, wrong)


def test_classes_of_a_file(tmp_path):
    examples = [SimpleNamespace(label="ab", captions=("a b",))]
    (tmp_path / "c").write_text("ab\n\nx_y\nz\twords of z\n")
    assert class_names(examples, tmp_path / "c") == {"ab": "a b", "x_y": "x y", "z": "words of z"}
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no file of classes"):
        class_names(examples, tmp_path / "b")


def test_released_ties_are_an_option(monkeypatch):
    judge = partial(retrieval.judge_retrieval, ties="released")
    example = SimpleNamespace(id="x", captions=("a",))
    encoded = retrieval.Encoded([example] * 2, {("", "m"): torch.ones(2, 2)})
    texts = torch.ones(2, 2), torch.arange(2)
    monkeypatch.setattr(retrieval, "encode_captions", lambda *args: texts)
    figures, queries = judge(SimpleNamespace(position=torch.ones(1)), encoded)
    assert figures["", "m"]["T2V R@1"] == 50.0  # ranks 1 and 2 for each query
    assert [q["rank"] for q in queries] == [2] * 4
    assert ranks(torch.ones(2, 2), ties="released").tolist() == [1, 2, 1, 2]
