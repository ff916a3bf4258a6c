"""Pictures drawn by code: valid, true in their counts, and nothing floats or overlaps."""

import re
from functools import cache
from itertools import combinations, pairwise
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from PIL import ImageFont

from bt_adapter.drawings import (
    PARTS,
    architecture,
    asymmetric_masking,
    attention_cube,
    canvas,
    clip_tokens,
    five_steps,
    letters,
    loss_map,
    places,
    token_cube,
    tuning_stages,
)
from bt_adapter.drawings.tiles import byte_bars, memory_map, queue_map, tile_map, used
from bt_adapter.masking import kept_patches, tube_mask
from bt_adapter.playing import drawing, interactive_picture

SVG = "{http://www.w3.org/2000/svg}"
CLIP = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
PICTURES = {
    "architecture": architecture(),
    "architecture, gates": architecture("gates"),
    "five steps": five_steps(),
    "cube": token_cube(),
    "cube, a tube": token_cube(lit=[(None, 1, 2)]),
    "cube, large": token_cube(16, 16, 16),
    "cube, one": token_cube(1, 1, 1),
    "cube of a clip": token_cube(8, 8, 8, lit=[(3, None, None)], clip=CLIP),
    "temporal": attention_cube("temporal"),
    "spatial": attention_cube("spatial", 4, 2, 3, query=(0, 1, 2)),
    "joint": attention_cube("joint", 8, 8, 8),
    "joint of a clip": attention_cube("joint", clip=torch.from_numpy(CLIP)),
    "masking": asymmetric_masking([0, 5, 6, 15]),
    "masking of a clip": asymmetric_masking(tube_mask(1, 64, 0.7), 8, 8, 8, clip=CLIP),
    "vtc": loss_map("vtc"),
    "mbta": loss_map("mbta"),
    "mbca": loss_map("mbca"),
    "letters": letters(),
    "places": places(),
    "tokens of a clip": clip_tokens(),
    "tokens of a clip, slow-fast": clip_tokens("slow-fast"),
    "stages of tuning": tuning_stages(),
    "stages of tuning, clips": tuning_stages("clips"),
    "tile": tile_map(8, series=1),
    "tiles": tile_map([1, 3, 12, 16]),
    "tile of 64": tile_map(3, 64),
    "queue": queue_map(2, 5, 8, heads=16),
    "queue, a rest": queue_map(3, 1, 5),
    "memory": memory_map(np.arange(8 * 5 * 3 * 3).reshape(8, 5, 3, 3), {0: "one", 7: "two"}),
    "memory, one": memory_map(np.zeros((1, 1, 3, 1)), {0: "all there is"}),
    "bytes": byte_bars({"the first way": {"a part": 8, "another": 0.1}, "no way": {"a third": 4}}),
    "bytes, many": byte_bars({"a": {f"a part with a long name {i}": i for i in range(5)}}),
    "bytes, nothing": byte_bars({"nothing": {}}),
}
each_picture = pytest.mark.parametrize("name", PICTURES)


@cache
def tree(name):
    return ElementTree.fromstring(PICTURES[name].svg)


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def number(element, *names):
    return [float(element.get(name)) for name in names]


def words(svg):
    """All that is written, piece by piece."""
    root = ElementTree.fromstring(svg)
    return ["".join(text.itertext()).replace("\u200b", "") for text in root.iter(f"{SVG}text")]


# --- what GitHub, Jupyter and a screen reader need ---


@each_picture
def test_valid_and_alone(name):
    picture, root = PICTURES[name], tree(name)
    assert root.tag == f"{SVG}svg" and root.get("role") == "img"
    assert root.get("aria-label") == root.find(f"{SVG}title").text == picture.title
    assert root.find(f"{SVG}desc").text == picture.alt and len(picture.alt) > 20
    allowed = "svg title desc g rect circle path polygon text tspan image".split()
    for element in root.iter():
        assert element.tag.removeprefix(SVG) in allowed, element.tag
        assert element.get("id") is None
        assert element.get("font-family", "serif") in ("serif", "sans-serif", "monospace")
        assert element.get("href", "data:image/png").startswith("data:image/png")
        small = element.get("font-size")
        assert small is None or float(small) >= 32 / 3 - 0.1, "letters have at least 8 points"
    assert "url(" not in picture.svg and len(picture.svg) < 450_000


@each_picture
def test_shows_itself(name):
    picture = PICTURES[name]
    assert picture._repr_svg_() == picture.svg and picture.alt in repr(picture).replace("\n", " ")
    assert drawing(picture) == ("image/svg+xml", picture.svg)


def test_same_picture_every_time():
    assert architecture().svg == PICTURES["architecture"].svg


def test_saving(tmp_path):
    letters().save(tmp_path / "letters.svg")
    assert (tmp_path / "letters.svg").read_text(encoding="utf-8") == letters().svg
    with pytest.raises(ValueError, match=r"\.svg, not as 'letters\.png'"):
        letters().save(tmp_path / "letters.png")


def test_can_be_played_with():
    played = interactive_picture(lambda part="gates": architecture(part), part=list(PARTS))
    assert played.still() == ("image/svg+xml", architecture("gates").svg)
    pytest.importorskip("ipywidgets")
    menu, shown = played.widget().children
    menu.value = "chat"
    assert shown.value == architecture("chat").svg


# --- parts ---


def test_each_part_can_be_lit():
    found = {part: architecture(part).svg for part in PARTS}
    assert len({*found.values(), architecture().svg}) == len(PARTS) + 1
    for part, svg in found.items():
        groups = ElementTree.fromstring(svg).findall(f"{SVG}g")
        own = [g for g in groups if g.get("data-part") == part]
        others = [g for g in groups if g.get("data-part") not in (part, "several")]
        assert own and all(group.get("opacity") is None for group in own), part
        assert others and all(float(group.get("opacity")) < 0.5 for group in others), part


def test_ways_to_say_what_is_lit():
    assert architecture(["gates"]).svg == architecture("gates").svg == architecture({"gates"}).svg
    assert architecture(PARTS).svg == architecture().svg
    assert 'opacity="0.22"' not in architecture().svg
    assert words(architecture([]).svg) == words(architecture().svg)


def test_near_is_the_same_picture_cut_out():
    whole, near = architecture("gates").svg, architecture("gates", near=True).svg
    assert near != whole and near.split(">", 1)[1] == whole.split(">", 1)[1]


@pytest.mark.parametrize(
    "wrong, told",
    [
        (lambda: architecture("gate"), "no part 'gate' to light: choose among"),
        (lambda: architecture(["gates", 3]), "no part 3"),
        (lambda: attention_cube("time"), "one of temporal, spatial, joint, not 'time'"),
        (lambda: attention_cube("joint", query=(8, 0, 0)), r"\(8, 0, 0\) is no \(frame, row"),
        (lambda: token_cube(0), "t must be a whole number from 1 to 16, not 0"),
        (lambda: token_cube(8, 4, 2.5), "columns must be a whole number"),
        (lambda: token_cube(lit=[(0, 0, 4)]), r"\(0, 0, 4\) is no"),
        (lambda: token_cube(lit=[(0, 0)]), r"\(0, 0\) is no"),
        (lambda: token_cube(4, clip=CLIP), "has 8 frames, not t = 4"),
        (lambda: token_cube(clip=CLIP / 255), "A clip is uint8"),
        (lambda: asymmetric_masking([16]), "whole numbers from 0 to 15"),
        (lambda: asymmetric_masking([True, False] * 8), "list the places"),
        (lambda: asymmetric_masking(tube_mask(2, 16, 0.5)), "for b = 1"),
        (lambda: loss_map("nce"), "one of vtc, mbta, mbca, not 'nce'"),
        (lambda: tile_map(17), r"16 rows does not hold series of \[17\] frames"),
        (lambda: tile_map(8, series=3), r"does not hold 3 series of \[8\] frames"),
        (lambda: tile_map([]), r"does not hold series of \[\] frames"),
        (lambda: tile_map("8"), r"does not hold series of \['8'\] frames"),
        (lambda: queue_map(1, 2, 33, 32), r"32 rows does not hold series of \[33\] frames"),
        (lambda: queue_map(0, 2, 8), "clips must be a whole number of 1 or more, not 0"),
        (lambda: queue_map(2, -1, 8), "patches must be a whole number of 1 or more, not -1"),
        (lambda: queue_map(2, 2.5, 8), "patches must be a whole number of 1 or more, not 2.5"),
        (lambda: queue_map(2, 2, 8, heads=True), "heads must be a whole number of 1 or more"),
        (lambda: byte_bars({}), "at least one way"),
        (lambda: byte_bars([{"q": 3}]), "at least one way"),
        (lambda: byte_bars({"a way": 4}), "at least one way"),
        (lambda: byte_bars({3: {"q": 1}}), "3 is none"),
        (lambda: byte_bars({"a way": {None: 1}}), "None is none"),
        (lambda: byte_bars({"a way": {"q": -3}}), "'q' of 'a way' moves must be a number"),
        (lambda: byte_bars({"a way": {"q": float("nan")}}), "of 0 or more, not nan"),
        (lambda: byte_bars({"a way": {"q": float("inf")}}), "of 0 or more, not inf"),
        (lambda: byte_bars({"a way": {"q": "much"}}), "of 0 or more, not 'much'"),
        (lambda: clip_tokens("median"), "no part 'median' to light"),
        (lambda: tuning_stages("stage 3"), "no part 'stage 3' to light"),
        (lambda: memory_map(CLIP, {}), r"must be \(t, l, 3, h\), none of them 0, not \(8, 32"),
    ],
)
def test_refuses_in_one_sentence(wrong, told):
    with pytest.raises(ValueError, match=told) as refused:
        wrong()
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


# --- counts ---


@pytest.mark.parametrize("t, rows, columns", [(8, 4, 4), (4, 2, 3), (16, 8, 8), (1, 1, 1)])
def test_counts_are_computed(t, rows, columns):
    patches = rows * columns
    cube = token_cube(t, rows, columns, lit=[(None, 0, 0)])
    told = " ".join(words(cube.svg))
    assert f"{rows} × {columns} = {patches} patches" in told
    assert f"{t} × {patches} = {t * patches} tokens" in told
    assert (f"{t} of them lit" in told) == (patches > 1)
    # Counting pairs by hand: every token with every one that it may look at.
    tokens = [*np.ndindex(t, patches)]
    meets = dict(temporal=lambda a, b: a[1] == b[1], spatial=lambda a, b: a[0] == b[0])
    if t * patches < 200:
        for kind in meets:
            pairs = sum(meets[kind](a, b) for a in tokens for b in tokens)
            assert f"{pairs:,}" in words(attention_cube(kind, t, rows, columns).svg)
    assert f"{len(tokens) ** 2:,}" in words(attention_cube("joint", t, rows, columns).svg)
    kept = kept_patches(patches, 0.7)
    told = " ".join(words(asymmetric_masking(range(kept), t, rows, columns).svg))
    assert f"{t} × {patches} = {t * patches} tokens, the branch {t} × {kept} = {t * kept}" in told


@pytest.mark.parametrize("frames, rows", [(8, 16), (3, 16), (12, 64), (1, 16)])
def test_what_is_used_of_a_tile_is_counted(frames, rows):
    slots = np.arange(rows) // frames
    real = slots < rows // frames
    scores = (slots[:, None] == slots) & real
    assert used(frames, rows, rows // frames) == (real.sum(), scores.sum())
    told = " ".join(words(tile_map(frames, rows).svg))
    assert f"{real.sum()} of {rows} rows" in told and f"{scores.sum():,} of {rows**2:,}" in told


def polygons(svg, fill):
    return [p for p in ElementTree.fromstring(svg).iter(f"{SVG}polygon") if p.get("fill") == fill]


def test_as_many_tokens_are_lit_as_are_counted():
    frozen, trained = canvas.FROZEN.fill, canvas.TRAINED.fill
    assert len(polygons(token_cube(lit=[(None, 1, 2), (0, 1, None)]).svg, frozen)) == 8 + 4 - 1
    assert len(polygons(attention_cube("temporal").svg, frozen)) == 7  # and the one that asks
    assert len(polygons(attention_cube("spatial").svg, frozen)) == 15
    assert len(polygons(attention_cube("joint").svg, frozen)) == 127
    masked = asymmetric_masking([0, 5, 6]).svg
    assert len(polygons(masked, frozen)) == 128 and len(polygons(masked, trained)) == 24


# --- layout ---


def edges(root):
    """The sides of all boxes and tokens as pairs of points, and the middles of all dots."""
    sides = []
    for rect in root.iter(f"{SVG}rect"):
        x, y, width, height = number(rect, "x", "y", "width", "height")
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
        sides += zip(corners, corners[1:] + corners[:1], strict=True)
    for polygon in root.iter(f"{SVG}polygon"):
        corners = np.array(numbers(polygon.get("points"))).reshape(-1, 2).tolist()
        if len(corners) == 4:
            sides += zip(corners, corners[1:] + corners[:1], strict=True)
    dots = [number(dot, "cx", "cy") for dot in root.iter(f"{SVG}circle")]
    return np.array(sides, float), dots


def distance(point, sides):
    """From a point to the nearest of some sides."""
    start, along = sides[:, 0], sides[:, 1] - sides[:, 0]
    share = ((point - start) * along).sum(1) / np.maximum((along**2).sum(1), 1e-9)
    nearest = start + np.clip(share, 0, 1)[:, None] * along
    return np.hypot(*(point - nearest).T).min()


@each_picture
def test_arrows_touch_what_they_join(name):
    root = tree(name)
    (sides, dots), elements = edges(root), [*root.iter()]
    for path, head in pairwise(elements):
        if path.get("class") != "arrow":
            continue
        start, tip = numbers(path.get("d"))[:2], numbers(head.get("points"))[:2]
        at_dot = any(np.hypot(*np.subtract(start, dot)) < 0.1 for dot in dots)
        assert at_dot or distance(np.array(start), sides) < 1.5, ("starts", start)
        assert distance(np.array(tip), sides) < 1.5, ("ends", tip)


@cache
def font(family, bold, italic, size):
    """The widest of the fonts that browsers take for a generic family."""
    kind = {"sans-serif": "Sans", "serif": "Serif", "monospace": "SansMono"}[family]
    slant = "Italic" if family == "serif" else "Oblique"
    style = "Bold" * bold + slant * italic
    folder = f"{matplotlib.get_data_path()}/fonts/ttf"
    return ImageFont.truetype(f"{folder}/DejaVu{kind}{'-' * bool(style)}{style}.ttf", size * 8)


def pieces(element, style):
    """The text of an element with the style that each piece has."""
    own = {key: element.get(key) for key in ("font-family", "font-size", "font-style")}
    style = style | {key: value for key, value in own.items() if value}
    yield element.text or "", style
    for child in element:
        yield from pieces(child, style)
        yield child.tail or "", style


def text_box(text):
    """x0, y0, x1, y1 of a text, with room for scripts only where there are letters."""
    width, bold = 0, text.get("font-weight") == "bold"
    for written, style in pieces(text, {"font-style": ""}):
        written = written.replace("\u200b", "").replace("\u0302", "")
        italic = style["font-style"] == "italic"
        size = round(float(style["font-size"]))
        width += font(style["font-family"], bold, italic, size).getlength(written) / 8
    x, y, size = number(text, "x", "y", "font-size")
    x -= {"start": 0, "middle": width / 2, "end": width}[text.get("text-anchor")]
    return x, y - 0.75 * size, x + width, y + 0.15 * size


def overlap(a, b, margin=0.5):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    return (high - low > margin).all()


@each_picture
def test_words_are_inside_and_apart(name):
    root = tree(name)
    _, _, width, height = numbers(root.get("viewBox"))
    found = {text: text_box(text) for text in root.iter(f"{SVG}text")}
    for text, (x0, y0, x1, y1) in found.items():
        inside = x0 >= 4 and y0 >= 4 and x1 <= width - 4 and y1 <= height - 4
        assert inside, ("".join(text.itertext()), x0, y0, x1, y1)
    for (a, one), (b, other) in combinations(found.items(), 2):
        assert not overlap(one, other), ("".join(a.itertext()), "".join(b.itertext()))


@each_picture
def test_words_stand_in_their_boxes_or_outside(name):
    root = tree(name)
    for text in root.iter(f"{SVG}text"):
        x0, y0, x1, y1 = text_box(text)
        for rect in root.iter(f"{SVG}rect"):
            if rect.get("class") == "ground":
                continue
            x, y, width, height = number(rect, "x", "y", "width", "height")
            box = x, y, x + width, y + height
            within = x0 >= x + 1 and y0 >= y and x1 <= x + width - 1 and y1 <= y + height
            told = "".join(text.itertext()), box, (x0, y0, x1, y1)
            assert within or not overlap((x0, y0, x1, y1), box), told


@each_picture
def test_lines_cross_no_words(name):
    root = tree(name)
    boxes = {text: text_box(text) for text in root.iter(f"{SVG}text")}
    for path in root.iter(f"{SVG}path"):
        if path.get("class") not in ("arrow", "line"):
            continue
        points = np.array(numbers(path.get("d"))).reshape(-1, 2)
        steps = np.linspace(0, 1, 50)[:, None]
        for start, end in pairwise(points):
            for x, y in start + steps * (end - start):
                for text, (x0, y0, x1, y1) in boxes.items():
                    crossed = x0 < x < x1 and y0 < y < y1
                    assert not crossed, ("".join(text.itertext()), x, y)
