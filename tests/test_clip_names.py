"""The names by which annotations know clips."""

import json
from pathlib import Path

import pytest

from bt_adapter.benchmark import clip_paths, predict, read_items
from bt_adapter.clip_names import MAPPING, ClipNames, find_clip, other_names, read_mapping
from bt_adapter.video import SUFFIXES

FAULTS = Path(__file__).parent / "faults"


def folder_of(tmp_path, *names):
    for name in names:
        path = tmp_path / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "clips"


FOUND = {  # a file: names that mean it
    "v_abc.mp4": ["abc", "v_abc", "abc.mp4", "v_abc.mp4", "v_abc.avi"],
    "video7010.mp4": ["7010", "video7010", "7010.mp4", "video7010.avi"],
    "vid12.avi": ["vid12", "12"],
    "clip7.mp4": ["clip7", "clip7.mp4", "clip7.mov"],
    "-4wsuPCjDBc_5_15.avi": ["-4wsuPCjDBc_5_15", "-4wsuPCjDBc_5_15.avi"],
    "1@N02_13.mov.mp4": ["1@N02_13.mov", "1@N02_13.mov.mp4"],
    "a.b.c.mp4": ["a.b.c", "a.b.c.mp4"],
    "inner/deep.mp4": ["deep", "inner/deep", "deep.mp4", "inner/deep.mp4"],
    "UPPER.MP4": ["UPPER", "UPPER.MP4", "UPPER.mp4"],
}


@pytest.mark.parametrize("file", FOUND)
def test_a_clip_is_found_by_each_of_its_names(file, tmp_path):
    folder = folder_of(tmp_path, *FOUND, ".hidden.mp4", "v_abc.json")
    for name in FOUND[file]:
        assert find_clip(name, folder) == folder / file, name


NOT_FOUND = ["", ".", "..", "../clips/clip7", "/etc/passwd", "nothing", "video", "v_", "CLIP7"]
NOT_FOUND += [".hidden", "clip7.json", "abc\0", "\ud83d", "videoclip7", "*", "vid7010"]


@pytest.mark.parametrize("name", NOT_FOUND)
def test_other_names_mean_no_clip(name, tmp_path):
    with pytest.raises(ValueError, match="there is no clip"):
        find_clip(name, folder_of(tmp_path, *FOUND, ".hidden.mp4"))


TWICE = {
    "abc": ("abc.mp4", "abc.webm"),
    "7010": ("video7010.mp4", "vid7010.mp4"),
    "deep": ("one/deep.mp4", "two/deep.mp4"),
    "x.avi": ("x.mp4", "x.webm"),
}


@pytest.mark.parametrize("name", TWICE)
def test_two_files_for_one_name_are_told(name, tmp_path):
    folder = folder_of(tmp_path, *TWICE[name])
    with pytest.raises(ValueError, match="two clips have the name") as caught:
        find_clip(name, folder)
    assert all(file in str(caught.value) for file in TWICE[name])


def test_the_strictest_name_wins(tmp_path):
    folder = folder_of(
        tmp_path, "abc.mp4", "v_abc.mp4", "abc.webm/inner.mp4", "7.avi", "video7.avi"
    )
    assert find_clip("abc", folder).name == "abc.mp4"
    assert find_clip("v_abc", folder).name == "v_abc.mp4"
    assert find_clip("7", folder).name == "7.avi" and find_clip("vid7", folder).name == "7.avi"
    both = folder_of(tmp_path / "b", "x.mp4", "x.webm")
    assert find_clip("x.webm", both).name == "x.webm"


def test_the_list_of_msvd(tmp_path):
    folder = folder_of(tmp_path, "-4wsuPCjDBc_5_15.avi", "vid2.avi")
    (tmp_path / MAPPING).write_text("-4wsuPCjDBc_5_15 vid1\nabcdefghijk_1_2\tvid2\n\nlost vid3\n")
    for name in ("vid1", "1", "-4wsuPCjDBc_5_15"):
        assert find_clip(name, folder).name == "-4wsuPCjDBc_5_15.avi"
    assert find_clip("abcdefghijk_1_2", folder).name == "vid2.avi"
    with pytest.raises(ValueError, match="no clip vid3"):
        find_clip("vid3", folder)
    (tmp_path / "own.txt").write_text("vid2,mine")
    assert clip_paths(folder, tmp_path / "own.txt").find("mine").name == "vid2.avi"


@pytest.mark.parametrize("content", [b"a b c\n", b"a b\nc\n", b"\xff\xfe\xff", b"a b\n\nonly\n"])
def test_a_list_of_names_that_is_none(content, tmp_path):
    (tmp_path / MAPPING).write_bytes(content)
    with pytest.raises(ValueError, match=MAPPING):
        read_mapping(tmp_path / MAPPING)


def test_clips_by_name(tmp_path):
    folder = folder_of(tmp_path, "a.mp4", "b.mp4", "b.webm", "c.txt")
    assert [*clip_paths(folder)] == ["a", "b.mp4", "b.webm"]
    assert clip_paths(folder)["a"] == folder / "a.mp4"
    with pytest.raises(ValueError, match="no folder"):
        clip_paths(tmp_path / "nothing")


def test_names_as_a_dict():
    clips = {"v0": Path("elsewhere/0.mp4")}
    assert find_clip("v0", clips) == find_clip("v0.mp4", ClipNames(clips)) == clips["v0"]
    assert other_names("videogame") == ["v_videogame"]


def test_question_answering_finds_its_clips(tmp_path):
    files = ["v_abc.mp4", "clip7.mp4", "phone.3gp"]
    folder = folder_of(tmp_path, *files)
    items = read_items(FAULTS / "qa_questions.json", FAULTS / "qa_answers.json")
    asked = []
    said = predict(
        items, clip_paths(folder), lambda c, q: asked.append(c.name) or "x", tmp_path / "p"
    )
    readable = [name for name in files if Path(name).suffix in SUFFIXES]
    assert asked == readable and len(said) == len(files) - len(readable)
    assert len(json.loads((tmp_path / "p").read_text())) == len(readable) >= 2


def test_two_clips_cost_one_question(tmp_path):
    folder = folder_of(
        tmp_path, "v_abc.mp4", "clip7.mp4", "clip7.webm/x.mp4", "phone.mp4", "phone.avi"
    )
    items = read_items(FAULTS / "qa_questions.json", FAULTS / "qa_answers.json")
    (said,) = predict(items, clip_paths(folder), lambda c, q: "x", tmp_path / "p")
    assert said.startswith("question phone_0: two clips have the name phone: ")


@pytest.mark.parametrize("format", ["didemo", "activitynet", "msrvtt", "instructions"])
def test_annotations_find_clips_by_the_same_names(tmp_path, format):
    """What `ClipNames` finds for the benchmarks, data sets find, too; two clips are no clip."""
    from bt_adapter.datasets import read_examples

    clips = tmp_path / "clips"
    (clips / "other").mkdir(parents=True)
    for name in ("v_abc.mp4", "video7010.avi", "phone.3gp", "other/deep.webm", "two.mp4"):
        (clips / name).touch()
    (clips / "other/two.avi").touch()
    asked = {"abc": "v_abc.mp4", "7010": "video7010.avi", "phone.3gp": "phone.3gp"}
    asked |= {"deep": "other/deep.webm", "none": "none.mp4", "two.mkv": None}
    rows = dict(
        didemo=[dict(video=name, description="words") for name in asked],
        activitynet={name: dict(sentences=["words"]) for name in asked},
        msrvtt=dict(
            videos=[dict(video_id=name, split="test") for name in asked],
            sentences=[dict(video_id=name, caption="words") for name in asked],
        ),
        instructions=[dict(q="what", a="this", video_id=name) for name in asked],
    )
    (tmp_path / "a.json").write_text(json.dumps(rows[format]))
    found = read_examples(tmp_path / "a.json", format, clips)
    for (name, file), example in zip(asked.items(), found, strict=True):
        if file:
            assert example.fault is None and example.path == str(clips / file), (name, example)
        else:
            assert "two clips have the name" in example.fault and "two.avi" in example.fault
