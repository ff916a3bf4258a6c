"""The chat panel in JupyterLab, in a real browser: every button, and that a dead one is noticed.

As in tests/test_browser.py; BTA_SCREENSHOTS=FOLDER keeps pictures.
"""

import json
import re
import time
from contextlib import contextmanager

import pytest
from lab import CHROMIUM, jupyterlab
from nbformat import v4
from test_browser import CONTRAST, Watched, browser, keep_picture  # noqa: F401
from tidy import KERNEL, ROOT

from bt_adapter.shipped import samples_folder

PATIENCE_S = 20
HASTE = {}  # what is waited for: seconds, where it will not come
START_MS = 400_000  # for JupyterLab, a kernel and eight panels on a busy machine
ATTACK = "<img src=x onerror=alert(1)>"
ANSWER = "It moves left."

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium: apt-get install chromium"),
]

# A model of random weights that says what it is told to, a letter at a time.
SETUP = f"""
import sys, time
sys.path.insert(0, {str(ROOT / "tests")!r})
from tiny_hosts import byte_tokenizer, tiny_llama
from bt_adapter.backbone import load_clip
from bt_adapter.chat import Template, VideoChat, image_chat_model, plug
from bt_adapter.explorer import ChatPanel
from bt_adapter.moving_shapes import gallery, render

class Scripted(VideoChat):
    short = False
    context = property(lambda self: 160 if self.short else 4096)

    def stream(self, question):
        said = "On and on. " * {{"Endless?": 100, "Slow?": 6}}.get(question, 0) or {ANSWER!r}
        said = question if "<" in question else said
        ids = self.prompt.tokenizer(said + "</s>").input_ids
        self.left = iter([*ids[:3], None] if question == "Break?" else ids)
        self.max_tokens, self.short = 5 if question == "Long?" else 2000, question == "And then?"
        return super().stream(question)

    def _choose(self, logits):
        time.sleep(0.02)
        found = next(self.left)
        if found is None:
            raise RuntimeError("out of memory")
        return found

host = image_chat_model(load_clip("moving-shapes"), tiny_llama())
plug(host, "spatio-temporal")
clip, short = render(gallery("validation")[0]), Template("<video>{{question}}:", " {{question}}:")

def made(name, asked=("Which way?",), width=None, models=("image", "tuned")):
    parts = host, byte_tokenizer(), clip, short
    chats = {{n: Scripted(*parts, max_tokens=2000) for n in models}}
    panel = ChatPanel(chats, examples=["What does it do?"], world="Moving Shapes")
    for question in asked:
        panel.ask(question)
    panel.widget().add_class("test-" + name)
    panel.widget().layout.width = width
    return panel
"""

# How the wire of a control is cut.
WIRES = {
    "send": "view.buttons['send']._click_handlers.callbacks.clear()",
    "Enter": "view.box._msg_callbacks.callbacks.clear()",
    "stop": "view.buttons['stop']._click_handlers.callbacks.clear()",
    "retry": "view.buttons['retry']._click_handlers.callbacks.clear()",
    "undo": "view.buttons['undo']._click_handlers.callbacks.clear()",
    "clear": "view.buttons['clear']._click_handlers.callbacks.clear()",
    "streaming": "panel.grow = lambda: None",
    "busy": "view.lock = lambda *_: None",
    "cut off": "panel.talks._end = lambda name, reply: setattr(reply, 'state', 'whole')",
    "forgotten": "panel.talks._end = lambda name, reply: setattr(reply, 'state', 'whole')",
    "broken off": "panel.talks._fail = lambda name, reply, error: setattr(reply, 'state', 'whole')",
    "one world": "panel.limits = lambda: ''; panel.refresh()",
    "copy": "view.copier.value = view.copier.value.replace('onclick', 'data-dead')",
    "example": "view.examples[0]._click_handlers.callbacks.clear()",
    "model": "view.models[0].unobserve_all()",
    "word": "[b._click_handlers.callbacks.clear() for r in view.words.children "
    "for b in r.children[1:]]",
    "reading": "panel.telling = lambda doing='', own=panel.telling: own()",
    "prompt": "panel.talks.prompts = lambda: ''; panel.refresh()",
    "frame": "view.clip.slider.unobserve_all()",
    "play": "view.clip.play.max = 1",
    "open": "view.open._click_handlers.callbacks.clear()",
    "Enter on a clip": "view.name._msg_callbacks.callbacks.clear()",
    "upload": "view.upload.unobserve_all()",
}


def until(holds, what, seconds=0):
    """Wait until something holds."""
    end = time.monotonic() + HASTE.get(what, max(seconds, PATIENCE_S))
    while not holds():
        assert time.monotonic() < end, f"{what}: nothing changed"
        time.sleep(0.05)


def said(root):
    return root.locator(".bta-reply").all_inner_texts()


def asked(root):
    return root.locator(".bta-you").all_inner_texts()


def idle(root):
    until(lambda: root.locator("[data-state=writing]").count() == 0, "end of an answer", 30)


def press(root, name):
    root.get_by_role("button", name=name, exact=True).click()


def write(root, text):
    box = root.get_by_placeholder("Ask about the clip")
    box.fill(text)
    box.press("Tab")  # leaving the box sends nothing
    time.sleep(0.3)
    return box


def answered(root, question, count, what):
    until(lambda: asked(root)[-1:] == [question] and len(asked(root)) == count, what)
    idle(root)
    assert ANSWER in said(root)[-1]


def send(root):
    count = len(asked(root))
    write(root, "What moves?")
    assert len(asked(root)) == count
    press(root, "Send")
    answered(root, "What moves?", count + 1, "send")


def enter(root):
    count = len(asked(root))
    write(root, "And now?").press("Enter")
    answered(root, "And now?", count + 1, "Enter")


def example(root):
    count = len(asked(root))
    press(root, "What does it do?")
    answered(root, "What does it do?", count + 1, "example")


def stop(root):
    write(root, "Endless?").press("Enter")
    until(lambda: "On and" in said(root)[-1], "the beginning of an answer")
    assert root.get_by_role("button", name="Send", exact=True).is_disabled()
    write(root, "Two at once?").press("Enter")
    until(lambda: "on its way" in root.locator("[role=status]").inner_text(), "refusal")
    assert "Two at once?" not in asked(root)
    press(root, "Stop")
    until(lambda: root.locator("[data-state=writing]").count() == 0, "stop")
    assert "Stopped." in said(root)[-1]
    press(root, "Undo")
    until(lambda: "Endless?" not in asked(root), "undo behind it")


def ask(root, question):
    """Ask by Enter; the answer is on its way then, or there already."""
    idle(root)
    count = len(asked(root))
    write(root, question).press("Enter")
    until(lambda: len(asked(root)) > count, "the question")


def streaming(root):
    """Words are there before the end."""
    ask(root, "Slow?")
    writing = root.locator(".bta-reply[data-state=writing]", has_text="On and")
    until(lambda: writing.count(), "streaming")
    idle(root)
    assert "On and on. On and" in said(root)[-1]


def busy(root):
    """The lock is on and comes off."""
    send_, stop_ = (root.get_by_role("button", name=n, exact=True) for n in ("Send", "Stop"))
    ask(root, "Slow?")
    until(lambda: send_.is_disabled() and stop_.is_enabled(), "busy")
    idle(root)
    until(lambda: send_.is_enabled() and stop_.is_disabled(), "the lock's end")


def cut_off(root):
    ask(root, "Long?")
    until(lambda: "Cut off: an answer has 5 tokens at most." in said(root)[-1], "cut off")


def forgotten(root):
    for _ in range(3):
        ask(root, "And then?")
    idle(root)
    until(lambda: "forgotten." in "".join(said(root)[-6:]), "forgotten")


def broken_off(root):
    ask(root, "Break?")
    until(lambda: "No answer: out of memory" in said(root)[-1], "broken off")
    send(root)


def one_world(root):
    told = root.locator("[role=status]")
    until(lambda: "These models know only Moving Shapes" in told.inner_text(), "one world")


def prompt(root):
    told = root.locator("[role=status]")
    until(lambda: "prompt: of your own, as you asked" in told.inner_text(), "prompt")


def retry(root):
    """The same answer comes again, so the log is marked: a new one has no mark."""
    root.locator(".bta-log").evaluate("e => { e.dataset.old = '1' }")
    press(root, "Retry")
    until(lambda: not root.locator(".bta-log[data-old]").count(), "retry")
    idle(root)
    assert ANSWER in said(root)[-1]


def undo(root):
    last, count = asked(root)[-1], len(asked(root))
    press(root, "Undo")
    until(lambda: len(asked(root)) == count - 1, "undo")
    until(
        lambda: root.get_by_placeholder("Ask about the clip").input_value() == last, "its question"
    )


def clear(root):
    press(root, "Clear")
    until(lambda: not asked(root), "clear")


def pasted(root):
    """What the clipboard holds, by way of the box."""
    box = root.get_by_placeholder("Ask about the clip")
    box.fill("")
    box.press("ControlOrMeta+v")
    return box.input_value()


def copy(root):
    box = root.get_by_placeholder("Ask about the clip")
    box.fill("nothing yet")
    box.press("ControlOrMeta+a")
    box.press("ControlOrMeta+c")
    press(root, "Copy")
    until(lambda: pasted(root) != "nothing yet", "copy")
    assert f"you: {asked(root)[-1]}" in pasted(root) and f"tuned: {ANSWER}" in pasted(root)


def model(root):
    root.get_by_label("image", exact=True).uncheck()
    time.sleep(0.3)
    before = len(said(root))
    write(root, "Only one?").press("Enter")
    until(lambda: len(asked(root)) and asked(root)[-1] == "Only one?", "the question")
    idle(root)
    until(lambda: len(said(root)) == before + 1, "model")
    root.get_by_label("image", exact=True).check()


def picture(root):
    return root.locator(".bta-clip img").get_attribute("src")


def word(root):
    assert root.locator(".bta-strip").count() == 0
    root.locator("button.bta-word", has_text="left.").first.click()
    until(lambda: root.locator(".bta-strip img").count() == 8, "word")
    assert "left." in root.locator(".bta-said").inner_text()


# Noted in the page itself: it is over before anybody could ask from outside.
NOTE_READING = """e => { delete e.dataset.read;
  const send = [...e.querySelectorAll('button')].find(b => b.textContent.trim() === 'Send');
  const all = () => { const told = e.querySelector('[role=status]');
    if (!e.dataset.read && send.disabled && told && told.innerText.includes('Reading the answer'))
      e.dataset.read = 'locked'; };
  new MutationObserver(all).observe(e, {subtree: true, childList: true, attributes: true}); }"""


def reading(root):
    """While a word's frames are looked for it is told, and nothing else can be pressed."""
    root.evaluate(NOTE_READING)
    root.locator("button.bta-word", has_text="It").first.click()
    until(lambda: root.evaluate("e => e.dataset.read") == "locked", "reading")
    until(lambda: root.locator(".bta-strip img").count() == 8, "the frames")
    until(root.get_by_role("button", name="Send", exact=True).is_enabled, "the lock's end")
    assert "Reading" not in root.locator("[role=status]").inner_text()


def frame(root):
    before = picture(root)
    root.locator(".widget-slider .noUi-handle").press("ArrowRight")
    until(lambda: picture(root) != before, "frame")


def play(root):
    before = picture(root)
    root.locator(".widget-play button, .jupyter-widget-play button").first.click()
    until(lambda: picture(root) != before, "play")
    root.locator(".widget-play button, .jupyter-widget-play button").first.click()


def named(root, name):
    box = root.get_by_placeholder("Another clip")
    box.fill(name)
    box.press("Tab")
    time.sleep(0.3)
    return box


def open_clip(root):
    named(root, "nowhere")
    press(root, "Open")
    until(lambda: "There is no clip" in root.locator("[role=status]").inner_text(), "open")
    named(root, "grow")
    before = picture(root)
    press(root, "Open")
    until(lambda: picture(root) != before and not asked(root), "the clip")


def enter_clip(root):
    before = picture(root)
    named(root, "orbit").press("Enter")
    until(lambda: picture(root) != before and not asked(root), "Enter on a clip")


def upload(root):
    before = picture(root)
    with root.page.expect_file_chooser() as opened:
        root.get_by_role("button", name="Upload").click()
    opened.value.set_files(samples_folder() / "clips/turn.mp4")
    until(lambda: picture(root) != before, "upload")
    until(lambda: "means nothing" in root.locator("[role=status]").inner_text(), "the notice")


STEPS = {
    "send": send,
    "Enter": enter,
    "stop": stop,
    "retry": retry,
    "undo": undo,
    "copy": copy,
    "example": example,
    "model": model,
    "word": word,
    "reading": reading,
    "frame": frame,
    "play": play,
    "streaming": streaming,
    "busy": busy,
    "cut off": cut_off,
    "forgotten": forgotten,
    "broken off": broken_off,
    "one world": one_world,
    "prompt": prompt,
    "clear": clear,
    "open": open_clip,
    "Enter on a clip": enter_clip,
    "upload": upload,
}


QUIET = ("streaming", "busy", "cut off", "forgotten", "broken off", "one world", "prompt")
OWN = ("stop", "model", "reading")


def place_of(name):
    """The panel whose wire is cut; all others that the step needs are whole there."""
    return name if name in OWN else "quiet" if name in QUIET else "dead"


def the_notebook():
    cells = [SETUP]
    for place in ("dead", "quiet", *OWN):
        cuts = [cut for name, cut in WIRES.items() if place_of(name) == place]
        cells.append("\n".join([f"panel = made({place!r})", "view = panel.view", *cuts]))
        cells[-1] += "\npanel.widget()"
    cells.append("live = made('live', asked=())\nlive.widget()")
    cells.append("narrow = made('narrow', width='390px')\nnarrow.widget()")
    three = "models=('image', 'zero-shot', 'tuned')"
    cells.append(f"narrower = made('narrower', width='230px', {three})\nnarrower.widget()")
    cells.append("print('all ' + 'shown')")
    cells = [v4.new_code_cell(source.strip()) for source in cells]
    return v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):  # noqa: F811
    """The notebook after Run All."""
    home, work = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    (work / "panel.ipynb").write_text(json.dumps(the_notebook()))
    with jupyterlab(home, work, "--LabApp.expose_app_in_browser=True") as address:
        watched = Watched(browser, height=1400)
        page = watched.page
        page.set_default_timeout(START_MS)
        page.goto(f"{address}/lab/tree/panel.ipynb?reset")
        page.get_by_text(re.compile(r"\| Idle$")).wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.get_by_text("all shown").wait_for()
        page.locator(".test-narrower .bta-reply").first.wait_for()
        page.set_default_timeout(1000 * PATIENCE_S)
        yield watched
        page.close()


@pytest.mark.parametrize("name", STEPS)
def test_every_control(page, name):
    STEPS[name](page.page.locator(".test-live"))
    if name in ("undo", "clear", "open", "Enter on a clip"):
        send(page.page.locator(".test-live"))  # the next one finds an answer
    assert not page.alerts and not page.errors


@pytest.mark.parametrize("name", WIRES)
def test_a_dead_control_is_noticed(page, name, monkeypatch):
    """By the wait that is for it, which has its name; all waits before that one come to an end."""
    place = place_of(name)
    monkeypatch.setitem(HASTE, name, 1.5 if place == "dead" else 3)
    root = page.page.locator(f".test-{place}")
    root.scroll_into_view_if_needed()
    with pytest.raises(AssertionError, match=f"^{name}: nothing changed"):
        STEPS[name](root)


def test_every_control_has_a_wire_that_was_cut():
    assert WIRES.keys() == STEPS.keys()


def test_text_stays_text(page):
    root = page.page.locator(".test-live")
    write(root, ATTACK).press("Enter")
    until(lambda: asked(root)[-1:] == [ATTACK], "chat")
    idle(root)
    assert ATTACK in said(root)[-1] and not page.alerts
    assert page.page.locator(".jp-OutputArea img[src=x]").count() == 0
    write(root, " ").press("Enter")
    until(lambda: "empty" in root.locator("[role=status]").inner_text(), "empty question")
    write(root, "why " * 3000).press("Enter")
    until(lambda: "too long" in root.locator("[role=status]").inner_text(), "endless question")
    press(root, "Undo")
    keep_picture(root, "panel_light")


@contextmanager
def theme(page, name):
    change = "name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})"
    page.evaluate(change, name)
    time.sleep(2)
    yield
    page.evaluate(change, "JupyterLab Light")
    time.sleep(1)


def check_legible(root):
    for part in (".bta-you", ".bta-reply", ".bta-notice", ".bta-copy", ".bta-word"):
        assert root.locator(part).first.evaluate(CONTRAST) > 4.5, part


@pytest.mark.parametrize("name", ["JupyterLab Light", "JupyterLab Dark"])
def test_words_are_legible(page, name):
    root = page.page.locator(".test-narrow")
    with theme(page.page, name):
        if name.endswith("Dark"):
            colour = "e => getComputedStyle(e).backgroundColor"
            assert max(map(int, re.findall(r"\d+", root.evaluate(colour))[:3])) < 80
            keep_picture(page.page.locator(".test-live"), "panel_dark")
        check_legible(root)
        wrong = "white" if name.endswith("Dark") else "black"
        root.evaluate("(e, wrong) => e.style.setProperty('background', wrong)", wrong)
        with pytest.raises(AssertionError, match="bta-"):  # a ground of the other theme
            check_legible(root)
        root.evaluate("e => e.style.removeProperty('background')")


def check_narrow(root, width):
    outer = root.bounding_box()
    assert outer["width"] <= width + 1
    wide = root.evaluate("e => [e.scrollWidth, e.clientWidth]")
    assert wide[0] <= wide[1]
    assert root.locator(".bta-log").bounding_box()["width"] > 0.64 * width
    for control in root.locator("button, input:not([type=file]):not(.hidden)").all():
        box = control.bounding_box()
        if box and box["width"] > 1:
            assert box["x"] >= outer["x"] - 1, control.evaluate("e => e.outerHTML")
            inside = box["x"] + box["width"] <= outer["x"] + outer["width"] + 1
            assert inside, control.evaluate("e => e.outerHTML")


@pytest.mark.parametrize(("name", "width"), [("narrow", 390), ("narrower", 230)])
def test_in_a_narrow_pane_everything_is_there(page, name, width):
    """Two models in the one, three in the other."""
    root = page.page.locator(f".test-{name}")
    root.scroll_into_view_if_needed()
    send(root)
    root.locator("button.bta-word", has_text="left.").first.click()
    until(lambda: root.locator(".bta-strip img").count() == 8, "word")
    keep_picture(root, f"panel_{name}")
    check_narrow(root, width)
    wide = "min-width: 600px !important; justify-content: flex-end !important"
    root.evaluate(f"e => e.querySelectorAll('.bta-wrap').forEach(r => r.style.cssText = '{wide}')")
    with pytest.raises(AssertionError):  # rows that do not fit
        check_narrow(root, width)
