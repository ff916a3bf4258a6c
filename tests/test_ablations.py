"""The study: rows are what they say, runs can be stopped, and tables come from the file alone."""

import csv
import math
import statistics
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from einops import rearrange
from tiny_runs import problems

from bt_adapter import ablations
from bt_adapter.ablations import (
    ABLATION_COLUMNS,
    FULL_STUDY,
    PAPER_MEASURES,
    QUICK_STUDY,
    ROWS,
    ReleasedOrder,
    Row,
    States,
    build,
    embed_states,
    missing_rows,
    settings_of,
    study_rows,
)
from bt_adapter.backbone import load_clip
from bt_adapter.branch import BranchConfig
from bt_adapter.cli.ablations import main
from bt_adapter.ledger import read_csv
from bt_adapter.masking import tube_mask
from bt_adapter.moving_shapes import gallery, render
from bt_adapter.paper_order import agreement, disagreements, orders
from bt_adapter.released import as_released
from bt_adapter.scenes import FIGURES
from bt_adapter.shipped import samples_folder
from bt_adapter.strategies import Branching
from bt_adapter.study_figures import dot_plot
from bt_adapter.study_tables import MEASURES, measured, table_summary
from bt_adapter.verdicts import difference

TINY = replace(QUICK_STUDY, steps=2, objects=2)
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
        *("Figure 3", "Figure 4", "mask order", "teacher", "frame order", "frames")
    }
    default = [row.name for row in ROWS if row.training == Row("", "").training]
    assert len(default) == 15 and default[0] == "BT-Adapter, frozen"


def test_settings_are_the_same_for_all_rows():
    allowed = {"weights", "mask_ratio", "drop_path", "token_loss", "teacher_norm"}
    assert {name for row in ROWS for name, _ in row.train} == allowed
    assert {name for row in ROWS for name, _ in row.branch} == {
        *("projection", "combination", "layers")
    }
    assert (
        replace(
            QUICK_STUDY, steps=FULL_STUDY.steps, batch=FULL_STUDY.batch, objects=FULL_STUDY.objects
        )
        == FULL_STUDY
    )
    for row in ROWS:
        replace(FULL_STUDY, **dict(row.train))
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
    assert (first.table, first.name) == ("Table 6", "CLIP") and len(read_csv(path)) == 1
    rest = [*study_rows(clip, rows, path, TINY, 18)]
    assert len(rest) == 5 and len(trained) == len({*trained}) == 5  # one line was there
    assert not missing_rows(rows, path, settings_of(clip, TINY, 18))
    others = [(TINY, 20), (replace(TINY, seed=1), 18), (replace(TINY, batch=36), 18)]
    assert all(missing_rows(rows, path, settings_of(clip, *other)) == rows for other in others)
    another = settings_of(clip, TINY, 18) | {"fingerprint": "of another CLIP"}
    assert missing_rows(rows, path, another) == rows
    lines = read_csv(path)
    assert tuple(lines[0]) == ABLATION_COLUMNS and {row["clips"] for row in lines} == {"18"}
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
        writer = csv.DictWriter(file, ABLATION_COLUMNS)
        writer.writeheader()
        for table, row, figure in values:
            line = dict.fromkeys(ABLATION_COLUMNS, "") | {"table": table, "row": row}
            writer.writerow(line | dict.fromkeys(FIGURES, figure))
    return read_csv(path)


def test_tables_come_from_the_file(tmp_path):
    values = [("Table 7", "VTC", 40), ("Table 7", "VTC", 44), ("Table 7", "VTC, MBTA", 41)]
    lines = write(tmp_path / "x.csv", values)
    first, second = table_summary(lines, "Table 7")
    assert first == {
        **{"row": "VTC", "seeds": 2, "T2V R@1": "42.0 ± 2.8", "motion": "42.0 ± 2.8"},
        **{"direction": "42.0 ± 2.8", "paper": "38.5 / 33.9"},
    }
    assert second["T2V R@1"] == "41.0" and second["paper"] == "39.3 / 34.3"
    assert table_summary(lines, "Table 6") == []
    assert measured(lines, "Table 7", "direction") == {"VTC": [40, 44], "VTC, MBTA": [41]}
    lines = write(tmp_path / "y.csv", [("frames", "8 at test", 3), ("frames", "2 at test", 4)])
    assert [row["row"] for row in table_summary(lines, "frames")] == ["2 at test", "8 at test"]
    assert "paper" not in table_summary(lines, "frames")[0]


def test_a_difference_is_clear_if_it_is_twice_its_error():
    ours, others = [50, 53, 59], [40, 41]
    found = difference(ours, others)
    assert found.points == pytest.approx(13.5) and found.clear
    assert found.error == pytest.approx(
        math.sqrt(statistics.variance(ours) / 3 + statistics.variance(others) / 2)
    )
    assert difference(others, ours) == pytest.approx((-13.5, found.error))
    for far in (1, 2):  # an error of 1/2 to either side of 2 * 1/2
        assert difference([far - 0.5, far + 0.5], [0, 0]).clear is (far == 2)
    assert not difference([90], [1, 2]).clear and str(difference([90], [1, 2])).startswith("+88.5")
    assert "too close" in str(difference([90], [1, 2])) and "too close" not in str(found)


def test_orders_are_told_by_the_papers_first_figure(tmp_path):
    values = [("Table 7", "VTC", v) for v in (40, 42)]
    values += [("Table 7", "VTC, MBTA", v) for v in (30, 31)]  # the paper has it above VTC
    values += [("Table 7", "VTC, MBCA", v) for v in (60, 61)]
    values += [("Table 7", "VTC, MBTA, MBCA", 90)]  # one seed
    lines = write(tmp_path / "x.csv", values)
    said = {(pair.better, pair.other): pair.verdict for pair in orders(lines, "Table 7")}
    assert said == {
        ("VTC, MBTA", "VTC"): "the other way",
        ("VTC, MBCA", "VTC"): "as in the paper",
        ("VTC, MBCA", "VTC, MBTA"): "as in the paper",
        **dict.fromkeys(
            [("VTC, MBTA, MBCA", name) for name in ("VTC", "VTC, MBTA", "VTC, MBCA")],
            "too close to call",
        ),
    }
    counts, total = agreement(lines)
    assert [*counts.values()][:5] == ["Table 7", 6, 2, 3, 1]
    assert [*total.values()] == ["all", *[*counts.values()][1:]]
    assert float(total["clear by chance"]) == pytest.approx(3 * 0.1835, abs=0.1)  # t with 2 degrees
    (pair,) = disagreements(lines)
    assert [*pair.values()][:3] == ["Table 7", "VTC, MBTA", "VTC"]
    assert {pair[measure] for measure in MEASURES} == {"+10.5 ± 1.1"}


def test_rows_that_share_model_and_figure_are_ordered_once(tmp_path):
    names = [row.name for row in ROWS if row.table == "Table 11"]
    lines = write(tmp_path / "x.csv", [("Table 11", name, i) for i, name in enumerate(names)])
    assert len(orders(lines, "Table 11")) == 10  # five rows: "weighted" is "zero projection"


def test_a_figure_shows_every_seed_mean_and_deviation(tmp_path):
    values = [("Figure 4", "mask 0.3", v) for v in (20, 24)] + [("Figure 4", "mask 0.9", 50)]
    lines = [
        row | {"seconds a step": 0.5 * i} for i, row in enumerate(write(tmp_path / "x.csv", values))
    ]
    picture = dot_plot(lines, "Figure 4", ("direction", "seconds a step"), "mask ratio")
    left, right = picture.axes
    assert [text.get_text() for text in left.get_xticklabels()] == ["0.3", "0.9"]
    heights = [[*map(float, line.get_ydata())] for line in left.lines]
    error = 2 * statistics.stdev([20, 24]) / 2**0.5
    assert heights[:3] == [[22 - error, 22 + error], [20, 24], [22]]
    assert heights[3:6] == [[50, 50], [50], [50]] and heights[6] == [50, 50]  # the last is chance
    assert [*right.lines[2].get_ydata()] == [0.25] and len(right.lines) == 6


def test_the_shipped_study_is_complete():
    """Every row of five seeds, no line twice, and what stands in them is what `ROWS` says."""
    lines = read_csv(samples_folder() / "ablations.csv")
    assert tuple(lines[0]) == ABLATION_COLUMNS
    settings = ("seed", "steps", "batch", "objects", "clips", "fingerprint")
    made = [tuple(row[name] for name in ("table", "row", *settings)) for row in lines]
    assert len({*made}) == len(made)
    most = max(int(row["steps"]) for row in lines)
    ours = load_clip("moving-shapes").fingerprint
    done = Counter((r["table"], r["row"]) for r in lines if int(r["steps"]) == most)
    assert done == dict.fromkeys(BY_NAME, 5) and {r["fingerprint"] for r in lines} == {ours}
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
        (["--csv", "gone/x.csv"], "name a file in an existing folder"),
        (["--clip", "nothing"], "No CLIP is called 'nothing'"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablations, "study_rows", None)
    assert command(monkeypatch, "--quick", *arguments) == 2
    printed = capsys.readouterr()
    told = problems(printed.err)
    assert message in told and told.count("\n") == 1 and not printed.out
    assert not [*tmp_path.iterdir()]


def test_the_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(ablations, "QUICK_STUDY", replace(TINY, steps=1))
    out = tmp_path / "x.csv"
    for seeds in (1, 2):
        arguments = ["--quick", "--table", "frame order", "--csv", out, "--seeds", seeds]
        assert command(monkeypatch, *arguments) == 0
        printed = capsys.readouterr()
        assert len(read_csv(out)) == 2 * seeds
        assert problems(printed.err).count("\n") == 2  # the first seed is not made again
        assert "shuffled at test" in printed.out
    assert {row["command"].split()[0] for row in read_csv(out)} == {"bta-ablations"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_quick_study(monkeypatch, capsys, tmp_path):
    """Every row is trained and tested by the command as it is."""
    out = tmp_path / "quick.csv"
    assert command(monkeypatch, "--quick", "--csv", out) == 0
    printed, lines = capsys.readouterr(), read_csv(out)
    assert len(lines) == len(ROWS)
    assert {(row["table"], row["row"]) for row in lines} == {*BY_NAME}
    assert {(row["steps"], row["seed"]) for row in lines} == {(str(QUICK_STUDY.steps), "0")}
    assert all(math.isfinite(float(row[name])) for row in lines for name in FIGURES)
    untrained = {row["row"] for row in lines if float(row["seconds a step"]) == 0}
    assert untrained == {"baseline, frozen", "ST pooling, frozen", "CLIP"}
    assert problems(printed.err).count("\n") == len(ROWS)
    assert all(row.table in printed.out for row in ROWS)
