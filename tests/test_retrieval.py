"""Recall against plain loops, the frozen states' single use, and the command with its mistakes."""

import csv
import json
import math
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_runs import problems

from bt_adapter import metrics
from bt_adapter import scenes as shapes
from bt_adapter.backbone import FrozenCLIP, load_clip
from bt_adapter.branch import BranchConfig, BTAdapter
from bt_adapter.cli.evaluate import main
from bt_adapter.metrics import (
    match_table,
    nearest,
    rank_figures,
    ranks,
    ranks_in_pieces,
    recall_at_k,
)
from bt_adapter.moving_shapes import caption, gallery, random_scene, render
from bt_adapter.released import load_released, save_released
from bt_adapter.retrieval import (
    ClipOrders,
    adapted,
    adapter_methods,
    encode_clips,
    mean_pooled,
    weights_hash,
    wrong_orders,
)
from bt_adapter.scenes import COLUMNS, FIGURES, compare, gallery_scores, scores
from bt_adapter.small_clip import byte_pair_merges, new_clip, vocabulary, write_merges


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


AUTHORS = [  # of text to video, from their metric (tests/golden/README.md)
    {"R@1": 90.0, "R@5": 100.0, "R@10": 100.0, "median rank": 1.0, "mean rank": 1.14},
    {"R@1": 41.5, "R@5": 71.0, "R@10": 81.0, "median rank": 2.0, "mean rank": 7.055},
    {"R@1": 100.0, "R@5": 100.0, "R@10": 100.0, "median rank": 1.0, "mean rank": 1.0},
    {"R@1": 600 / 7, "R@5": 100.0, "R@10": 100.0, "median rank": 1.0, "mean rank": 8 / 7},
]


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("megabytes", [0.001, 256])
def test_the_authors_metrics_with_their_rule_of_ties(case, megabytes):
    features = load_file(Path(__file__).parent / "golden" / "retrieval.safetensors")
    text, video = (F.normalize(features[f"{case}.{kind}"], dim=-1) for kind in ("text", "video"))
    for places in (
        ranks(text @ video.T, ties="released"),
        ranks_in_pieces(text, video, ties="released", megabytes=megabytes),
    ):
        assert rank_figures(places, len(video)) == pytest.approx(AUTHORS[case])
    strict = rank_figures(ranks(text @ video.T), len(video))
    assert (strict == pytest.approx(AUTHORS[case])) is (case < 3)  # the last has ties
    assert strict["mean rank"] >= AUTHORS[case]["mean rank"]


def plain_places(similarity, wanted, offered, ties):
    """Sorted lists: a query's places against other clips' candidates, or all places of a tie."""
    found = []
    for row, want in zip(similarity.tolist(), wanted, strict=True):
        own = max(value for value, of in zip(row, offered, strict=True) if of == want)
        if ties == "released":
            found += [i + 1 for i, value in enumerate(sorted(row, reverse=True)) if value == own]
        else:
            others = [value for value, of in zip(row, offered, strict=True) if of != want]
            found.append(1 + sum(value >= own for value in others))
    return found


@pytest.mark.parametrize("ties", ["against", "released"])
@pytest.mark.parametrize("megabytes", [0, 0.0005, 0.01, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_rank_like_plain_lists(ties, megabytes, dtype):
    """Whole numbers: inner products are exact, and many are equal."""
    rng = np.random.default_rng(0)
    queries, candidates = (torch.tensor(rng.integers(-2, 3, (n, 4))) for n in (50, 70))
    offered = np.concatenate([np.arange(30), rng.integers(0, 30, 40)])
    rng.shuffle(offered)
    wanted = rng.integers(0, 30, 50)
    expected = plain_places(queries @ candidates.T, wanted, offered, ties)
    labels = torch.tensor(wanted), torch.tensor(offered)
    found = ranks_in_pieces(
        queries.to(dtype), candidates.to(dtype), *labels, ties=ties, megabytes=megabytes
    )
    assert found.tolist() == expected


def test_one_match_each_is_the_plain_case():
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-2, 3, (40, 5), generator=rng).float() for _ in range(2))
    assert torch.equal(ranks_in_pieces(a, b), ranks(a @ b.T))
    spoilt = b.clone()
    spoilt[3] = torch.nan
    assert torch.equal(ranks_in_pieces(a, spoilt), ranks(a @ spoilt.T))
    assert ranks_in_pieces(a, spoilt)[3] == 41  # and the clip without a number stands before all
    several = ranks_in_pieces(a[:1], spoilt, torch.tensor([0]), torch.tensor([0] * 4 + [1] * 36))
    assert several.tolist() == [41]


def test_the_matrix_is_never_whole(monkeypatch):
    sizes, count = [], metrics._count
    monkeypatch.setattr(
        metrics, "_count", lambda f, s, own: sizes.append(s.numel()) or count(f, s, own)
    )
    ranks_in_pieces(torch.randn(300, 2), torch.randn(300, 2), megabytes=0.1)
    assert len(sizes) == 7 and max(sizes) * 8 <= 0.1 * 2**20 and sum(sizes) == 300 * 300


@pytest.mark.parametrize("truth", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("n", [20, 72, 400])
def test_an_interval_holds_the_truth_in_95_of_100_cases(truth, n):
    held = 0
    for right in range(n + 1):
        low, high = metrics.interval(right / n, n)
        assert -1e-9 <= low <= right / n + 1e-9 and right / n - 1e-9 <= high <= 1 + 1e-9
        mirrored = metrics.interval(1 - right / n, n)
        assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)
        chance = math.comb(n, right) * truth**right * (1 - truth) ** (n - right)
        held += chance * (low <= truth <= high)
    assert 0.9 < held < 0.99


def test_a_query_without_a_match_and_an_unknown_rule_are_told():
    with pytest.raises(ValueError, match="query 1 has no match"):
        match_table(torch.tensor([0, 5, 1]), torch.tensor([1, 0]))
    for call in (ranks, lambda s, ties: ranks_in_pieces(s, s, ties=ties)):
        with pytest.raises(ValueError, match="ties must be 'against' or 'released', not 'kind'"):
            call(torch.eye(3), ties="kind")


@pytest.mark.parametrize("faiss", [False, True])
@pytest.mark.parametrize("k", [1, 4, 99])
def test_nearest_candidates(faiss, k):
    if faiss:
        pytest.importorskip("faiss")
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 8, generator=rng) for n in (30, 50))
    values, places = nearest(a, b, k, faiss, megabytes=0.003)
    expected = (a @ b.T).sort(descending=True)
    assert torch.equal(places, expected.indices[:, :k])
    torch.testing.assert_close(values, expected.values[:, :k])


def test_faiss_is_only_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    nearest(torch.eye(2), torch.eye(2))
    with pytest.raises(ValueError, match="pip install faiss-cpu"):
        nearest(torch.eye(2), torch.eye(2), faiss=True)


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


def test_each_clip_has_its_own_wrong_order_in_any_batch():
    """The order that a generator would draw for it, clip after clip."""
    plain, orders = wrong_orders(7, 4, np.random.default_rng(3)), ClipOrders(7, 4, seed=3)
    for batch in ([5, 6], [0, 3], [4], [1, 2]):
        orders.asked = np.array(batch)
        assert torch.equal(wrong_orders(len(batch), 4, orders), plain[batch])


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
    arguments = [*names, "--limit", 10, "--split", "validation", "--csv", table, "--json"]
    assert evaluate(monkeypatch, *arguments) == 0
    assert len(runs) == 2  # two CLIPs, one chunk
    found = json.loads(capsys.readouterr().out)
    rows, inputs = found["percent"], found["evaluated"]
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
    assert all(row["as in training"] is True for row in inputs)
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
        arguments = [folders / "a", "--limit", 4, "--csv", tmp_path / "x.csv"]
        assert evaluate(monkeypatch, *arguments) == 0
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 3 and sum(line.startswith("date,") for line in lines) == 1
    printed = capsys.readouterr()
    assert "frozen" in printed.out and "T2V" in printed.out and "mean" not in printed.out
    assert not problems(printed.err)


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
    arguments = [folders / "a", folder, "--limit", 4, "--csv", tmp_path / "x.csv"]
    assert_refused(monkeypatch, capsys, message, *arguments)
    assert not (tmp_path / "x.csv").exists()


def assert_refused(monkeypatch, capsys, message, *arguments):
    """Nothing is computed or printed but one sentence, and the status is 2."""
    monkeypatch.setattr(shapes, "encode_clips", None)
    assert evaluate(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    told = problems(printed.err)
    assert told.startswith("error: ") and told.count("\n") == 1
    assert message in told and not printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "exam"], "no split is called 'exam'"),
        (["--limit", "0"], "--limit must be 1 or more, not 0"),
        (["--limit", "100000"], "100000 were asked for"),
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


# Weights that the authors released, or of that format.

VISION = dict(image_size=32, patch_size=16, width=24, layers=3, head_width=8)


def released_model(seed=0):
    """A CLIP of random weights with OpenAI's vocabulary and activation, and a branch beside it."""
    import open_clip

    torch.manual_seed(seed)
    text = dict(context_length=20, vocab_size=49408, width=16, heads=2, layers=1)
    clip = FrozenCLIP(open_clip.CLIP(12, VISION, text, quick_gelu=True), None, "tiny")
    config = BranchConfig(layers=2, projection="random", convention="released")
    adapter = BTAdapter(clip, config)
    for gate in adapter.branch.gates:
        gate.w_b.data.uniform_(-1e-3, 1e-3)
    return adapter


def clip_folder(folder, visual, **changes):
    """A CLIP with this image tower and few words, for `--clip`."""
    import open_clip

    folder.mkdir()
    write_merges(folder / "merges.txt.gz")
    words = 512 + len(byte_pair_merges(vocabulary())) + 2
    text = dict(context_length=20, vocab_size=words, width=16, heads=2, layers=1)
    sizes = dict(embed_dim=12, vision_cfg=VISION, text_cfg=text, quick_gelu=True) | changes
    config = dict(model_cfg=sizes, preprocess_cfg=dict(mean=[0.5] * 3, std=[0.5] * 3))
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = open_clip.CLIP(**sizes)
    model.visual.load_state_dict(visual.state_dict())
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Checkpoints: whole, the branch alone, without text, without gates, none; and CLIPs."""
    root, model = tmp_path_factory.mktemp("released"), released_model()
    save_released(model, root / "whole.pth")
    save_released(model, root / "branch.bin", clip=False)
    save_released(released_model(seed=1), root / "other.safetensors")
    state = torch.load(root / "whole.pth")
    silent = {name: t for name, t in state.items() if not name.startswith("text_backbone")}
    torch.save(silent, root / "silent.pth")
    torch.save({n: t for n, t in state.items() if "balance" not in n}, root / "ungated.pth")
    torch.save({"conv1.weight": torch.zeros(3)}, root / "resnet.pth")
    (root / "cut.pth").write_bytes((root / "whole.pth").read_bytes()[:9999])
    (root / "words.pth").write_text("no weights")
    clip_folder(root / "clip", model.clip.model.visual)
    clip_folder(root / "gelu", model.clip.model.visual, quick_gelu=False)
    clip_folder(root / "other", released_model(seed=1).clip.model.visual)
    return root


def released_rows(monkeypatch, capsys, *arguments):
    arguments = ["--heads", 3, "--limit", 6, "--split", "validation", "--json", *arguments]
    assert evaluate(monkeypatch, *arguments) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("switch", "gated"), [((), True), (("--no-gates",), False)])
def test_released_weights_are_judged_beside_their_clip(
    switch, gated, released, monkeypatch, capsys
):
    paths = [released / "whole.pth", released / "other.safetensors"]
    options = [word for path in paths for word in ("--released", path)]
    found = released_rows(monkeypatch, capsys, *options, *switch)
    rows, scenes = found["percent"], gallery("validation", 6)
    expected = []
    for path in paths:
        alone = gallery_scores(load_released(path, heads=3, gated=gated), scenes)
        names = ["", *[str(path)] * 2]
        expected += [{"adapter": n} | row for n, row in zip(names, alone, strict=True)]
    assert rows[:6] == expected
    told = found["evaluated"]
    assert [row["adapter"] for row in told] == [*map(str, paths)]
    assert {row["convention"] for row in told} == {"released"}
    assert {row["combination"] for row in told} == {"weighted" if gated else "addition"}


def test_gates_make_a_difference(released):
    frames = torch.rand(2, 4, 3, 32, 32)
    with_, without = (
        load_released(released / "whole.pth", heads=3, gated=gated).encode_video(frames).embedding
        for gated in (True, False)
    )
    assert (with_ - without).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["branch.bin", "silent.pth"])
def test_a_branch_and_a_tower_without_words_take_them_from_a_clip(
    name, released, monkeypatch, capsys
):
    options = ["--released", released / name, "--clip", released / "clip"]
    found = released_rows(monkeypatch, capsys, *options)["percent"]
    clip = load_clip(str(released / "clip"))
    model = load_released(released / "branch.bin", clip=clip)
    alone = gallery_scores(model, gallery("validation", 6))
    assert [{k: row[k] for k in alone[0]} for row in found] == alone


def test_released_weights_stand_beside_trained_ones(folders, released, monkeypatch, capsys):
    options = [folders / "a", "--released", released / "whole.pth"]
    rows = released_rows(monkeypatch, capsys, *options)["percent"]
    adapters = ["", *[str(folders / "a")] * 2, "", *[str(released / "whole.pth")] * 2]
    assert [row["adapter"] for row in rows[:6]] == adapters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.pth"], "There is no file nowhere.pth."),
        (["words.pth"], "words.pth is no checkpoint, or it is damaged"),
        (["cut.pth"], "cut.pth is no checkpoint, or it is damaged"),
        (["resnet.pth"], "resnet.pth: This checkpoint holds no branch of BT-Adapter"),
        (["whole.pth", "--heads", "5"], "whole.pth: A width of 24 cannot be shared among 5 heads"),
        (["whole.pth"], "whole.pth: A width of 24 is none of OpenAI's CLIPs"),
        (["branch.bin"], "branch.bin: This checkpoint holds the branch alone"),
        (["branch.bin", "--clip", "gelu"], "belongs beside a CLIP with QuickGELU"),
        (["branch.bin", "--clip", "moving-shapes"], "is 24 wide, and moving-shapes 96"),
        (["branch.bin", "--clip", "clip", "--heads", "4"], "has 3 heads, not 4"),
        (["silent.pth", "--heads", "3"], "name its CLIP with --clip and --pretrained"),
        (
            ["silent.pth", "--clip", "other"],
            "silent.pth: The image tower in this checkpoint is not",
        ),
        (["whole.pth", "--clip", "clip"], "holds its own CLIP"),
        (["ungated.pth", "--heads", "3"], "load it with gated=False (--no-gates)"),
        (["branch.bin", "--clip", "ViT-B-32"], "without --pretrained has random weights"),
        (["branch.bin", "--clip", "nothing", "--pretrained", "x"], "No CLIP is called 'nothing'"),
    ],
)
def test_wrong_released_weights_are_one_sentence(arguments, message, released, monkeypatch, capsys):
    monkeypatch.chdir(released)
    assert_refused(monkeypatch, capsys, message, "--released", *arguments)


@pytest.mark.parametrize("option", ["--no-gates", "--heads 3", "--clip x", "--pretrained y"])
def test_options_of_released_weights_need_such_weights(option, folders, monkeypatch, capsys):
    other = "--clip" if "pretrained" in option else "--released"
    assert_refused(monkeypatch, capsys, f"belongs to {other}", folders / "a", *option.split())


def test_the_help_names_released_weights(monkeypatch, capsys):
    assert evaluate(monkeypatch, "--help") == 0
    told = capsys.readouterr().out
    for word in ("--released", "--gates", "--no-gates", "--heads", "--clip ", "--pretrained"):
        assert word in told
