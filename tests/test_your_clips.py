"""Clips and models of one's own: names, folders, refusals, and the lessons with other inputs."""

import json
import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_notebooks import code_of
from tidy import ROOT
from warm import Warm

from bt_adapter import datasets as ds
from bt_adapter.backbone import load_clip
from bt_adapter.branch import BranchConfig, BTAdapter
from bt_adapter.drawings import places
from bt_adapter.gpus import find_device
from bt_adapter.ledger import read_csv
from bt_adapter.memory_plan import plan
from bt_adapter.pretrain import QUICK, RELEASED, pretrain_clips
from bt_adapter.shipped import samples_folder
from bt_adapter.video import ClipError, clip_seconds, write_clip

LESSON = ROOT / "nbs/70_your_clips.ipynb"
FORM = ROOT / "nbs/72_your_model.ipynb"
CLIPS = samples_folder() / "clips"


def film(path, shade=0, frames=4):
    """A small clip of one shade."""
    write_clip(path, torch.full((frames, 32, 32, 3), shade, dtype=torch.uint8), fps=4)


@pytest.fixture
def filmed(tmp_path):
    """A guided set: two takes of each motion."""
    folder = tmp_path / "filmed"
    folder.mkdir()
    for shade, name in enumerate(ds.GUIDE):
        for take in (1, 2):
            film(folder / f"{name}_{take:02}.mp4", 40 * shade)
    return folder


# --- names ---


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("left_03.mp4", "a hand moves left"),
        ("LEFT.MOV", "a hand moves left"),
        ("left03.mp4", "a hand moves left"),
        ("close (12).webm", "a hand closes"),
        ("sub/folder/down-7.mkv", "a hand moves down"),
        ("a_dog_jumps-2.mp4", "a dog jumps"),
        ("2_dogs.mp4", "dogs"),
        ("img_of_a_dog.mp4", "img of a dog"),
        ("hände_öffnen_01.mp4", "hände öffnen"),
        ("手_1.mp4", "手"),
    ],
)
def test_what_names_say(name, caption):
    assert ds.caption_from_name(name) == caption


@pytest.mark.parametrize("name", ["IMG_0042.MOV", "0.mp4", "___.mp4", "VID-20261130.mp4", "clip"])
def test_names_that_say_nothing(name):
    with pytest.raises(ValueError, match="does not say what it shows") as refused:
        ds.caption_from_name(name)
    assert str(refused.value).startswith(name) and "\n" not in str(refused.value)


def test_a_guide_of_ones_own():
    guide = {"on": "the light goes on"}
    assert ds.caption_from_name("on_1.mp4", guide) == "the light goes on"
    assert ds.caption_from_name("left_1.mp4", guide) == "left"


def test_turned_captions_turn_back():
    for text in (*ds.GUIDE.values(), "bikes forwards", "up, then left"):
        turned = ds.turned_caption(text)
        assert turned != text and ds.turned_caption(turned) == text
    assert ds.turned_caption("a leftover is uploaded") is None


# --- what cannot be learned from is told in a sentence ---


def told(call, *arguments):
    with pytest.raises(ValueError) as refused:
        call(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_no_clips(tmp_path):
    assert "holds no clip: put files there" in told(ds.examples_from_folder, tmp_path)
    assert "There is no folder" in told(ds.examples_from_folder, tmp_path / "nowhere")
    assert "0 clips to learn from" in told(ds.hold_out, [])


@pytest.mark.parametrize("call", ["hold_out", "pretrain_clips"])
@pytest.mark.parametrize("kind", ["one clip", "equal captions"])
def test_clips_that_teach_nothing(filmed, tmp_path, call, kind):
    examples = ds.examples_from_folder(filmed)
    same = [replace(example, captions=("a hand",)) for example in examples]
    given, word = {
        "one clip": (examples[:1], "1 clip to learn from"),
        "equal captions": (same, "All 12 clips have the caption 'a hand'"),
    }[kind]
    if call == "hold_out":
        assert word in told(ds.hold_out, given)
    else:
        config = replace(QUICK, steps=1, batch=2, frames=2)
        out = tmp_path / "out"
        assert word in told(pretrain_clips, out, load_clip("moving-shapes"), given, config)
        assert not (out / "log.csv").exists() and not (out / "adapter.json").exists()


def test_files_that_are_no_clips(filmed):
    for name in ("left_01", "up_02"):
        (filmed / f"{name}.mp4").write_text("a letter")
    look = ds.look_through(ds.examples_from_folder(filmed), frames=3, size=16)
    assert len(look.examples) == len(look.frames) == len(look.seconds) == 10
    assert {Path(path).stem for path in look.broken} == {"left_01", "up_02"}
    assert all(clip.shape == (3, 16, 16, 3) for clip in look.frames) and set(look.seconds) == {1.0}
    for path in filmed.glob("*.mp4"):
        path.write_text("a letter")
    assert "None of 12 files can be read as a clip: " in told(
        ds.look_through, ds.examples_from_folder(filmed)
    )
    with pytest.raises(ClipError):
        clip_seconds(filmed / "left_01.mp4")


# --- what is held out, and both ways ---


@pytest.mark.parametrize("share", [0.2, 0.25, 0.5])
def test_every_caption_is_in_both_parts(share):
    words = list(ds.GUIDE.values())
    examples = [ds.Example(f"{n} {w}", "", (w,)) for n in range(20) for w in words]
    train, held = ds.hold_out(examples, share, seed=3)
    assert sorted(e.id for e in train + held) == sorted(e.id for e in examples)
    for word in words:
        assert [e.captions for e in held].count((word,)) == 20 * share
    other = ds.hold_out(examples, share, seed=4)[1]
    assert [e.id for e in held] != [e.id for e in other]


def test_captions_that_occur_once_are_divided_as_well():
    examples = [ds.Example(str(n), "", (f"caption {n}",)) for n in range(8)]
    train, held = ds.hold_out(examples)
    assert (len(train), len(held)) == (6, 2)
    assert "cannot be divided" in told(ds.hold_out, examples[:3])


def test_a_film_both_ways(tmp_path):
    source = shutil.copy(CLIPS / "left.mp4", tmp_path / "a_circle.mp4")
    made = ds.cut_both_ways(source, tmp_path, [(0, 0.5), (0.5, 1)], frames=4, size=32)
    assert [e.captions[0] for e in made] == ["a circle forwards", "a circle backwards"] * 2
    one, other = (ds.look_through([e], 4, 32).frames[0].int() for e in made[:2])
    assert (one - other.flip(0)).abs().float().mean() < 3 < (one - other).abs().float().mean()


# --- the smoke test on real films ---


@pytest.fixture
def smoke(monkeypatch):
    """The script that makes its rows."""
    monkeypatch.syspath_prepend(ROOT / "tests/benchmarks")
    return import_module("real_spans")


@pytest.mark.parametrize("frames", [26, 60, 125])
def test_spans_that_are_held_out_share_no_frame(frames, smoke):
    films = [smoke.Film("film", None, part) for part in smoke.divided("film", frames)]
    used = [{n for s in film.starts for n in range(s, s + smoke.LONG)} for film in films]
    assert max(used[0]) + smoke.GAP < min(used[1]) and max(used[1]) == frames - 1
    assert all(film.apart == len(film.starts[:: smoke.LONG]) for film in films)


def test_a_film_without_held_out_spans_is_told(smoke):
    with pytest.raises(SystemExit, match=r"^short has 23 frames: .* there must be 7, .* 14 and 6"):
        smoke.divided("short", 23)
    assert smoke.hits(torch.tensor([2.0, -1.0, 0.0])).tolist() == [1, 0, 0.5]


def test_order_is_all_that_tells(smoke):
    """Who sees the order is always right; who sees all frames at once is a coin, also on a tie."""
    sign = lambda text: -1.0 if text.endswith("backwards") else 1.0  # noqa: E731
    words = SimpleNamespace(encode_text=lambda texts: torch.tensor([[sign(t)] for t in texts]))
    films = [torch.arange(n)[:, None, None, None] / n for n in (60, 125)]
    films = [smoke.Film(str(len(f)), f, smoke.divided("film", len(f))[1]) for f in films]
    spans = smoke.Spans(words, films)
    ordered = smoke.directions(lambda states: (states[:, 0, -1] - states[:, 0, 0])[:, 0], spans)
    assert [row["right"] for row in ordered] == [str(row["asked"]) for row in ordered]
    assert [row["film"] for row in ordered] == ["60", "125"] and ordered[1]["apart"] == 6
    for weight in (0, 1):
        mean = smoke.directions(lambda states, w=weight: w * states[:, 0].mean(1)[:, 0], spans)
        assert [2 * float(row["right"]) for row in mean] == [row["asked"] for row in mean]


def test_rows_of_the_smoke_test():
    rows = read_csv(ROOT / "tests/benchmarks/real_spans.csv")
    held = [row for row in rows if row["spans"] == "held out"]
    assert {row["what"] for row in rows} == {"smoke test, random weights"}
    for seed in ("", "0", "1", "2"):
        own = [row for row in held if row["seed"] == seed]
        assert len({row["film"] for row in own}) == 3 and sum(int(r["asked"]) for r in own) >= 100
        assert all(2 * float(r["right"]) == int(r["asked"]) for r in own if not seed)


def test_the_picture_names_the_folders_of_the_lesson():
    code = "\n".join(code_of(LESSON).values())
    assert all(f'"{part}"' in code for part in ("my_clips", "runs", "adapter", "states"))
    assert all(f"{part}/" in places().svg for part in ("my_clips", "runs/adapter", "states"))


# --- the lesson, with a stand-in for Colab ---

COLAB = """
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

downloads = []
uploaded = {p.name: p.read_bytes() for p in sorted(Path(UPLOADED).iterdir())}
mount = lambda place: Path(place, "MyDrive").mkdir(parents=True, exist_ok=True)
colab = ModuleType("google.colab")
colab.__spec__ = ModuleSpec("google.colab", None)  # accelerate asks for it
colab.files = SimpleNamespace(upload=lambda: uploaded, download=downloads.append)
colab.drive = SimpleNamespace(mount=mount)
sys.modules.setdefault("google", ModuleType("google"))
sys.modules["google.colab"] = colab
"""
DATA = "train, held = ds.hold_out"  # up to here a way in differs from the others


@pytest.fixture(scope="module")
def warm():
    process = Warm()
    yield process
    process.close()


def lesson(source, until=None, **changed):
    """The cells of the lesson for a way in, with other values where a test wants them."""
    cells = {}
    for name, code in code_of(LESSON).items():
        code = code.replace('source = "rendered"', f"source = {source!r}")
        for old, new in changed.values():
            code = code.replace(old, new)
        cells[name] = code
        if until and until in code:
            return cells
    assert until is None and any(f"source = {source!r}" in code for code in cells.values())
    return cells


def zipped(filmed, folder):
    folder.mkdir()
    shutil.make_archive(folder / "clips", "zip", filmed)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["upload", "zip", "drive", "folder", "table", "rendered"])
def test_ways_in(source, filmed, tmp_path, warm, monkeypatch):
    monkeypatch.chdir(ROOT)
    here, uploaded = tmp_path / "here", filmed
    here.mkdir()
    if source == "zip":
        zipped(filmed, uploaded := tmp_path / "zipped")
    places = {"drive": here / "drive/MyDrive/bt-adapter/my_clips", "folder": here / "my_clips"}
    if source in places:
        shutil.copytree(filmed, places[source])
    if source == "table":
        rows = [f"{p},{ds.caption_from_name(p.name)}" for p in sorted(filmed.glob("*.mp4"))]
        (here / "my_clips.csv").write_text("\n".join(["path,caption", *rows]))
    cells = lesson("upload" if source == "zip" else source, until=DATA)
    colab = {"colab": f"UPLOADED = {str(uploaded)!r}\n{COLAB}"}
    count = 96 if source == "rendered" else 12
    cells["found"] = f"assert len(look.examples) == {count} and len(captions) == 6"
    cells["home"] = "assert in_colab and home.is_dir() and home.parent.name == 'MyDrive'"
    warm.run(colab | cells, here, 240)


@pytest.mark.slow
def test_all_of_colab_with_clips_of_ones_own(filmed, tmp_path, warm, monkeypatch):
    """Uploaded clips beside a CLIP of full size, whose weights are drawn: none can be fetched."""
    monkeypatch.chdir(ROOT)
    row = [f'"your clips, laptop": (["ViT-B-32"], {n})' for n in ("4, 8, 8", "2, 4, 4")]
    cells = lesson("upload", weights=('"openai"', '"random"'), row=row)
    assert sum('"random"' in code for code in cells.values()) == 3 and row[1] in str(cells)
    cells["after"] = (
        "assert own and clip.name == 'ViT-B-32' and taken < 4\n"
        "assert len(downloads) == 1\n"
        "assert run.is_relative_to(Path('drive/MyDrive').resolve())\n"
        "assert not machine.is_relative_to(Path('drive').resolve())"
    )
    colab = {"colab": f"UPLOADED = {str(filmed)!r}\n{COLAB}"}
    warm.run(colab | cells, tmp_path, 400)


@pytest.mark.parametrize(
    ("gpu", "name", "batch", "chunk"),
    [
        ("T4", "ViT-B-16", 64, None),
        ("L4", "ViT-L-14", 64, None),
        ("2", "ViT-B-32", 64, 4),
        (None, "ViT-B-32", 8, None),
    ],
)
def test_clip_and_batch_are_those_of_the_memory_plan(gpu, name, batch, chunk):
    """The cell that chooses, on GPUs that are none of this machine."""
    (cell,) = [code for code in code_of(LESSON).values() if "rows = {" in code]
    known = dict(source="upload", replace=replace, QUICK=QUICK, RELEASED=RELEASED, plan=plan)
    known["usable_device"] = lambda: torch.device("cuda" if gpu else "cpu")
    known["planned_device"] = lambda: find_device(gpu or "cpu")
    exec(cell, known)
    recipe = known["recipe"]
    assert (known["name"], recipe.batch, recipe.chunk) == (name, batch, chunk)
    assert recipe.frames == known["frames"] and recipe.steps == known["steps"]


def video_model(folder):
    """One of transformers, whose weights are drawn: no text, and no adapter."""
    from transformers import VideoMAEConfig, VideoMAEModel

    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    config = VideoMAEConfig(num_frames=4, intermediate_size=16, **sizes)
    VideoMAEModel(config).save_pretrained(folder)
    return (
        "assert not is_adapter and not encoder.encode_text and not (picture or explorer)\n"
        "assert encoder.frames == FRAMES and 'effects' not in globals()"
    )


def adapter(folder):
    """One of two layers, as it is before training."""
    torch.manual_seed(0)
    BTAdapter(load_clip("moving-shapes"), BranchConfig(layers=2)).save_pretrained(folder)
    return (
        "assert is_adapter and picture and len(changes) == len(names) == 6 and 0 <= low <= high\n"
        "assert len(clips) == 3 and explorer.captions[0].startswith('it moves')"
    )


def frozen(folder):
    """A CLIP of open_clip by its name, with random weights: words, and no time axis."""
    return (
        "assert not is_adapter and encoder.encode_text and not (picture or explorer)\n"
        "assert 'time axis' in encoder.note and encoder.frames != FRAMES and not right.any()"
    )


def the_form(name, weights, frames, own):
    """The cells of the lesson, with a model and clips of one's own."""
    chosen = {
        "OWN = {}": f"OWN = {own!r}",
        "FRAMES = 8": f"FRAMES = {frames}",
        'NAME, WEIGHTS = "moving-shapes", None': f"NAME, WEIGHTS = {name!r}, {weights!r}",
    }
    cells = code_of(FORM)
    for old, new in chosen.items():
        (place,) = (name for name, code in cells.items() if old in code)
        cells[place] = cells[place].replace(old, new)
    return cells


@pytest.mark.slow
def test_the_form_for_models_of_ones_own(tmp_path, warm, monkeypatch):
    """Every cell, for other models than the shipped one, and clips with captions of one's own."""
    monkeypatch.chdir(ROOT)
    told = {"left": "right", "grow": "shrink", "appear": "disappear"}
    own = {str(CLIPS / f"{a}.mp4"): (f"it moves {a}", f"it moves {b}") for a, b in told.items()}
    far = "assert set(far) == set(orders) and len(whole) == 3 and max(far['asked again']) < 1e-3\n"
    run = {}
    for save in (video_model, adapter, frozen):  # in one process, as who changes the cell
        folder = tmp_path / save.__name__
        after = save(folder)
        name, weights = (str(folder), None) if folder.exists() else ("ViT-B-32", "random")
        cells = the_form(name, weights, 4, own) | dict(after=far + after)
        run |= {f"{save.__name__} {cell}": code for cell, code in cells.items()}
    warm.run(run, tmp_path, 120)


@pytest.mark.slow
def test_the_form_refuses_another_number_of_frames(tmp_path, warm, monkeypatch):
    monkeypatch.chdir(ROOT)
    video_model(folder := tmp_path / "video")
    with pytest.raises(AssertionError, match="takes clips of 4 frames: set FRAMES to that"):
        warm.run(the_form(str(folder), None, 8, {}), tmp_path, 120)


def test_measured_memory_stands_in_the_form():
    """What `tests/benchmarks/form_memory.py` wrote."""
    rows = {r["phase"]: r for r in read_csv(ROOT / "tests/benchmarks/form_memory.csv")}
    assert rows.keys() >= {"states", "sweep"}
    cells = json.loads(FORM.read_text(encoding="utf-8"))["cells"]
    (told,) = (text for cell in cells if "form_memory.py" in (text := "".join(cell["source"])))
    for row in rows.values():
        assert row["clip"] == "ViT-L-14" and row["frames"] == "16"
        for key in ("above_MB", "process_MB"):
            assert f"{int(row[key]) / 1000:.1f} GB" in told


def test_cells_for_a_gpu_say_that_they_were_not_run():
    cells = json.loads(LESSON.read_text(encoding="utf-8"))["cells"]
    skipped = [n for n, cell in enumerate(cells) if "".join(cell["source"]).startswith("if gpu:")]
    assert skipped
    for n in skipped:
        assert "not run" in "".join(cells[n - 1]["source"]) and not cells[n]["outputs"]


def test_the_stand_in_is_not_left_behind():
    assert "google.colab" not in sys.modules
