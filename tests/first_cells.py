"""The first cells of a lesson, made by tests/tidy.py: what a visitor needs before the lesson runs.

* Above its first code cell: a badge that opens the lesson in Colab, where settings.ini names a
  `repository`, and a sentence about the module that the lesson exports, where it does.
* Below that, a cell that installs in Colab what the lesson needs, and does nothing elsewhere; in a
  lesson that needs a chat model or Triton it says so where there is none.
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
    source = re.sub(r"^([ \t]*)[%!].*$", r"\1pass", source, flags=re.M)  # magic commands
    try:
        nodes = ast.walk(ast.parse(source))
    except SyntaxError:  # another language, after %%
        return frozenset()
    found = set()
    for node in nodes:
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


def brought_by(extra: str) -> set[str]:
    """The packages that an extra names."""
    return set(re.findall(r"^\w+", settings()[f"{extra}_requirements"], re.M))


def packages_of(notebook) -> set[str]:
    """The packages that a notebook imports, or a module of this package that it imports.

    Without Triton modules do without, but a notebook's own kernels do not: it defines them with
    the `triton` that it imports, or that a module of this package hands on.
    """
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    own = set().union(*map(imported, code))
    files = {path for module in own for path in files_of(module)}
    theirs = set().union(*(imported(path.read_text(encoding="utf-8")) for path in files))
    tops = [{module.partition(".")[0] for module in modules} for modules in (own, theirs)]
    handed_on = {"triton"} if any(module.endswith(".triton") for module in own) else set()
    return tops[0] | handed_on | tops[1] - {"triton"}


def extras_of(packages: set[str]) -> list[str]:
    """The extras of which a lesson needs something."""
    return [extra for extra in MEGABYTES if extra and packages & brought_by(extra)]


def told(packages: set[str]) -> list[str]:
    """The packages without which cells stop; a picture says itself that it cannot move."""
    return sorted(packages & {*brought_by("chat"), "triton"})


def badge(repository: str, name: str) -> str:
    """The badge that opens a lesson in Colab, which reads from GitHub alone."""
    if not repository.startswith(GITHUB):
        return ""
    place = f"{COLAB}/github/{repository.removeprefix(GITHUB)}/blob/main/nbs/{name}"
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({place})"


UNSET = (  # lines of one sentence, said until settings.ini has a `repository`
    "This copy does not know its address: run %pip install git+ADDRESS, ",
    "with the address of the repository that you opened it from.",
)


def in_colab(repository: str, extras: list[str]) -> list[str]:
    """The lines that install the package in Colab."""
    if not repository:
        return ["print(", *(f'    "{line}"' for line in UNSET), ")"]
    torch = re.search(r"^torch>=(\S+)", settings()["requirements"], re.M)[1]
    size = sum(MEGABYTES[name] for name in ("", *extras))
    name = settings()["dist_name"] + (f"[{','.join(extras)}]" if extras else "")
    said = f"About {size} MB are fetched; 4 GB more where Colab's torch is older than {torch}."
    return [
        "from importlib.metadata import version",
        "",
        f'print("{said}")',
        'before = version("torch")',
        f'%pip install -q "{name} @ git+{repository}"',
        'if version("torch") != before:',
        '    print("torch is a newer one now: choose Runtime > Restart session, then run all.")',
    ]


def elsewhere(packages: list[str]) -> list[str]:
    """The lines that say what is missing on one's own machine."""
    names = ", ".join(f'"{package}"' for package in packages)
    return ["from bt_adapter.extras import missing", "", f'print(missing({names}), end="")']


def install(repository: str, packages: set[str]) -> str:
    """The code of the cell for Colab."""
    names, colab = told(packages), in_colab(repository, extras_of(packages))
    rows = ["import sys", "", 'if "google.colab" in sys.modules:', *(f"    {row}" for row in colab)]
    if names:
        rows += ["else:  # prints a line only if something is missing"]
        rows += [f"    {row}" for row in elsewhere(names)]
    else:
        rows[2] += "  # elsewhere this cell does nothing"
    return "\n".join(row.rstrip() for row in rows)


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
    first = [made("code", INSTALL, install(repository, packages_of(notebook)))]
    if any(words):
        first.insert(0, made("markdown", BADGE, "\n\n".join(filter(None, words))))
    at = code[0] if code else len(cells)
    notebook["cells"] = [*cells[:at], *first, *cells[at:]]
