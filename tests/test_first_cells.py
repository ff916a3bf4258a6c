"""The first cells of the lessons: a badge and an install cell for Colab, silent elsewhere."""

import copy
import importlib.metadata
import json
import re
import sys
from types import ModuleType

import first_cells
import pytest
from first_cells import BADGE, INSTALL, make_first_cells
from IPython.core.interactiveshell import InteractiveShell
from nbformat import v4
from tidy import LESSONS, ROOT

REPOSITORY = "https://github.com/owner/name"


@pytest.fixture(scope="module")
def shell():
    return InteractiveShell()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A copy of what first cells are made from, with an address in settings.ini."""
    text = (ROOT / "settings.ini").read_text(encoding="utf-8")
    text, found = re.subn(r"^repository =.*$", f"repository = {REPOSITORY}", text, flags=re.M)
    assert found == 1
    (tmp_path / "settings.ini").write_text(text, encoding="utf-8")
    (tmp_path / "bt_adapter").symlink_to(ROOT / "bt_adapter")
    monkeypatch.chdir(tmp_path)


def lesson(*code, module="tubes"):
    """A lesson in which these cells stand, after a title and the name of its module."""
    cells = [v4.new_markdown_cell("# Tubes\n\n> Which patches are seen.\n\nWhy hide patches?")]
    if module:
        cells.append(v4.new_code_cell(f"# | default_exp {module}"))
    cells += [v4.new_markdown_cell("A picture."), *map(v4.new_code_cell, code)]
    return json.loads(json.dumps(v4.new_notebook(cells=cells)))


def source(cell):
    return "".join(cell["source"])


def begun(notebook, name="16_tubes.ipynb"):
    """The cells of a lesson once it has its first cells; made twice, they are the same."""
    make_first_cells(notebook, name)
    again = copy.deepcopy(notebook)
    make_first_cells(again, name)
    assert again == notebook
    return notebook["cells"]


@pytest.fixture
def run(shell, monkeypatch, capsys):
    """Runs a cell in Colab, or elsewhere: what it says, and what it asks pip for."""

    def run(code, torch=(), colab=True):  # torch has a version before and one after
        asked, versions = [], iter(torch)
        monkeypatch.setattr(importlib.metadata, "version", lambda name: next(versions))
        shell.register_magic_function(asked.append, magic_name="pip")
        if colab:
            monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
        shell.run_cell(code).raise_error()
        return capsys.readouterr().out, asked

    return run


def test_where_nothing_is_published_one_sentence_says_what_to_run(monkeypatch, run):
    monkeypatch.chdir(ROOT)
    text, code = map(source, begun(lesson("# | export\nimport torch"))[2:4])
    assert text == "The cells marked `# | export` are the source of `bt_adapter.tubes`."
    said, asked = run(code)
    assert "run %pip install git+ADDRESS" in said and said.count("\n") == 1 and not asked


def test_the_first_thing_that_is_met(published):
    cells = begun(lesson("# | export\nimport torch"))
    assert [cell.get("id") for cell in cells[2:4]] == [BADGE, INSTALL]
    address = f"{first_cells.COLAB}/github/owner/name/blob/main/nbs/16_tubes.ipynb"
    assert source(cells[2]).startswith("[![Open in Colab](") and f"]({address})\n" in source(
        cells[2]
    )
    assert source(cells[4]) == "# | default_exp tubes\n# | export\nimport torch" and len(cells) == 5


def test_a_repository_elsewhere_is_installed_from_but_has_no_badge(published, tmp_path):
    settings = tmp_path / "settings.ini"
    settings.write_text(settings.read_text().replace("github.com", "codeberg.org") + "\n")
    cells = begun(lesson("1 + 1", module=""))
    assert len(cells) == 4 and "git+https://codeberg.org/owner/name" in source(cells[2])


@pytest.mark.parametrize(("before", "restart"), [("2.8.0", True), ("2.10.0", False)])
def test_in_colab_it_installs(published, run, before, restart):
    after = "2.11.0" if restart else before
    (code,) = [
        source(c)
        for c in begun(lesson("from bt_adapter.playing import drawing"))
        if c["id"] == INSTALL
    ]
    said, asked = run(code, torch=(before, after))
    assert asked == [f'install -q "bt-adapter[lab] @ git+{REPOSITORY}"']
    assert "About 120 MB" in said and "older than 2.9" in said
    assert ("Restart session" in said) == restart


def test_elsewhere_it_does_nothing(published, run):
    for path in LESSONS:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        (code,) = [source(c) for c in begun(notebook, path.name) if c["id"] == INSTALL]
        assert run(code, colab=False) == ("", []), path.name


@pytest.mark.parametrize(
    ("code", "extras"),
    [
        ("import numpy as np", []),
        ("from ipywidgets import interact", ["lab"]),
        ("from bt_adapter import explore, tube_mask", ["lab"]),
        ("def later():\n    import transformers", ["chat"]),
        (
            "from bt_adapter.chat import plug\nfrom bt_adapter.playing import drawing",
            ["chat", "lab"],
        ),
        ("from bt_adapter import VideoChat", ["chat"]),
        ("import bt_adapter.datasets", ["train"]),
        ("%pip list\nif 1:\n    !ls\n    import webdataset", ["train"]),
        ("%%bash\nls -l nowhere | wc; import peft", []),
    ],
)
def test_the_extras_that_a_lesson_needs(published, code, extras):
    assert first_cells.extras_of(first_cells.packages_of(lesson(code))) == extras


@pytest.mark.parametrize(
    ("code", "packages"),
    [
        ("from bt_adapter.playing import drawing\nimport anywidget, pyarrow", []),
        ("from bt_adapter.kernels import kernel_attention", []),
        ("import triton.language as tl", ["triton"]),
        ("from bt_adapter.kernels.tile import jit, tl, triton", ["triton"]),
        ("from bt_adapter.instruct import encoded", ["peft", "transformers"]),
    ],
)
def test_what_a_lesson_lacks_is_said(published, run, monkeypatch, code, packages):
    cells = begun(lesson(code))
    (code,) = [source(cell) for cell in cells if cell["id"] == INSTALL]
    assert run(code, colab=False) == ("", [])
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    said, _ = run(code, colab=False)
    assert said.count("\n") == bool(packages) and all(p in said.casefold() for p in packages)
    assert ("pip install -e '.[chat]' in a clone" in said) == ("peft" in packages)


def test_every_lesson_says_what_it_lacks(published, run, monkeypatch):
    lacked = [*first_cells.brought_by("chat"), "triton"]
    for package in lacked:
        monkeypatch.setitem(sys.modules, package, None)
    for path in LESSONS:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        code = "".join(source(c) for c in notebook["cells"] if c["cell_type"] == "code")
        (first,) = [source(c) for c in begun(notebook, path.name) if c["id"] == INSTALL]
        said, _ = run(first, colab=False)
        for package in lacked:
            if f"import {package}" in code or f"from {package}" in code:
                assert package in said.casefold(), path.name


def test_every_lesson_has_them():
    for path in LESSONS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        first = next(cell for cell in cells if cell["cell_type"] == "code")
        assert first["id"] == INSTALL, path.name
        assert source(cells[0]).startswith("# "), path.name
