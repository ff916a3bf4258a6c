"""The demonstration: the shipped clips, the command's results, its refusals, the first page."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tidy import ROOT
from tiny_hosts import IMAGE, byte_tokenizer, tiny_llama
from tiny_runs import problems

from bt_adapter import chat
from bt_adapter import demo as room
from bt_adapter.backbone import load_clip
from bt_adapter.branch import BTAdapter
from bt_adapter.chat import image_chat_model, plug
from bt_adapter.cli import demo as command
from bt_adapter.maps import seen_part
from bt_adapter.moving_shapes import caption, gallery, opposite
from bt_adapter.retrieval import weights_hash
from bt_adapter.shipped import samples_folder
from bt_adapter.video import read_clip, write_clip

CLIPS = samples_folder() / "clips"
NAMES = list(room.sample_scenes())
CONVERSE = room.converse


TALK = [
    {"question": f"{kind}?", "it shows": "x"} | {f"{name} says": name for name in room.TALKERS}
    for kind in room.ASKED_KINDS
]


@pytest.fixture
def run(monkeypatch, capfd, tmp_path):
    """The command in an empty folder: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(room, "converse", lambda *given: TALK)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bta-demo", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            command.main()
        return stop.value.code, *capfd.readouterr()

    return call


def test_shipped_clips_are_those_the_command_draws(run, tmp_path):
    assert run("--write-samples", tmp_path / "made") == (0, "", "")
    drawn = sorted(p.name for p in (tmp_path / "made/clips").iterdir())
    assert drawn == sorted(p.name for p in CLIPS.iterdir()) == sorted(NAMES)
    for name in NAMES:
        ours, shipped = (read_clip(f / name, 24).float() for f in (tmp_path / "made/clips", CLIPS))
        assert shipped.shape == (24, 128, 128, 3)
        assert (ours - shipped).abs().mean() < 1, name  # another version of the codec, at most
    captions = "captions.csv"
    assert (tmp_path / "made" / captions).read_bytes() == (CLIPS.parent / captions).read_bytes()


def test_shipped_clips_are_test_clips_in_opposite_pairs():
    scenes, known = room.sample_scenes(), set(map(caption, gallery("test")))
    with (CLIPS.parent / "captions.csv").open(newline="") as file:
        listed = {row["file"]: row["caption"] for row in csv.DictReader(file)}
    assert listed == {name: caption(scene) for name, scene in scenes.items()}
    assert set(listed.values()) <= known and len(set(listed.values())) == 12
    for first, second in zip(NAMES[::2], NAMES[1::2]):
        assert scenes[second] == opposite(scenes[first])


@pytest.mark.slow
def test_the_whole_command(tmp_path, tmp_path_factory):
    """Where SmolLM2 is not and cannot be fetched, as on a train."""
    code = "import sys; from bt_adapter.cli.demo import main; sys.argv[0] = 'bta-demo'; main()"
    env = os.environ | dict(PIP_NO_INDEX="1", XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache")))
    env |= dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    call = dict(capture_output=True, cwd=tmp_path, env=env)
    done = subprocess.run([sys.executable, "-c", code], **call)
    assert done.returncode == 0
    *_, note = done.stderr.decode().splitlines()
    assert note.startswith("note: no conversation: ") and b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stdout
    text = done.stdout.decode()
    assert "direction" in text and caption(room.sample_scenes()["left.mp4"]) in text
    assert os.listdir(tmp_path) == ["bta-demo.png"] and "bta-demo.png" in text
    picture = np.asarray(Image.open(tmp_path / "bta-demo.png").convert("RGB"))
    assert picture.shape[1] > 500 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


def test_results_for_programs(run):
    status, out, err = run("--json")
    results = json.loads(out)
    assert (status, err) == (0, "")
    assert results.keys() == {"scores", "clips", "conversation", "picture"}
    assert results["conversation"] == TALK
    scores = {row["percent right"]: row for row in results["scores"]}
    assert scores["direction"]["frozen CLIP"] <= 60 and scores["direction"]["BT-Adapter"] >= 90
    assert [row["clip"] for row in results["clips"]] == NAMES
    assert Path(results["picture"][0]["file"]).is_file()


def test_captions_are_ranked_for_own_clips(run, tmp_path):
    words = ["a cyan square grows", "a dog in the rain", "a cyan square shrinks"]
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n\n")
    options = [x for text in words for x in ("--captions", text)]
    status, out, err = run(CLIPS / "grow.mp4", CLIPS / "shrink.mp4", *options, "--json")
    rows = json.loads(out)["captions"]
    assert status == 0 and "dog, in, rain, the" in err
    for clip, best in (("grow", words[0]), ("shrink", words[2])):
        own = [row for row in rows if row["clip"] == str(CLIPS / f"{clip}.mp4")]
        assert own[0]["caption"] == best and {row["caption"] for row in own} == set(words)
        for name in ("frozen CLIP %", "BT-Adapter %"):
            assert sum(row[name] for row in own) == pytest.approx(100, abs=1e-3)
    again = run(CLIPS / "grow.mp4", CLIPS / "shrink.mp4", "--captions", "words.txt", "--json")
    assert again[1] == out


def test_brackets_are_no_markup(run):
    status, out, _ = run(CLIPS / "grow.mp4", "--captions", "[/b] grows", "--captions", "[red]")
    assert status == 0 and "[/b] grows" in out and "[red]" in out
    assert run(CLIPS / "grow.mp4", "--captions", r"$\no{formula$")[0] == 0  # in the picture


def test_a_folder_without_captions_is_encoded(run):
    status, out, err = run(CLIPS, "--picture", "x.PNG")
    assert status == 0 and "--captions" in err and all(name in out for name in NAMES)
    assert Image.open("x.PNG").format == "PNG"


def test_a_wide_clip_is_shown_as_clip_sees_it(run, tmp_path):
    clip = np.random.default_rng(0).integers(0, 255, (5, 48, 96, 3), dtype=np.uint8)
    write_clip(tmp_path / "wide.mp4", clip)
    assert run("wide.mp4")[0] == 0
    part = seen_part(read_clip("wide.mp4"), (64, 64))
    assert part.equal(read_clip("wide.mp4")[:, :, 24:72])


def broken_things(folder):
    whole = (CLIPS / "grow.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("no film")
    (folder / "empty.txt").write_text("\n \n")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "bare").mkdir()
    (folder / "mixed").mkdir()
    (folder / "mixed/a.mp4").write_bytes(whole)
    (folder / "mixed/b.mp4").write_text("no film")
    (folder / "folder.png").mkdir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.mp4"], "missing.mp4"),
        (["bare"], "no clip in the folder bare"),
        (["text.mp4"], "text.mp4"),
        (["cut.mp4"], "cut.mp4"),
        (["mixed"], "b.mp4"),
        (["--captions", " "], "no caption"),
        (["--captions", "empty.txt"], "no caption in 'empty.txt'"),
        (["--captions", "binary.txt"], "binary.txt"),
        (["--captions", "missing.txt"], "missing.txt"),
        (["--adapter", "bare"], "bare is no adapter folder"),
        (["--adapter", "nowhere"], "nowhere is no adapter folder"),
        (["--picture", "nowhere/x.png"], "nowhere/x.png"),
        (["--picture", "x.mp4"], "must end in .png"),
        (["--picture", "folder.png"], "it is a folder"),
        (["--picture", ""], "--picture is empty"),
        (["--write-samples", "text.mp4"], "text.mp4"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_sentence_and_status_two(run, tmp_path, arguments, words):
    broken_things(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run(*arguments)
    assert (status, out) == (2, "") and words in err
    told = problems(err)
    assert told.startswith("error: ") and told.count("\n") == 1, told
    assert sorted(tmp_path.rglob("*")) == before


def test_the_picture_is_refused_before_the_work(run, monkeypatch):
    monkeypatch.setattr(room, "read_clips", lambda *_: pytest.fail("the work has begun"))
    assert run("--picture", "nowhere/x.png")[0] == 2


LACKS = {
    "it needs peft: pip install": ModuleNotFoundError("No module", name="peft"),
    "SmolLM2 cannot be fetched": ValueError("SmolLM2 cannot be fetched: no network"),
    "the disk is full": OSError("the disk is full"),
    "torch is too old": ImportError("torch is too old"),
}


def failing(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize("words", LACKS)
def test_what_a_conversation_lacks_is_a_sentence(monkeypatch, capsys, words):
    monkeypatch.setattr(room, "converse", failing(LACKS[words]))
    assert command.talk_if_possible(print) == {}
    out, err = capsys.readouterr()
    assert err.startswith("note: no conversation: ") and words in err and err.count("\n") == 1
    assert not out


def test_without_a_conversation_all_else_is_there(run, monkeypatch):
    monkeypatch.setattr(room, "converse", failing(ModuleNotFoundError("no", name="peft")))
    status, out, err = run()
    assert status == 0 and caption(room.sample_scenes()["left.mp4"]) in out and "peft" in err
    assert Path("bta-demo.png").is_file()


def test_a_conversation_is_told_and_drawn(run, monkeypatch):
    """With a language model of random weights."""
    model = image_chat_model(load_clip("moving-shapes"), tiny_llama(), IMAGE)
    model.config.text_config.max_position_embeddings = 500
    model.usual_template = "smollm2"
    asked, drawn = [], []
    monkeypatch.setattr(chat, "small_host", lambda folder: (model, byte_tokenizer()))
    monkeypatch.setattr(
        chat, "plug_small", lambda m, f, video: asked.append(video) or plug(m, "mean")
    )
    monkeypatch.setattr(room, "converse", CONVERSE)
    true = room.attention_picture
    monkeypatch.setattr(room, "attention_picture", lambda m, c, x: drawn.extend(x) or true(m, c, x))
    status, out, err = run()
    told = [f"{command.STARTS} ...", "loading the chat model ..."]
    assert (status, err.splitlines(), asked) == (0, told, ["mean", None])
    for name in room.TALKERS:
        assert f"\n{name}\n" in out
    lines = [line for line in drawn if line.startswith("Which shape is it?")]
    assert len(lines) == 1 and "image model: " in lines[0] and lines[0].isprintable()
    assert out.count("Which shape is it?") == 2 and "\x1b" not in out


def test_the_card_tells_the_figures():
    samples = CLIPS.parent
    card = (samples / "README.md").read_text(encoding="utf-8")
    for name in ("clip", "adapter"):
        made = json.loads((samples / name / "training.json").read_text(encoding="utf-8"))
        assert made["command"] in card and made["versions"]["torch"] in card
        rows = made.get("validation") or [made["figures"]]
        figures = [v for row in rows for v in row.values() if isinstance(v, float)]
        assert (
            figures
            and [v for v in figures if f"{v:.1f}" not in card and f"{v:.2f}" not in card] == []
        )
    with (samples / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    model = BTAdapter.from_pretrained("moving-shapes")
    assert weights_hash(model.branch) in {row["weights"] for row in rows}
    assert model.clip.fingerprint in {row["fingerprint"] for row in rows}


def test_clips_of_another_world_are_told(run, tmp_path):
    shipped, own = str(CLIPS / "left.mp4"), str(tmp_path / "own.mp4")
    shutil.copy(shipped, own)
    known, strange = ["--captions", "a star grows"], ["--captions", "a dog rides"]
    told = {
        (shipped, *known): "",
        (shipped, *strange): "of other words (dog, rides)",
        (own, *known): "of other clips it",
        (shipped, own, *strange): "of other clips and words (dog, rides)",
    }
    for arguments, words in told.items():
        status, out, err = run(*arguments, "--json")
        assert status == 0 and words in err and json.loads(out)
        assert err.count("this model knows only Moving Shapes") == bool(words)
