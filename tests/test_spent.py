"""What a run has cost: in its card, added up over its parts, in tables, drawn."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import islice

import pytest
import torch
from tiny_runs import Source, tiny_adapter

from bt_adapter import spent, trainer
from bt_adapter.recipes import PretrainConfig
from bt_adapter.runs import load_checkpoint
from bt_adapter.scenes import COLUMNS, TWO_COLUMNS
from bt_adapter.spent import COST, Spent, read_cost
from bt_adapter.study_figures import PAPER_HOURS, hours_picture
from bt_adapter.zero_shot import DATA_COLUMNS

CONFIG = PretrainConfig(steps=2, batch=12, precision="fp32", frames=3)


def go(folder, config=CONFIG, resume=False, source=None, started=0.0):
    "A run whose part began so many seconds ago; its card's cost."
    model = tiny_adapter()
    same = trainer.run_signature(model, config, "noise")
    with trainer.Run(folder, resume, save_every=1) as run:
        run.spent.started -= started
        run.go(model, source or Source(), config, same)
        run.finish(model, config, same)
    return json.loads((folder / "training.json").read_text())["cost"]


class Killed(Source):
    "Breaks at the third batch, as a power cut would."

    def __call__(self, start, last):
        yield from islice(super().__call__(start, last), 2)
        raise KeyError("cut off")


def test_a_card_says_what_two_steps_cost(tmp_path):
    cost = go(tmp_path, started=3600)
    assert 1 <= cost["CPU hours"] < 1.5 and cost["clips seen"] == 24 and cost["processes"] == 1
    assert cost["device"] and cost["peak GB"] > 0.01
    assert "kWh" not in cost and "GPU hours" not in cost and set(cost) < set(COST)


def test_parts_add_up_also_one_that_was_killed(tmp_path):
    config = replace(CONFIG, steps=4)
    with pytest.raises(KeyError):
        go(tmp_path, config, source=Killed(), started=7200)
    model = tiny_adapter()
    state = load_checkpoint(
        tmp_path / "checkpoint.pt", trainer.run_signature(model, config, "noise")
    )
    assert 7200 <= state["spent"]["device_seconds"] < 7500
    cost = go(tmp_path, config, resume=True, started=3600)
    assert 3 <= cost["CPU hours"] < 3.5 and cost["clips seen"] == 48


def test_a_checkpoint_of_before_knows_nothing_and_a_damaged_one_is_told(tmp_path):
    part = Spent(torch.device("cpu"))
    part.go_on({})
    assert part.told(0)["CPU hours"] < 0.1
    for bad in ("x", dict(seconds="x"), [1]):
        with pytest.raises(ValueError, match="no numbers"):
            part.go_on(bad)


def test_energy_is_told_only_if_all_parts_knew_it(monkeypatch):
    used = iter(range(0, 10**9, 3_600_000))
    monkeypatch.setattr(spent, "joules", lambda device: float(next(used)))
    first = Spent(torch.device("cpu"))
    state = first.state()
    assert state["joules"] == 3_600_000
    second = Spent(torch.device("cpu"))
    second.go_on(state)
    assert second.told(1)["kWh"] == 2
    second.go_on(dict(seconds=3))
    assert "kWh" not in second.told(1)
    assert "joules" not in Spent(torch.device("cpu"), processes=2).state()


def test_processes_spend_hours_each():
    both = Spent(torch.device("cpu"), processes=4)
    both.started -= 3600
    assert 4 <= both.told(1)["CPU hours"] < 4.1


def test_tables_have_columns_for_it_and_shipped_cards_may_lack_it(tmp_path):
    for columns in (COLUMNS, TWO_COLUMNS, DATA_COLUMNS):
        assert set(COST) <= set(columns) and len(columns) == len(set(columns))
    assert set(read_cost(tmp_path)) == set(COST) and not any(read_cost(tmp_path).values())
    (tmp_path / "training.json").write_text('{"cost": 3}')
    assert not any(read_cost(tmp_path).values())
    (tmp_path / "training.json").write_text('{"cost": {"GPU hours": 24.0}}')
    assert read_cost(tmp_path)["GPU hours"] == "24.0"


def test_the_picture_has_ours_and_the_papers(tmp_path):
    (tmp_path / "a").mkdir()
    cost = {name: "" for name in COST}
    rows = [
        cost | {"method": "frozen CLIP", "T2V R@1": "10"},
        cost | {"method": "BT-Adapter", "T2V R@1": "30", "GPU hours": "2"},
        {"method": "of before", "T2V R@1": "20"},
    ]
    for paper, points in PAPER_HOURS.items():
        ours, theirs = hours_picture(rows, paper=paper).axes[0].lines
        assert ours.get_xydata().tolist() == [[2, 30]] and ours.get_label() == "ours"
        assert len(theirs.get_xdata()) == len(points) and "the paper's" in theirs.get_label()
    alone = hours_picture(rows[:1]).axes[0]
    assert len(alone.lines) == 1


def test_where_there_is_no_resource_the_process_tells_its_peak(monkeypatch):
    """As on Windows, where Python has no module of this name."""

    class Told:
        peak_wset = 7 * 2**20

    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(spent.psutil.Process, "memory_info", lambda _: Told)
    assert spent.peak_memory(torch.device("cpu")) == 7 * 2**20
    code = "import psutil, sys; sys.modules['resource'] = None; import bt_adapter.trainer"
    subprocess.run([sys.executable, "-c", code], check=True)
