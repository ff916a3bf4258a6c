"""The rows at full length: a run that is killed goes on, files hold each line once, and a verdict
counts what chance would count."""

import math
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from tiny_runs import problems

from bt_adapter import full_length, study_tables
from bt_adapter.ablations import ROWS, Row, build
from bt_adapter.backbone import load_clip
from bt_adapter.cli.ablations import main
from bt_adapter.full_length import (
    CURVE_COLUMNS,
    FULL_COLUMNS,
    FULL_LENGTH,
    FULL_ROWS,
    MEASURED,
    QUICK_LENGTH,
    STILL,
    Ground,
    curves_beside,
    full_rows,
    packed,
    unpacked,
)
from bt_adapter.ledger import append_csv, read_csv
from bt_adapter.paper_order import agreement, orders_once
from bt_adapter.pretrain import PRESETS
from bt_adapter.scenes import TWO_FOR_ONE
from bt_adapter.strategy_figures import FLOWS, token_flow
from bt_adapter.study_figures import (
    cost_scatter,
    curves_picture,
    leads_picture,
    table_picture,
    verdict_picture,
)
from bt_adapter.study_tables import MEASURES, model_of, models_in, one_study
from bt_adapter.study_words import headline, told
from bt_adapter.verdicts import chance_of_clear, difference, resampled, verdict

BY_NAME = {row.name: row for row in FULL_ROWS}
TWO = [BY_NAME["BT-Adapter"], BY_NAME["frozen CLIP"]]
OWN = ("date", "command", "seconds a step", "versions")  # what differs from run to run


@pytest.fixture(scope="module")
def ground():
    """Two steps; scenes, states and galleries are shared by all tests."""
    config = replace(QUICK_LENGTH, steps=3)
    return Ground(load_clip("moving-shapes"), config, clips=18, held=18, pictures=12)


def lines(path):
    """Rows and points of a study, without what differs from run to run."""
    both = read_csv(path), read_csv(curves_beside(path))
    return [[{k: v for k, v in r.items() if k not in OWN} for r in rows] for rows in both]


# --- the rows ---


def test_full_length_is_the_preset_that_ships():
    assert replace(FULL_LENGTH, rates=PRESETS["full"].rates) == PRESETS["full"]
    clip, rates = load_clip("moving-shapes"), {}
    for row in FULL_ROWS[:-1]:
        for config in (FULL_LENGTH, PRESETS["full"]):
            branch, found = build(clip, row).branch, {}
            for name, _ in branch.named_parameters():
                group = next(g for g in config.rates if name.startswith(g.names))
                found[name] = group.lr
            rates.setdefault(row.name, []).append(found)
    assert {name for name, (ours, its) in rates.items() if ours != its} == {"ST-Adapter"}


def test_gates_that_start_open_give_nine_parts_of_ten():
    branch = build(load_clip("moving-shapes"), BY_NAME["gates started open"]).branch
    assert [round(gate.share().mean().item(), 4) for gate in branch.gates] == [0.9] * 4


def test_hits_are_packed_whole():
    hits = torch.rand(408, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(torch.from_numpy(unpacked(packed(hits), 408)), hits)


# --- runs ---


@pytest.fixture(scope="module")
def undisturbed(ground, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert [*full_rows(ground, TWO, folder / "a.csv", folder / "runs")] == TWO
    return folder


def test_a_line_holds_everything_and_a_run_leaves_weights_and_card(undisturbed, ground):
    (line, frozen), points = (
        read_csv(undisturbed / "a.csv"),
        read_csv(curves_beside(undisturbed / "a.csv")),
    )
    assert tuple(line) == FULL_COLUMNS and tuple(points[0]) == CURVE_COLUMNS
    assert [point["step"] for point in points] == ["0", "1", "2", "3"]
    assert {point["row"] for point in points} == {"BT-Adapter"}  # the other one learns nothing
    empty = {name for name, value in line.items() if value == ""}
    assert empty == {name for name in line if "two: " in name}  # there is one thing on level 1
    for measure in MEASURES:
        share = 100 * unpacked(line[f"hits of {measure}"], 18).mean()
        assert share == pytest.approx(float(line[measure]), abs=0.01)
    assert frozen["parameters"] == "0" and float(frozen["seconds a step"]) == 0
    assert all(0 <= float(line[name]) <= 100 for name in STILL)
    (run,) = (undisturbed / "runs").iterdir()
    assert {"branch.safetensors", "training.json", "log.csv"} <= {p.name for p in run.iterdir()}
    assert not list(run.glob("checkpoint*"))


def test_a_run_that_is_killed_goes_on_as_if_nothing_had_been(
    undisturbed, ground, tmp_path, monkeypatch
):
    def killed(path, same, state, save=full_length.save_checkpoint):
        save(path, same, state)
        if state["step"] == 2:
            raise KeyboardInterrupt

    path, runs = tmp_path / "a.csv", tmp_path / "runs"
    with monkeypatch.context() as patch:
        patch.setattr(full_length, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            [*full_rows(ground, TWO, path, runs)]
    assert not path.exists() and list(runs.glob("*/checkpoint.pt"))
    steps, update = [], full_length.Trainer.update

    def counted(self, batch):
        steps.append(self.step)
        return update(self, batch)

    monkeypatch.setattr(full_length.Trainer, "update", counted)
    assert [*full_rows(ground, TWO, path, runs)] == TWO
    assert steps == [2] and lines(path) == lines(undisturbed / "a.csv")


def test_a_cut_between_the_two_files_trains_nothing_again(
    undisturbed, ground, tmp_path, monkeypatch
):
    def cut(path, rows):
        if path.name == "a.csv":
            raise KeyboardInterrupt
        append_csv(path, rows)

    path, runs = tmp_path / "a.csv", tmp_path / "runs"
    with monkeypatch.context() as patch:
        patch.setattr(full_length, "append_csv", cut)
        with pytest.raises(KeyboardInterrupt):
            [*full_rows(ground, TWO[:1], path, runs)]
    assert len(read_csv(curves_beside(path))) == 4 and not path.exists()
    monkeypatch.setattr(full_length, "learn", None)  # a finished run is not begun again
    assert [*full_rows(ground, TWO, path, runs)] == TWO
    assert lines(path) == lines(undisturbed / "a.csv")
    assert not [*full_rows(ground, TWO, path, runs)]  # nor is a line made twice


def test_a_file_of_other_columns_is_refused_before_any_work(ground, tmp_path):
    for name in ("a.csv", "a.curves.csv"):
        (tmp_path / name).write_text("date,row\n")
        with pytest.raises(ValueError, match="has other columns than these rows"):
            next(full_rows(ground, TWO, tmp_path / "a.csv", tmp_path / "runs"))
        (tmp_path / name).unlink()
    assert not [*tmp_path.iterdir()]


def test_another_seed_level_or_clip_is_another_study(ground):
    settings = full_length.full_settings(ground)
    for other in (dict(level=2), dict(clips=20), dict(config=replace(ground.config, seed=1))):
        assert full_length.full_settings(replace(ground, **other)) != settings


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bta-ablations", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0


def test_one_command_is_one_run(monkeypatch, capsys, tmp_path):
    """Level 2, from another folder, with a store that is on disk."""
    monkeypatch.chdir(tmp_path)
    chosen = ["--row", "released mask order", "--seed", 4, "--level", 2, "--store", "store"]
    assert command(monkeypatch, "--full", "--quick", *chosen) == 0
    printed = capsys.readouterr()
    assert "released mask order" in printed.out and "seed 4" in problems(printed.err)
    (line,) = read_csv(tmp_path / "full_length.csv")
    assert (line["seed"], line["level"], line["steps"]) == ("4", "2", "2")
    assert all(line[f"hits of {name}"] for name in MEASURED)
    assert {p.name for p in tmp_path.iterdir()} == {
        *("full_length", "full_length.csv", "full_length.curves.csv", "store")
    }
    assert len(list((tmp_path / "store").glob("??/*.safetensors"))) == 18 + 9 * TWO_FOR_ONE


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_quick_study_at_full_length(monkeypatch, capsys, tmp_path):
    out = tmp_path / "quick.csv"
    assert command(monkeypatch, "--full", "--quick", "--csv", out) == 0
    made = read_csv(out)
    assert [line["row"] for line in made] == [row.name for row in FULL_ROWS]
    assert all(math.isfinite(float(line[name])) for line in made for name in MEASURES)
    assert len(read_csv(curves_beside(out))) == 3 * (len(FULL_ROWS) - 1)
    assert "full length" in capsys.readouterr().out


# --- verdicts ---


def study(values, table="full length", **more):
    """Lines of rows, a seed a value, the same for every measure."""
    return [
        dict(table=table, row=name, seed=str(seed), steps="700", clips="18", parameters="9")
        | dict.fromkeys((*MEASURES, *STILL), str(value))
        | {"seconds a step": "1.5"}
        | more
        for name, seeds in values.items()
        for seed, value in enumerate(seeds)
    ]


def test_a_verdict_is_what_the_hand_computes():
    made = study({"BT-Adapter": [80, 82, 84], "no mask": [70, 71, 72], "addition": [80, 84, 88]})
    made += study({"frozen CLIP": [50, 50, 50]}, parameters="0")
    found = verdict(made)
    by = {pair.other: pair for pair in found.pairs}
    assert [*by] == ["no mask", "addition"] and found.fixed == ["frozen CLIP"]
    # 82 - 71 = 11; variances 4 and 1: the error is the root of 5 / 3
    assert by["no mask"].lead == pytest.approx((11, math.sqrt(5 / 3))) and by["no mask"].clear
    # 82 - 84 = -2; variances 4 and 16: the error is the root of 20 / 3, and 2 < 2 * 2.58
    assert by["addition"].lead == pytest.approx((-2, math.sqrt(20 / 3)))
    assert not by["addition"].clear and found.clear == [by["no mask"]]
    # by chance: twice what Student's t with 4 degrees of freedom leaves beyond 2, which is .1161
    assert found.by_chance == pytest.approx(2 * 0.1161, abs=0.01)
    assert "Of 2 changes of BT-Adapter 1 make a clear difference" in told(found)


def test_chance_is_what_students_t_says():
    for seeds, beyond in ((2, 0.1835), (3, 0.1161), (5, 0.0805), (30, 0.0502)):
        assert chance_of_clear(seeds, seeds) == pytest.approx(beyond, abs=0.006)
    # beside a row without chance there is one sample: degrees of freedom are its seeds less one
    assert chance_of_clear(5, None) == chance_of_clear(None, 5)
    assert chance_of_clear(5, None) == pytest.approx(0.1161, abs=0.006)
    assert chance_of_clear(1, 5) == chance_of_clear(None, None) == 0


def test_studies_in_which_nothing_matters_have_as_many_clear_pairs_as_chance_says():
    rng, names, clear = np.random.default_rng(0), [row.name for row in FULL_ROWS[:-1]], []
    for _ in range(300):
        found = verdict(study({name: rng.normal(80, 5, size=3) for name in names}))
        clear.append(len(found.clear))
    assert np.mean(clear) == pytest.approx(found.by_chance, abs=0.25)
    assert found.by_chance == pytest.approx(7 * 0.1161, abs=0.05)


def test_a_model_counts_once_however_many_tables_show_it():
    made = [line for row in ROWS for line in study({row.name: [80, 81]}, row.table)]
    models = models_in(made)
    assert len(models) == len({model_of(row) for row in ROWS}) < len(ROWS)
    tested = [model for model in models if model[-1]]
    found = verdict(made)
    assert len(found.pairs) == len(models) - len(tested) - 1 - 1  # the default, and frozen CLIP
    assert found.fixed == ["baseline, frozen"]
    pairs = [pair for pairs in orders_once(made).values() for pair in pairs]
    assert "ST pooling, frozen" not in {name for pair in pairs for name in pair[:2]} or (
        "baseline, frozen" not in {name for pair in pairs for name in pair[:2]}
    )
    counts = agreement(made)
    assert counts[-1]["table"] == "all"
    assert counts[-1]["pairs"] == len(pairs) == sum(row["pairs"] for row in counts[:-1])


def test_clips_can_take_back_what_seeds_call_clear():
    """All seeds have the same two clips of 400 wrong: no seed differs, but clips do."""
    right = np.ones((3, 400), bool)
    wrong = right.copy()
    wrong[:, :2] = False
    assert difference([100.0] * 3, [99.5] * 3).clear
    low, high = resampled(right, wrong)
    assert low == 0 and 0.5 < high < 2
    hits = {"hits of direction": packed(torch.from_numpy(right[0]))}
    made = study({"BT-Adapter": [100.0] * 3}, clips="400") + study({"no mask": [99.5] * 3})
    made = [line | hits for line in made]
    for line in made[3:]:
        line |= {"hits of direction": packed(torch.from_numpy(wrong[0])), "clips": "400"}
    assert not verdict(made).clear
    for line in made:
        line["hits of direction"] = ""
    assert len(verdict(made).clear) == 1


def test_the_longest_and_last_study_of_a_file_is_read():
    made = study({"BT-Adapter": [1]}) + study({"BT-Adapter": [2]}, fingerprint="new")
    made += study({"BT-Adapter": [3]}, steps="2", fingerprint="new")
    assert [line["direction"] for line in one_study(made)] == ["2"]
    assert one_study([]) == []


def test_words_follow_the_lines():
    ahead = study({"BT-Adapter": [80, 81, 82], "addition": [90, 91, 92]})
    behind = study({"BT-Adapter": [90, 91, 92], "addition": [80, 81, 82]})
    assert "Clearly better: addition (+10.0)" in headline(ahead, [])
    assert "Clearly worse than BT-Adapter: addition (-10.0)" in headline(behind, [])
    assert "No row has been run" in headline([], ahead)
    alone = verdict(study({"addition": [1, 2]}))
    assert not alone.pairs and "nothing can be said" in told(alone)


def test_answers_are_summed_up_by_kind():
    made = [
        dict(row="joint-ST", seed=str(seed), kind=kind, percent=str(value), paper="1.92 / 2.11")
        for seed in (0, 1)
        for kind, value in (("colour", 90 + seed), ("direction", 50))
    ]
    (row,) = study_tables.talk_summary(made)
    assert row == {
        **{"row": "joint-ST", "seeds": 2, "colour": "90.5 ± 0.7", "direction": "50.0 ± 0.0"},
        **{"paper": "1.92 / 2.11"},
    }


# --- pictures ---


def test_pictures_show_what_the_lines_say():
    made = study({"BT-Adapter": [80, 81], "addition": [90, 92]})
    made += study({"frozen CLIP": [50, 50]}, parameters="0")
    picture = table_picture(made, "full length", (*MEASURES, *STILL))
    assert len(picture.axes) == 6 and picture.dpi == 80
    names = [text.get_text() for text in picture.axes[0].get_yticklabels()]
    assert names == ["BT-Adapter", "addition", "frozen CLIP"]
    drawn = cost_scatter(made, ["full length"]).axes[0]
    assert len(drawn.collections) == 2  # what trains nothing has no step to pay for
    assert drawn.collections[1].get_offsets().tolist() == [[1.5, 91]]
    points = [line | {"step": str(step)} for line in made[:4] for step in (0, 70)]
    axes = curves_picture(points).axes
    assert len(axes) == 2 and len(axes[0].lines) == 2 * (2 + 1) + 1
    assert len(token_flow().axes) == len(FLOWS) == 9


@pytest.mark.parametrize("value", [80, 81, 84])
def test_words_beside_discs_keep_apart(value):
    made = study({row.name: [value, value + i] for i, row in enumerate(FULL_ROWS)})
    picture = cost_scatter(made, ["full length"])
    picture.draw_without_rendering()
    (ax,) = picture.axes
    words = [Text.get_window_extent(text) for text in ax.texts]
    assert len(words) == len(FULL_ROWS)
    assert not any(a.overlaps(b) for a, b in combinations(words, 2))
    assert all(ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 for box in words)


def test_a_verdict_is_drawn_from_the_best_to_the_worst():
    found = verdict(study({"BT-Adapter": [80, 81], "addition": [90, 92], "no mask": [70, 71]}))
    (ax,) = verdict_picture(found).axes
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == ["addition", "no mask"]
    assert [line.get_xdata()[0] for line in ax.lines[1:4:2]] == [10.5, -10]
    assert ax.get_title() == "2 of 2 clear"
    pairs = [pair._replace(interval=(-12.0, 0.5)) for pair in found.pairs]  # of the clips
    (ax,) = verdict_picture(found._replace(pairs=pairs)).axes
    assert ax.get_title() == "0 of 2 clear" and min(ax.lines[0].get_xdata()) == -0.5
    alone = verdict_picture(verdict(study({"BT-Adapter": [80], "addition": [90]})))
    assert alone.axes[0].get_title() == "0 of 1 clear"
    with pytest.raises(ValueError, match="no difference to draw"):
        verdict_picture(verdict(study({"addition": [1]})))
    with pytest.raises(ValueError, match="for each of 1 differences"):
        leads_picture([found.pairs[0].lead], intervals=[None, None])


def test_the_default_is_no_change_of_itself():
    assert model_of(Row("x", "y", test="8")) == study_tables.DEFAULT
    assert model_of(Row("x", "y", test="16")) != study_tables.DEFAULT
