"""The widgets and the file of the explorer in a real browser, with mouse and keyboard.

Chromium comes from the system: apt-get install --no-install-recommends chromium fonts-dejavu-core.
BTA_SCREENSHOTS=FOLDER keeps pictures of the widgets.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from first_cells import directives
from nbformat import v4
from PIL import Image
from tidy import KERNEL, ROOT

from bt_adapter.explorer import Explorer

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update"
)
ATTACK = "<img src=x onerror=alert(1)>"
WAIT_MS = 60_000
PATIENCE_S = 15

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


class Watched:
    """A page with everything that it should not do."""

    def __init__(self, browser, **size):
        self.page = browser.new_page(viewport={"width": 1200, "height": 900} | size)
        self.page.set_default_timeout(WAIT_MS)
        self.errors, self.requests, self.alerts = [], [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", self.dismiss)

    def dismiss(self, dialog):
        self.alerts.append(dialog.message)
        dialog.dismiss()


def until(read, before, what):
    """What `read` gives, once it is another than before."""
    end = time.monotonic() + PATIENCE_S
    while (now := read()) == before:
        assert time.monotonic() < end, f"{what}: nothing changed"
        time.sleep(0.05)
    return now


def pixels(root, nth=0):
    return root.locator("canvas").nth(nth).evaluate("canvas => canvas.toDataURL()")


# --- what a person does with the explorer; each step asserts that the page answered ---


def hover(root):
    said, before = root.locator(".bta-said"), pixels(root)
    canvas = root.locator(".bta-frame canvas").nth(2)
    canvas.scroll_into_view_if_needed()
    box, seen = canvas.bounding_box(), said.text_content()
    root.page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"], steps=3)
    text = until(said.text_content, seen, "hover")
    assert re.match(r"Row 1, column \d+ of frame 3 looks at frame", text), text
    assert pixels(root) != before
    assert root.locator(".bta-frame").nth(2).get_attribute("data-now") is not None


def move_by_keyboard(root):
    said, stage = root.locator(".bta-said"), root.locator(".bta-stage")
    stage.focus()
    outline = stage.evaluate("e => [e.matches(':focus-visible'), getComputedStyle(e).outlineWidth]")
    for key in ("ArrowDown", "PageDown", "ArrowLeft"):
        before, seen = pixels(root), said.text_content()
        root.page.keyboard.press(key)
        until(said.text_content, seen, key)
        assert pixels(root) != before, key
    return outline


def choose(root, name, value):
    shares, before = root.locator(".bta-share b"), root.locator(".bta-share b").all_text_contents()
    root.get_by_label(name, exact=True).select_option(str(value))
    return until(shares.all_text_contents, before, name)


def type_caption(root, caption, by_button=False):
    note, box, before = (
        root.locator(".bta-note"),
        root.get_by_label("Caption", exact=True),
        pixels(root),
    )
    seen = note.text_content()
    box.fill(caption)
    root.page.keyboard.press("Tab")  # leaving the box sends nothing
    time.sleep(0.3)
    assert note.text_content() == seen
    if by_button:
        root.get_by_role("button", name="Show").click()
    else:
        box.press("Enter")
    text = until(note.text_content, seen, "caption")
    return text, pixels(root) != before


def play(root):
    button = root.get_by_role("button", name="Play")
    button.click()
    now = root.locator(".bta-frame[data-now] .bta-share span")
    until(now.text_content, now.text_content(), "play")
    root.get_by_role("button", name="Pause").click()


# --- the file ---


def drawn():
    """An explorer of 6 wide frames, 2 x 4 patches, without any model."""
    rng = np.random.default_rng(0)
    clip = rng.integers(256, size=(6, 40, 80, 3), dtype=np.uint8)
    maps = rng.dirichlet(np.ones(6) / 2, size=(2, 8, 3, 6)).astype(np.float32)
    heats = {text: rng.random((6, 8)) for text in ("to the left", ATTACK)}
    return Explorer(clip, (2, 4), maps, lambda text: (0.25, heats[text]), list(heats))


@pytest.fixture
def page_of(browser, tmp_path):
    pages = []

    def open_file(html, **size):
        path = tmp_path / f"explorer{len(pages)}.html"
        path.write_text(html, encoding="utf-8")
        watched = Watched(browser, **size)
        pages.append(watched.page)
        watched.page.goto(path.as_uri())
        root = watched.page.locator(".bta")
        until(root.locator(".bta-said").text_content, "", "first view")
        return watched, root

    yield open_file
    for page in pages:
        page.close()


def test_file(page_of):
    watched, root = page_of(drawn().html(title=ATTACK))
    hover(root)
    visible, width = move_by_keyboard(root)
    assert visible and width == "3px"
    choose(root, "Layer", 1)
    choose(root, "Head", 2)
    text, changed = type_caption(root, "to the left")
    assert text == "“to the left”: cosine 0.25 with this clip." and changed
    text, changed = type_caption(root, ATTACK, by_button=True)
    assert ATTACK in text and changed
    text, changed = type_caption(root, "unheard of")
    assert "no map for “unheard of”" in text and changed
    play(root)
    assert watched.page.title() == ATTACK and root.locator("img").count() == 0
    assert not watched.errors and not watched.alerts
    assert len(watched.requests) == 1 and watched.requests[0].startswith("file:")
    wide = root.evaluate("e => [e.scrollWidth, e.clientWidth]")
    assert wide[0] <= wide[1]


def test_numbers_in_the_file(page_of):
    """The percentages are those of the maps, for a patch that is named."""
    explorer = drawn()
    _, root = page_of(explorer.html())
    choose(root, "Head", 3)
    root.locator(".bta-stage").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "PageDown", "PageDown"):
        root.page.keyboard.press(key)
    said = root.locator(".bta-said").text_content()
    assert said.startswith("Row 1, column 4 of frame 3 looks at")
    shown = [int(text.rstrip("%")) for text in root.locator(".bta-share b").all_text_contents()]
    assert np.abs(np.array(shown) - 100 * explorer.maps[0, 3, 2, 2]).max() <= 0.8


def test_pixels_in_the_file(page_of):
    """A hot patch is drawn where it is: bright in its frame, dark elsewhere."""
    explorer = drawn()
    explorer.clip = np.zeros_like(explorer.clip)
    heat = np.zeros((6, 8), np.float32)
    heat[4, 5] = 1  # row 2, column 2
    explorer.relevance = lambda text: (0.0, heat)
    _, root = page_of(explorer.html())
    type_caption(root, "to the left")

    def brightness(frame, x, y):
        take = "getContext('2d').getImageData(x * canvas.width, y * canvas.height, 1, 1).data"
        read = f"(canvas, [x, y]) => [...canvas.{take}]"
        return sum(root.locator(".bta-frame canvas").nth(frame).evaluate(read, [x, y])[:3])

    assert brightness(4, 0.375, 0.8) > 500 > 250 > brightness(3, 0.375, 0.8)
    assert brightness(4, 0.9, 0.2) < 250


def test_small_window(page_of):
    watched, root = page_of(drawn().html(), width=380, height=800)
    hover(root)
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 380


SABOTAGE = {
    "hover": ("point(event, canvas, i)", "0", hover),
    "keyboard": ("event.key in steps", "false", move_by_keyboard),
    "layer": (
        'layer.addEventListener("change", choose);',
        "",
        lambda root: choose(root, "Layer", 1),
    ),
    "Enter": ('event.key === "Enter"', "false", lambda root: type_caption(root, "to the left")),
    "button": (
        'ask.addEventListener("click", submit);',
        "",
        lambda root: type_caption(root, "to the left", by_button=True),
    ),
    "play": ('play.addEventListener("click", toggle);', "", play),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_dead_callback_is_noticed(page_of, name, monkeypatch):
    monkeypatch.setitem(globals(), "PATIENCE_S", 1)
    alive, dead, step = SABOTAGE[name]
    html = drawn().html()
    assert html.count(alive) == 1
    _, root = page_of(html.replace(alive, dead))
    root.page.set_default_timeout(1000)
    with pytest.raises(Exception, match=r"nothing changed|Timeout"):
        step(root)


# --- JupyterLab ---

EXTRA = '''
dead = explorer.widget()
dead.unobserve_all()
dead
''', '''
from bt_adapter.chat import Exchange, Reply
from IPython.display import HTML
from bt_adapter.explorer import log_html
HTML(log_html([Exchange(attack, {"model": Reply(attack, "whole")})]))
'''  # fmt: skip


def notebook_for_the_browser():
    """The room without what needs a network, and with widgets whose callbacks are dead."""
    notebook = json.loads((ROOT / "nbs/42_explorer.ipynb").read_text(encoding="utf-8"))
    cells = []
    for cell in notebook["cells"]:
        text, code = "".join(cell["source"]), cell["cell_type"] == "code"
        if not code:
            cells.append(v4.new_markdown_cell(text))
        elif directives(cell).get("eval") != "false" and not text.startswith("# answer"):
            cells.append(v4.new_code_cell(text))
    cells += [v4.new_code_cell(source.strip()) for source in EXTRA]
    return v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})


def settings_of_lab(folder):
    """No question about news, and every cell on the page, not only those in sight."""
    quiet = {"checkForUpdates": False, "fetchNews": "false"}
    for name, values in {
        "apputils-extension/notification": quiet,
        "notebook-extension/tracker": {"windowingMode": "none"},
    }.items():
        path = folder / f"@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))


@contextmanager
def jupyter_lab(home, work, *options):
    """JupyterLab on loopback, with a home of its own; its address."""
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
    settings_of_lab(home / "settings")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER")}
    env |= dict(HOME=str(home), JUPYTERLAB_SETTINGS_DIR=str(home / "settings"), OMP_NUM_THREADS="1")
    env |= dict(PYTHONPATH=str(ROOT), JUPYTER_PLATFORM_DIRS="1", NO_PROXY="127.0.0.1")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"]
    command += [f"--port={port}", "--allow-root", "--ServerApp.port_retries=0"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={work}"]
    command += ["--LabApp.collaborative=False", *options]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=work)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 200
    try:
        while not answers(address):
            told = (home / "log").read_text()[-2000:]
            assert server.poll() is None and time.monotonic() < end, told
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab in a folder with the lesson on the explorer; its address."""
    home, work = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    (work / "explorer.ipynb").write_text(json.dumps(notebook_for_the_browser()))
    pictures = ROOT / "nbs/42_explorer_files"
    if pictures.exists():
        shutil.copytree(pictures, work / pictures.name)
    with jupyter_lab(home, work) as address:
        yield address


def answers(address):
    try:
        return urlopen(f"{address}/api", timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def notebook(browser, lab):
    """The room after Run All, through the menu."""
    watched = Watched(browser, height=1400)
    page = watched.page
    page.goto(f"{lab}/lab/tree/explorer.ipynb?reset")
    idle = page.get_by_text(re.compile(r"\| Idle$"))
    idle.wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.locator(".jp-OutputArea-output [role=log]").nth(1).wait_for(timeout=150_000)  # the last
    idle.wait_for()
    yield watched
    page.close()


def ask(root, question, by_button=False):
    log, box = root.locator("[role=log]"), root.locator("input")
    seen = log.text_content()
    box.click()
    box.press_sequentially(question)
    root.page.keyboard.press("Tab")  # leaving the box sends nothing
    time.sleep(0.3)
    assert log.text_content() == seen
    if by_button:
        root.get_by_role("button", name="Send").click()
    else:
        box.press("Enter")
    until(log.text_content, seen, "chat")
    answer = f"You asked: {question} <b>Loud</b> {ATTACK}"
    end = time.monotonic() + 6
    while not log.text_content().endswith(answer):
        assert time.monotonic() < end, log.text_content()
        time.sleep(0.05)


def panels(page):
    """The chat panels on the page: boxes with a Send button in them."""
    return page.locator(
        ".jp-OutputArea-output .widget-vbox:has(> .widget-hbox button:has-text('Send'))"
    )


def keep_picture(locator, name):
    folder = os.environ.get("BTA_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        locator.scroll_into_view_if_needed()
        data = locator.screenshot()
        picture = Image.open(BytesIO(data)).convert("RGB").quantize(256, kmeans=1)
        picture.save(Path(folder) / f"{name}.png", optimize=True)


def test_notebook(notebook):
    page = notebook.page
    root = page.locator(".bta").first
    root.scroll_into_view_if_needed()
    until(root.locator(".bta-said").text_content, "", "first view")
    hover(root)
    visible, _ = move_by_keyboard(root)
    assert visible
    choose(root, "Layer", 2)
    choose(root, "Head", 1)
    text, changed = type_caption(root, "a red star circles clockwise on a navy background")
    assert "cosine" in text and changed
    root.locator(".bta-stage").focus()
    keep_picture(root, "explorer")
    text, changed = type_caption(root, ATTACK, by_button=True)
    assert ATTACK in text and changed
    panel = panels(page).first
    panel.scroll_into_view_if_needed()
    ask(panel, "What moves, and where to?")
    ask(panel, ATTACK, by_button=True)
    keep_picture(panel, "chat")
    assert page.locator(".jp-OutputArea img[src=x]").count() == 0
    for place in (".bta-note", ".widget-html [role=log]", ".jp-RenderedHTML [role=log]"):
        assert page.locator(place, has_text=ATTACK).count(), place
    assert not notebook.alerts and not notebook.errors
    here = re.match(r"http://127.0.0.1:\d+/", page.url)[0]
    assert [url for url in notebook.requests if not url.startswith((here, "data:", "blob:"))] == []


@pytest.mark.parametrize("what", ["caption", "layer"])
def test_a_dead_python_callback_is_noticed(notebook, what, monkeypatch):
    monkeypatch.setitem(globals(), "PATIENCE_S", 1.5)
    root = notebook.page.locator(".bta").last
    steps = {
        "caption": lambda: type_caption(root, "a red star"),
        "layer": lambda: choose(root, "Layer", 2),
    }
    with pytest.raises(AssertionError, match="nothing changed"):
        steps[what]()
