"""The course: three paths on which each lesson stands once, with minutes that are counted."""

import json
import re

from tidy import LESSONS, ROOT

from bt_adapter.course import PATHS, course_map


def test_each_lesson_stands_on_one_path():
    names = [name for path in PATHS.values() for name in path]
    assert sorted(names) == [path.stem for path in LESSONS]


def shown_lists(page):
    """The tables of lessons in a notebook's outputs: (file, minutes) of each row."""
    cells = json.loads((ROOT / f"nbs/{page}.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [o.get("data", {}) for cell in cells for o in cell.get("outputs", [])]
    text = "\n".join("".join(data.get("text/markdown", "")) for data in outputs)
    return re.findall(r"^\| \[[^]]+\]\((\w+)\.ipynb\) \|.*\| (\d+) \|$", text, re.M)


def test_the_first_page_and_the_first_lesson_list_all_lessons():
    paths = course_map().paths.values()
    minutes = {lesson.name: lesson.minutes for path in paths for lesson in path}
    for page in ("index", "00_ten_minutes"):
        found = shown_lists(page)
        assert [name for name, _ in found] == list(minutes), page
        stale = {name: told for name, told in found if abs(int(told) - minutes[name]) > 2}
        assert not stale, f"run {page} again: it tells other minutes: {stale}"


def test_ten_minutes_are_ten():
    (first, *_), *_ = course_map().paths.values()
    assert first.name == "00_ten_minutes" and first.minutes <= 10
