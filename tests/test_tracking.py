"""Curves go where they are asked to, go on there, and end no training."""

import json
import sys
import warnings
from pathlib import Path

import pytest

from bt_adapter.ledger import read_csv
from bt_adapter.runs import RunLog, read_log
from bt_adapter.tracking import check_tracker, new_tracker
from bt_adapter.trainer import Run

# A stand-in for trackio and Weights & Biases: what it is told, a line each.
STAND_IN = """
import json, os
def write(**told):
    with open(os.environ["TOLD"], "a") as file:
        file.write(json.dumps(told) + "\\n")
class Config:
    def update(self, values, allow_val_change=False):
        write(settings=values)
class Run:
    def log(self, values, step=None, **how):
        if step == int(os.environ.get("FAILS_AT", -1)):
            raise OSError("the key " + os.environ["WANDB_API_KEY"] + " is no longer good")
        write(values=values, step=step)
    def finish(self):
        print("http://here/?write_token=" + os.environ["WANDB_API_KEY"])
        write(finished=True)
def finish():
    going.pop().finish()
def init(project, **how):
    if os.environ.get("REFUSES"):
        raise RuntimeError("no such key: " + os.environ["WANDB_API_KEY"])
    print("http://here/?write_token=" + os.environ["WANDB_API_KEY"])
    write(project=project, **how)
    going.append(Run())
    return going[-1]
going = []  # trackio ends what is left of these when Python ends
config = Config()
"""


@pytest.fixture
def told(tmp_path, monkeypatch):
    "Stand-ins are installed; gives a function that tells what has reached them."
    place = tmp_path / "packages"
    place.mkdir()
    for name in ("trackio", "wandb"):
        (place / f"{name}.py").write_text(STAND_IN)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("TOLD", str(tmp_path / "told.jsonl"))
    monkeypatch.setenv("WANDB_API_KEY", "a-key-of-sixteen")
    yield lambda: [*map(json.loads, (tmp_path / "told.jsonl").read_text().splitlines())]
    for name in ("trackio", "wandb"):
        sys.modules.pop(name, None)


def log(folder, start, steps, **how):
    with RunLog(folder, "tracked", steps=4, start=start, **how) as kept:
        for step in range(start, steps):
            kept.add(step, clips=4, loss=3.0 - step, figures={})


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_run_goes_on_in_its_tracker(name, told, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    log(folder, 0, 3, track=name, settings=dict(seed=5))
    log(folder, 2, 4, track=name, settings=dict(seed=5))  # killed after step 2, saved after 2
    log(folder, 0, 1, track=name, settings=dict(seed=5))  # begun anew
    rows = told()
    first, resumed, anew = (row for row in rows if "project" in row)
    assert first == resumed and first["name"] != anew["name"]
    assert first["resume"] == "allow" and first["name"].startswith("run-")
    assert [row["step"] for row in rows if "step" in row] == [0, 1, 2, 2, 3, 0]
    assert sum("finished" in row for row in rows) == 3
    curves = [row["values"] for row in rows if "step" in row]
    assert [row["loss"] for row in curves] == [3, 2, 1, 1, 0, 3]
    assert all(row.keys() == {"loss", "clips/s"} for row in curves)  # trackio has its own "step"
    if name == "wandb":
        assert rows[1] == dict(settings=dict(seed=5))
    else:
        assert first["config"] == dict(seed=5) and not sys.modules["trackio"].going
        said = capsys.readouterr()  # it prints addresses with a token in them
        assert not said.out and "a-key-of" not in said.err


def test_a_tracker_that_fails_ends_no_training(told, tmp_path, monkeypatch):
    monkeypatch.setenv("FAILS_AT", "1")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        log(tmp_path, 0, 4, track="wandb")
    (said,) = [str(one.message) for one in said if "no more curves" in str(one.message)]
    assert "$WANDB_API_KEY is no longer good" in said and "a-key" not in said
    assert read_log(tmp_path / "log.csv")["step"] == [0, 1, 2, 3]
    assert [row["step"] for row in told() if "step" in row] == [0]


def test_a_tracker_that_refuses_is_told_without_its_key(told, tmp_path, monkeypatch):
    monkeypatch.setenv("REFUSES", "1")
    with pytest.raises(ValueError, match="wandb does not begin a run: no such key") as refused:
        new_tracker("wandb", tmp_path)
    assert "a-key" not in str(refused.value) and "$WANDB_API_KEY" in str(refused.value)


def test_tensorboard_has_each_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log(tmp_path, 0, 3)  # the default, where it is installed
    log(tmp_path, 1, 4, track="tensorboard")
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == [0, 1, 2, 3]
    assert not (tmp_path / "tracked.json").exists()


def test_what_is_not_there_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("bt_adapter.tracking.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="wandb is not installed: pip install wandb"):
        Run(tmp_path / "run", track="wandb")
    with pytest.raises(ValueError, match="choose from tensorboard, trackio, wandb"):
        check_tracker("wand")
    assert not (tmp_path / "run").exists() and new_tracker(None, tmp_path) is None


def test_a_broken_tensorboard_that_nobody_asked_for_ends_no_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # installed, and damaged
    monkeypatch.delattr("torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.warns(UserWarning, match=r"tensorboard does not begin a run: .*log\.csv has all"):
        log(tmp_path, 0, 2)
    assert len(read_log(tmp_path / "log.csv")["step"]) == 2
    with pytest.raises(ValueError, match="tensorboard does not begin a run"):
        log(tmp_path, 0, 2, track="tensorboard")


def test_rows_of_the_real_trackers():
    """What `tests/benchmarks/trackers_once.py` read back: the log's figures, to its six digits."""
    rows = read_csv(Path(__file__).parent / "benchmarks" / "trackers_once.csv")
    cuts = {(row["tracker"], row["cut off by"]) for row in rows}
    assert cuts == {(name, cut) for name in ("trackio", "wandb") for cut in ("SIGTERM", "SIGKILL")}
    for row in rows:
        kept = int(row["steps"]) - int(row["missing"])
        assert int(row["values"]) == 11 * kept > 0  # curves of a step
        assert float(row["largest relative difference"]) <= 5e-6
        assert row["cut off by"] == "SIGKILL" or row["missing"] == row["twice"] == "0"
