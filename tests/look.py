"""Look at lessons as a visitor does, in JupyterLab and a real browser; pictures for your own eyes.

    python tests/look.py nbs/16_tubes.ipynb -o FOLDER          # --dark, --narrow, --colab

Of each notebook: as it opens, before anything has run; all of it after Run All; a control that was
moved; an exercise answered wrong and right; a solution that was opened. What a program can tell is
printed: cells that failed, outputs that are cut off, pictures that are missing, and the time.
With --colab `google.colab` is there, pip is only noted, and settings.ini has a repository.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from contextlib import chdir
from importlib import import_module
from pathlib import Path

from first_cells import make_first_cells
from form import exercises_in
from lab import CHROMIUM, FLAGS, IDLE, jupyterlab, run_all
from tidy import ROOT

STARTUP = """
import sys
from types import ModuleType

from IPython import get_ipython

sys.modules["google.colab"] = ModuleType("google.colab")
get_ipython().register_magic_function(lambda line: print("pip", line), magic_name="pip")
"""
SCROLLER = ".jp-NotebookPanel .jp-WindowedPanel-outer"
OUTPUTS = ".jp-NotebookPanel .jp-OutputArea-output"
CUT_OFF = """outputs => outputs.filter(o => o.scrollWidth > o.clientWidth + 2).map(
    o => [o.scrollWidth, o.clientWidth, o.textContent.slice(0, 60)])"""
MISSING = "images => images.filter(i => i.complete && !i.naturalWidth).length"
BOTTOM = "cell => cell.getBoundingClientRect().bottom"
HEIGHT = 2400  # of a window


def as_published(notebook: dict, name: str):
    """Give a lesson the first cells that it has in a repository on GitHub."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        text = (ROOT / "settings.ini").read_text(encoding="utf-8")
        address = "repository = https://github.com/owner/name"
        text = re.sub(r"^repository =.*$", address, text, flags=re.M)
        Path("settings.ini").write_text(text, encoding="utf-8")
        Path("bt_adapter").symlink_to(ROOT / "bt_adapter")
        make_first_cells(notebook, name)


class Visit:
    """One notebook in one window."""

    def __init__(self, page, name: str, folder: Path):
        self.page, self.name, self.folder, self.shots = page, name, folder, 0

    def say(self, *words):
        print(f"{self.name}:", *words, flush=True)

    def shoot(self, what: str):
        self.shots += 1
        place = self.folder / f"{self.name}_{self.shots:02}_{what}.png"
        self.page.screenshot(path=place, animations="disabled")

    def idle(self, minutes: float = 6):
        """Wait until no cell runs or is about to."""
        end = time.monotonic() + 60 * minutes
        while True:
            self.page.get_by_text(IDLE).wait_for(timeout=60_000 * minutes)
            if not self.page.locator(".jp-InputPrompt", has_text="[*]").count():
                return
            assert time.monotonic() < end, "cells still run"
            time.sleep(0.2)

    def scroll_through(self, what: str):
        """Pictures of the whole notebook, a window each."""
        scroller = self.page.locator(SCROLLER)
        height = scroller.evaluate("e => e.scrollHeight")
        step = scroller.evaluate("e => e.clientHeight") - 60
        for top in range(0, height, step):
            scroller.evaluate("(e, top) => { e.scrollTop = top; }", top)
            time.sleep(0.3)
            if self.page.locator(f"{SCROLLER} .jp-Cell").last.evaluate(BOTTOM) < 100:
                break  # what is left is empty
            self.shoot(what)

    def measure(self):
        """What a program can see."""
        outputs = self.page.locator(OUTPUTS)
        texts = self.page.locator(f"{OUTPUTS} pre").all_text_contents()
        failed = [text for text in texts if "Traceback" in text]
        for words in failed:
            self.say("FAILED:", words[-300:])
        for width, place, words in outputs.evaluate_all(CUT_OFF):
            self.say(f"cut off: {width} pixels in {place}: {words!r}")
        if missing := self.page.locator(f"{SCROLLER} img").evaluate_all(MISSING):
            self.say(f"{missing} pictures are missing")

    def changed(self, read, before, what: str, seconds: float = 30):
        end = time.monotonic() + seconds
        while (now := read()) == before:
            if time.monotonic() > end:
                self.say(f"{what}: nothing changed")
                break
            time.sleep(0.1)
        return now

    def move_a_control(self):
        box = self.page.locator(f"{OUTPUTS} .widget-vbox").first
        box.scroll_into_view_if_needed()
        picture = box.locator("img, svg").first
        before = picture.evaluate("e => e.src || e.outerHTML")
        menu, slider = box.locator("select").first, box.locator("[role=slider]").first
        if menu.count():
            menu.select_option(index=1)
        elif slider.count():
            slider.focus()
            for _ in range(3):
                self.page.keyboard.press("ArrowRight")
        self.changed(lambda: picture.evaluate("e => e.src || e.outerHTML"), before, "control")
        self.idle()
        self.shoot("control")

    def answer(self, exercise: str, answer, what: str):
        """Write an answer into the cell of an exercise and run it."""
        cell = self.page.locator(".jp-CodeCell", has_text=f'check("{exercise}"').first
        cell.scroll_into_view_if_needed()
        outputs = cell.locator(".jp-OutputArea-output")
        before = outputs.all_text_contents()
        cell.locator(".cm-content").click()
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.insert_text(f'answer = {answer!r}\ncheck("{exercise}", answer)')
        self.page.keyboard.press("Shift+Enter")
        self.changed(outputs.all_text_contents, before, f"{what} answer")
        self.idle()
        self.say(f"{exercise}, {answer!r}:", *outputs.all_text_contents())
        cell.scroll_into_view_if_needed()
        self.shoot(what)

    def open_a_solution(self):
        solution = self.page.locator(f"{SCROLLER} details").last
        solution.scroll_into_view_if_needed()
        solution.locator("summary").click()
        solution.scroll_into_view_if_needed()
        time.sleep(0.3)
        self.shoot("solution")


def answered(notebook: dict):
    """An exercise with a wrong answer and a right one that can be written down."""
    for cell in notebook["cells"]:
        for exercise in exercises_in(cell):
            lesson, name = exercise.split(".")
            case = import_module(f"exercise_cases.{lesson}").CASES[name]
            wrong = next(answer for answer, _ in case.wrongs())
            if all(isinstance(a, (str, int, float, list)) for a in (wrong, case.right[0])):
                return exercise, wrong, case.right[0]
    return None


def visit(page, address: str, path: Path, folder: Path):
    """All that a visitor does with one notebook."""
    here = Visit(page, path.stem, folder)
    page.goto(f"{address}/lab/tree/{path.name}?reset")
    here.idle()
    here.scroll_through("opened")
    start = time.monotonic()
    run_all(page)
    page.locator(".jp-InputPrompt", has_text="[*]").first.wait_for()
    here.idle()
    here.say(f"ran in {time.monotonic() - start:.0f} s")
    here.measure()
    here.scroll_through("run")
    if page.locator(f"{OUTPUTS} .widget-vbox").count():
        here.move_a_control()
    if found := answered(json.loads(path.read_text(encoding="utf-8"))):
        exercise, wrong, right = found
        here.answer(exercise, wrong, "wrong")
        here.answer(exercise, right, "right")
    if page.locator(f"{SCROLLER} details").count():
        here.open_a_solution()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--dark", action="store_true", help="JupyterLab's dark theme")
    parser.add_argument("--narrow", action="store_true", help="a window of 800 pixels, not 1280")
    parser.add_argument("--colab", action="store_true", help="as if it were Colab")
    chosen = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chosen.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        home, work = Path(place, "home"), Path(place, "work")
        work.mkdir()
        startup = home / ".ipython/profile_default/startup"
        startup.mkdir(parents=True)
        if chosen.colab:
            (startup / "colab.py").write_text(STARTUP)
        for path in chosen.notebooks:
            notebook = json.loads(path.read_text(encoding="utf-8"))
            if chosen.colab:
                as_published(notebook, path.name)
            (work / path.name).write_text(json.dumps(notebook), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        with jupyterlab(home, work, dark=chosen.dark) as address:
            for path in chosen.notebooks:
                size = {"width": 800 if chosen.narrow else 1280, "height": HEIGHT}
                page = browser.new_page(viewport=size)
                page.set_default_timeout(60_000)
                page.on("pageerror", lambda error: print("error on the page:", error))
                visit(page, address, work / path.name, chosen.out)
                page.close()
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
