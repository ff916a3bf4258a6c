"""The commands: what they load, how they start and how they end."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from tidy import ROOT

CLIP = ROOT / "data_samples/clips/right.mp4"
COMMANDS = ("demo", "pretrain", "evaluate", "ablations", "chat", "judge", "gallery")

# One process a command line, forked from one that has loaded the commands and nothing else.
WHAT_LOADS = """
import importlib, io, json, os, sys
from contextlib import redirect_stderr, redirect_stdout

for name in {command for command, _ in LINES}:
    importlib.import_module(f"bt_adapter.cli.{name}")
found = []
for name, arguments in LINES:
    reading, writing = os.pipe()
    if os.fork() == 0:
        status, told = None, io.StringIO()
        sys.argv = [f"bta-{name}", *arguments]
        try:
            with redirect_stderr(told), redirect_stdout(io.StringIO()):
                sys.modules[f"bt_adapter.cli.{name}"].main()
        except SystemExit as stop:
            status = stop.code or 0
        heavy = sorted({"torch", "numpy", "matplotlib", "transformers"} & set(sys.modules))
        with open(writing, "w") as out:
            json.dump([status, heavy, told.getvalue()], out)
        os._exit(0)
    os.close(writing)
    found.append(json.load(open(reading)))
    os.wait()
print(json.dumps(found))
"""

WRONG = {
    "demo nowhere.mp4": "there is no such file",
    "demo --model nowhere": "no adapter folder",
    "demo --picture x.mp4": "must end in .png",
    "demo --captions nowhere.txt": "nowhere.txt",
    "demo --write-samples file": "file is a file",
    "demo --nothing": "No such option",
    "demo --reader x": "choose from pyav, decord",
    "evaluate --reader decord": "--reader belongs to --data",
    "evaluate --data file --reader x": "choose from pyav, decord",
    "pretrain --reader decord": "--reader is of use with --data only",
    "pretrain --data file --reader x": "choose from pyav, decord",
    "chat nowhere.mp4": "there is no such file",
    "chat file --template x": "choose from llava",
    "chat file --model a-llava": "There is no chat model 'a-llava'",
    "chat file --model a/llava": "a/llava has no --video",
    "chat file --video nowhere": "no adapter folder",
    "chat .": "it is a folder; name one of its clips",
    "chat file --ask ": "A question is empty",
    "chat file --frames 0": "--frames",
    "chat": "Missing argument",
    "evaluate nowhere": "no adapter folder",
    "evaluate --frames 4": "--frames belongs to --data",
    "evaluate --released nowhere.pth": "There is no file nowhere.pth",
    "evaluate --data nowhere.csv": "There is no annotation nowhere.csv",
    "evaluate --data file --format vatex": "No format is called 'vatex'",
    "evaluate --data file --settings mine": "must be paper or released",
    "evaluate --heads 3": "belong to --released",
    "evaluate --activation gelu": "--activation belongs to --clip",
    "pretrain --activation relu": "activation must be gelu or quickgelu",
    "evaluate --clips 0": "--clips must be 1 or more",
    "pretrain --preset huge": "use quick or full or paper or released",
    "pretrain --steps 0": "steps must be 1 or more",
    "pretrain --out file": "file is a file",
    "pretrain --split test": "--split is of use with --data only",
    "pretrain --data nowhere.csv": "There is no annotation nowhere.csv",
    "pretrain --data file --validation nowhere.csv": "There is no annotation nowhere.csv",
    "pretrain shards nowhere.csv out": "There is no annotation nowhere.csv",
    "pretrain clip --steps 0": "steps must be 1 or more",
    "pretrain instruct --adapter nowhere": "no adapter folder",
    "pretrain tune --model x --data y --adapter nowhere": "no adapter folder",
    "ablations --seeds 0": "one seed or more",
    "ablations --table 2": "choose from Table 1",
    "ablations --out gone/x.csv": "name a file in an existing folder",
    "judge nowhere.json": "cannot be read as JSON",
    "gallery nowhere": "no chat model",
}


def test_help_and_mistakes_load_nothing_heavy(tmp_path):
    (tmp_path / "file").write_text("")
    helps = [[name, ["--help"]] for name in COMMANDS]
    helps += [["pretrain", [sub, "--help"]] for sub in ("shards", "clip", "instruct", "tune")]
    lines = helps + [[name, rest] for name, *rest in (line.split(" ") for line in WRONG)]
    code = f"LINES = {lines!r}\n{WHAT_LOADS}"
    run = dict(cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    done = subprocess.run([sys.executable, "-c", code], **run)
    found = json.loads(done.stdout)
    for (name, arguments), (status, heavy, told) in zip(lines, found, strict=True):
        said = name, arguments, told
        assert not heavy, (*said, heavy)
        assert status == (0 if "--help" in arguments else 2), said
    for message, (_, _, told) in zip(WRONG.values(), found[len(helps) :], strict=True):
        assert message in told and "Traceback" not in told, (message, told)
    assert os.listdir(tmp_path) == ["file"]


def test_names_are_those_of_the_modules():
    from bt_adapter import ablations, benchmark, chat, datasets, pretrain
    from bt_adapter.cli import options

    assert options.RECIPES == (*pretrain.PRESETS,)
    assert options.POOLINGS == (*chat.POOLINGS,)
    assert options.TEMPLATES == (*chat.TEMPLATES,)
    assert {*options.FORMATS} == {*datasets.FORMATS}
    assert options.ASPECTS == (*benchmark.RUBRICS,)
    assert options.STUDIES == tuple(dict.fromkeys(row.table for row in ablations.ROWS))


# How they start and end.


def start(tmp_path, command, *arguments, torch=None, typer=None, **more):
    """A command as it is called, with stand-ins for torch and typer if they are given as code."""
    for name, code in dict(torch=torch, typer=typer).items():
        if code is not None:
            (tmp_path / f"{name}.py").write_text(code)
    script = Path(sys.executable).with_name(f"bta-{command}")
    env = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    env |= dict(PYTHONPATH=f"{tmp_path}:{ROOT}", OMP_NUM_THREADS="1")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, text=True)
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # jobs of a script ignore it
    command = [script, *map(str, arguments)]
    return subprocess.Popen(command, env=env | more, preexec_fn=listen, **pipes)


SLOW = "import pathlib, time; pathlib.Path('there').touch(); time.sleep(60)"


@pytest.mark.parametrize("slow", ["typer", "torch"])
def test_ctrl_c_while_it_starts_is_silent(tmp_path, slow):
    run = start(tmp_path, "chat", CLIP, "--ask", "What?", **{slow: SLOW})
    while not (tmp_path / "there").exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=30)
    assert run.returncode == 130 and out == ""
    assert err == ("" if slow == "typer" else "loading the chat model ...\n")


STARTS = {  # what torch does instead of being imported
    "raise MemoryError": "the memory of this machine is too small",
    "raise OSError(12, 'Cannot allocate memory')": "Cannot allocate memory",
    "raise RuntimeError('CPU: not enough memory: 1 byte')": "memory of this machine",
    "raise RecursionError": "nested too deeply",
    "raise ImportError('libtorch.so: failed to map\\nmore')": "cannot be loaded: libtorch",
    "import nowhere": "this needs nowhere",
}


@pytest.mark.parametrize("code", STARTS)
def test_what_fails_while_it_starts_is_one_sentence(tmp_path, code):
    run = start(tmp_path, "demo", torch=code)
    out, err = run.communicate(timeout=60)
    first, error = err.splitlines()
    assert (run.returncode, out) == (2, "") and first.endswith(" ...")
    assert error.startswith("error: ") and STARTS[code] in error
    assert not (tmp_path / "bta-demo.png").exists()


def test_a_name_that_begins_with_a_dash(tmp_path):
    (tmp_path / "-4wsuPCjDBc_5_15.avi").write_text("no clip")
    name = "-4wsuPCjDBc_5_15.avi"
    for arguments, told in (([name], True), (["./" + name], False), (["--", name], False)):
        _, err = start(tmp_path, "demo", *arguments).communicate(timeout=60)
        assert (f"is written ./{name}, or stands after a lone --" in err) == told, err
        assert told or f"{name}: it is no video file" in err


def test_a_fault_of_the_program_keeps_its_traceback(tmp_path):
    run = start(tmp_path, "demo", torch="raise KeyError('x')")
    _, err = run.communicate(timeout=60)
    assert run.returncode == 1 and "Traceback" in err and err.endswith("KeyError: 'x'\n")


def test_a_closed_pipe_is_no_traceback(tmp_path):
    rows = [dict(id=i, question="q", answer="a", pred="a") for i in range(3)]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    run = start(tmp_path, "judge", "p.json")
    run.stdout.close()
    assert "Traceback" not in run.stderr.read() and run.wait(60) in (0, 1)


@pytest.mark.parametrize("as_json", [False, True])
def test_warnings_of_others_are_left_out(tmp_path, as_json):
    """A foreign package warns while it is imported; what is told is ours alone."""
    code = "import warnings; warnings.warn('a path of theirs', FutureWarning, 1); raise MemoryError"
    run = start(tmp_path, "demo", *["--json"] * as_json, torch=code)
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (2, "") and "theirs" not in err
    assert len(err.splitlines()) == (1 if as_json else 2)
    (tmp_path / "torch.py").unlink()
    run = start(tmp_path, "demo", torch=code, PYTHONWARNINGS="default")
    assert "a path of theirs" in run.communicate(timeout=60)[1]


def test_what_we_log_is_a_plain_line(capsys, monkeypatch):
    """Also after a library has set up logging, as open_clip does when it says something."""
    import logging

    from bt_adapter.cli import console

    monkeypatch.setattr(logging.root, "handlers", [])
    logging.warning("not ours")
    capsys.readouterr()
    with console.own_messages():
        logging.getLogger("bt_adapter.chat.fetch").warning("this takes a while")
    assert capsys.readouterr().err == "this takes a while\n"
    assert not logging.getLogger("bt_adapter").handlers


def test_our_own_warnings_are_notes(capsys):
    import warnings

    import typer

    from bt_adapter.cli import console

    app = typer.Typer()

    @app.command()
    def warns():
        warnings.warn_explicit("the weights are random", UserWarning, console.__file__, 1)
        warnings.warn_explicit("soon gone", FutureWarning, console.__file__, 1)
        warnings.warn_explicit("of others", UserWarning, os.__file__, 1)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sys, "argv", ["bta-x"])
        patch.setattr(sys, "warnoptions", [])
        warnings.simplefilter("always")
        console.run(app)
    assert capsys.readouterr().err == "note: the weights are random\n"


@pytest.mark.parametrize("fast", ["float32", "bfloat16"])
def test_bf16_where_it_is_slow_is_a_note(monkeypatch, capsys, fast):
    import torch

    from bt_adapter import precision
    from bt_adapter.cli.pretrain import tell_if_slow

    monkeypatch.setattr(precision, "fast_dtype", lambda: getattr(torch, fast))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tell_if_slow(None)
    tell_if_slow("bf16")
    assert capsys.readouterr().err.count("slow in bf16") == (fast == "float32")


def test_only_commands_parse_arguments():
    package = ROOT / "bt_adapter"
    found = [path for path in package.rglob("*.py") if "typer" in path.read_text(encoding="utf-8")]
    assert {path.parent.name for path in found} == {"cli"}
