"""What leaves the package: to a terminal, into tables, cards and pictures, whatever names hold."""

import csv
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from own_terminal import in_terminal

from bt_adapter import ledger, terminal
from bt_adapter.branch_config import BranchConfig
from bt_adapter.datasets import Example, Report, write_shards
from bt_adapter.figures import contact_sheet, matrix
from bt_adapter.files import check_file_place, check_folder_place, first_line, home_short, told_path
from bt_adapter.shipped import samples_folder

# Title of the window, colour, C1, direction of writing, back to the beginning of the line.
HOSTILE = "\x1b]0;PWN\x07\x1b[31m\x9b31m\u202e\rx\udcff"
COLOURS = re.compile(rb"\x1b\[[0-9;]*m")  # of rich


def steering(said):
    """The characters of an output that would steer a terminal, but for its lines, colours, bars."""
    said = re.sub(rb"\r(\x1b\[A|(?=[^\r\n]*(?:it/s|s/it|\d%\|))|(?= +\r)|(?=\r?\n|$))?", b"", said)
    text = COLOURS.sub(b"", said).decode("utf-8", "surrogateescape")
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A good clip, a broken one, an adapter and tables, all of hostile names."""
    place = tmp_path_factory.mktemp("hostile")
    shutil.copy(samples_folder() / "clips/left.mp4", place / f"{HOSTILE}.mp4")
    (place / f"{HOSTILE}broken.mp4").write_text("no clip")
    (place / "clips.csv").write_bytes(
        f'path,caption\n"{HOSTILE}broken.mp4",words\n"{HOSTILE}.mp4",words\n'.encode(
            "utf-8", "surrogateescape"
        )
    )
    rows = [dict(id=HOSTILE, question=HOSTILE, answer=HOSTILE, pred=HOSTILE)] * 1
    (place / "p.json").write_text(json.dumps(rows))
    (place / f"{HOSTILE}.json").write_text("[")
    return place


LINES = [
    ["demo", f"{HOSTILE}.mp4", "--captions", HOSTILE, "--captions", "a"],
    ["demo", f"{HOSTILE}broken.mp4"],
    ["demo", f"{HOSTILE}.mp4", "--picture", f"{HOSTILE}/a.png"],
    ["demo", f"--{HOSTILE}"],
    ["demo", "--adapter", HOSTILE],
    ["evaluate", HOSTILE],
    ["evaluate", "moving-shapes", "--data", "clips.csv"],
    ["evaluate", "--device", HOSTILE],
    ["pretrain", "--data", "clips.csv", "--batch", "1", "--steps", "1", "--format", HOSTILE],
    ["pretrain", "--data", "clips.csv", "--batch", "1", "--steps", "1", "--clip", "moving-shapes"],
    ["pretrain", "--set", HOSTILE],
    ["pretrain", "--set", f"layers={HOSTILE}"],
    ["pretrain", "shards", "clips.csv", "shards"],
    ["pretrain", "--clip", HOSTILE],
    ["chat", f"{HOSTILE}broken.mp4", "--ask", "What?"],
    ["chat", f"{HOSTILE}.mp4", "--model", f"x/{HOSTILE}"],
    ["judge", f"{HOSTILE}.json"],
    ["judge", "p.json"],
    ["ablations", "--table", HOSTILE],
    ["ablations", "--csv", f"{HOSTILE}/a.csv"],
    ["gallery", HOSTILE],
    ["timecheck", f"./{HOSTILE}"],
    ["explore", f"{HOSTILE}.mp4", "-o", f"{HOSTILE}.html"],
    ["timecheck", f"a{HOSTILE}:b", "--pipeline"],
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line[0]}-{len(line)}")
def test_a_terminal_is_not_steered(folder, line):
    status, said = in_terminal(folder, *line)
    assert status in (0, 2), said.decode(errors="replace")
    assert not steering(said), said
    assert b"\x1b[31m" not in said and b"\x1b]" not in said and b"Traceback" not in said
    if line != ["judge", "p.json"] and line[1] not in (
        "--data",
        "shards",
        "moving-shapes",
        "--set",
    ):
        assert rb"\x1b]0;PWN\x07\x1b[31m\x9b31m\u202e" in COLOURS.sub(b"", said), said


def test_text_without_anything_that_steers_is_shown_as_it_is():
    for text in ("a caption", "ünïcode, 漢字, \U0001f468\u200d\U0001f469 and\ntwo lines", ""):
        assert terminal.shown(text) == text
    for code in range(0x110000):
        found = terminal.shown(chr(code))
        steers = unicodedata.category(chr(code)) in terminal.STEERING
        assert (found == chr(code)) != steers or chr(code) in terminal.HARMLESS, hex(code)


def test_bars_of_others_move_in_a_terminal_and_nowhere_else():
    class Screen(io.StringIO):
        def isatty(self):
            return True

    for stream, bars, moves in ((Screen(), True, True), (Screen(), False, False)):
        out = terminal.Terminal(stream, "it", bars=bars)
        for text in ("\r 10%", "\x1b[A", "a\rb", "\x1b[31m", "\r\x1b[31m"):
            out.write(text)
        kept = "\r 10%\x1b[Aa" if moves else r"\r 10%\x1b[Aa"
        last = "\r" if moves else r"\r"
        assert stream.getvalue() == kept + r"\rb\x1b[31m" + last + r"\x1b[31m"


def test_a_full_disk_is_told_by_name_and_a_closed_pipe_is_silent(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps([dict(question="q", answer="a", pred="a")]))
    judge = [Path(sys.executable).with_name("bta-judge"), "p.json"]
    run = dict(cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "80"})
    with open("/dev/full", "w") as full:
        done = subprocess.run(judge, stdout=full, **run)
    told = "error: the standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, told)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(judge, stdout=writer, **run)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


# Tables.

CELLS = ["-4wsuPCjDBc_5_15.avi", "=cmd|'/C calc'!A0.mp4", "+1.mp4", "@SUM(1).mp4", "\t=1", "\r=1"]
CELLS += [
    "'=1",
    "''@x",
    "'quoted'",
    "'",
    "",
    "-3.5",
    "+1e-5",
    "a\udcff\udcfe.mp4",
    r"a\udcff",
    "\ud800",
]
CELLS += [r"\u005cudcff", r"\\udcff", "\\\udcff", "a, b", 'a "b"', "two\nlines", "\uff1d1", "nan"]


def some_texts(number):
    draw = random.Random(0)
    parts = [
        "'",
        "=",
        "-",
        "@",
        "\\",
        "u005c",
        "udcff",
        "\udcff",
        "\ud9ab",
        "3",
        ".",
        "e",
        "\r",
        "\n",
        ",",
    ]
    return ["".join(draw.choices(parts, k=draw.randrange(8))) for _ in range(number)]


def test_a_text_comes_back_from_a_table_and_runs_in_no_spreadsheet(tmp_path):
    texts = CELLS + some_texts(3000)
    ledger.write_csv(tmp_path / "a.csv", [dict(n=-1, text=text) for text in texts])
    assert [row["text"] for row in ledger.read_csv(tmp_path / "a.csv")] == texts
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["n"] for row in rows} == {"-1"}  # a number stays one
    for text, row in zip(texts, rows, strict=True):
        runs = row["text"][:1] in [*"=+-@\t\r\n\uff1d"] and row["text"]
        assert not runs or ledger.NUMBER.fullmatch(text), (text, row)


def test_tables_of_results_and_of_broken_clips(tmp_path):
    names = [name for name in CELLS if name]
    report = Report()
    report.add(len(names), [(name, "it is broken") for name in names])
    report.write(tmp_path / "broken.csv")
    assert {row["path"]: row["reason"] for row in ledger.read_csv(tmp_path / "broken.csv")} == (
        report.broken
    )
    for name in names:
        ledger.append_csv(tmp_path / "results.csv", [dict(adapter=name, motion=-1.5)])
    rows = ledger.read_csv(tmp_path / "results.csv")
    assert [row["adapter"] for row in rows] == names
    assert "\n2" not in (tmp_path / "broken.csv").read_text(encoding="utf-8")  # it is UTF-8
    Report().write(tmp_path / "none.csv")
    assert (tmp_path / "none.csv").read_text() == "path,reason\n"


# Names that are no UTF-8, in pictures and stores.


def test_pictures_of_hostile_names():
    clip = np.zeros((2, 8, 8, 3), np.uint8)
    for name in (HOSTILE, "\udcff", "$x_{$", "a\x00b"):
        for figure in (
            contact_sheet(clip, labels=[name], titles=[name, "b"]),
            matrix(np.eye(2), [name], [name, name], [name, name], name, name),
        ):
            figure.savefig(file := io.BytesIO(), format="png")
            assert file.tell() > 100


def test_a_store_of_clips_whose_names_are_no_utf_8(tmp_path):
    from bt_adapter.store import FeatureStore, Key, StoreSettings

    store = FeatureStore(tmp_path, StoreSettings("f", "float32", 5, 8, "centre"))
    for name in ("\udcff.mp4", "a.mp4"):
        store[Key(name)] = torch.ones(5, 8, 2, 3)
        assert Key(name) in store and store[Key(name)].shape == (5, 8, 2, 3)
    assert len(store) == 2


# Cards.


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder of somebody whose name nobody needs to know, and a place to work in it."""
    for name in ("alice/work", "mnt/data"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    monkeypatch.chdir(tmp_path / "alice/work")
    return tmp_path


def test_a_command_names_no_owner(home, monkeypatch):
    words = {
        f"{home}/alice/work/runs/a": "runs/a",
        f"{home}/alice/clips": "~/clips",
        "../clips": "~/clips",
        "../../mnt/data": "data",
        f"{home}/mnt/data": "data",
        f"--out={home}/alice/x": "'--out=~/x'",
        "https://me:secret@host/v1?key=secret": "https://host/v1",
        "--url=http://me:secret@host/v1": "--url=http://host/v1",
        "a photo of {}": "'a photo of {}'",
        "runs/a": "runs/a",
        "..": "~",
    }
    monkeypatch.setattr(sys, "argv", [f"{home}/alice/bin/bta-x", *words])
    line = ledger.command_line()
    assert line == " ".join(["bta-x", *words.values()])
    assert "alice" not in line and "secret" not in line and str(home) not in line


def test_where_the_home_folder_is_not_known(home, monkeypatch):
    monkeypatch.setenv("HOME", "/")
    assert home_short("/a/b") == "/a/b" and told_path("/a/b") == "b"
    monkeypatch.setenv("HOME", str(home / "alice"))
    monkeypatch.chdir("/")  # everything is below it
    assert told_path(home / "alice/x") == "~/x"


def test_an_adapter_beside_a_clip_of_the_home_folder(home):
    from bt_adapter.backbone import load_clip
    from bt_adapter.branch import BTAdapter
    from bt_adapter.pretrained import forget_places, model_card
    from bt_adapter.runs import write_card

    shutil.copytree(samples_folder() / "clip", home / "alice/clip")
    model = BTAdapter(load_clip(home / "alice/clip"))
    model.save_pretrained("adapter")
    write_card(Path("adapter"), "bta-pretrain", clip=model.clip.card)
    for file in ("adapter.json", "training.json"):
        told = Path("adapter", file).read_text()
        assert "~/clip" in told and "alice" not in told, told
    again = BTAdapter.from_pretrained("adapter")
    assert again.clip.fingerprint == model.clip.fingerprint
    forget_places(Path("adapter/adapter.json"))
    card = model_card(model, "owner/name") + Path("adapter/adapter.json").read_text()
    assert "~" not in card and "alice" not in card and '"name": "clip"' in card


# Places and sentences.


def test_a_place_is_tried_and_left_as_it_was(tmp_path):
    (tmp_path / "file").write_text("old")
    check_file_place(tmp_path / "file")
    check_folder_place(tmp_path / "a/b/c")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"
    for check, place in (
        (check_folder_place, tmp_path / "file"),
        (check_folder_place, tmp_path / "file/a"),
        (check_folder_place, "/proc/a"),
        (check_file_place, "/proc/a"),
        (check_file_place, "/dev/full"),
        (check_file_place, tmp_path / "gone/a"),
    ):
        with pytest.raises(ValueError, match=re.escape(str(place))):
            check(place)


def test_errors_of_others_are_cut_to_a_sentence():
    long = "The header cannot be read. " + "For developers: " * 40 + "\nmore\n"
    assert first_line(ValueError(long)) == "The header cannot be read."
    assert len(first_line(ValueError("x" * 1000))) == 160
    assert first_line(KeyError()) == "KeyError" and first_line(ValueError("\n\na\nb")) == "a"


def test_what_the_package_says_is_told_to_its_end_however_long_its_paths_are(tmp_path):
    "The remedy stands at the end of our sentences: a long path must not push it out."
    inside = tmp_path.joinpath(*["a_long_name_of_a_folder"] * 8)
    inside.mkdir(parents=True)
    example = Example("1", str(samples_folder() / "clips" / "left.mp4"), ("a red square",))
    with pytest.raises(ValueError, match=r"where --outside asks for that\.$"):
        write_shards([example], tmp_path / "packed", inside=inside)
    with pytest.raises(ValueError, match="combination") as wrong:
        BranchConfig(combination="x" * 10_000)
    said = first_line(wrong.value)
    assert len(said) == 700 and said.startswith("combination must be one of") and " ... x" in said


def test_of_errors_of_other_libraries_the_first_line_is_told():
    from bt_adapter.cli.console import sentence

    def told(call):
        try:
            call()
        except Exception as error:
            return sentence(error)

    long = "not json\nand more"
    assert told(lambda: json.loads(long)) == "Expecting value: line 1 column 1 (char 0)"
    advice = "It is none.\n" + "If this is a private repository, log in. " * 20
    assert told(lambda: exec("raise OSError(text)", dict(text=advice))) == "It is none."
    ours = "2 clips could not be read:\na.mp4\nb.mp4"
    assert sentence(ValueError(ours)) == ours
    assert told(lambda: open("/nowhere")) == "/nowhere: No such file or directory"
