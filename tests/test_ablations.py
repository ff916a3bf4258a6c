"""The study: rows are what they say, runs can be stopped, and tables come from the file alone."""

import csv
import sys
from dataclasses import replace

import pytest
import torch
from einops import rearrange

from bt_adapter import ablations
from bt_adapter.ablations import (
    COLUMNS,
    FULL,
    PAPER_MEASURES,
    QUICK,
    ROWS,
    ReleasedOrder,
    Row,
    States,
    build,
    disagreements,
    embed_states,
    main,
    missing,
    read_rows,
    study_rows,
    summary,
)
from bt_adapter.backbone import load_clip, samples_folder
from bt_adapter.branch import BranchConfig
from bt_adapter.masking import tube_mask
from bt_adapter.moving_shapes import gallery, render
from bt_adapter.released import as_released
from bt_adapter.retrieval import FIGURES
from bt_adapter.strategies import Branching

TINY = replace(QUICK, steps=2, objects=2)
BY_NAME = {(row.table, row.name): row for row in ROWS}


@pytest.fixture(scope="module")
def clip():
    return load_clip("moving-shapes")


@pytest.fixture(scope="module")
def held(clip):
    return States(clip, gallery("validation", 2))


def test_the_rows_are_the_papers():
    """Figures as the paper prints them; all tables of the issue, and what the paper lacks."""
    counts = {table: sum(row.table == table for row in ROWS) for table in PAPER_MEASURES}
    assert counts == {"Table 1": 6, "Table 6": 4, "Table 7": 4, "Table 10": 5, "Table 11": 6}
    for row in ROWS:
        assert bool(row.paper) is (row.table in PAPER_MEASURES), row
    assert {row.table for row in ROWS} - {*PAPER_MEASURES} == {
        *("Figure 3", "Figure 4", "mask order", "frame order", "frames")
    }
    default = [row.name for row in ROWS if row.training == Row("", "").training]
    assert len(default) == 14 and default[0] == "BT-Adapter, frozen"


def test_settings_are_the_same_for_all_rows():
    allowed = {"weights", "mask_ratio"}
    assert {name for row in ROWS for name, _ in row.train} == allowed
    assert {name for row in ROWS for name, _ in row.branch} == {
        *("projection", "combination", "layers")
    }
    assert replace(QUICK, steps=FULL.steps, objects=FULL.objects) == FULL
    for row in ROWS:
        replace(FULL, **dict(row.train))
        BranchConfig(**dict(row.branch))


@pytest.mark.parametrize("row", list({r.training: r for r in ROWS}.values()), ids=lambda r: r.name)
def test_every_row_is_built_and_reads_stored_states_as_frames(row, clip, held):
    torch.manual_seed(0)
    model, scenes = build(clip, row), gallery("validation", 2)
    frames = torch.stack([clip.transform(render(scene)) for scene in scenes])
    with torch.no_grad():
        direct = model.encode_video(frames).embedding
    stored = embed_states(model, held, scenes)
    assert (direct * stored).sum(-1).min() > 0.98  # half precision


def test_a_branch_alone_is_read_at_its_end_only(clip):
    torch.manual_seed(0)
    alone = build(clip, BY_NAME["Table 6", "+ branch"])
    states = [torch.randn(1, 2, 65, 96) for _ in range(5)]
    with torch.no_grad():
        before = alone.encode_states(states).embedding
        for n, matters in enumerate([True, False, False, False, True]):
            changed = [torch.randn_like(s) if i == n else s for i, s in enumerate(states)]
            after = alone.encode_states(changed).embedding
            assert torch.allclose(before, after, atol=1e-6) is not matters, n


def test_released_order_masks_and_pairs_as_the_authors_code(clip):
    torch.manual_seed(0)
    model, plain = ReleasedOrder(clip, BranchConfig()), Branching(clip, BranchConfig())
    plain.branch.load_state_dict(model.branch.state_dict())
    states = [torch.randn(2, 4, 65, 96) for _ in range(5)]
    keep = tube_mask(2, 64, 0.7, torch.Generator().manual_seed(0))
    branch, teacher = as_released(keep, 4, 64)
    with torch.no_grad():
        found, listed = model.encode_states(states, keep), plain.encode_states(states, branch)
    assert torch.equal(found.embedding, listed.embedding)
    # The teacher's tokens come as the mask lists them: frame by frame, each patch that is kept.
    tokens = rearrange(listed.patches, "b t k d -> b (t k) d")
    place = rearrange(teacher, "b t k -> b (t k)")
    wanted = (torch.arange(4)[:, None] * 64 + keep[:, None]).flatten(1)
    for clip_number in range(2):
        order = [place[clip_number].tolist().index(p) for p in wanted[clip_number].tolist()]
        ours = found.patches[clip_number].flatten(0, 1)
        assert torch.equal(ours, tokens[clip_number, order])
    everything = torch.arange(64).expand(2, -1)
    with torch.no_grad():
        assert torch.equal(
            model.encode_states(states, everything).patches,
            plain.encode_states(states, everything).patches,
        )


def test_a_study_is_stopped_and_continued(clip, tmp_path, monkeypatch):
    path = tmp_path / "study.csv"
    rows = [BY_NAME[key] for key in BY_NAME if key[0] in ("Table 6", "frame order")]
    trained, train_row = [], ablations.train_row

    def counted(study, row):
        trained.append(row.training)
        return train_row(study, row)

    monkeypatch.setattr(ablations, "train_row", counted)
    going = study_rows(clip, rows, path, TINY, 18)
    first = next(going)
    going.close()
    assert (first.table, first.name) == ("Table 6", "CLIP") and len(read_rows(path)) == 1
    rest = [*study_rows(clip, rows, path, TINY, 18)]
    assert len(rest) == 5 and len(trained) == len({*trained}) == 5  # one line was there
    assert not missing(rows, path, TINY, 18)
    assert missing(rows, path, TINY, 20) == missing(rows, path, replace(TINY, seed=1), 18) == rows
    lines = read_rows(path)
    assert tuple(lines[0]) == COLUMNS and {row["clips"] for row in lines} == {"18"}
    by = {row["row"]: row for row in lines}
    assert float(by["CLIP"]["seconds a step"]) == 0 and by["CLIP"]["parameters"] == "0"
    assert len(by["in order"]["gates"].split()) == 4 and by["CLIP"]["gates"] == ""
    assert len(by["+ branch"]["gates"].split()) in (0, 1)
    assert (
        by["in order"]["motion"] != ""
        and by["in order"]["T2V R@1"] == f"{float(by['in order']['T2V R@1']):.2f}"
    )


def write(path, values):
    """A study with these (table, row, figure of every measure)."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for table, row, figure in values:
            line = dict.fromkeys(COLUMNS, "") | {"table": table, "row": row}
            writer.writerow(line | dict.fromkeys(FIGURES, figure))
    return read_rows(path)


def test_tables_come_from_the_file(tmp_path):
    values = [("Table 7", "VTC", 40), ("Table 7", "VTC", 44), ("Table 7", "VTC, MBTA", 41)]
    lines = write(tmp_path / "x.csv", values)
    first, second = summary(lines, "Table 7")
    assert first == {
        **{"row": "VTC", "seeds": 2, "T2V R@1": "42.0 ± 2.8", "motion": "42.0 ± 2.8"},
        **{"direction": "42.0 ± 2.8", "paper": "38.5 / 33.9"},
    }
    assert second["T2V R@1"] == "41.0" and second["paper"] == "39.3 / 34.3"
    assert summary(lines, "Table 6") == []
    assert disagreements(lines, "Table 7") == [("VTC, MBTA", "VTC", 1.0)]
    agreeing = write(tmp_path / "y.csv", [("Table 7", "VTC", 1), ("Table 7", "VTC, MBTA", 2)])
    assert disagreements(agreeing, "Table 7") == []


def test_the_shipped_study_is_complete():
    lines = read_rows(samples_folder() / "ablations.csv")
    assert tuple(lines[0]) == COLUMNS
    studies = {(row["steps"], row["clips"]) for row in lines}
    for steps, clips in studies:
        found = {
            (r["table"], r["row"]) for r in lines if (r["steps"], r["clips"]) == (steps, clips)
        }
        assert found == {*BY_NAME}
    for row in lines:
        assert row["paper"] == BY_NAME[row["table"], row["row"]].paper
        assert row["command"].startswith("bta-ablations")
        assert all(0 <= float(row[name]) <= 100 for name in FIGURES)


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bta-ablations", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "Table 2"], "no table is called 'Table 2': choose from Table 1"),
        (["--seeds", "0"], "one seed or more, not 0"),
        (["--out", "gone/x.csv"], "name a file in an existing folder"),
        (["--clip", "nothing"], "No CLIP is called 'nothing'"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablations, "study_rows", None)
    assert command(monkeypatch, "--quick", *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert not [*tmp_path.iterdir()]


def test_the_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(ablations, "QUICK", replace(TINY, steps=1))
    out = tmp_path / "x.csv"
    for seeds in (1, 2):
        arguments = ["--quick", "--table", "frame order", "--out", out, "--seeds", seeds]
        assert command(monkeypatch, *arguments) == 0
        printed = capsys.readouterr()
        assert len(read_rows(out)) == 2 * seeds
        assert printed.err.count("\n") == 2  # the first seed is not made again
        assert "shuffled at test" in printed.out
    assert {row["command"].split()[0] for row in read_rows(out)} == {"bta-ablations"}
