"""How the notebooks read: the rules of their form, and what each of them comes to.

python tests/form.py [NOTEBOOK ...]    a table of some notebooks, or of all; `!` is a broken rule
"""

import ast
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf
from pathlib import Path
from statistics import median

from first_cells import BADGE, INSTALL, directives
from tidy import LESSONS, NOTEBOOKS, ROOT

# Notebook -> what it may break, and why.
EXCEPTIONS = {
    "workshop/cli/gallery": {"checks": "tests/test_gallery.py runs the command"},
    "workshop/cli/judge": {"checks": "tests/test_benchmark.py runs the command"},
    "workshop/cli/pretrain": {"longest": "a line for each option of the command"},
    "workshop/moving_shapes/long_exposure": {"checks": "one function, whose picture is its proof"},
}


def lines(cell):
    """What a reader counts: neither blank lines nor directives."""
    rows = "".join(cell["source"]).splitlines()
    return [row for row in rows if row.strip() and not re.match(r"\s*#\s*\|", row)]


def is_a_class(cell):
    """Does the cell hold one class whole, and nothing else?"""
    try:
        body = ast.parse("".join(cell["source"])).body
    except SyntaxError:  # a magic command
        return False
    return len(body) == 1 and isinstance(body[0], ast.ClassDef)


def has_picture(cell):
    """Does a reader see a picture here?"""
    shown = [
        found for output in cell.get("outputs", []) for found in output.get("data", {}).items()
    ]
    drawn = any(kind.startswith("image/") or "<img" in "".join(data) for kind, data in shown)
    text = "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""
    return drawn or bool(re.search(r"!\[|<img|<svg", text))


CHECK = r"^\s*assert\b|\btest_\w+\(|\bexpect_fail\b|\braises\(|assert_close|\bcheck\("
CONTROL = r"\binteract\w*\(|widgets\.\w+\(|\.widget\(|explore\(|ChatPanel\("


class Notebook:
    """A notebook's cells as a reader counts them: without those that tests/first_cells.py makes."""

    def __init__(self, path):
        self.path = Path(path).resolve()
        self.lesson = self.path in LESSONS
        self.name = self.path.relative_to(ROOT / "nbs").with_suffix("").as_posix()
        cells = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        self.cells = [cell for cell in cells if cell.get("id") not in (BADGE, INSTALL)]

    @cached_property
    def code(self):
        """The cells of code that a reader reads."""
        return [c for c in self.cells if c["cell_type"] == "code" and lines(c)]

    @cached_property
    def lengths(self):
        return sorted(len(lines(cell)) for cell in self.code) or [0]

    @cached_property
    def exported(self):
        return [c for c in self.code if directives(c).keys() & {"export", "exporti"}]

    @cached_property
    def prose(self):
        return " ".join("".join(c["source"]) for c in self.cells if c["cell_type"] == "markdown")

    @cached_property
    def words(self):
        return len(re.findall(r"\w+", self.prose))

    def found(self, pattern):
        """How often code has a pattern."""
        return len(re.findall(pattern, "\n".join("".join(c["source"]) for c in self.code), re.M))

    def longest(self, whole_class):
        """The lines of the longest cell that is one class whole, or that is not."""
        return max((len(lines(c)) for c in self.code if is_a_class(c) == whole_class), default=0)

    def run(self):
        """The most cells of code in a row."""
        kinds = "".join(c["cell_type"][0] for c in self.cells if lines(c))
        return max(map(len, re.findall("c*", kinds)))

    def checks(self):
        """The percentage of cells that check something, of those that are not exported."""
        other = [cell for cell in self.code if cell not in self.exported]
        found = [cell for cell in other if re.search(CHECK, "".join(cell["source"]), re.M)]
        return 100 * len(found) / max(1, len(other))

    def before_picture(self):
        """The lines of code above the first picture."""
        count = 0
        for cell in self.cells:
            if has_picture(cell):
                return count
            count += len(lines(cell)) if cell["cell_type"] == "code" else 0
        return inf


def exercises_in(cell):
    """The exercises that a cell checks: ["tubes.share"]."""
    code = cell["cell_type"] == "code" and "".join(cell["source"])
    return re.findall(r"^\s*check\(\s*[\"'](\w+\.\w+)", code or "", re.M)


@dataclass(frozen=True)
class Rule:
    """A column of the table, and between which numbers it should be."""

    name: str
    measure: Callable[[Notebook], float]
    least: float = 0
    most: float = inf
    workshop: bool = False  # it holds there, too

    def broken(self, notebook):
        holds = self.least <= self.measure(notebook) <= self.most
        return not holds and (notebook.lesson or self.workshop)

    def excused(self, notebook):
        return self.name in EXCEPTIONS.get(notebook.name, {})


# A notebook of the workshop is source code with an explanation: its cells are as long as functions.
RULES = [
    Rule("cells", lambda n: len(n.cells), most=60),
    Rule("minutes", lambda n: n.words / 200 + sum(n.lengths) / 25, most=20),
    Rule("words/line", lambda n: n.words / max(1, sum(n.lengths)), least=6),
    Rule("exported", lambda n: sum(len(lines(c)) for c in n.exported), most=140),
    Rule("picture", Notebook.before_picture, most=60),
    Rule("median", lambda n: median(n.lengths), most=6),
    Rule("90%", lambda n: n.lengths[int(0.9 * (len(n.lengths) - 1))], most=20),
    Rule("longest", lambda n: n.longest(False), most=40, workshop=True),
    Rule("class", lambda n: n.longest(True), most=120, workshop=True),
    Rule("in a row", Notebook.run, most=3, workshop=True),
    Rule("checks", Notebook.checks, least=25, workshop=True),
    Rule("links", lambda n: len(re.findall(r"\]\((?!https?:)[^)]*\.ipynb", n.prose)), least=2),
    Rule("controls", lambda n: n.found(CONTROL), least=1),
    Rule("exercises", lambda n: n.found(r"^\s*check\("), least=3),
]


def marks(path):
    """The rules that a notebook breaks, with what it comes to: {"cells": 72}."""
    notebook = Notebook(path)
    broken = [rule for rule in RULES if rule.broken(notebook) and not rule.excused(notebook)]
    return {rule.name: rule.measure(notebook) for rule in broken}


def table(paths):
    """The lines of the table."""
    notebooks = list(map(Notebook, paths))
    width = max(len(notebook.name) for notebook in notebooks)
    yield " " * width + "".join(f"{rule.name:>12}" for rule in RULES)
    for notebook in notebooks:
        marked = marks(notebook.path)
        row = [f"{rule.measure(notebook):.4g}" + " !"[rule.name in marked] for rule in RULES]
        yield f"{notebook.name:{width}}" + "".join(f"{value:>12}" for value in row)


if __name__ == "__main__":
    chosen = sys.argv[1:] or [path for path in NOTEBOOKS if path.stem != "index"]
    print(*table(chosen), sep="\n")
