"""The commands: what they load, how they start and how they end."""

import inspect
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from tidy import NOTEBOOKS, ROOT

CLIP = ROOT / "data_samples/clips/right.mp4"
TEXT = {".md", ".json", ".csv"}
COMMANDS = ("demo", "pretrain", "evaluate", "ablations", "chat", "judge", "gallery", "timecheck")
COMMANDS += ("explore",)

# One process a command line, forked from one that has loaded the commands and nothing else.
WHAT_LOADS = """
import importlib, io, json, sys
from contextlib import redirect_stderr, redirect_stdout

HEAVY = {"torch", "numpy", "matplotlib", "transformers"}
found = []
for name, arguments in LINES:
    command = importlib.import_module(f"bt_adapter.cli.{name}")
    sys.argv, status, told = [f"bta-{name}", *arguments], None, io.StringIO()
    try:
        with redirect_stderr(told), redirect_stdout(io.StringIO()):
            command.main()
    except SystemExit as stop:
        status = stop.code or 0
    found.append([status, sorted(HEAVY & set(sys.modules)), told.getvalue()])
print(json.dumps(found))
"""

WRONG = {
    "demo nowhere.mp4": "there is no such file",
    "demo --adapter nowhere": "no adapter folder",
    "demo --picture x.mp4": "must end in .png",
    "demo --captions nowhere.txt": "nowhere.txt",
    "demo --write-samples file": "file is a file",
    "demo --nothing": "No such option",
    "demo --reader x": "choose from pyav, decord",
    "evaluate --reader decord": "--reader belongs to --data",
    "evaluate --data file --reader x": "choose from pyav, decord",
    "pretrain --reader decord": "--reader belongs to --data",
    "pretrain --data file --reader x": "choose from pyav, decord",
    "chat nowhere.mp4": "there is no such file",
    "chat file --template x": "choose from llava",
    "chat file --template llava_v1 --frames 0": "--frames",
    "chat file --add-markers": "--add-markers",
    "chat file --template vicuna-v1-1 --frames 0": "--frames",
    "chat file --model a-llava": "There is no chat model 'a-llava'",
    "chat file --model a/llava": "a/llava has no --video",
    "chat file --video nowhere": "no adapter folder",
    "chat .": "it is a folder; name one of its clips",
    "chat file --ask ": "--ask is empty",
    "chat file --frames 0": "--frames",
    "chat": "Missing argument",
    "evaluate nowhere": "no adapter folder",
    "evaluate --tokens 4": "--tokens belongs to --data",
    "evaluate --released nowhere.pth": "There is no file nowhere.pth",
    "evaluate --data nowhere.csv": "There is no annotation nowhere.csv",
    "evaluate --data file --format vatex": "No format is called 'vatex'",
    "evaluate --data file --settings mine": "must be paper or released",
    "evaluate --heads 3": "belongs to --released",
    "evaluate --activation gelu": "--activation belongs to --clip",
    "pretrain --clip x --activation relu": "activation must be gelu or quickgelu",
    "evaluate --limit 0": "--limit must be 1 or more",
    "pretrain --preset huge": "or paper or released or released-eva",
    "pretrain --set layer=6": "no setting is called 'layer': the nearest is layers",
    "pretrain --data file": "name another with --clip",
    "pretrain --steps 0": "steps must be 1 or more",
    "pretrain --out file": "file is a file",
    "pretrain --split test": "--split belongs to --data",
    "pretrain --data nowhere.csv": "There is no annotation nowhere.csv",
    "pretrain --data file --validation nowhere.csv": "There is no annotation nowhere.csv",
    "pretrain shards nowhere.csv out": "There is no annotation nowhere.csv",
    "pretrain clip --steps 0": "steps must be 1 or more",
    "pretrain instruct --adapter nowhere": "no adapter folder",
    "pretrain tune --model x --dialogues y --adapter nowhere": "no adapter folder",
    "ablations --seeds 0": "one seed or more",
    "ablations --table 2": "choose from Table 1",
    "ablations --csv gone/x.csv": "name a file in an existing folder",
    "judge nowhere.json": "cannot be read as JSON",
    "gallery nowhere": "no chat model",
    "timecheck ./nowhere": "There is no folder ./nowhere",
    "timecheck file": "file is a file",
    "explore nowhere.mp4": "there is no such file",
    "explore . -o x.html": "it is a folder",
    "explore file -o x.png": "ends in .html",
    "timecheck moving-shapes --pretrained x": "has weights of its own",
    "timecheck read --pipeline": "named as MODULE:FUNCTION",
    "timecheck a:b --pipeline --size 32": "--size is for models",
    # an option in the wrong place
    "pretrain --model x": "no option --model: it belongs to bta-chat and bta-pretrain tune",
    "pretrain --model=x tune": "it belongs to bta-chat and bta-pretrain tune",
    "pretrain tune --epochs 2": "bta-pretrain tune has no option --epochs: it belongs",
    "pretrain --epochs 2 tune": "bta-pretrain tune has no option --epochs: it belongs",
    "pretrain --seed 2 clip": "--seed stands in front of clip: write bta-pretrain clip --seed",
    "evaluate --epochs 2": "bta-evaluate has no option --epochs: it belongs to bta-pretrain",
    "demo --no-gates": "bta-demo has no option --no-gates: it belongs to bta-evaluate",
    "judge x.json --seed=1": "has no option --seed: it belongs to bta-ablations, bta-pretrain",
    "pretrain --workers 2": "--workers belongs to --data",
    "pretrain --views 2": "--views belongs to --data",
    "pretrain --validation-split x": "--validation-split belongs to --validation",
    "pretrain --format webvid": "--format belongs to --data",
    # one that means something else than it did
    "evaluate --clips 408": "--clips is the folder of the clips; how many of them is --limit 408",
    "evaluate --clips file": "--clips belongs to --data",
    "pretrain tune --model x --dialogues y --preset quick": "use paper or released",
    "pretrain tune --model x --dialogues y --frames 0": "--frames must be 1 or more, not 0",
    "pretrain instruct --scenes 3": "--scenes must be 54 or more, not 3",
}
FORMER = {  # a command line of the last edition -> the option's name in this one, and what is said
    "demo --model nowhere": ("--adapter", "nowhere is no adapter folder"),
    "evaluate --videos=file --data none.csv": ("--clips", "There is no annotation none.csv"),
    "ablations --out gone/x.csv": ("--csv", "gone/x.csv is no place for a file"),
    "judge none.json --model x": ("--judge", "none.json cannot be read as JSON"),
    "judge none.json --workers 0": ("--parallel", "Invalid value for '--parallel'"),
    "gallery nowhere --clips 3": ("--scenes", "nowhere is no chat model"),
    "pretrain tune --model x --data y --adapter no": ("--dialogues", "no is no adapter folder"),
}


def test_help_and_mistakes_load_nothing_heavy(tmp_path):
    (tmp_path / "file").write_text("")
    helps = [[name, ["--help"]] for name in COMMANDS]
    helps += [["pretrain", [sub, "--help"]] for sub in ("shards", "clip", "instruct", "tune")]
    given = [line.split(" ") for line in (*WRONG, *FORMER)]
    lines = helps + [[name, rest] for name, *rest in given]
    code = f"LINES = {lines!r}\n{WHAT_LOADS}"
    run = dict(cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    done = subprocess.run([sys.executable, "-c", code], **run)
    found = json.loads(done.stdout)
    for (name, arguments), (status, heavy, told) in zip(lines, found, strict=True):
        said = name, arguments, told
        assert not heavy, (*said, heavy)
        assert status == (0 if "--help" in arguments else 2), said
    wrong, former = found[len(helps) :][: len(WRONG)], found[len(helps) + len(WRONG) :]
    for message, (_, _, told) in zip(WRONG.values(), wrong, strict=True):
        assert message in told and "Traceback" not in told, (message, told)
        assert told.startswith(("error: ", "Usage: ")), told
    for (name, message), (_, _, told) in zip(FORMER.values(), former, strict=True):
        assert told.startswith("note: --") and f" is called {name} now" in told, told
        assert message in told and "Traceback" not in told, (message, told)
    assert os.listdir(tmp_path) == ["file"]


def option_hints():
    """(command line, option, click's option, the hint of its parameter) of all commands."""
    from bt_adapter.cli.console import command_lines

    for line, program in command_lines().items():
        hints = inspect.signature(program.callback).parameters
        for option in program.params:
            if option.param_type_name == "option":
                yield line, option.opts[0], option, hints[option.name].annotation


def test_an_option_means_the_same_in_all_commands():
    from bt_adapter.cli import options

    known = {}
    for line, name, option, hint in option_hints():
        aliases = [alias for alias, value in vars(options).items() if value == hint]
        assert len(aliases) == 1, f"{line} {name}: its hint is to be one of cli/options.py"
        known.setdefault(name, {}).setdefault((*aliases, option.help), []).append(line)
    two = {name: list(told.values()) for name, told in known.items() if len(told) > 1}
    assert not two, f"these mean one thing here and another there: {two}"
    assert len(known["--clips"].popitem()[1]) == 5  # pretrain, shards, tune, evaluate, ablations


def test_all_commands_are_asked_where_an_option_belongs():
    from configparser import ConfigParser

    from bt_adapter.cli.console import command_lines

    settings = ConfigParser()
    settings.read(ROOT / "settings.ini")
    scripts = settings["DEFAULT"]["console_scripts"].split("\n")
    places = {line.split(" = ")[0]: line.split(" = ")[1] for line in filter(None, scripts)}
    assert {line for line in command_lines() if " " not in line} == places.keys()
    for name, place in places.items():
        assert place == f"bt_adapter.cli.{name.removeprefix('bta-')}:main"


def test_commands_that_are_written_down_can_be_given_so():
    """In README, notebooks, cards and CSV files: with options that the command has today."""
    from bt_adapter.cli.console import command_lines, spellings

    lines = {line: spellings(program) for line, program in command_lines().items()}
    samples = [path for path in (ROOT / "data_samples").rglob("*.*") if path.suffix in TEXT]
    texts = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *samples]}
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        texts[path] = "\n".join(prose)
    found = 0
    for path, text in texts.items():
        for words in map(str.split, re.findall(r"bta-[a-z]+ [^`\n|]*--[^`\n|]*", text)):
            line = " ".join(words[:2]) if " ".join(words[:2]) in lines else words[0]
            given = {option for word in words for option in re.findall(r"^--[a-z][a-z-]*", word)}
            assert given <= lines[line], f"{path.name}: {line} has no {given - lines[line]}"
            found += 1
    assert found > 100


def test_old_names_hide_no_option_of_this_edition():
    from bt_adapter.cli.console import command_lines, spellings

    for line, program in command_lines().items():
        former = getattr(program, "former", {})
        assert not former.keys() & spellings(program), line
        assert {*former.values()} <= spellings(program), line


def test_words_behind_two_dashes_are_no_options(capsys):
    from bt_adapter.cli.console import in_new_words

    assert in_new_words(["--a=--a", "b", "--", "--a"], {"--a": "--c"}) == [
        "--c=--a",
        "b",
        "--",
        "--a",
    ]
    assert capsys.readouterr().err.count("\n") == 1


OF_A_RUN = "--steps 3 --store s --resume --overwrite --save-every 3 --seed 3 --workers 3 --clips c"
EVERY_OPTION = {
    "pretrain": f"{OF_A_RUN} --out o --preset full --data file --format webvid --split test "
    "--validation file --validation-split x --broken 0.3 --clip c --pretrained x --activation gelu "
    "--epochs 3 --batch 3 --chunk 3 --precision bf16 --ema 0.3 --views 3 --reader decord "
    "--wait 3.0 --strategy STAN --set layers=6 --track tensorboard",
    "pretrain tune": f"{OF_A_RUN} --frames 3 --model m --dialogues file --out o --preset released "
    "--adapter moving-shapes --template llava",
    "evaluate": "moving-shapes --released file --no-gates --heads 3 --clip c --pretrained x "
    "--activation gelu --data file --format webvid --clips c --split test --limit 3 --skip "
    "--settings released --frames 3 --tokens 3 --classes file --prompt {} --ties released "
    "--csv r.csv --queries q.csv --overwrite --faiss --keep k --batch 3 --workers 3 "
    "--reader decord --device cuda",
}


def test_every_option_reaches_the_work(tmp_path, monkeypatch):
    """Each as it was given: none is dropped or exchanged on the way, and defaults are the same."""
    from dataclasses import fields

    from typer.testing import CliRunner

    from bt_adapter import instruct, zero_shot
    from bt_adapter.cli import evaluate, pretrain

    found = {}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(pretrain, "train_on_clips", lambda asked: found.update(pretrain=asked))
    monkeypatch.setattr(zero_shot, "evaluate", lambda asked: found.update(evaluate=asked) or 1 / 0)
    tune = lambda **given: found.update({"pretrain tune": pretrain.Tuning(**given)})  # noqa: E731
    monkeypatch.setattr(instruct, "tune", tune)
    programs = {"pretrain": pretrain.app, "pretrain tune": pretrain.app, "evaluate": evaluate.app}
    for line, options in EVERY_OPTION.items():
        run = CliRunner().invoke(programs[line], [*line.split()[1:], *options.split()])
        assert line in found, run.output or run.exception
        for field in fields(found[line]):
            value, told = getattr(found[line], field.name), str(getattr(found[line], field.name))
            # not of --data, or of a plan, or of a saved dataset (see below), or beside --strategy
            others = "adapter", "level", "uneven", "plan", "gpu", "video_column", "caption_column"
            others += ("start",)
            if field.name not in others:
                assert value != field.default, f"{line}: {field.name} does not arrive"
            word = field.name.replace("_", "-")
            word = "dialogues" if (line, word) == ("pretrain tune", "data") else word
            if f"--{word} " in options and not isinstance(value, bool | list | tuple):
                assert f"--{word} {told} " in f"{options} ", f"{line}: {field.name} is {told}"


def test_columns_of_a_saved_dataset_reach_the_work(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from bt_adapter import zero_shot
    from bt_adapter.cli import evaluate, pretrain

    found = {}
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    monkeypatch.setattr(pretrain, "train_on_clips", lambda asked: found.update(pretrain=asked))
    monkeypatch.setattr(zero_shot, "evaluate", lambda asked: found.update(evaluate=asked) or 1 / 0)
    columns = ["--video-column", "film", "--caption-column", "told", "--data", tmp_path / "saved"]
    for name, app, more in (
        ("pretrain", pretrain.app, ["--clip", "c", "--pretrained", "x"]),
        ("evaluate", evaluate.app, ["moving-shapes"]),
    ):
        run = CliRunner().invoke(app, [str(word) for word in [*more, *columns]])
        assert name in found, run.output or run.exception
        assert (found[name].video_column, found[name].caption_column) == ("film", "told")


def test_defaults_are_those_of_the_values():
    from dataclasses import MISSING, fields

    from bt_adapter import instruct
    from bt_adapter.cli import evaluate, pretrain
    from bt_adapter.evaluation import Evaluation

    names = {"format": "layout", "csv": "table"}
    pairs = {pretrain.Pretraining: pretrain.adapter, Evaluation: evaluate.evaluate}
    for kind, command in (pairs | {pretrain.Tuning: instruct.tune}).items():
        known = inspect.signature(command).parameters
        for field in fields(kind):
            default = known[names.get(field.name, field.name)].default
            default = MISSING if default is inspect.Parameter.empty else default
            assert (default or None) == (field.default or None), (kind, field.name)
    tune = inspect.signature(pretrain.tune).parameters
    assert {f.name for f in fields(pretrain.Tuning)} == {*tune} - {"dialogues"} | {"data"}


def test_names_are_those_of_the_modules():
    from bt_adapter import (
        ablations,
        benchmark,
        chat,
        datasets,
        full_length,
        pretrain,
        strategy_files,
    )
    from bt_adapter.cli import options

    assert options.RECIPES == (*pretrain.PRESETS,)
    assert options.STRATEGIES == strategy_files.NAMES
    assert options.POOLINGS == (*chat.POOLINGS,)
    assert options.TEMPLATES == (*chat.TEMPLATES,)
    assert options.ALIASES == (*chat.ALIASES,)
    assert {*options.FORMATS} == {*datasets.FORMATS}
    assert options.ASPECTS == (*benchmark.RUBRICS,)
    assert options.STUDIES == tuple(dict.fromkeys(row.table for row in ablations.ROWS))
    assert options.FULL_ROWS == tuple(row.name for row in full_length.FULL_ROWS)


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
    told = "loading the chat model moving-shapes, which mostly takes less than a minute ...\n"
    assert err == ("" if slow == "typer" else told)


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
    assert "Traceback" not in run.stderr.read() and run.wait(60) == 141


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
def test_bf16_where_it_is_slow_is_one_note(monkeypatch, capsys, fast):
    import torch
    import typer
    from tiny_runs import Source, tiny_adapter

    from bt_adapter import precision, pretrain
    from bt_adapter.cli import console

    app = typer.Typer()

    @app.command()
    def train():
        config = pretrain.choose_recipe("quick", steps=1, batch=4, precision="bf16")
        pretrain.pretrain(tiny_adapter(), Source(), config)

    monkeypatch.setattr(precision, "fast_dtype", lambda *_: getattr(torch, fast))
    monkeypatch.setattr(precision, "_warn_emulated", precision._warn_emulated.__wrapped__)
    monkeypatch.setattr(sys, "argv", ["bta-x"])
    monkeypatch.setattr(sys, "warnoptions", [])
    with pytest.raises(SystemExit):
        console.run(app)
    assert capsys.readouterr().err.count("note: This processor") == (fast == "float32")


# A conversation in the terminal, with a model that is quick to load.

TALKS = """
import sys, time
from types import SimpleNamespace as Of

sys.modules["bt_adapter.video"] = Of(read_clip=lambda *a, **k: None)
from bt_adapter.cli import chat as command


class Talk:
    forgotten, turns, chosen = 0, [Of(finished=True)], "prompt: x, as you asked"

    def stream(self, question):
        if not question.strip():
            raise ValueError("The question is empty.")
        return self.pieces(question)

    def pieces(self, question):
        for n in range(500 if question == "long" else 1):
            yield f"word{n} "
            time.sleep(0.02 * (question == "long"))
        if question == "fail":
            raise RuntimeError("no\\x1b[31m numbers left\\nat all")
        yield f"you said {question}"


command.conversation = lambda *a: Talk()
command.tell_world = lambda *a: None
command.main()
"""


class Typist:
    """Someone at a terminal in which `bta-chat` runs."""

    def __init__(self, *arguments):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            env = os.environ | dict(PYTHONPATH=str(ROOT), TERM="dumb")
            command = [sys.executable, "-c", TALKS, str(CLIP), *arguments]
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # jobs of a script ignore it
            os.execve(sys.executable, command, env)
        self.seen = b""

    def until(self, *wanted):
        """Read until all of these came in this order; what was seen."""
        for text in wanted:
            deadline = time.monotonic() + 60
            while text.encode() not in self.seen:
                assert time.monotonic() < deadline, (text, self.seen)
                if select.select([self.terminal], [], [], 0.1)[0]:
                    self.seen += os.read(self.terminal, 65536)
            before, _, self.seen = self.seen.partition(text.encode())
        return before

    def type(self, text):
        os.write(self.terminal, text.encode())

    def leave(self, key=""):
        """The exit status, once the command has ended; the key is pressed until it has."""
        with suppress(OSError):  # the other end is closed
            self.type(key)
            while True:
                if not select.select([self.terminal], [], [], 10)[0]:
                    self.type(key)  # readline misses a signal that comes just before it waits
                elif not os.read(self.terminal, 65536):
                    break
        os.close(self.terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on():
    at = Typist()
    at.until("loading the chat model moving-shapes, which mostly takes less than a minute ...")
    at.until("loaded in ", " s; prompt: x", "> ")
    at.type("long\n")
    at.until("word3")
    at.type("\x03")
    said = at.until("[stopped]", "> ")
    assert b"word400" not in said
    for typed, told in {
        "hello": "you said hello",
        "fail": r"word0  [the model stopped: RuntimeError: no\x1b[31m numbers left]",
        "": "[The question is empty.]",
        "<b>&amp;</b>": "you said <b>&amp;</b>",
    }.items():
        at.type(f"{typed}\n")
        at.until(told, "> ")
    at.type("one\ntwo\n")  # two at once are answered one behind the other
    assert b"you said two" not in at.until("you said one", "you said two", "> ")
    assert at.leave("\x03") == 0


def test_ctrl_c_ends_questions_of_a_script():
    at = Typist("--ask", "long", "--ask", "hello")
    at.until("word3")
    at.type("\x03")
    at.until("[stopped]")
    assert at.leave() == 130


def piped(text, *arguments):
    command = [sys.executable, "-c", TALKS, str(CLIP), *arguments]
    env = os.environ | dict(PYTHONPATH=str(ROOT), PYTHONIOENCODING="utf-8:strict")
    return subprocess.run(command, input=text, capture_output=True, env=env, timeout=120)


def test_a_script_learns_of_answers_that_failed():
    done = piped(b"", "--ask", "fail", "--ask", "hello")
    assert done.returncode == 1 and b"you said hello" in done.stdout
    assert b"Traceback" not in done.stderr
    assert piped(b"", "--ask", "hello").returncode == 0


def test_any_bytes_can_be_piped_in():
    text = b"\xff\xfe\x1b[2J\n\n" + b"x" * 300_000 + b"\nhello"
    done = piped(text)
    assert done.returncode == 0 and b"\x1b" not in done.stdout and b"Traceback" not in done.stderr
    out = done.stdout.decode()
    assert r"you said \xff\xfe\x1b[2J" in out and "[The question is empty.]" in out
    assert "more than 100,000 letters" in out and "xxx" not in out and "you said hello" in out


def test_only_commands_parse_arguments():
    package = ROOT / "bt_adapter"
    found = [path for path in package.rglob("*.py") if "typer" in path.read_text(encoding="utf-8")]
    assert {path.parent.name for path in found} == {"cli"}
