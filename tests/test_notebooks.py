"""The notebooks: each runs in its own process, reads well, and what is made from it is in step."""

import json
import re
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import nbformat
import pytest
from first_cells import BADGE, INSTALL, brought_by, directives, extras_of, packages_of
from form import EXCEPTIONS, RULES, Notebook, exercises_in, marks
from nbformat import v4
from tidy import ANSWER, KERNEL, LESSONS, NOTEBOOKS, ROOT, TOOLS, WIDGET, origin, tree, untidy
from warm import Warm

from bt_adapter.exercises import check

SOURCES = [path for path in NOTEBOOKS if path.stem != "index"]
LIMIT_S = 240
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(home|root|tmp|work|Users|mnt|opt|content)/\w+")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def cells(path, kind=None):
    """The notebook's cells as the file has them, all or of one kind."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if kind in (None, cell["cell_type"])]


def test_there_are_notebooks():
    assert LESSONS and (ROOT / "nbs/index.ipynb") in NOTEBOOKS


def module_names(path):
    """The modules that a notebook says it exports: one, if all is well."""
    return [directives(c)["default_exp"] for c in cells(path) if "default_exp" in directives(c)]


def added_to(path):
    """The modules of other notebooks to which a notebook adds cells: `#| export NAME`."""
    return {directives(c).get("export", "") for c in cells(path, "code")} - {""}


def as_exported(cell, path):
    """An exported cell as code that counts as its module's lines, where coverage looks for them."""
    name = directives(cell).get("export") or module_names(path)[0]
    module = ROOT / f"bt_adapter/{name.replace('.', '/')}.py"
    before, mark, _ = module.read_text(encoding="utf-8").partition(f".ipynb #{cell['id']}\n")
    assert mark, "python tests/tidy.py exports the notebooks"
    code = re.sub(r"^#\s*\|.*\n", "", cell["source"], flags=re.M)
    code = "\n" * (before.count("\n") + 1) + code
    return f"exec(compile({code!r}, {str(module)!r}, 'exec'))"


@pytest.fixture(scope="session")  # a worker takes these tests in more than one go
def warm():
    process = Warm()
    yield process
    process.close()


def without_extras(path):
    """The packages that the first cell of a lesson does not install."""
    if path not in LESSONS:
        return []
    notebook = json.loads(path.read_text(encoding="utf-8"))
    installed = extras_of(packages_of(notebook))
    return sorted(
        {*chain(*map(brought_by, {"chat", "lab", "mteb", "train"} - {*installed}))} - {"traitlets"}
    )


def code_of(path, everything=False):
    """The cells of a notebook that run, or all that a reader runs: id -> source."""
    sources = {}
    for cell in nbformat.read(path, as_version=4).cells:
        found = directives(cell)
        if cell.cell_type == "code" and (everything or found.get("eval") != "false"):
            exported = found.keys() & {"export", "exporti"}
            sources[cell.id] = as_exported(cell, path) if exported else cell.source
    return sources


@pytest.mark.slow
@each_notebook
def test_runs(path, tmp_path, warm, monkeypatch):
    # In an empty folder, as in Colab: a notebook finds its files through the package.
    monkeypatch.chdir(ROOT)
    (tmp_path / "empty").mkdir()
    warm.run(code_of(path), tmp_path / "empty", LIMIT_S, without_extras(path))


@pytest.mark.slow
def test_the_lesson_on_chat_talks_to_real_models(tmp_path, warm):
    """Its cells that are asked nowhere else, where SmolLM2 has been fetched before."""
    from bt_adapter.chat import cache_folder

    if not (cache_folder() / "SmolLM2-135M-Instruct").is_dir():
        pytest.skip("SmolLM2 is not in the cache folder, where bta-demo leaves it")
    (tmp_path / "empty").mkdir()
    code = code_of(ROOT / "nbs/50_chat.ipynb", everything=True)
    code["asked"] = "assert len(talk.talks.exchanges) == 3 and after['motion']['n'] > 10"
    warm.run(code, tmp_path / "empty", LIMIT_S)


def test_nothing_is_out_of_step():
    changed = untidy()
    assert not changed, f"python tests/tidy.py would change {changed}"


def small_repository(folder):
    """A repository of one lesson and an index, both as untidy as Jupyter leaves notebooks."""
    view = {WIDGET: {"model_id": "1"}, "text/plain": "IntSlider()"}
    lesson = [
        v4.new_code_cell("#| default_exp lesson"),
        v4.new_code_cell(""),
        v4.new_code_cell("#| export\nfrom bt_adapter import __version__", execution_count=7),
        v4.new_code_cell("# answer\nassert slider", metadata={"tags": []}),
    ]
    still = {**view, "image/png": "iVBORw0KGgo="}
    lesson[3].outputs = [
        v4.new_output("display_data", view),
        v4.new_output("display_data", still),
        v4.new_output("stream", text="seen"),
    ]
    index = [
        v4.new_markdown_cell("![plot](plot.png) [lesson](10_lesson.ipynb) [out](https://x.org)"),
        v4.new_code_cell("#| echo: false\nobject()"),
        v4.new_code_cell("1 + 1"),
    ]
    index[1].outputs = [v4.new_output("execute_result", {"text/plain": "<object at 0x7f12>"})]
    metadata = {"widgets": {"state": {}}, "kernelspec": {"name": "other", "display_name": "Other"}}
    for name in ("nbs", "bt_adapter", "tests"):
        (folder / name).mkdir()
    for name in TOOLS:
        shutil.copy(ROOT / name, folder / name)
    for name, some in (("10_lesson", lesson), ("index", index)):
        notebook = v4.new_notebook(cells=some, metadata=metadata)
        (folder / f"nbs/{name}.ipynb").write_text(json.dumps(notebook))
    (folder / "bt_adapter/__init__.py").write_text('__version__ = "1.0"\n')


def test_tidying(tmp_path):
    small_repository(tmp_path)
    tidy = [sys.executable, "tests/tidy.py"]
    found = subprocess.run([*tidy, "--check"], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 1 and "out of step: nbs/10_lesson.ipynb" in found.stderr
    assert not (tmp_path / "README.md").exists()
    subprocess.run(tidy, cwd=tmp_path, check=True)
    lesson = json.loads((tmp_path / "nbs/10_lesson.ipynb").read_text())
    assert lesson["metadata"] == {"kernelspec": KERNEL}
    words, install, exported, answer = lesson["cells"]
    assert (words["id"], install["id"]) == (BADGE, INSTALL)
    assert "".join(exported["source"]).startswith("#| default_exp lesson\n#| export\n")
    assert answer["metadata"] == ANSWER and exported["metadata"] == {}
    picture, text = answer["outputs"]
    assert "image/png" in picture["data"] and WIDGET not in picture["data"]
    assert text["output_type"] == "stream"
    module = (tmp_path / "bt_adapter/lesson.py").read_text()
    assert f"#{exported['id']}\nfrom . import" in module
    readme = (tmp_path / "README.md").read_text()
    assert "![plot](nbs/plot.png) [lesson](nbs/10_lesson.ipynb) [out](https://x.org)" in readme
    assert "```python\n1 + 1\n```" in readme and "    <object>\n" in readme
    assert "object()" not in readme and "#|" not in readme
    # nbdev's own commands change nothing more.
    before = {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)}
    for command in ("nbdev-clean", "nbdev-export"):
        subprocess.run([Path(sys.executable).with_name(command)], cwd=tmp_path, check=True)
    assert {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)} == before
    subprocess.run([*tidy, "--check"], cwd=tmp_path, check=True)


@each_notebook
def test_can_be_published(path):
    assert path.stat().st_size < 1_000_000
    for cell in cells(path):
        outputs = cell.get("outputs", [])
        assert not [o for o in outputs if o["output_type"] == "error"], cell["id"]
        texts = [o.get("text", "") for o in outputs]
        shown = [d for o in outputs for k, d in o.get("data", {}).items() if k[:5] != "image"]
        found = MACHINE_PATH.search(json.dumps([cell["source"], texts, shown]))
        assert not found, (cell["id"], found[0])
    assert any(cell.get("outputs") for cell in cells(path, "code"))


@each_notebook
def test_has_a_title(path):
    first = "".join(cells(path, "markdown")[0]["source"])
    assert re.search(r"^# \S", first, re.M)


@each_source
def test_reads_well(path):
    assert not marks(path)


def test_the_list_of_what_may_read_badly_is_short():
    for name, excused in EXCEPTIONS.items():
        notebook = Notebook(ROOT / f"nbs/{name}.ipynb")
        assert excused.keys() <= {rule.name for rule in RULES if rule.broken(notebook)}, name


@each_lesson
def test_closes_with_exercises(path):
    """At least three exercises, each with its solution folded below, and what was learned."""
    shown, asked = cells(path), []
    for cell, below in zip(shown, [*shown[1:], {"source": []}]):
        folded = "".join(below["source"])
        for name in exercises_in(cell):
            assert folded.startswith("<details>") and folded.rstrip().endswith("</details>"), name
            assert check(name, solution=True).text in folded, f"{name} has another solution"
            asked.append(name)
    assert len(set(asked)) >= 3
    prose = ["".join(cell["source"]) for cell in shown if cell["cell_type"] == "markdown"]
    assert any("What you can now do" in text for text in prose)


def test_one_notebook_one_module():
    exported = {}
    for path in SOURCES:
        names = module_names(path)
        assert len(names) <= 1, path.name
        if path in LESSONS:  # a lesson is called after what it teaches, and may export nothing
            assert not added_to(path), path.name
        else:  # the workshop is laid out as the package is
            (name,) = names or added_to(path)
            parts = name.removesuffix(".__init__").split(".")
            place = path.relative_to(ROOT / "nbs/workshop").with_suffix("").parts
            assert any(part in step for part in parts for step in place), path.name
        exported |= {name: path.relative_to(ROOT).as_posix() for name in names}
    package = ROOT / "bt_adapter"
    files = [path for path in package.rglob("*.py") if path.parent.name != "data_samples"]
    files = [path for path in files if path.name[0] != "_" or origin(path)]
    modules = {".".join(p.relative_to(package).with_suffix("").parts): origin(p) for p in files}
    assert modules == exported


@each_lesson
def test_saved_figures_have_their_width(path):
    """Two of their pixels are one of the page, also before a cell has run, and on GitHub."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                assert output["metadata"]["image/png"]["width"], cell["id"]
