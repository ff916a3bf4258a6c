"""The explorer without a browser: sizes, escaping, and what Python answers."""

import base64
import json
import re
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from test_maps import adapter, with_words
from tidy import ROOT
from tiny import tiny_clip

from bt_adapter import explorer as x

ATTACK = "</script><img src=x onerror=alert(1)>&"
L14 = dict(layers=4, heads=16, frames=16, grid=(16, 16), size=(224, 224))


def made(layers=2, heads=3, frames=4, grid=(2, 4), size=(40, 80), captions=("one", ATTACK), **more):
    rng = np.random.default_rng(0)
    patches = grid[0] * grid[1]
    clip = rng.integers(256, size=(frames, *size, 3), dtype=np.uint8)
    maps = rng.dirichlet(np.ones(frames), size=(layers, patches, heads, frames))
    heat = rng.random((frames, patches))
    return x.Explorer(
        clip, grid, maps.astype(np.float32), lambda text: (0.5, heat), captions, **more
    )


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def test_a_page_of_sixteen_frames_of_l14_fits():
    explorer = made(**L14, captions=[f"caption {i}" for i in range(8)])  # noise: nothing compresses
    page = explorer.html()
    assert 1_500_000 < len(page.encode()) <= x.LIMIT
    held = data_of(page)["info"]["held"]
    assert held[:4] == ["0/0", "1/0", "2/0", "3/0"] and len(held) >= 6


def test_the_widget_sends_little():
    live = x.live_widget(made(**L14))
    sent = [value for value in live.get_state().values() if isinstance(value, bytes | memoryview)]
    assert sum(map(len, sent)) + len(json.dumps(live.info)) + len(x.explorer_script()) < x.LIMIT
    assert len(live.weights) == 256 * 16 * 16  # one map, not all


def test_too_much_is_refused():
    explorer = made(frames=64, grid=(16, 16), size=(224, 224), layers=12, heads=1)
    with pytest.raises(ValueError, match="larger than 2 MB"):
        explorer.html()


def test_the_page_carries_the_maps():
    explorer = made()
    data = data_of(explorer.html())
    assert set(data["maps"]) == {f"{k}/{h}" for k in range(2) for h in range(4)}
    for key, (text, top) in data["maps"].items():
        layer, head = map(int, key.split("/"))
        bytes_there = np.frombuffer(base64.b64decode(text), np.uint8).reshape(8, 4, 4)
        wanted = explorer.maps[layer].mean(1) if head == 0 else explorer.maps[layer, :, head - 1]
        assert np.abs(bytes_there / 255 * top - wanted).max() <= top / 500
    heat = np.frombuffer(base64.b64decode(data["heats"]["one"]["heat"]), np.uint8)
    assert heat.size == 4 * 8 and heat.max() == 255


def test_decided_heads_come_first():
    explorer = made(layers=2, heads=3, frames=4, grid=(1, 1))
    explorer.maps[1, :, 2] = np.eye(4)  # as decided as can be
    explorer.maps[0, :, 0] = 1 / 4
    order = list(explorer.carried(10**6))
    assert order[:3] == ["0/0", "1/0", "1/3"] and order[-1] == "0/1"


def test_nothing_in_the_page_is_markup_of_others():
    page = made().html(title=ATTACK)
    assert page.count("<script") == page.count("</script>") == 2 and "<img" not in page
    assert ATTACK in data_of(page)["heats"]
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "https:" not in page and "http:" not in page and "import(" not in page
    assert "default-src 'none'" in page


def test_the_page_is_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.html"
    path.write_text("before")
    explorer = made()
    explorer.relevance = lambda text: 1 / 0
    with pytest.raises(ZeroDivisionError):
        explorer.to_html(path)
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1
    made().to_html(path)
    assert path.read_text(encoding="utf-8").endswith("</html>\n")


@pytest.mark.parametrize("frames", [1, 8, 9, 40])
def test_the_film_has_every_frame_in_its_place(frames):
    clip = np.zeros((frames, 30, 50, 3), np.uint8)
    clip[:] = np.linspace(0, 240, frames)[:, None, None, None]
    data, width, height = x.film_strip(clip)
    sheet = np.asarray(Image.open(BytesIO(data)))
    assert (width, height) == (50, 30)
    for i in range(frames):
        tile = sheet[i // 8 * height :, i % 8 * width :][:height, :width]
        assert abs(tile.mean() - clip[i].mean()) < 4


@pytest.mark.parametrize("size", [(16, 16), (16, 32), (32, 16)])
def test_any_model(size):
    model = with_words(adapter(tiny_clip(image_size=size)))
    explorer = x.explore(model, torch.randint(256, (5, 48, 64, 3), dtype=torch.uint8), ["a"])
    assert explorer.grid == (size[0] // 8, size[1] // 8) and explorer.maps.shape[-2:] == (5, 5)
    assert len(explorer.html()) < x.LIMIT and len(explorer.figure().png()) > 1000
    live = explorer.widget()
    assert len(live.weights) == explorer.grid[0] * explorer.grid[1] * 25
    live.caption = "b"
    assert len(live.heat) == 5 * explorer.grid[0] * explorer.grid[1] and "cosine" in live.note


def test_the_widget_answers():
    explorer = made()
    live, messages = x.live_widget(explorer), []
    live.observe(lambda change: messages.append(change.name))
    live.layer = 1
    assert live.weights == x.quantize(explorer.weights(1, 0))[0]
    live.head = 2
    assert live.weights == x.quantize(explorer.maps[1, :, 1])[0]
    assert live.weights_top == pytest.approx(explorer.maps[1, :, 1].max())
    explorer.relevance = lambda text: (_ for _ in ()).throw(ValueError("No such words."))
    live.caption = "?"
    assert live.note == "No such words." and live.heat == b""


def test_plain_widgets_where_anywidget_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    plain = made().widget()
    monkeypatch.undo()
    heads, places, words = plain.children[:3]
    note, image = plain.children[3:]
    for control in (*heads.children, *places.children):
        before = image.value
        control.value = 1 if control.value == 0 else 2
        assert image.value != before, control
    before = image.value
    words.children[0].value = ATTACK
    assert image.value == before  # typing sends nothing
    words.children[1].click()
    assert image.value != before and "&lt;img" in note.value and "<img" not in note.value


# --- what is loaded ---


def test_importing_the_explorer_needs_no_widgets():
    code = "import sys, bt_adapter.explorer; print({'ipywidgets', 'anywidget'} & set(sys.modules))"
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout.strip() == "set()", out.stderr
