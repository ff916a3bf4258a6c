"""The first cells of a lesson, made by tests/tidy.py: what a visitor needs before the lesson runs.

* Above its first code cell: a badge that opens the lesson in Colab, where settings.ini names a
  `repository`, and a sentence about the module that the lesson exports, where it does.
* Below that, a cell that installs in Colab what the lesson needs, and does nothing elsewhere.
* `# | default_exp NAME`, which tells a reader nothing, stands in the first exported cell.
"""

import ast
import re
from configparser import ConfigParser
from functools import cache
from pathlib import Path

BADGE, INSTALL = "colab-badge", "colab-install"  # the ids of the cells that are made here
COLAB = "https://colab.research.google.com"
GITHUB = "https://github.com/"

# MB that Colab fetches: the wheels that it lacks, and the repository. Counted in November 2026.
MEGABYTES = {"": 100, "chat": 20, "lab": 20, "train": 10}


def settings():
    """settings.ini of the repository in the current folder."""
    parser = ConfigParser(delimiters=("=",), interpolation=None)
    parser.read_string(Path("settings.ini").read_text(encoding="utf-8"))
    return parser["DEFAULT"]


def directives(cell):
    """The cell's nbdev directives: {"eval": "false", "export": ""}."""
    found = re.findall(r"^#[ \t]*\|[ \t]*(\w+)[ \t]*:?(.*)$", "".join(cell["source"]), re.M)
    return {name: value.strip() for name, value in found}


def exports(cell):
    """Does the cell go into the notebook's own module?"""
    return cell["cell_type"] == "code" and directives(cell).get("export") == ""


@cache
def imported(source: str) -> frozenset[str]:
    """The modules that code imports anywhere; `from a import b` may mean a and a.b."""
    source = re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.M)  # magic commands
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found.update([module, *(f"{module}.{alias.name}" for alias in node.names)])
    return frozenset(found)


def home(name: str) -> str:
    """The module from which the package hands on a name: "explorer" of "explore"."""
    source = Path("bt_adapter/__init__.py").read_text(encoding="utf-8")
    handed_on = [m for m in imported(source) if re.fullmatch(rf"\.\w+\.{name}", m)]
    return handed_on[0].split(".")[1] if handed_on else name


def files_of(module: str) -> list[Path]:
    """The files of a module of the package, all of them where it is a package itself."""
    package, _, name = module.partition(".")
    if package != "bt_adapter" or not name:
        return []
    path = Path("bt_adapter", *home(name).split("."))
    return [path.with_suffix(".py")] if path.with_suffix(".py").is_file() else [*path.rglob("*.py")]


def extras_of(notebook) -> list[str]:
    """The extras of which a notebook, or a module that it imports, imports something."""
    code = "\n".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code")
    files = {path for module in imported(code) for path in files_of(module)}
    sources = [code, *(path.read_text(encoding="utf-8") for path in files)]
    packages = {module.partition(".")[0] for source in sources for module in imported(source)}
    return [
        extra
        for extra in MEGABYTES
        if extra
        and packages.intersection(re.findall(r"^\w+", settings()[f"{extra}_requirements"], re.M))
    ]


def badge(repository: str, name: str) -> str:
    """The badge that opens a lesson in Colab, which reads from GitHub alone."""
    if not repository.startswith(GITHUB):
        return ""
    place = f"{COLAB}/github/{repository.removeprefix(GITHUB)}/blob/main/nbs/{name}"
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({place})"


def install(repository: str, extras: list[str]) -> str:
    """The code that installs the package in Colab."""
    head = 'import sys\n\nif "google.colab" in sys.modules:  # elsewhere this cell does nothing\n'
    if not repository:
        return head + (
            '    print("To install the package here, set `repository` in settings.ini '
            'and run tests/tidy.py.")'
        )
    torch = re.search(r"^torch>=(\S+)", settings()["requirements"], re.M)[1]
    size = sum(MEGABYTES[name] for name in ("", *extras))
    name = settings()["dist_name"] + (f"[{','.join(extras)}]" if extras else "")
    return head + (
        "    from importlib.metadata import version\n\n"
        f'    print("About {size} MB are fetched; '
        f"4 GB more where Colab's torch is older than {torch}.\")\n"
        '    before = version("torch")\n'
        f'    %pip install -q "{name} @ git+{repository}"\n'
        '    if version("torch") != before:\n'
        '        print("torch is a newer one now: choose Runtime > Restart session, then run all.")'
    )


def made(kind: str, name: str, source: str) -> dict:
    """A cell."""
    more = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return dict(cell_type=kind, id=name, metadata={}, source=source.splitlines(True)) | more


def join_default_exp(cells: list[dict]) -> list[dict]:
    """The cells, with the name of the module in the first cell that goes there."""
    first = next(filter(exports, cells), None)
    alone = [c for c in cells if re.fullmatch(r"#\s*\|\s*default_exp.*\s*", "".join(c["source"]))]
    if first and alone:
        line = "".join(alone[0]["source"]).strip()
        first["source"] = [f"{line}\n", *first["source"]]
        cells = [c for c in cells if c is not alone[0]]
    return cells


def make_first_cells(notebook: dict, name: str):
    """Give a lesson its first cells, instead of those that it has."""
    repository = settings().get("repository", "").strip().rstrip("/").removesuffix(".git")
    cells = [cell for cell in notebook["cells"] if cell["id"] not in (BADGE, INSTALL)]
    cells = join_default_exp(cells)
    code = [number for number, cell in enumerate(cells) if cell["cell_type"] == "code"]
    modules = [directives(c)["default_exp"] for c in cells if "default_exp" in directives(c)]
    marked = "The cells marked `# | export` are the source of"
    words = [badge(repository, name), *(f"{marked} `bt_adapter.{module}`." for module in modules)]
    first = [made("code", INSTALL, install(repository, extras_of(notebook)))]
    if any(words):
        first.insert(0, made("markdown", BADGE, "\n\n".join(filter(None, words))))
    at = code[0] if code else len(cells)
    notebook["cells"] = [*cells[:at], *first, *cells[at:]]
