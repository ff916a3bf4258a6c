"""Pictures to play with: live where there are widgets, and a picture with a sentence elsewhere."""

import base64
import io
import re
import sys
from html import escape

import ipywidgets as widgets
import numpy as np
import pytest
from PIL import Image
from tidy import WIDGET

from bt_adapter import films
from bt_adapter.figures import curves, gif
from bt_adapter.playing import NO_CONTROLS, StillPicture, interactive_picture


def svg(size=10, wide=False):
    return f'<svg width="{size * (1 + wide)}"></svg>'


def picture(size=10, wide=False):
    return curves({"line": [0, size]})


def film(size=10, wide=False):
    return gif(np.zeros((2, size, size * (1 + wide), 3), np.uint8))


KINDS = {"svg+xml": svg, "png": picture, "gif": film}


@pytest.mark.parametrize("kind", KINDS)
def test_live_and_still(kind):
    playing = interactive_picture(KINDS[kind], size=(2, 20), wide=False)
    bundle, _ = playing._repr_mimebundle_()
    assert (
        bundle[WIDGET]["model_id"] and bundle["text/plain"] == "a picture with size, wide to move"
    )
    assert f"image/{kind}" in bundle or f"data:image/{kind};" in bundle["text/html"]
    assert len(bundle) == 3  # the picture once, the widget, and words
    size, wide, shown = playing.widget().children
    before = shown.value
    size.value, wide.value = 4, True
    assert shown.value != before
    size.value, wide.value = 10, False
    assert shown.value == before


@pytest.mark.parametrize("kind", KINDS)
def test_without_widgets_a_sentence_stands_below_the_picture(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    bundle, metadata = interactive_picture(KINDS[kind], size=(2, 20))._repr_mimebundle_()
    page = bundle["text/html"]
    assert WIDGET not in bundle and bundle["text/plain"] == NO_CONTROLS
    assert page.endswith(f"<p>{escape(NO_CONTROLS)}</p>") and "ipywidgets" in NO_CONTROLS
    text = bundle.get(f"image/{kind}") or re.search('base64,([^"]+)', page)[1]
    assert page.count(text) == 1
    if kind != "svg+xml":
        assert Image.open(io.BytesIO(base64.b64decode(text))).format.lower() == kind
    assert ("width" in metadata[f"image/{kind}"]) == (kind == "png")


def test_a_film_has_two_pixels_to_one_of_the_page():
    def two_clips(size=8):
        return films.film(np.zeros((2, 2, size, size, 3), np.uint8), width=3)

    playing = interactive_picture(two_clips, size=(2, 20))
    *_, shown = playing.widget().children
    assert (
        shown.layout.width == "240px"
        and 'width="240"' in playing._repr_mimebundle_()[0]["text/html"]
    )


def test_widgets_of_ones_own_and_lists():
    mine = widgets.IntSlider(3, 1, 9)
    playing = interactive_picture(svg, size=mine, wide=[True, False])
    size, wide, _ = playing.widget().children
    assert size is mine and isinstance(wide, widgets.Dropdown) and wide.value is False
    assert size.description == "size" and not size.continuous_update


def test_what_cannot_be_played_with_is_told():
    for draw in (lambda size: svg(size), lambda other=1: svg()):
        with pytest.raises(ValueError, match="no default for 'size'"):
            interactive_picture(draw, size=(1, 2))
    for drawn in (None, "text", b"\x89PNG", np.zeros((2, 2))):
        with pytest.raises(TypeError, match="Draw a Picture, an SVG or a GIF, not"):
            interactive_picture(lambda size=1, drawn=drawn: drawn, size=(1, 2)).still()


def test_a_note_is_text():
    assert "&lt;script&gt;" in StillPicture("<svg></svg>", "<script>").html()


def test_a_module_that_the_drawing_lacks_is_no_lack_of_widgets():
    def draw(size=1):
        import no_such_module  # noqa: F401

    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        interactive_picture(draw, size=(1, 2))._repr_mimebundle_()
