"""Bars are drawn where somebody looks, and nowhere else; walks in chunks give everything once."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, suppress

import nbformat
import pytest
from nbclient import NotebookClient

from bt_adapter.progress import Steps, chunks, progress

WIDGET = "application/vnd.jupyter.widget-view+json"
WALK = """
import time
from bt_adapter.progress import Steps, chunks, progress

for _ in progress(range(4), "walking"):
    time.sleep(0.3)
with Steps(20, "running") as bar:
    for step in range(20):
        bar.add(f"loss {step}.5")
"""


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("what", [None, "walking"])
def test_chunks_give_everything_once_and_in_order(size, what):
    found = [*chunks(range(7), size, what)]
    assert [i for some in found for i in some] == list(range(7))
    assert all(len(some) == size for some in found[:-1]) and 1 <= len(found[-1]) <= size
    assert [*chunks([], size, what)] == []


def test_a_walk_that_is_left_early_ends_its_bar():
    walk = progress(iter(range(5)), "walking", total=5)
    assert next(walk) == 0
    walk.close()


def test_a_pipe_has_no_bar_and_a_line_each_tenth_of_a_run():
    with redirect_stderr(io.StringIO()) as said:
        exec(compile(WALK, "walk", "exec"), {})
    lines = said.getvalue().splitlines()
    assert len(lines) == 10 and "\r" not in said.getvalue()
    assert lines[0] == "running: 2/20, loss 1.5" and lines[-1] == "running: 20/20, loss 19.5"


def test_a_short_run_has_a_line_a_step_and_one_that_goes_on_counts_from_there():
    with redirect_stderr(io.StringIO()) as said, Steps(5, "run", start=3) as bar:
        bar.add("a")
        bar.add("b")
    assert said.getvalue() == "run: 4/5, a\nrun: 5/5, b\n"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such terminals")
def test_a_terminal_has_bars():
    import termios

    reading, writing = os.openpty()
    termios.tcsetwinsize(writing, (24, 100))
    command = [sys.executable, "-c", WALK]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writing, cwd=sys.prefix) as walk:
        os.close(writing)
        drawn = b""
        with suppress(OSError):  # as Linux says that there is no more
            while some := os.read(reading, 65536):
                drawn += some
        os.close(reading)
        assert walk.stdout.read() == b"" and walk.wait() == 0
    assert b"walking" in drawn and b"20/20" in drawn and b"loss 19.5" in drawn
    assert b"running: 2/20," not in drawn  # a bar, no lines


def outputs_in_a_kernel(*codes):
    """What the cells of a notebook with this code show."""
    cells = [nbformat.v4.new_code_cell(code) for code in codes]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return [cell.outputs for cell in notebook.cells]


def test_a_notebook_has_bars_of_its_own_and_text_in_none():
    hidden = "import io\nfrom contextlib import redirect_stderr\n\n"
    hidden += "with redirect_stderr(io.StringIO()):" + WALK.rstrip().replace("\n", "\n    ")
    shown, redirected = outputs_in_a_kernel(WALK, hidden)
    assert len([o for o in shown if WIDGET in o.get("data", {})]) == 2
    assert not [o for o in shown if o.output_type == "stream"]
    assert redirected == []
