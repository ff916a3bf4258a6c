"""Folders of results: what is not ours stays, one process at a time, nothing finished is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_files import contents, ended

from bt_adapter import folders
from bt_adapter.cli.console import told_by_us
from bt_adapter.folders import CLAIM, LOCK, check_place, holding, not_ours
from bt_adapter.runs import load_checkpoint
from bt_adapter.trainer import RUN_FILES, Run

FOREIGN = ["log.csv", "losses.png", "broken.csv", "training.json", "checkpoint.before.pt"]
FOREIGN += ["clips.json", "adapter.json", "adapter.safetensors", "tensorboard"]


@pytest.mark.parametrize("how", [{}, dict(overwrite=True), dict(resume=True)], ids=str)
@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_ours_stays(name, how, tmp_path):
    (tmp_path / name).write_text("1,2\n3,4\n")
    (tmp_path / ".movie.mkv.part").write_text("half a film")
    before = contents(tmp_path)
    cut_off = name.startswith("checkpoint")
    if not (cut_off and how.get("resume")):  # then it is read before anything is written
        told = "that was cut off" if cut_off and not how else f"holds {name}, and nothing says"
        with pytest.raises(ValueError, match=told):
            Run(tmp_path, **how)
    assert contents(tmp_path) == before


def test_a_checkpoint_of_others_that_is_tried_makes_nothing_ours(tmp_path):
    for name in ("checkpoint.pt", "log.csv"):
        (tmp_path / name).write_text("1,2\n3,4\n")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"cut off: add --resume to go on with it, or choose"):
        Run(tmp_path)
    with (
        pytest.raises(ValueError, match="no checkpoint of this package"),
        Run(tmp_path, resume=True) as run,
    ):
        load_checkpoint(run.checkpoint, {})
    with pytest.raises(ValueError, match=r"holds log\.csv, and nothing says"):
        Run(tmp_path, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "text", ["{}", "[]", "no json", '{"versions": {"torch": "2"}}', '{"versions": 5}', "[" * 9999]
)
def test_a_card_of_others_is_no_claim(text, tmp_path):
    (tmp_path / "training.json").write_text(text)
    assert not_ours(tmp_path, RUN_FILES) == ["training.json"]


def test_an_adapter_that_was_saved_without_a_card_is_ours_and_replaced_only_if_asked(tmp_path):
    settings = dict(backbone={}, branch={})
    (tmp_path / "adapter.json").write_text(json.dumps(settings))
    (tmp_path / "adapter.safetensors").write_text("")
    with pytest.raises(ValueError, match=r"a finished result, adapter\.json: add --overwrite"):
        Run(tmp_path)
    Run(tmp_path, overwrite=True)
    (tmp_path / "log.csv").write_text("1,2\n")
    with pytest.raises(ValueError, match=r"holds log\.csv, and nothing says"):
        Run(tmp_path, overwrite=True)


HOLD = """
import sys, time
from pathlib import Path
from bt_adapter.folders import holding
folder = Path(sys.argv[1])
with holding(folder, ["log.csv"]):
    (folder / "log.csv").write_text("step")
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder):
    """A process that holds a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def test_two_at_once_are_refused_and_a_killed_one_is_taken_over(tmp_path):
    process = hold(tmp_path)
    for try_it in (lambda: Run(tmp_path), lambda: Run(tmp_path, resume=True, overwrite=True)):
        with pytest.raises(ValueError, match=f"is in use: process {process.pid} on .* is writing"):
            try_it()
    with (
        pytest.raises(ValueError, match=f"is in use: process {process.pid}"),
        holding(tmp_path, []),
    ):
        pass
    assert (tmp_path / LOCK).exists() and (tmp_path / "log.csv").read_text() == "step"
    process.kill()
    process.wait()
    killed = f"process {process.pid} .*did not end by itself"
    with pytest.warns(UserWarning, match=killed) as told, Run(tmp_path):
        assert json.loads((tmp_path / CLAIM).read_text())["process"] == os.getpid()
    assert all(told_by_us(one.category, one.filename) for one in told)
    assert not (tmp_path / LOCK).exists()
    Run(tmp_path)  # its log is known as ours


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_go(number, tmp_path):
    process = hold(tmp_path)
    process.send_signal(number)
    process.wait(timeout=60)
    assert not_ours(tmp_path, ["log.csv"]) == []
    check_place(tmp_path, ["log.csv"], "adapter.json")


def test_a_claim_of_another_machine_is_told(tmp_path):
    (tmp_path / CLAIM).write_text(json.dumps(dict(process=os.getpid(), host="elsewhere")))
    with pytest.warns(UserWarning, match="on elsewhere .*stop it"), holding(tmp_path, []):
        pass
    for text in ("", "[]", '{"process": "x"}', '{"process": null}'):
        (tmp_path / CLAIM).write_text(text)
        with holding(tmp_path, []):
            pass


def test_a_held_folder_is_empty_again_if_nothing_came_of_it(tmp_path):
    with pytest.raises(RuntimeError), holding(tmp_path / "new", RUN_FILES):
        raise RuntimeError("no memory")
    assert not contents(tmp_path / "new")


def test_only_the_first_process_of_a_run_holds_its_folder(tmp_path, monkeypatch):
    with holding(tmp_path, RUN_FILES):
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setattr(folders, "_locked", lambda *_: pytest.fail("the lock was asked for"))
        run = Run(tmp_path)
        run.main = False  # as accelerate says to the second one
        with run:
            pass


# All commands that fill a folder


def test_commands_refuse_folders_of_others(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from bt_adapter.cli import demo, pretrain

    monkeypatch.chdir(tmp_path)
    cases = {"open_clip_config.json": (pretrain.app, ["clip", "--out", "o", "--overwrite"])}
    cases["captions.csv"] = demo.app, ["--write-samples", "o"]
    cases["adapter.json"] = pretrain.app, ["--out", "o", "--overwrite"]
    for name, (app, words) in cases.items():
        Path("o").mkdir(exist_ok=True)
        Path("o", name).write_text("theirs")
        run = CliRunner().invoke(app, words)
        assert isinstance(run.exception, ValueError) and f"o holds {name}" in str(run.exception)
        assert contents(tmp_path / "o") == {name: b"theirs"}
        Path("o", name).unlink()


def test_a_chat_model_is_made_in_a_folder_of_its_own(tmp_path):
    from bt_adapter.instruct import make_small_chat

    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "holiday.mp4").touch()
    with pytest.raises(ValueError, match="holds clips, and nothing says"):
        make_small_chat(tmp_path, None, overwrite=True)
    (tmp_path / "training.json").write_text('{"versions": {"bt_adapter": "0"}}')
    with pytest.raises(ValueError, match=r"a finished result, training\.json: add --overwrite"):
        make_small_chat(tmp_path, None)


def test_a_record_of_answers_is_replaced_only_if_asked(tmp_path):
    from bt_adapter.gallery import check_record

    check_record(tmp_path, overwrite=False)
    (tmp_path / "answers.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="is no record of this package"):
        check_record(tmp_path, overwrite=True)
    (tmp_path / "answers.json").write_text('{"weights": "", "columns": [], "rows": []}')
    with pytest.raises(ValueError, match="add --overwrite"):
        check_record(tmp_path, overwrite=False)
    check_record(tmp_path, overwrite=True)


def test_queries_and_embeddings_of_others_stay(tmp_path):
    from bt_adapter.evaluation import Evaluation
    from bt_adapter.retrieval import claim_folder

    mine = tmp_path / "000003.safetensors"
    mine.write_text("weights of mine")
    asked = dict(data=tmp_path / "data.csv", queries=mine)
    with pytest.raises(ValueError, match="is there already: add --overwrite"):
        Evaluation(**asked)
    Evaluation(**asked, overwrite=True)
    with pytest.raises(ValueError, match=r"holds 000003\.safetensors, and nothing says"):
        claim_folder(tmp_path, weights="a")
    assert [*contents(tmp_path)] == [mine.name]


def test_what_killed_shards_leave_is_swept_away(tmp_path):
    from bt_adapter.datasets import Example, write_shards

    left = tmp_path / f".new.{ended()}.part"
    left.mkdir()
    (left / "000000.tar").write_text("half")
    theirs = tmp_path / f".film.{ended()}.part"
    theirs.touch()
    with pytest.raises(ValueError, match="None of the 1 clips can be packed"):
        write_shards([Example("a", str(tmp_path / "none.mp4"), ("a",))], tmp_path / "new")
    assert [*tmp_path.iterdir()] == [theirs]


def test_the_small_clip_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    from bt_adapter import scenes, small_clip

    def stop(*_):
        raise KeyboardInterrupt

    def of_the_clip(folder):
        names = (*small_clip.CLIP_FILES, "training.json")
        return {name: what for name, what in contents(folder).items() if name in names}

    scale = lambda model, *_: dict(contrast=model.logit_scale.exp())  # noqa: E731
    monkeypatch.setattr(scenes, "clip_figures", lambda *_: {})
    monkeypatch.setattr(small_clip, "clip_loss", scale)
    for name in ("stills", "trails"):
        monkeypatch.setattr(small_clip, name, lambda *_, **__: None)
    scenes.pretrain_small_clip(tmp_path, steps=1)
    before = of_the_clip(tmp_path)
    assert set(before) == {*small_clip.CLIP_FILES, "training.json"}
    assert not [*tmp_path.glob("checkpoint*")]
    with pytest.raises(ValueError, match=r"a finished result, .*add --overwrite"):
        scenes.pretrain_small_clip(tmp_path, steps=1)
    monkeypatch.setattr(scenes.RunLog, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        scenes.pretrain_small_clip(tmp_path, 2, 1, overwrite=True)
    assert of_the_clip(tmp_path) == before
    with pytest.raises(KeyboardInterrupt):
        scenes.pretrain_small_clip(tmp_path / "new", 2, 1)
    assert not of_the_clip(tmp_path / "new")


def test_a_file_of_a_process_that_ended_long_ago_is_no_lock(tmp_path):
    (tmp_path / LOCK).touch()
    os.utime(tmp_path / LOCK, (time.time() - 9e5,) * 2)
    with Run(tmp_path):
        pass
    assert not Path(tmp_path, LOCK).exists()
