"""Lessons where something is missing: an extra or Triton. One sentence says what, and what to do.

tests/test_notebooks.py runs each lesson offline, without the extras that its first cell does not
install; tests/test_first_cells.py and tests/test_playing.py see what is said where they are needed.
The lessons that define kernels are run here without Triton.
"""

import json
import sys

import numpy as np
import pytest
from first_cells import brought_by, imported
from test_notebooks import LIMIT_S, code_of, warm  # noqa: F401
from test_packaging import python
from tidy import LESSONS, ROOT

from bt_adapter import extras
from bt_adapter.chat import image_chat_model
from bt_adapter.explorer import ChatPanel, Explorer
from bt_adapter.extras import missing, need, remedy
from bt_adapter.instruct import with_lora
from bt_adapter.playing import NO_CONTROLS, StillPicture

EXTRAS = ("chat", "lab", "train")


@pytest.fixture
def all_extras(monkeypatch):
    """The packages of the extras; the current folder is the repository."""
    monkeypatch.chdir(ROOT)
    return sorted(set().union(*map(brought_by, EXTRAS)))


def test_what_lessons_import_of_the_package_needs_no_extra(all_extras):
    wanted = set()
    for path in LESSONS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            if cell["cell_type"] == "code":
                wanted |= {m for m in imported("".join(cell["source"])) if m[:11] == "bt_adapter."}
    assert len(wanted) > len(LESSONS)
    python(
        "import sys, importlib\n"
        f"sys.modules.update(dict.fromkeys({[*all_extras, 'triton']}))\n"
        f"for module, _, name in (name.rpartition('.') for name in {sorted(wanted)}):\n"
        "    getattr(importlib.import_module(module), name, None)\n"
    )


KERNELS = [path for path in LESSONS if "@jit" in path.read_text(encoding="utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_without_triton_a_lesson_says_so_once_and_goes_on(path, tmp_path, warm, monkeypatch):  # noqa: F811
    monkeypatch.chdir(ROOT)
    (tmp_path / "empty").mkdir()
    warm.run(code_of(path), tmp_path / "empty", LIMIT_S, ["triton"])
    said = (tmp_path / "output.txt").read_text(encoding="utf-8")
    assert said.count("There is no Triton here") == 1 and "Traceback" not in said


def test_lessons_define_kernels():
    assert len(KERNELS) == 2


def toy():
    """An explorer of noise."""
    noise = np.zeros((4, 40, 80, 3), np.uint8)
    maps = np.random.default_rng(0).dirichlet(np.ones(4), size=(2, 8, 3, 4)).astype(np.float32)
    return Explorer(noise, (2, 4), maps, lambda caption: (0.5, np.ones((4, 8))))


def test_the_explorer_without_widgets_is_a_picture(monkeypatch):
    for name in ("anywidget", "ipywidgets"):
        monkeypatch.setitem(sys.modules, name, None)
    shown = toy().widget()
    assert isinstance(shown, StillPicture) and shown.note == NO_CONTROLS
    assert "image/png" in shown._repr_mimebundle_()[0]


class Parrot:
    def stream(self, question):
        yield question


@pytest.mark.parametrize(
    ("call", "package", "extra"),
    [
        (lambda: ChatPanel(Parrot()).widget(), "ipywidgets", "lab"),
        (lambda: image_chat_model(None, None), "transformers", "chat"),
        (lambda: with_lora(None), "peft", "chat"),
    ],
)
def test_what_can_do_nothing_without_a_package_says_so(monkeypatch, call, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError) as told:
        call()
    assert str(told.value) == f"This needs {package}: pip install -e '.[{extra}]' in a clone."
    assert told.value.name == package


def test_every_extra_is_known(all_extras):
    for extra in EXTRAS:
        for package in brought_by(extra):
            assert remedy(package) == f"pip install -e '.[{extra}]' in a clone"
    assert missing(*all_extras) == "" and need("peft") is None


def test_sentences(monkeypatch):
    for name in ("peft", "pyarrow", "triton"):
        monkeypatch.setitem(sys.modules, name, None)
    first, second = missing("torch", "triton", "peft", "pyarrow").splitlines()
    assert "no Triton here" in first and "not run" in first
    assert "peft, pyarrow; pip install -e '.[chat,train]'" in second
    assert missing("nowhere").endswith("nowhere; pip install nowhere.\n")


def test_a_package_that_is_used_as_a_folder_has_no_metadata(monkeypatch):
    def none(name):
        raise extras.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", none)
    assert remedy("peft", "gguf") == "pip install peft gguf"
