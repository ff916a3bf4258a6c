"""Files that are written whole or not at all, and JSON that is read or told, each in one way."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_interface import TREES

from bt_adapter.files import clear_parts, parse_json, read_json, replacing, write_whole


def contents(folder):
    """What lies in a folder: names and bytes, None for a folder."""
    found = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in found}


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    for text in ("old", "new"):
        with replacing(tmp_path / "a") as part:
            assert part.parent == tmp_path and part.name != "a"
            part.write_text(text)
            assert (tmp_path / "a").exists() == (text == "new")
        assert contents(tmp_path) == {"a": text.encode()}
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), replacing(str(tmp_path / "a")) as part:
            part.write_text("half")
            raise error
        assert contents(tmp_path) == {"a": b"new"}


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    def fill(name, *files):
        with replacing(tmp_path / name) as part:
            (part / "deep").mkdir(parents=True)
            for file in files:
                (part / file).write_text("text")

    with pytest.raises(OSError):
        fill("new", "deep/a", "nowhere/b")
    assert not contents(tmp_path)
    (tmp_path / "empty").mkdir()
    whole = {"deep": None, "deep/a": b"text", "b": b"text"}
    for name in ("new", "empty"):
        fill(name, "deep/a", "b")
        assert contents(tmp_path / name) == whole
    with pytest.raises(OSError):  # one that holds something stays as it is
        fill("new", "c")
    assert contents(tmp_path / "new") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new"]


def test_nothing_written_is_an_error_and_the_old_file_stays(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(OSError), replacing(tmp_path / "a"):
        pass
    assert contents(tmp_path) == {"a": b"old"}


def test_a_killed_process_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    code = (
        "import os, signal, sys; from bt_adapter.files import replacing\n"
        "with replacing(sys.argv[1]) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a"])
    assert done.returncode == -signal.SIGKILL and (tmp_path / "a").read_text() == "old"


def test_what_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(OSError, match=r"gone/a cannot be written: No such file or directory$"):
        write_whole(tmp_path / "gone/a", b"")
    write_whole(str(tmp_path / "a"), b"old")
    full = OSError(28, "No space left on device")
    for step in ("write", "replace"):
        with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
            where = (Path, "write_bytes") if step == "write" else (os, "replace")
            patch.setattr(*where, lambda *_: (_ for _ in ()).throw(full))
            write_whole(tmp_path / "a", b"new")
        told = f"{tmp_path / 'a'} cannot be written: No space left on device; the file of that name"
        assert str(caught.value).startswith(told)
        assert contents(tmp_path) == {"a": b"old"}


def puts_in_place(node):
    """Is it a call that gives a file another name? A string's `replace` takes two texts."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    name = node.func.attr
    module = getattr(node.func.value, "id", None)
    if name in ("replace", "rename", "renames", "move") and module in ("os", "shutil"):
        return True
    return name == "rename" or (name == "replace" and len(node.args) == 1 and not node.keywords)


def test_files_alone_puts_files_in_their_places():
    found = [
        f"{module}:{node.lineno}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if puts_in_place(node)
    ]
    assert len(found) == 1 and found[0].startswith("files:"), found
    borrowed = [
        f"{module}: {node.module}.{name.name}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil")
        for name in node.names
    ]
    assert not borrowed, borrowed


def test_the_small_clip_is_written_whole(tmp_path, monkeypatch):
    from bt_adapter.small_clip import new_clip

    steps = []
    monkeypatch.setattr(os, "replace", lambda part, place: steps.append(Path(place).name))
    new_clip(tmp_path)
    assert steps == ["merges.txt.gz", "open_clip_config.json"] and not contents(tmp_path)


def ended():
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_was_writing_is_cleared_away(tmp_path):
    gone, names = ended(), ("a", "folder", "b.json")
    for name in ("a", "folder"):
        with replacing(tmp_path / name) as part:
            part.mkdir() if name == "folder" else part.touch()
            (tmp_path / part.name.replace(str(os.getpid()), str(gone))).touch()
    (tmp_path / f".b.json.{gone}.part").mkdir()
    (tmp_path / f".b.json.{gone}.part" / "c").touch()
    assert len(contents(tmp_path)) == 6
    clear_parts(tmp_path, names)
    assert set(contents(tmp_path)) == {"a", "folder"}


def test_parts_of_others_and_of_the_living_stay(tmp_path):
    gone, living = ended(), subprocess.Popen(["sleep", "60"])
    theirs = [".movie.mkv.part", f".movie.mkv.{gone}.part", f"a.{gone}.part", f".a.{gone}.part.bak"]
    theirs += [f".a.{living.pid}.part", ".a.x.part", ".aXb.1.part", f".a.{'9' * 30}.part.part"]
    for name in theirs:
        (tmp_path / name).touch()
    clear_parts(tmp_path, ["a", "a.b"])
    assert set(contents(tmp_path)) == set(theirs)
    living.kill()  # it has ended, though nobody has asked how: it writes no more
    deadline = time.monotonic() + 30
    while (tmp_path / f".a.{living.pid}.part").exists() and time.monotonic() < deadline:
        clear_parts(tmp_path, ["a", "a.b"])
    assert set(contents(tmp_path)) == set(theirs) - {f".a.{living.pid}.part"}
    living.wait()


def test_what_is_kept_is_the_file_before(tmp_path):
    for text in (b"1", b"2", b"3"):
        write_whole(tmp_path / "a", text, keep=tmp_path / "a.before")
    assert contents(tmp_path) == {"a": b"3", "a.before": b"2"}
    with pytest.raises(OSError), replacing(tmp_path / "a", keep=tmp_path / "a.before"):
        pass  # nothing was written: nothing is moved
    assert contents(tmp_path) == {"a": b"3", "a.before": b"2"}


NO_JSON = {
    "cut": b'{"a": [1, 2',
    "empty": b"",
    "html": b"<html>no such page</html>",
    "latin": '{"a": "\xe9t\xe9"}'.encode("latin-1"),
    "deep list": b"[" * 20_000,
    "deep object": b'{"a":' * 20_000,
    "digits": b'{"a": ' + b"9" * 5_000 + b"}",
    "list": b"[1]",
    "null": b"null",
    "text": b'"a"',
    "zeros": bytes(100),
}


@pytest.mark.parametrize("name", NO_JSON)
def test_what_is_not_the_json_asked_for_is_one_sentence_that_names_the_file(name, tmp_path):
    (tmp_path / "x.json").write_bytes(NO_JSON[name])
    with pytest.raises(ValueError, match=r"x\.json") as caught:
        read_json(tmp_path / "x.json", dict)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    with pytest.raises(ValueError, match=r"^line 7 of a"):
        parse_json(NO_JSON[name], "line 7 of a", dict)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_is_read_in_every_encoding_that_names_itself(encoding, tmp_path):
    (tmp_path / "x.json").write_text('{"a": "\xe9"}', encoding=encoding)
    assert read_json(tmp_path / "x.json", dict) == {"a": "\xe9"}
    assert read_json(tmp_path / "x.json", (list, dict)) == read_json(str(tmp_path / "x.json"))


def test_what_is_no_file_or_too_large_is_refused_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="is no file, but"):
            read_json(path)
    (tmp_path / "x").write_bytes(b"[1]")
    os.truncate(tmp_path / "x", 2**40)  # a hole: it takes no place on the disk
    with pytest.raises(ValueError, match="bytes, more than"):
        read_json(tmp_path / "x")
    with pytest.raises(OSError):
        read_json(tmp_path / "gone")
