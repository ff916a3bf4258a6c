"""The widgets and the file of the explorer in a real browser, with mouse and keyboard.

Chromium comes from the system: apt-get install --no-install-recommends chromium fonts-dejavu-core.
BTA_SCREENSHOTS=FOLDER keeps pictures of the widgets.
"""

import csv
import json
import os
import re
import shutil
import time
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from first_cells import directives
from lab import CHROMIUM, FLAGS, IDLE, jupyterlab, run_all
from nbformat import v4
from PIL import Image
from test_explorer import made, noise_between, only_strongest
from tidy import KERNEL, ROOT

from bt_adapter import moving_shapes as shapes
from bt_adapter.branch import BTAdapter
from bt_adapter.explorer import Explorer, explore
from bt_adapter.shipped import samples_folder
from bt_adapter.video import read_clip

SHOWN = dict(layer=1, head=1, row=5, column=4, frame=5, pin=1, compare="clip", cut="1.1")
ATTACK = "<img src=x onerror=alert(1)>"
WAIT_MS = 60_000
CONTEXT = {"color_scheme", "has_touch", "device_scale_factor"}  # of a page
PATIENCE_S = 15

# The contrast of an element's text with what is behind it.
CONTRAST = """e => {
  const light = c => { const s = c.map(x => x / 255).map(
      x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
    return .2126 * s[0] + .7152 * s[1] + .0722 * s[2]; };
  const parse = c => { const n = c.match(/[\\d.]+/g).map(Number);
    return [n.slice(0, 3), n.length > 3 ? n[3] : 1]; };
  let ground = null; const veils = [];
  for (let at = e; at; at = at.parentElement) {
    const [colour, alpha] = parse(getComputedStyle(at).backgroundColor);
    if (alpha === 1) { ground = colour; break; }
    if (alpha > 0) veils.push([colour, alpha]);
  }
  ground = ground || [255, 255, 255];
  for (const [c, a] of veils.reverse()) ground = ground.map((x, i) => x * (1 - a) + c[i] * a);
  const [a, b] = [light(parse(getComputedStyle(e).color)[0]), light(ground)];
  return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
}"""

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
        viewport = {"width": 1200, "height": 900} | size
        more = {name: viewport.pop(name) for name in CONTEXT & viewport.keys()}
        self.page = browser.new_page(viewport=viewport, **more)
        self.page.set_default_timeout(WAIT_MS)
        self.errors, self.requests, self.sockets, self.alerts = [], [], [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.sockets.append(socket.url))
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


def pixels(root, place=".bta-screen canvas", nth=0):
    return root.locator(place).nth(nth).evaluate("canvas => canvas.toDataURL()")


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
    inward = "ArrowDown" if said.text_content().startswith("Row 1,") else "ArrowUp"
    for key in (inward, "PageDown", "ArrowLeft"):
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


def patch_of(text):
    return re.match(r"Row \d+, column \d+ of frame \d+", text)[0]


def chosen(root):
    return patch_of(root.locator(".bta-said").text_content())


def aim(root, frame, x, y, click=False):
    canvas = root.locator(".bta-frame canvas").nth(frame)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    at = box["x"] + x * box["width"], box["y"] + y * box["height"]
    (root.page.mouse.click if click else root.page.mouse.move)(*at)


def pin(root):
    """A pinned patch stays while the mouse goes to a control and over other frames."""
    aim(root, 1, 0.1, 0.1)
    until(lambda: chosen(root), "", "hover")
    aim(root, 4, 0.9, 0.9, click=True)
    aim(root, 3, 0.1, 0.2)
    root.get_by_label("Layer", exact=True).hover()
    time.sleep(0.2)
    assert chosen(root).endswith("frame 5"), "pin: nothing changed"
    assert root.get_by_role("button", name="Free the patch").count() == 1
    return chosen(root)


def free(root):
    pin(root)
    root.page.keyboard.press("Escape")
    aim(root, 0, 0.1, 0.2)
    until(lambda: chosen(root).endswith("frame 5"), True, "Esc")


def tap(root):
    """A finger pins; the page may scroll under it."""
    canvas = root.locator(".bta-frame canvas").nth(2)
    canvas.scroll_into_view_if_needed()
    assert canvas.evaluate("e => getComputedStyle(e).touchAction") == "pan-y pinch-zoom"
    before = chosen(root)
    canvas.tap(position={"x": 5, "y": 5})
    until(lambda: chosen(root), before, "tap")
    assert chosen(root) == "Row 1, column 1 of frame 3"
    assert root.get_by_role("button", name="Free the patch").count() == 1


def choose_tile(root):
    shares = root.locator(".bta-share b")
    before = shares.all_text_contents()
    root.get_by_role("button", name="layer 2, head 3").click()
    until(shares.all_text_contents, before, "overview")
    assert root.get_by_label("Layer", exact=True).input_value() == "1"
    assert root.get_by_label("Head", exact=True).input_value() == "3"


def cosines(root):
    return root.locator(".bta-said-bars b").all_text_contents()


def untick(root, name):
    before = cosines(root)
    root.get_by_label(name, exact=True).uncheck()
    now = until(lambda: cosines(root), before, "untick")
    assert all("→" in text for text in now)
    assert "one at a time" in root.locator(".bta-section", has_text="fit").inner_text()
    root.get_by_label(name, exact=True).check()
    assert until(lambda: cosines(root), now, "untick") == before


def compare(root, value):
    lanes = root.locator(".bta-lane h3")
    root.get_by_label("Compare with", exact=True).select_option(value)
    until(lanes.count, 1, "compare")
    assert lanes.nth(0).text_content().startswith("A: ") and lanes.count() == 3
    assert "difference" in lanes.nth(2).text_content()


def look_back(root):
    shares, before = root.locator(".bta-share b"), root.locator(".bta-share b").all_text_contents()
    root.get_by_label("The patch", exact=True).select_option("by")
    until(shares.all_text_contents, before, "looked at by")
    assert "is looked at by" in root.locator(".bta-said").text_content()


def colour(root, value):
    before = pixels(root)
    root.get_by_label("Colour", exact=True).select_option(value)
    until(lambda: pixels(root), before, "colour")


def meaning(root):
    """What the colours are said to be."""
    return root.locator(".bta-means").first.text_content()


def look_in_space(root, frame=4):
    """A pinned patch shows where it looks in its frame, not where CLS does."""
    root.get_by_label("Colour", exact=True).select_option("spatial")
    until(lambda: "video CLS token" in meaning(root), False, "in space")
    aim(root, frame, 0.9, 0.9, click=True)
    until(lambda: "the patch at this place gives" in meaning(root), False, "a patch in space")
    assert "In its frame it looks most at row" in root.locator(".bta-said").text_content()


def leave_space(root):
    """Esc frees the patch, and the picture is that of CLS again."""
    look_in_space(root)
    pinned = meaning(root)
    root.page.keyboard.press("Escape")
    assert "of its frame’s video CLS token" in until(lambda: meaning(root), pinned, "Esc in space")


def saved_patches(root):
    """What the CSV says of every patch of every frame, (lanes, t, l), and what else it says."""
    rows = list(csv.DictReader(StringIO(save(root, "CSV").decode())))
    places = [name for name in rows[0] if re.search(r" at row \d+ column \d+$", name)]
    values = np.array([[float(row[name]) for name in places] for row in rows])
    return values.reshape(-1, int(len(rows) / len({r["lane"] for r in rows})), len(places)), rows


def fade(root):
    colour(root, "received")
    before = pixels(root)
    root.get_by_label("Opacity", exact=True).fill("20")
    until(lambda: pixels(root), before, "opacity")


def lay_grid(root):
    frames = ".bta-frame canvas"
    before = pixels(root, frames)
    root.get_by_label("Grid of patches", exact=True).check()
    until(lambda: pixels(root, frames), before, "grid")


def press_bar(root):
    note = root.locator(".bta-note")
    root.get_by_role("button", name="to the left").click()
    until(note.text_content, "", "bar")
    assert root.get_by_label("Colour", exact=True).input_value() == "relevance"


def save(root, kind):
    """What a button writes."""
    with root.page.expect_download() as got:
        root.get_by_role("button", name=f"Save {kind}").click()
    return Path(got.value.path()).read_bytes()


def link(root):
    """The address opens what is seen."""
    pin(root)
    choose_tile(root)
    compare(root, "clip")
    colour(root, "received")
    root.get_by_label("Opacity", exact=True).fill("35")
    root.locator(".bta-lane").nth(1).locator("canvas").nth(4).click(position={"x": 9, "y": 9})
    read = "() => location.hash"
    for word in ("head=3", "opacity=35", "lane=2"):
        until(lambda word=word: word in root.page.evaluate(read), False, "link")
    here, seen = chosen(root), pixels(root)
    root.page.reload()
    until(root.locator(".bta-said").text_content, "", "first view")
    until(lambda: root.get_by_label("Head", exact=True).input_value(), "0", "link")
    assert chosen(root) == here
    assert root.get_by_role("button", name="Free the patch").count() == 1
    assert root.get_by_label("Opacity", exact=True).input_value() == "35"
    assert pixels(root) == seen  # of the second lane, as faint as before


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
    other = drawn_of(rng, clip[::-1].copy(), maps[:, ::-1], 0.17)
    other.name = "backwards"
    first = drawn_of(rng, clip, maps, 0.25)
    first.other = other
    return first


def drawn_of(rng, clip, maps, cosine):
    """One of its clips: each has cosines, heat and spatial attention of its own."""
    heats = {text: rng.random((6, 8)) for text in ("to the left", ATTACK)}
    taken = {text: cosine - 0.2 * rng.random(1 + 2 * 3 + 6) for text in heats}
    more = dict(cosines=lambda texts: np.stack([taken[text] for text in texts], 1))
    more |= dict(spatial=rng.dirichlet(np.ones(8), size=(2, 3, 6)).astype(np.float32))
    more |= dict(between=noise_between(6, 8))
    return Explorer(clip, (2, 4), maps, lambda text: (cosine, heats[text]), list(heats), **more)


@pytest.fixture
def page_of(browser, tmp_path):
    pages = []

    def open_file(html, hash="", **size):
        path = tmp_path / f"explorer{len(pages)}.html"
        path.write_text(html, encoding="utf-8")
        watched = Watched(browser, **size)
        pages.append(watched.page)
        watched.page.goto(path.as_uri() + hash)
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
    assert text == "“to the left”: cosine 0.25 with the clip." and changed
    text, changed = type_caption(root, ATTACK, by_button=True)
    assert ATTACK in text and changed
    text, changed = type_caption(root, "unheard of")
    assert "no map for “unheard of”" in text and changed
    play(root)
    assert watched.page.title() == ATTACK and root.locator("img").count() == 0
    assert not watched.errors and not watched.alerts
    check_no_request(watched)
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
    explorer.relevance = lambda text: (1.0, heat)
    _, root = page_of(explorer.html())
    type_caption(root, "to the left")

    def brightness(frame, x, y):
        take = "getContext('2d').getImageData(x * canvas.width, y * canvas.height, 1, 1).data"
        read = f"(canvas, [x, y]) => [...canvas.{take}]"
        return sum(root.locator(".bta-frame canvas").nth(frame).evaluate(read, [x, y])[:3])

    assert brightness(4, 0.375, 0.8) > 500 > 250 > brightness(3, 0.375, 0.8)
    assert brightness(4, 0.9, 0.2) < 250


def test_pictures(page_of):
    """The picture of the lesson, and what it shows: light, dark and narrow."""
    model = BTAdapter.from_pretrained("moving-shapes").eval()
    clip = read_clip(samples_folder() / "clips/clockwise.mp4")
    says = "a red star circles {} on a navy background".format
    captions = [says("clockwise"), says("counter-clockwise"), "a dog rides a bicycle"]
    others = [shapes.caption(scene) for scene in shapes.gallery("test", 240)]
    html = explore(model, clip, captions, other=clip.flip(0), others=others).html()
    here = "#" + urlencode(dict(SHOWN, caption=captions[0]))
    for name, size in dict(
        explorer=dict(width=1100),
        explorer_dark=dict(width=1100, color_scheme="dark"),
        explorer_narrow=dict(width=390),
    ).items():
        watched, root = page_of(html, here, **size)
        until(lambda root=root: root.get_by_label("Head", exact=True).input_value(), "0", "link")
        watched.page.wait_for_timeout(500)
        assert not watched.errors
        keep_picture(root, name)
        watched.page.close()


def test_pictures_of_pieces(page_of):
    """What stands below the cells of two lessons that place pieces."""
    model = BTAdapter.from_pretrained("moving-shapes").eval()
    clip = read_clip(samples_folder() / "clips/clockwise.mp4")
    foreign = explore(maps=explore(model, clip).maps.transpose(0, 2, 3, 4, 1), clip=clip)
    scene = {one.things[0].motion: one for one in shapes.gallery("test", 240)}["clockwise"]
    clip, captions = shapes.render(scene), [*map(shapes.caption, (scene, shapes.opposite(scene)))]
    own = explore(model, clip, captions, other=clip.flip(0))
    for name, page in dict(
        pieces=foreign.html(parts=["matrix", "strip"]),
        own_pieces=own.html(parts=["title", "matrix", "strip", "bars", "caption"]),
    ).items():
        watched, root = page_of(page, width=1100)
        watched.page.wait_for_timeout(500)
        assert not watched.errors
        keep_picture(root, name)


def test_one_scale(page_of):
    """A caption that fits half as well is not as bright, whatever its relevance was before."""
    explorer = drawn()
    explorer.clip, explorer.other = np.zeros_like(explorer.clip), None
    heat = np.zeros((6, 8), np.float32)
    heat[4, 5] = 7
    explorer.relevance = lambda text: (0.8 if text == "to the left" else 0.1, heat)
    explorer.cosines = None
    _, root = page_of(explorer.html())
    seen = []
    for caption in explorer.captions:
        type_caption(root, caption)
        take = "c => c.getContext('2d').getImageData(.375 * c.width, .8 * c.height, 1, 1).data[0]"
        seen.append(root.locator(".bta-frame canvas").nth(4).evaluate(take))
    assert seen[0] > 200 > 100 > seen[1]
    assert "0.8 or more, scaled to the cosine" in root.locator(".bta-scale").first.inner_text()


def test_what_is_missing_stands_in_the_picture(page_of):
    explorer = drawn()
    explorer.trained = 4
    _, root = page_of(explorer.html())
    over = root.locator(".bta-over")
    assert over.is_hidden()
    root.get_by_label("Colour", exact=True).select_option("relevance")
    until(over.is_hidden, True, "no caption")
    assert "No caption" in over.inner_text()
    aim(root, 5, 0.5, 0.5)
    until(lambda: "beyond the 4 frames" in over.inner_text(), False, "untrained frames")
    assert root.locator(".bta-lane").first.locator("[data-untrained]").count() == 2
    assert "frames 5 to 6 were never trained" in root.locator(".bta-notice").inner_text()


def test_screen_readers_hear_the_keyboard_only(page_of):
    _, root = page_of(drawn().html())
    hover(root)
    aloud = root.locator("[aria-live]")
    assert aloud.count() == 1 and aloud.text_content() == ""
    root.locator(".bta-stage").focus()
    root.page.keyboard.press("PageDown")
    assert aloud.text_content() == root.locator(".bta-said").text_content()
    root.get_by_role("button", name="Free the patch").click()
    root.get_by_label("Colour", exact=True).select_option("spatial")
    root.locator(".bta-stage").focus()
    root.page.keyboard.press("Enter")  # what the patch looks at in its frame comes a moment later
    until(lambda: "In its frame it looks most at" in aloud.text_content(), False, "aloud")
    assert aloud.text_content() == root.locator(".bta-said").text_content()


def test_pixels_are_those_of_the_screen(page_of):
    _, root = page_of(drawn().html(), device_scale_factor=2)
    read = "c => [c.width, c.clientWidth]"
    for canvas in (root.locator(".bta-screen canvas"), root.locator(".bta-frame canvas").first):
        painted, seen = canvas.evaluate(read)
        assert abs(painted - 2 * seen) <= 2


def test_bars_are_full_at_a_hundred(page_of):
    explorer = drawn()
    _, root = page_of(explorer.html())
    gauge = "e => e.getBoundingClientRect().width / e.parentElement.getBoundingClientRect().width"
    shares = explorer.maps[0, 6].mean(0)[0]  # row 2, column 3 of frame 1
    for i, share in enumerate(shares):
        part = root.locator(".bta-frame .bta-gauge div").nth(i).evaluate(gauge)
        assert abs(part - share) < 0.02


def test_what_is_saved(page_of):
    explorer = drawn()
    _, root = page_of(explorer.html())
    colour(root, "received")
    picture = Image.open(BytesIO(save(root, "PNG")))
    assert picture.width > 1000 and len(picture.convert("RGB").getcolors(10**6)) > 100
    assert b"<svg" in (drawing := save(root, "SVG")) and b"Row 2, column 3" in drawing
    rows = list(csv.DictReader(StringIO(save(root, "CSV").decode())))
    wanted = explorer.maps[0, 6].mean(0)[0]
    assert np.allclose([float(row["looks at"]) for row in rows], wanted, atol=0.004)


# --- where a pinned patch looks in its frame ---


def exact(explorer, layer, head, patch, by=False):
    """What a patch gives the patches of its frame, or gets from them."""
    rows = explorer.between(layer, head)
    return rows[:, :, patch] if by else rows[:, patch]


def test_a_pinned_patch_in_space(page_of):
    """Its numbers are those of Python: by layer and head, of each clip, both ways; then CLS."""
    explorer = drawn()
    explorer.other.between = lambda layer, head: explorer.between(layer + 5, head)
    watched, root = page_of(explorer.html())
    look_in_space(root)
    (values,), rows = saved_patches(root)  # row 2, column 4
    off = dict(atol=0.003, rtol=0)
    np.testing.assert_allclose(values, exact(explorer, 0, 0, 7), **off)
    cls = [float(row["spatial, the patch looks at the video CLS token"]) for row in rows]
    np.testing.assert_allclose(cls, 1 - exact(explorer, 0, 0, 7).sum(1), **off)
    best = exact(explorer, 0, 0, 7)[4].argmax()
    says = f"In its frame it looks most at row {best // 4 + 1}, column {best % 4 + 1} ("
    assert says.replace("row 2, column 4", "itself") in root.locator(".bta-said").text_content()
    choose_tile(root)
    until(lambda: "layer 2, head 3" in meaning(root), False, "another head")
    np.testing.assert_allclose(saved_patches(root)[0][0], exact(explorer, 1, 3, 7), **off)
    look_back(root)
    assert "In its frame it is looked at most by" in root.locator(".bta-said").text_content()
    np.testing.assert_allclose(saved_patches(root)[0][0], exact(explorer, 1, 3, 7, True), **off)
    compare(root, "clip")
    lanes, _ = saved_patches(root)
    other = exact(explorer.other, 1, 3, 7, True)[::-1]  # each frame below the same picture
    np.testing.assert_allclose(lanes[1], other, **off)
    np.testing.assert_allclose(lanes[2], lanes[0] - lanes[1], atol=1e-6)
    root.page.keyboard.press("Escape")
    until(lambda: "pinned patch," in meaning(root), True, "Esc")
    np.testing.assert_allclose(saved_patches(root)[0][0], explorer.spatial[1, 2], **off)
    assert not watched.errors
    check_no_request(watched)


def test_a_patch_in_space_is_drawn_where_it_looks(page_of):
    """Bright where its attention goes, dark elsewhere, in the frame as in the strip."""
    explorer = drawn()
    explorer.clip, explorer.other = np.zeros_like(explorer.clip), None
    rows = np.zeros((6, 8, 8), np.float32)
    rows[4, 7, 0] = 0.9
    explorer.between = lambda layer, head: rows
    _, root = page_of(explorer.html())
    look_in_space(root)
    take = "getContext('2d').getImageData(x * canvas.width, y * canvas.height, 1, 1).data"
    read = f"(canvas, [x, y]) => Math.max(...[...canvas.{take}].slice(0, 3))"
    for place in (SCREEN, ".bta-frame:nth-child(5) canvas"):
        canvas = root.locator(place).first
        assert canvas.evaluate(read, [0.1, 0.3]) > 200 > 50 > canvas.evaluate(read, [0.4, 0.8])
    before = root.locator(".bta-frame:nth-child(4) canvas").first
    assert before.evaluate(read, [0.1, 0.3]) < 50
    assert "0%" in root.locator(".bta-scale").first.inner_text()
    assert "90%" in root.locator(".bta-scale").first.inner_text()


def test_a_shortened_page_says_so(page_of, monkeypatch):
    """In a file without space each patch has its strongest others, and the share is told."""
    explorer = made(layers=2, heads=3, frames=4, grid=(4, 8), captions=())
    whole = explorer.html()
    monkeypatch.setattr("bt_adapter.explorer.page.LIMIT", len(whole) - 34_000)
    _, root = page_of(explorer.html())
    look_in_space(root, frame=3)
    told = r"the (\d+) of 32 that it looks at most; in frame 4 that is (\d+)% of its attention"
    most, share = map(int, re.search(told, meaning(root)).groups())
    (values,), rows = saved_patches(root)
    wanted = only_strongest(exact(explorer, 0, 0, 31), most)
    np.testing.assert_allclose(values, wanted, atol=0.003)
    assert 2 < most < 31 and abs(100 * wanted[3].sum() - share) < 1
    assert abs(float(rows[3]["part that is drawn"]) - share / 100) < 0.01
    assert b"Shortened" in save(root, "SVG")
    root.get_by_label("Head", exact=True).select_option("1")
    until(lambda: "Head 1 had no space" in meaning(root), False, "a head without space")
    assert "layer 1, mean over heads: in every frame" in meaning(root)
    np.testing.assert_allclose(saved_patches(root)[0][0], wanted, atol=0.003)
    assert any("(mean over heads)" in name for name in saved_patches(root)[1][0])


def test_maps_of_elsewhere_have_no_space(page_of):
    """Where patches look is not known, so pinning one leaves the picture of CLS."""
    explorer = drawn()
    explorer.between = None
    watched, root = page_of(explorer.html())
    colour(root, "spatial")
    aim(root, 4, 0.9, 0.9, click=True)
    assert "video CLS token" in meaning(root) and "Pin" not in meaning(root)
    explorer.spatial = explorer.other = None
    _, root = page_of(explorer.html())
    names = root.get_by_label("Colour", exact=True).locator("option").all_text_contents()
    assert "spatial attention" not in names and not watched.errors


# --- the numbers of every view, as the CSV has them, are those of the arrays ---


def lanes_of(root):
    """The rows of a CSV, lane by lane."""
    found = {}
    for row in csv.DictReader(StringIO(save(root, "CSV").decode())):
        found.setdefault(row["lane"], []).append(row)
    return list(found.values())


def numbers_of(rows, column):
    return np.array([float(row[column]) for row in rows])


def place_at(root, row, column, frame):
    """The patch that is named, counted from 1, by the keys."""
    root.locator(".bta-stage").focus()
    keys = ["ArrowUp", "ArrowLeft", "PageUp"] * 8
    keys += ["ArrowDown"] * (row - 1) + ["ArrowRight"] * (column - 1) + ["PageDown"] * (frame - 1)
    for key in keys:
        root.page.keyboard.press(key)
    assert chosen(root) == f"Row {row}, column {column} of frame {frame}"


PLACES = ((1, 4, 3), (2, 2, 6))  # row, column, frame
BACKWARDS = [5, 4, 3, 2, 1, 0]  # which frame of the clip backwards stands below each frame


def maps_at(explorer, row, column, layer=1, head=2):
    """Of one patch, in one layer and head: of the clip, and of the other as it stands below."""
    patch = 4 * (row - 1) + column - 1
    here, there = (one.maps[layer, patch, head - 1] for one in explorer.both())
    return here, there[np.ix_(BACKWARDS, BACKWARDS)]


@pytest.mark.parametrize("side", ["looks at", "is looked at by"])
@pytest.mark.parametrize("beside", ["none", "clip"])
def test_shares_are_those_of_the_maps(page_of, side, beside):
    explorer = drawn()
    _, root = page_of(explorer.html(), "#layer=2&head=2")
    until(lambda: root.get_by_label("Head", exact=True).input_value(), "0", "link")
    root.get_by_label("The patch", exact=True).select_option(label=side)
    root.get_by_label("Compare with", exact=True).select_option(beside)
    for row, column, frame in PLACES:
        place_at(root, row, column, frame)
        both = maps_at(explorer, row, column)
        wanted = [m[frame - 1] if side == "looks at" else m[:, frame - 1] for m in both]
        lanes = [*wanted, wanted[0] - wanted[1]] if beside == "clip" else wanted[:1]
        rows = lanes_of(root)
        np.testing.assert_allclose([numbers_of(lane, side) for lane in rows], lanes, atol=0.004)
        for lane, named in zip(rows, (range(1, 7), range(6, 0, -1), range(1, 7))):
            assert [int(r["frame"]) for r in lane] == [*named]
            assert {int(r["chosen frame"]) for r in lane} == {[*named][frame - 1]}
        shown = root.locator(".bta-share b").all_text_contents()
        for text, values in zip(shown, np.concatenate(lanes), strict=True):
            assert abs(float(text.rstrip("%").replace("−", "-")) - 100 * values) <= 1


def arrays_of(explorer, colour):
    """What each colour shows: (t, l) of the clip, and of the other as it stands below."""
    if colour == "received":
        heats = [one.maps[1, :, 1].sum(1).T for one in explorer.both()]
    elif colour == "spatial":
        heats = [one.spatial[1, 1] for one in explorer.both()]
    else:
        heats = [one.score("to the left")[1] for one in explorer.both()]
    return heats[0], heats[1][BACKWARDS]


@pytest.mark.parametrize("colour", ["received", "spatial", "relevance"])
@pytest.mark.parametrize("beside", ["none", "clip"])
def test_colours_are_those_of_the_arrays(page_of, colour, beside):
    explorer = drawn()
    explorer.between = explorer.other.between = None  # CLS; a pinned patch has a test of its own
    _, root = page_of(explorer.html(), "#layer=2&head=2")
    until(lambda: root.get_by_label("Head", exact=True).input_value(), "0", "link")
    root.get_by_label("Compare with", exact=True).select_option(beside)
    type_caption(root, "to the left")
    root.get_by_label("Colour", exact=True).select_option(colour)
    wanted = arrays_of(explorer, colour)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.1 * wanted[0].max()
    for row, column, frame in PLACES:
        place_at(root, row, column, frame)
        found = [numbers_of(rows, colour) for rows in lanes_of(root)]
        heats = [one[:, 4 * (row - 1) + column - 1] for one in wanted]
        lanes = [*heats, heats[0] - heats[1]] if beside == "clip" else heats[:1]
        off = 6 if colour == "received" else max(map(np.max, wanted))
        np.testing.assert_allclose(found, lanes, atol=off / 255)


def test_two_captions_are_those_of_the_arrays(page_of):
    explorer = drawn()
    _, root = page_of(explorer.html())
    root.get_by_label("Compare with", exact=True).select_option("caption")
    for name, text in dict(zip(("Caption", "Caption B"), explorer.captions)).items():
        root.get_by_label(name, exact=True).fill(text)
    root.get_by_role("button", name="Show").click()
    until(root.locator(".bta-lane h3").nth(1).text_content, "B: “no caption yet”", "captions")
    for row, column, frame in PLACES:
        place_at(root, row, column, frame)
        heats = [explorer.score(t)[1][:, 4 * (row - 1) + column - 1] for t in explorer.captions]
        found = [numbers_of(rows, "relevance") for rows in lanes_of(root)]
        np.testing.assert_allclose(found, [*heats, heats[0] - heats[1]], atol=2e-4)


def test_a_tick_is_one_picture_in_both_clips(page_of):
    """Below frame 2 of the clip stands frame 5 of the clip backwards, and both are blocked."""
    explorer = drawn()
    _, root = page_of(explorer.html())
    compare(root, "clip")
    heads = {"layer 2, head 1 takes part": (1 + 3, 1 + 3)}
    for name, (here, there) in heads.items() | {("frame 2 takes part", (1 + 6 + 1, 1 + 6 + 4))}:
        before = cosines(root)
        root.get_by_label(name, exact=True).uncheck()
        until(lambda before=before: cosines(root), before, "untick")
        for text, shown in zip(
            root.locator(".bta-said-bars button").all_text_contents(), cosines(root)
        ):
            effects = explorer.fits()[text]
            wanted = [effects[0][0], effects[0][here], effects[1][0], effects[1][there]]
            found = re.findall(r"−?\d\.\d\d", shown)
            assert [float(x.replace("−", "-")) for x in found] == pytest.approx(wanted, abs=0.006)
        told = root.locator(".bta-section", has_text="fit").inner_text()
        assert ("frame 2, in backwards to frame 5" in told) == name.startswith("frame")
        root.get_by_label(name, exact=True).check()


def test_warnings_are_saved(page_of):
    """What the page says beside and over its pictures stands in what is saved of them."""
    explorer = drawn()
    explorer.trained = 4
    _, root = page_of(explorer.html())
    plain = Image.open(BytesIO(save(root, "PNG")))
    root.get_by_label("Colour", exact=True).select_option("relevance")
    aim(root, 5, 0.5, 0.5)
    until(lambda: root.locator(".bta-over").inner_text(), "", "untrained frames")
    drawing = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", save(root, "SVG").decode()))
    for told in (
        *explorer.notices(),
        "No caption, no relevance",
        "beyond the 4 frames of training",
    ):
        assert told in drawing
    assert "at its own place in each frame" in drawing
    assert Image.open(BytesIO(save(root, "PNG"))).height > plain.height


def test_what_a_share_is_of(page_of):
    """Of a model that looks at all places of two frames at once nothing else is said."""
    explorer = drawn()
    explorer.step, explorer.joint, explorer.trained = 2, True, 10
    _, root = page_of(explorer.html())
    assert "a share is what a whole time gets" in root.locator(".bta-about").inner_text()
    means, said = root.locator(".bta-means"), root.locator(".bta-said")
    assert "own place" not in root.inner_text() and "temporal attention" not in root.inner_text()
    assert any("all places of a time together" in text for text in means.all_text_contents())
    place_at_time = "Row 2, column 3 of frames 1 to 2 looks at frames"
    assert said.text_content().startswith(place_at_time)
    assert root.locator(".bta-share span").first.text_content() == "1 to 2"
    assert root.locator(".bta-lane").first.locator("[data-untrained]").count() == 1
    assert lanes_of(root)[0][2]["frame"] == "5 to 6"
    root.get_by_label("The patch", exact=True).select_option(label="of each time looks at this one")
    assert said.text_content().startswith("Row 2, column 3 looks at frames 1 to 2 from frames")
    wanted = explorer.maps[0, 6].mean(0)[:, 0]
    np.testing.assert_allclose(
        numbers_of(lanes_of(root)[0], "is looked at from here"), wanted, atol=0.004
    )
    options = root.get_by_label("Colour", exact=True).locator("option").all_text_contents()
    assert "attention given" in options and "attention received" not in options
    colour(root, "given")
    found = numbers_of(lanes_of(root)[0], "given")
    np.testing.assert_allclose(found, explorer.maps[0, 6].mean(0).sum(0), atol=0.02)
    assert "frames 5 to 6" in save(root, "SVG").decode()


# --- one thing of a page is broken, and the check that passes on the whole page notices it ---


@contextmanager
def restyled(root, rule, wrong):
    """Another rule of the explorer's style, for a while."""
    style = root.page.locator("#explorer > style")
    whole = style.text_content()
    assert whole.count(rule) == 1
    style.evaluate("(e, text) => { e.textContent = text }", whole.replace(rule, wrong))
    yield
    style.evaluate("(e, text) => { e.textContent = text }", whole)


def check_themes(root):
    """Light in a light browser, dark in a dark one, and legible in both."""
    found = {}
    for scheme in ("light", "dark"):
        root.page.emulate_media(color_scheme=scheme)
        read = "e => getComputedStyle(e).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
        found[scheme] = max(root.evaluate(read))
        for part in ("h2", ".bta-about", ".bta-said", ".bta-share b", ".bta-means", "select"):
            assert root.locator(part).first.evaluate(CONTRAST) > 4.5, f"{scheme}: illegible {part}"
    assert found["light"] > 250, "light: is dark"
    assert found["dark"] < 60, "dark: is light"


DARK = "@media (prefers-color-scheme: dark) { .bta { --ink"


def test_dark(page_of):
    _, root = page_of(drawn().html())
    check_themes(root)
    for rule, wrong, said in (
        (DARK, "@media not all { .bta { --ink", "dark: is light"),
        (DARK, "@media all { .bta { --ink", "light: is dark"),
        ("#ececec", "#1b1b1b", "dark: illegible h2"),
        ("#b4b4b4", "#5a5a5a", "dark: illegible .bta-about"),
    ):
        with restyled(root, rule, wrong), pytest.raises(AssertionError, match=said):
            check_themes(root)


def check_narrow(root):
    """No sentence is squeezed, nothing is wider than the window, and a finger moves the page."""
    for text in root.locator("p:visible").all():
        box = text.bounding_box()
        assert not text.inner_text() or box["width"] > 150, f"squeezed: {text.inner_text()}"
    wide = root.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= root.page.viewport_size["width"], "too wide"
    for canvas in (".bta-screen canvas", ".bta-frame canvas"):
        touch = root.locator(canvas).first.evaluate("e => getComputedStyle(e).touchAction")
        assert touch == "pan-y pinch-zoom", "a finger is caught"


def test_a_phone(page_of):
    _, root = page_of(drawn().html(), width=390, height=800, has_touch=True)
    hover(root)  # a narrow window has a mouse
    tap(root)
    root.get_by_label("Colour", exact=True).select_option("spatial")
    until(lambda: "the patch at this place gives" in meaning(root), False, "a patch in space")
    check_narrow(root)
    for rule, wrong, said in (
        ("max-width: 1180px; padding: 14px", "width: 600px; padding: 14px", "too wide"),
        ("  .bta-stage { grid-template-columns: minmax(0, 1fr); }", "", "too wide"),
        (".bta p { margin: 0;", ".bta p { margin: 0; max-width: 120px;", "squeezed"),
        ("touch-action: pan-y pinch-zoom", "touch-action: none", "caught"),
    ):
        with restyled(root, rule, wrong), pytest.raises(AssertionError, match=said):
            check_narrow(root)


def check_no_request(watched):
    """The browser has read the file, and asked for nothing else."""
    assert len(watched.requests) == 1 and watched.requests[0].startswith("file:"), "a request"
    assert not watched.sockets, "a socket"


POLICY = "default-src 'none'"  # keeps a script from asking; what is in the page asks in vain
NOBODY = "127.0.0.1:9"  # a port of this machine where no one answers
ASKS = {
    "img": f"new Image().src = 'http://{NOBODY}/'",
    "link": "document.head.append(Object.assign(document.createElement('link'), "
    f"{{ rel: 'stylesheet', href: 'http://{NOBODY}/' }}))",
    "fetch": f"void fetch('http://{NOBODY}/').catch(() => 0)",
    "socket": f"void new WebSocket('ws://{NOBODY}/')",
}


def test_a_request_is_noticed(page_of):
    html = drawn().html()
    assert html.count(POLICY) == 1
    watched, _ = page_of(html.replace(POLICY, "default-src *"))
    for name, asks in ASKS.items():
        check_no_request(watched)
        with watched.page.expect_event("websocket" if name == "socket" else "request"):
            watched.page.evaluate(asks)
        with pytest.raises(AssertionError, match="a socket" if name == "socket" else "a request"):
            check_no_request(watched)
        del watched.requests[1:], watched.sockets[:]


# --- pieces ---


def point_at(root, place):
    """The mouse at a canvas: the sentence and the picture follow."""
    said, canvas = root.locator(".bta-said"), root.locator(place).first
    canvas.scroll_into_view_if_needed()
    box, seen, before = canvas.bounding_box(), said.text_content(), pixels(root, place)
    root.page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"], steps=3)
    assert until(said.text_content, seen, "point").startswith("Row 1, column 4")
    assert pixels(root, place) != before


def step_by_keys(root, place):
    before = pixels(root, place)
    root.locator(".bta-stage").focus()
    root.page.keyboard.press("ArrowLeft")
    until(lambda: pixels(root, place), before, "keys")


def read_title(root):
    assert "Where each patch of a clip looks" in root.locator(".bta-head").inner_text()


def save_whole(root):
    """Pictures that are not placed are saved in full."""
    assert len(Image.open(BytesIO(save(root, "PNG"))).convert("RGB").getcolors(10**6)) > 100


SCREEN, MATRIX, STRIP = ".bta-screen canvas", ".bta-time canvas", ".bta-frame canvas"
PIECES = {  # where it is, and what a person does with it
    "title": ("h2", read_title),
    "controls": ("[aria-label=Layer]", lambda root: choose(root, "Layer", 1)),
    "player": ("button:has-text('Play'), button:has-text('Pause')", play),
    "caption": ("[aria-label=Caption]", lambda root: type_caption(root, "to the left")),
    "screen": (SCREEN, lambda root: point_at(root, SCREEN)),
    "matrix": (MATRIX, lambda root: step_by_keys(root, MATRIX)),
    "strip": (STRIP, lambda root: point_at(root, STRIP)),
    "overview": (".bta-tile canvas", choose_tile),
    "bars": (".bta-said-bars button", press_bar),
    "export": ("button:has-text('Save PNG')", save_whole),
}
PLACED = {name: [name] for name in PIECES} | {
    "patch through time": ["strip", "matrix"],
    "clip player": ["player", "screen"],
    "caption bars": ["caption", "bars"],
}
WIDE = ".bta-stage:has(> [hidden]:first-child) { grid-template-columns: minmax(0, 1fr); }"


def check_placed(root, parts):
    """These pieces are there and no others, with the words that belong to them."""
    there = {name for name, (at, _) in PIECES.items() if root.locator(at).first.is_visible()}
    assert there == {*parts}, "other pieces"
    stage = bool({"screen", "matrix", "strip"} & there)
    for words in (".bta-said", ".bta-keys", ".bta-stage"):
        assert root.locator(words).is_visible() == stage, "other words"
    if "strip" in there and not {"screen", "matrix"} & there:
        wide = root.locator(".bta-strip").bounding_box()["width"]
        assert wide > 0.9 * root.bounding_box()["width"], "a strip beside nothing"


@pytest.mark.parametrize("name", PLACED)
def test_pieces(page_of, name):
    parts = PLACED[name]
    watched, root = page_of(drawn().html(parts=parts))
    for part in parts:
        PIECES[part][1](root)
    check_placed(root, parts)
    assert not watched.errors and not watched.alerts
    if name == "strip":
        with restyled(root, WIDE, ""), pytest.raises(AssertionError, match="beside nothing"):
            check_placed(root, parts)
    hide = "(all, hidden) => all.forEach(e => { e.hidden = hidden })"
    for places, hidden in ((PIECES[parts[0]][0], True), ("[hidden]", False)):
        root.locator(places).evaluate_all(hide, hidden)
        with pytest.raises(AssertionError, match="other pieces"):  # one is gone, all are there
            check_placed(root, parts)


ANSWERS = 'on[name].addEventListener("change", () => settle(view));'
SABOTAGE = {  # what is cut out of the script, and the step that must notice it
    "hover": ("point(view, event, canvas, frame(), lane())", hover),
    "keyboard": ("goTo(view, { [axis]", move_by_keyboard),
    "pin": ('canvas.addEventListener("click", (event) => pin', pin),
    "tap": ('canvas.addEventListener("click", (event) => pin', tap),
    "Esc": ('event.key === "Escape" && free(view)', free),
    "layer": ('on.layer.addEventListener("change"', lambda root: choose(root, "Layer", 1)),
    "head": ('on.head.addEventListener("change"', lambda root: choose(root, "Head", 2)),
    "Enter": ('event.key === "Enter") askAll', lambda root: type_caption(root, "to the left")),
    "button": (
        'on.ask.addEventListener("click"',
        lambda root: type_caption(root, "to the left", by_button=True),
    ),
    "play": ('on.play.addEventListener("click"', play),
    "overview": ('button.addEventListener("click", () => pick', choose_tile),
    "a head": (
        'box?.addEventListener("change"',
        lambda root: untick(root, "layer 1, head 2 takes part"),
    ),
    "a frame": (
        '    box.addEventListener("change"',
        lambda root: untick(root, "frame 3 takes part"),
    ),
    "a clip": (ANSWERS, lambda root: compare(root, "clip")),
    "two captions": (ANSWERS, lambda root: compare(root, "caption")),
    "looked at by": (ANSWERS, look_back),
    "received": (ANSWERS, lambda root: colour(root, "received")),
    "in space": (ANSWERS, lambda root: colour(root, "spatial")),
    "a patch in space": ("askPatches(view, aloud);", look_in_space),
    "its numbers": ('model.set("wanted", asked);', look_in_space),
    "its picture": ("weigh(view); // a pinned patch", look_in_space),
    "Esc in space": ('event.key === "Escape" && free(view)', leave_space),
    "grid": (ANSWERS, lay_grid),
    "opacity": ('on.opacity.addEventListener("input"', fade),
    "bar": ('button.addEventListener("click", () => ask', press_bar),
    "SVG": ('on.SVG.addEventListener("click"', lambda root: save(root, "SVG")),
    "PNG": ('on.PNG.addEventListener("click"', lambda root: save(root, "PNG")),
    "CSV": ('on.CSV.addEventListener("click"', lambda root: save(root, "CSV")),
    "link": ("setTimeout(write, 250, view)", link),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_every_control(page_of, name):
    watched, root = page_of(drawn().html(), has_touch=True)
    SABOTAGE[name][1](root)
    assert not watched.errors and not watched.alerts


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_dead_callback_is_noticed(page_of, name, monkeypatch):
    monkeypatch.setitem(globals(), "PATIENCE_S", 1)
    alive, step = SABOTAGE[name]
    check_dead(page_of, drawn().html(), alive, step)


def check_dead(page_of, html, alive, step):
    """The step fails where this is cut out of the script."""
    assert html.count(alive) == 1
    _, root = page_of(html.replace(alive, f"0 && {alive.lstrip()}"), has_touch=True)
    root.page.set_default_timeout(1000)
    with pytest.raises(Exception, match=r"nothing changed|Timeout"):
        step(root)


@pytest.mark.parametrize(
    ("piece", "name"), [("screen", "hover"), ("strip", "hover"), ("matrix", "keyboard")]
)
def test_a_dead_piece_is_noticed(page_of, piece, name, monkeypatch):
    """The steps of the other pieces are those of the controls."""
    monkeypatch.setitem(globals(), "PATIENCE_S", 1)
    check_dead(page_of, drawn().html(parts=[piece]), SABOTAGE[name][0], PIECES[piece][1])


# --- JupyterLab ---

EXTRA = '''
from bt_adapter.explorer import ChatPanel
attack = "<img src=x onerror=alert(1)>"
class Parrot:
    def stream(self, question):
        yield from (f"{word} " for word in ("You asked:", *question.split(), "<b>Loud</b>"))
        yield attack
ChatPanel(Parrot(), clip).widget()
''', '''
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
    """The lesson, a panel of a parrot, and widgets whose callbacks are dead."""
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


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on loopback, with a home of its own; its address and its folder."""
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
    home, work = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    (work / "explorer.ipynb").write_text(json.dumps(notebook_for_the_browser()))
    pictures = ROOT / "nbs/42_explorer_files"
    if pictures.exists():
        shutil.copytree(pictures, work / pictures.name)
    with jupyterlab(home, work) as address:
        yield address


@pytest.fixture(scope="module")
def notebook(browser, lab):
    """The notebook after Run All, through the menu."""
    watched = Watched(browser, height=1400)
    page = watched.page
    page.goto(f"{lab}/lab/tree/explorer.ipynb?reset")
    idle = page.get_by_text(IDLE)
    idle.wait_for()
    run_all(page)
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
    root.get_by_role("button", name="Free the patch").click()  # the keyboard pinned one
    leave_space(root)
    root.get_by_label("Colour", exact=True).select_option("clip")
    text, changed = type_caption(root, "a red star circles clockwise on a navy background")
    assert "cosine" in text and changed
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


@pytest.mark.parametrize("what", ["caption", "layer", "a patch in space"])
def test_a_dead_python_callback_is_noticed(notebook, what, monkeypatch):
    monkeypatch.setitem(globals(), "PATIENCE_S", 1.5)
    root = notebook.page.locator(".bta").last
    steps = {
        "caption": lambda: type_caption(root, "a red star"),
        "layer": lambda: choose(root, "Layer", 2),
        "a patch in space": lambda: look_in_space(root),
    }
    with pytest.raises(AssertionError, match="nothing changed"):
        steps[what]()
