"""Recall against plain loops, the frozen states' single use, and the command with its mistakes."""

import csv
import json
import math
import os
import sys
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bt_adapter import retrieval
from bt_adapter.backbone import FrozenCLIP, load_clip
from bt_adapter.branch import BranchConfig, BTAdapter
from bt_adapter.moving_shapes import caption, gallery, random_scene, render
from bt_adapter.retrieval import (
    COLUMNS,
    FIGURES,
    adapted,
    adapter_methods,
    compare,
    encode_clips,
    gallery_scores,
    main,
    mean_pooled,
    ranks,
    recall_at_k,
    scores,
    weights_hash,
    wrong_orders,
)
from bt_adapter.small_clip import new_clip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two small CLIPs with random weights; three adapters, the last beside the second CLIP."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(["clip", "other"]):
        torch.manual_seed(seed)
        (root / name).mkdir()
        state = new_clip(root / name).state_dict()
        state = {key: value.contiguous() for key, value in state.items()}
        save_file(state, root / name / "open_clip_model.safetensors")
    for seed, name, clip in (0, "a", "clip"), (1, "b", "clip"), (2, "c", "other"):
        torch.manual_seed(seed)
        config = BranchConfig(layers=1 + seed, projection="random")
        BTAdapter(load_clip(str(root / clip)), config).save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def model(folders):
    return BTAdapter.from_pretrained(folders / "a")


def plain_rank(row, target):
    """A rank in words: one more than the candidates that are not worse."""
    if math.isnan(row[target]):
        return len(row) + 1
    others = [value for i, value in enumerate(row) if i != target]
    return 1 + sum(not value < row[target] for value in others)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize(("queries", "candidates"), [(1, 1), (7, 7), (9, 4), (3, 40)])
def test_ranks_are_those_of_plain_loops(queries, candidates, dtype):
    rng = np.random.default_rng(queries)
    values = rng.integers(-3, 3, (queries, candidates)).astype(float)  # many ties
    if dtype != torch.int64:
        values[rng.random(values.shape) < 0.1] = np.nan
        values[rng.random(values.shape) < 0.1] = np.inf
        values[rng.random(values.shape) < 0.1] = -np.inf
    targets = rng.integers(0, candidates, queries)
    expected = [plain_rank(row, target) for row, target in zip(values, targets, strict=True)]
    assert ranks(torch.tensor(values).to(dtype), targets).tolist() == expected
    for k in (1, 2, candidates, candidates + 5):
        hits = [rank <= k and not np.isnan(v[t]) for rank, v, t in zip(expected, values, targets)]
        found = recall_at_k(torch.tensor(values).to(dtype), (k,), targets)
        assert found == {f"R@{k}": pytest.approx(100 * np.mean(hits))}


def test_recall_reads_rows_as_queries():
    similarity = np.array([[0.5, 0.9], [0.0, 0.1]])
    assert recall_at_k(similarity, [1]) == {"R@1": 50.0}
    assert recall_at_k(similarity.T, [1]) == {"R@1": 50.0}
    assert ranks(similarity).tolist() == [2, 1] and ranks(similarity.T).tolist() == [1, 2]


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan, math.inf, -math.inf])
def test_an_encoder_without_an_opinion_has_no_recall(value):
    recall = recall_at_k(torch.full((20, 20), value))
    assert recall == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0}


@pytest.mark.parametrize("k", [0, -1, 1.5, "1"])
@pytest.mark.parametrize("wrap", [lambda k: (k,), lambda k: k, lambda k: ()])
def test_bad_ks_are_told(k, wrap):
    with pytest.raises(ValueError, match="ks must be whole numbers of 1 or more"):
        recall_at_k(torch.eye(3), wrap(k))


@pytest.mark.parametrize(
    ("shape", "targets", "message"),
    [
        ((3, 4), None, "3 queries and 4 candidates need targets"),
        ((4,), None, "must be a matrix"),
        ((2, 2, 2), None, "must be a matrix"),
        ((0, 0), None, "must be a matrix"),
        ((0, 3), [], "must be a matrix"),
        ((2, 3), [0], "2 numbers in 0..2"),
        ((2, 3), [0, 3], "2 numbers in 0..2"),
        ((2, 3), [-1, 0], "2 numbers in 0..2"),
        ((2, 3), [[0], [1]], "2 numbers in 0..2"),
        ((2, 3), [0.5, 1], "2 numbers in 0..2"),
    ],
)
def test_bad_shapes_are_told(shape, targets, message):
    for call in (ranks, recall_at_k):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(shape), targets=targets)


@pytest.mark.parametrize("frames", [2, 3, 8])
def test_wrong_orders_are_orders_and_wrong(frames):
    orders = wrong_orders(500, frames, np.random.default_rng(0))
    assert torch.equal(orders.sort(1).values, torch.arange(frames).expand(500, -1))
    assert (orders != torch.arange(frames)).any(1).all()
    rng = np.random.default_rng(0)  # in pieces they are the same
    assert torch.equal(torch.cat([wrong_orders(n, frames, rng) for n in (1, 99, 400)]), orders)


def test_embeddings_are_the_models_own_in_chunks_of_any_size(model):
    clips = [render(scene) for scene in gallery("validation", 7)]
    frames = torch.stack([model.clip.transform(clip) for clip in clips])
    ways = {"frozen CLIP": partial(mean_pooled, model.clip)} | adapter_methods(model)
    found = encode_clips(model.clip, clips, ways, last=5)
    whole = model.encode_video(frames).embedding
    torch.testing.assert_close(found["frozen CLIP"], model.clip.encode_video(frames))
    torch.testing.assert_close(found["BT-Adapter"], whole)
    orders = wrong_orders(7, 8, np.random.default_rng(0))
    mixed = torch.stack([clip[order] for clip, order in zip(frames, orders, strict=True)])
    torch.testing.assert_close(found["BT-Adapter, shuffled"], model.encode_video(mixed).embedding)
    assert (whole - found["BT-Adapter, shuffled"]).abs().max() > 1e-4
    ways |= adapter_methods(model)
    pieces = encode_clips(model.clip, clips, ways, last=5, chunk=3)
    for name, embedding in found.items():
        torch.testing.assert_close(pieces[name], embedding, msg=name)


def test_low_precision_gives_float_embeddings_of_unit_length(folders):
    half = BTAdapter.from_pretrained(folders / "a", precision="bf16")
    ways = {"pooled": partial(mean_pooled, half.clip), "adapted": partial(adapted, half)}
    for embedding in encode_clips(
        half.clip, [render(s) for s in gallery("test", 4)], ways, 3
    ).values():
        assert embedding.dtype == torch.float32 and not embedding.requires_grad
        torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(4))


def test_scores_leave_the_weights_alone_and_can_be_repeated(model):
    before = weights_hash(model)
    scenes = gallery("test", 20)
    rows = gallery_scores(model, scenes)
    assert weights_hash(model) == before
    assert [row["method"] for row in rows] == ["frozen CLIP", "BT-Adapter", "BT-Adapter, shuffled"]
    assert all(set(row) == {"method", *FIGURES} for row in rows)
    assert gallery_scores(model, scenes) == rows


def test_adapters_of_different_depth_are_scored_as_if_alone(folders):
    models = {name: BTAdapter.from_pretrained(folders / name) for name in "ab"}
    scenes = gallery("validation", 12)
    rows = compare(models, scenes)
    for name, one in models.items():
        alone = gallery_scores(one, scenes)[1:]
        together = [row for row in rows if row["adapter"] == name]
        assert [{k: row[k] for k in alone[0]} for row in together] == alone


def test_both_directions_of_retrieval():
    # Three clips look alike and lie near the first caption alone.
    text = torch.eye(6)
    video = torch.eye(6)[[0, 0, 0, 3, 4, 5]]
    scenes = gallery("test", 6)
    directions = {caption(scene): row for scene, row in zip(scenes, text, strict=True)}
    found = scores(
        video, scenes, lambda texts: torch.stack([directions.get(t, text[0]) for t in texts])
    )
    assert found["T2V R@1"] == pytest.approx(100 * 3 / 6)  # captions 3, 4 and 5
    assert found["V2T R@1"] == pytest.approx(100 * 4 / 6)  # and clip 0 finds its own


def test_scores_need_scenes_of_one_thing(model):
    two = random_scene(np.random.default_rng(0), things=2)
    for scenes in [], [two]:
        with pytest.raises(ValueError, match="one thing in each"):
            gallery_scores(model, scenes)
    with pytest.raises(ValueError, match="no order to shuffle"):
        gallery_scores(model, gallery("test", 2), frames=1)


def test_weights_hash_sees_every_bit_and_every_name():
    layer, hashes = torch.nn.BatchNorm1d(3), set()  # with a count, which has no axes
    for change in (None, "weight", "bias", "num_batches_tracked"):
        if change:
            layer.state_dict()[change].add_(1)
        hashes.add(weights_hash(layer))
    hashes.add(weights_hash(torch.nn.Sequential(layer)))
    assert len(hashes) == 5
    assert weights_hash(layer.bfloat16()) not in hashes


# The command.


def evaluate(monkeypatch, *arguments):
    """Exit status of `bta-evaluate`, 0 where it returns."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/bta-evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0


def test_several_adapters_share_the_frozen_states(folders, monkeypatch, capsys, tmp_path):
    runs, layer_outputs = [], FrozenCLIP.layer_outputs
    monkeypatch.setattr(
        FrozenCLIP,
        "layer_outputs",
        lambda *args, **kwargs: runs.append(1) or layer_outputs(*args, **kwargs),
    )
    table = tmp_path / "scores.csv"
    names = [str(folders / name) for name in "abc"]
    arguments = [*names, "--clips", 10, "--split", "validation", "--csv", table, "--json"]
    assert evaluate(monkeypatch, *arguments) == 0
    assert len(runs) == 2  # two CLIPs, one chunk
    found = json.loads(capsys.readouterr().out)
    rows, inputs = found["retrieval, percent"], found["evaluated"]
    assert [row["adapter"] for row in rows[:5]] == ["", *[names[0]] * 2, *[names[1]] * 2]
    assert [row["adapter"] for row in rows[5:8]] == ["", *[names[2]] * 2]
    plain = [row for row in rows[:8] if row["method"] == "BT-Adapter"]
    for label, average in (
        ("mean of 3", np.mean),
        ("standard deviation of 3", partial(np.std, ddof=1)),
    ):
        (row,) = (r for r in rows if (r["adapter"], r["method"]) == (label, "BT-Adapter"))
        for figure in FIGURES:
            assert row[figure] == pytest.approx(average([r[figure] for r in plain]))
    assert all(row["as in training"] is True and row["clips"] == 10 for row in inputs)
    assert inputs[0]["fingerprint"] == inputs[1]["fingerprint"] != inputs[2]["fingerprint"]
    check_csv_file(table, rows[:8], inputs)


def check_csv_file(path, rows, inputs):
    """The CSV file holds the rows of the table, and what was evaluated."""
    with path.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert tuple(written[0]) == COLUMNS and len(written) == len(rows)
    weights = {row["adapter"]: row["weights"] for row in inputs} | {"": ""}
    for line, row in zip(written, rows, strict=True):
        assert line["weights"] == weights[row["adapter"]]
        assert line["command"].startswith("bta-evaluate ") and "/somewhere" not in line["command"]
        assert (line["split"], line["clips"]) == ("validation", "10")
        assert "torch" in line["versions"]
        assert [line[f] for f in FIGURES] == [f"{row[f]:.2f}" for f in FIGURES]


def test_rows_are_appended_and_tables_printed(folders, monkeypatch, capsys, tmp_path):
    for _ in range(2):
        arguments = [folders / "a", "--clips", 4, "--csv", tmp_path / "x.csv"]
        assert evaluate(monkeypatch, *arguments) == 0
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 3 and sum(line.startswith("date,") for line in lines) == 1
    printed = capsys.readouterr()
    assert "frozen" in printed.out and "T2V" in printed.out and "mean" not in printed.out
    assert not printed.err


def damaged(folder):
    (folder / "adapter.json").write_text("{")
    (folder / "adapter.safetensors").write_bytes(b"")


def beside_another_clip(folder):
    settings = json.loads((folder.parent / "a" / "adapter.json").read_text())
    settings["backbone"]["fingerprint"] = "0" * 12
    (folder / "adapter.json").write_text(json.dumps(settings))
    weights = (folder.parent / "a" / "adapter.safetensors").read_bytes()
    (folder / "adapter.safetensors").write_bytes(weights)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no adapter folder"),
        (damaged, "damaged"),
        (beside_another_clip, "another CLIP"),
    ],
)
def test_wrong_adapters_are_one_sentence(make, message, folders, monkeypatch, capsys, tmp_path):
    folder = folders / f"wrong {message}"
    folder.mkdir()
    make(folder)
    arguments = [folders / "a", folder, "--clips", 4, "--csv", tmp_path / "x.csv"]
    assert_refused(monkeypatch, capsys, message, *arguments)
    assert not (tmp_path / "x.csv").exists()


def assert_refused(monkeypatch, capsys, message, *arguments):
    """Nothing is computed or printed but one sentence, and the status is 2."""
    monkeypatch.setattr(retrieval, "encode_clips", None)
    assert evaluate(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert message in printed.err and not printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "exam"], "no split is called 'exam'"),
        (["--clips", "0"], "0 were asked for"),
        (["--clips", "100000"], "100000 were asked for"),
        (["--csv", "nowhere/x.csv"], "name a file in an existing folder"),
        (["--csv", "."], "name a file in an existing folder"),
        (["--csv", "other.csv"], "has other columns"),
        (["--csv", "binary.csv"], "has other columns"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    arguments, message, folders, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    assert_refused(monkeypatch, capsys, message, folders / "a", *arguments)
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"
    assert sorted(os.listdir(tmp_path)) == ["binary.csv", "other.csv"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_csv_is_one_sentence(folders, monkeypatch, capsys, tmp_path):
    (tmp_path / "x.csv").touch(mode=0o444)
    arguments = [folders / "a", "--csv", tmp_path / "x.csv"]
    assert_refused(monkeypatch, capsys, "may not be written", *arguments)
