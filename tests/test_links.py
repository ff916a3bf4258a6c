"""Links between notebooks, README and files: each leads somewhere, and the lessons form a chain."""

import json
import re
from functools import cache
from itertools import pairwise

import pytest
from tidy import LESSONS, NOTEBOOKS, ROOT

PAGES = [*NOTEBOOKS, ROOT / "README.md", ROOT / "data_samples/README.md"]
LEGEND = ROOT / "nbs/workshop/drawings/letters.ipynb"


@cache
def text_of(path):
    """The Markdown of a page, that of a notebook's outputs, too, without what is code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        parts = []
        for cell in json.loads(text)["cells"]:
            shown = [output.get("data", {}) for output in cell.get("outputs", [])]
            parts += [data[kind] for data in shown for kind in data.keys() & {"text/markdown"}]
            parts += [cell["source"]] if cell["cell_type"] == "markdown" else []
        text = "\n\n".join(map("".join, parts))
    text = re.sub(r"^```.*?^```|^(?: {4}|\t)[^\n]*", "", text, flags=re.M | re.S)
    return re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "code", text)


def targets(text):
    """Where the links and pictures of a page lead, but for addresses on the net."""
    found = re.findall(r"\]\(\s*<?([^)\s>]+)|<(?:a|img)\b[^>]*?\b(?:href|src)=\"([^\"]+)\"", text)
    places = [markdown or html for markdown, html in found]
    return [place for place in places if not re.match(r"[a-z]+:", place)]


def anchors(path):
    """What can be linked in a page, in small letters, for GitHub and Jupyter differ in them."""
    raw = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(raw)["cells"]
        raw = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    titles = re.findall(r"^#+ +(.+?) *#*$", raw, re.M)
    words = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    named = re.findall(r"<\w+[^>]*\b(?:id|name)=\"([^\"]+)\"", raw)
    return {title.strip().replace(" ", "-") for title in words} | {*map(str.lower, named)}


def broken(path):
    """The links of a page that lead nowhere."""
    for target in targets(text_of(path)):
        name, _, anchor = target.partition("#")
        place = (path.parent / name).resolve() if name else path
        if not place.exists() or ROOT not in place.parents:
            yield target
        elif anchor and (place.is_dir() or anchor.lower() not in anchors(place)):
            yield target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    assert not list(broken(path))


def linked_in(path):
    """The files to which a page links."""
    places = [target.partition("#")[0] for target in targets(text_of(path))]
    return {(path.parent / place).resolve() for place in places}


def test_a_lesson_that_is_named_is_a_link():
    """But for the first lines of modules, which become their docstrings, and for itself."""
    lessons = {path.stem for path in LESSONS}
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            lines = "".join(cell["source"]).splitlines() if cell["cell_type"] == "markdown" else []
            named = {
                n for line in lines if line[:1] != ">" for n in re.findall(r"`(\d\d_\w+)`", line)
            }
            assert not named & lessons - {path.stem}, (path.name, cell["id"])


def test_lessons_form_one_chain():
    for before, after in pairwise(LESSONS):
        assert after in linked_in(before), f"{before.stem} does not lead on"
        assert before in linked_in(after), f"{after.stem} does not lead back"


def test_every_lesson_links_to_the_legend():
    without = {path.stem for path in LESSONS if LEGEND not in linked_in(path)}
    assert not without, "[in one picture](workshop/drawings/letters.ipynb)"


def test_the_legend_has_a_picture():
    cells = json.loads(LEGEND.read_text(encoding="utf-8"))["cells"]
    shown = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    assert any("image/svg+xml" in data for data in shown)


def test_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A *first* page: $x$\n[a](#a-first-page-x) [b](#b) ![c](c.png) [d](https://x.org)\n"
        '`[e](e)` <img width="3" src="f.png"> <a id="G">\n\n    [h](h)\n\n'
        "```\n[i](i)\n```\n[g](#g)\n"
    )
    assert targets(text_of(page)) == ["#a-first-page-x", "#b", "c.png", "f.png", "#g"]
    assert anchors(page) == {"a-first-page-x", "g"}
    assert text_of(page).count("code") == 1
    assert {"#b", "c.png", "f.png"} <= set(broken(page))


def test_markdown_that_is_shown_counts(tmp_path):
    page, data = tmp_path / "page.ipynb", {"text/markdown": ["| [a](nowhere.ipynb) |"]}
    cells = [dict(cell_type="code", source="[b](c)", outputs=[dict(data=data)])]
    page.write_text(json.dumps(dict(cells=cells)))
    assert targets(text_of(page)) == ["nowhere.ipynb"]
