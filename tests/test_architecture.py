"""How the package is cut: who may import what, who may print, and how long a part may be."""

import ast
import re
from importlib import import_module

from first_cells import directives
from test_interface import TREES, package_imports
from test_notebooks import LESSONS, SOURCES, cells, module_names
from test_packaging import PACKAGE, loads_of

LONGEST, MOST_CELLS = 600, 110
ENGINE = "circuit files interventions ledger metrics pretrain retrieval runs store trainer".split()
WORLD = {"bt_adapter.moving_shapes", "bt_adapter.small_clip", "bt_adapter.scenes", "matplotlib"}
# The one import inside a function that closes a circle: old names of Moving Shapes.
LATE_CIRCLES = {("retrieval", "scenes")}


def reached(start, arrows):
    """All modules that a module leads to."""
    found, left = set(), [start]
    while left:
        new = arrows.get(left.pop(), set()) - found
        found |= new
        left += new
    return found


def test_no_import_at_the_top_of_a_module_closes_a_circle():
    arrows = {m: {t for t, top, _ in package_imports(m) if top} for m in TREES}
    circles = {module for module in arrows if module in reached(module, arrows)}
    assert not circles, f"these import each other when they are loaded: {sorted(circles)}"


def test_imports_inside_functions_close_no_other_circles():
    arrows = {m: {t for t, *_ in package_imports(m)} for m in TREES}
    late = {(m, t) for m in TREES for t, top, _ in package_imports(m) if not top and t != m}
    closing = {(m, t) for m, t in late if m in reached(t, arrows)}
    told = "an import inside a function leads back to its module"
    assert closing <= LATE_CIRCLES, f"{told}: {sorted(closing - LATE_CIRCLES)}"


def called(tree):
    """The names of the functions that a module calls by name."""
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {function.id for function in calls if isinstance(function, ast.Name)}


def test_only_commands_print_and_know_typer():
    libraries = {m: t for m, t in TREES.items() if m.split(".")[0] != "cli"}
    printing = [module for module, tree in libraries.items() if "print" in called(tree)]
    assert not printing, f"a library tells its caller, a command prints: {printing}"
    libraries = {m: t for m, t in TREES.items() if m.split(".")[0] != "cli"}
    names = {m: ast.unparse(t) for m, t in libraries.items()}
    typer = [m for m, text in names.items() if re.search(r"^\s*(import|from) typer", text, re.M)]
    assert not typer, f"only cli/ imports typer: {typer}"


def test_exceptions_tell_what_is_wrong_and_are_no_way_out():
    defined = [(m, node) for m, t in TREES.items() for node in ast.walk(t)]
    defined = [(m, node) for m, node in defined if isinstance(node, ast.ClassDef)]
    bases = [(m, node.name, base) for m, node in defined for base in map(ast.unparse, node.bases)]
    plain = [f"{m}.{name}" for m, name, base in bases if base in ("Exception", "BaseException")]
    assert not plain, f"an error of the package is a ValueError or the like: {plain}"


def test_the_engine_loads_neither_the_rendered_world_nor_matplotlib():
    assert not loads_of([f"bt_adapter.{name}" for name in ENGINE], WORLD)


def test_no_module_is_too_long():
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        lines = path.read_text(encoding="utf-8").count("\n")
        if module != "_modidx":
            assert lines <= LONGEST, f"{module} has {lines} lines: cut it, {LONGEST} are allowed"


def test_no_notebook_of_the_workshop_is_too_long():
    for path in SOURCES:
        if path not in LESSONS:
            found = len(cells(path))
            assert found <= MOST_CELLS, f"{path.name} has {found} cells, {MOST_CELLS} are allowed"


def test_a_lesson_that_exports_names_its_module():
    for path in LESSONS:
        exported = [cell for cell in cells(path, "code") if "export" in directives(cell)]
        assert bool(exported) == bool(module_names(path)), path.stem


# What is done in one place: a form of it in the source, and the modules that may hold it.
ONE_WAY = {
    "bars": (r"\btqdm\b|rich\.progress", {"progress"}),
    "walks in chunks": (r"range\(0, len\(", {"progress", "metrics"}),
    "cutting gradients": (r"clip_grad_norm_", {"fitting"}),
    "asking for signals between steps": (r"with stop_signals\(", {"fitting"}),
    "what a clip is": (r"!= \S*uint8\b", {"pixels"}),
    "ledgers": (r"csv\.(Dict)?[wW]riter\b", {"ledger"}),
    "what steers a terminal": (r"unicodedata", {"terminal"}),
    "days": (r"\btoday\(\)\.isoformat|date\(\)\.isoformat", {"ledger"}),
    "renaming into place": (r"os\.replace\(", {"files"}),
    "space for a store": (r"disk_usage\(", {"store"}),
}


def test_one_way_each():
    texts = {module: ast.unparse(tree) for module, tree in TREES.items()}
    for what, (form, allowed) in ONE_WAY.items():
        found = {module for module, text in texts.items() if re.search(form, text)}
        assert found <= allowed, f"{what} is the matter of {allowed}: {sorted(found - allowed)}"
        assert found, f"{what}: {form} is nowhere"


def test_benchmarks_write_no_files_of_their_own():
    for path in (PACKAGE.parent / "tests" / "benchmarks").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^import csv|DictWriter|isoformat", text, re.M), path.name


PLACES = {  # names of the contract, wherever the package defines them now
    "video": "read_clip ClipError",
    "backbone": "load_clip FrozenCLIP",
    "masking": "tube_mask",
    "temporal_attention": "temporal_attention",
    "branch": "BTAdapter BranchConfig VideoFeatures",
    "released": "load_released",
    "losses": "video_text_contrastive masked_branching_token_alignment "
    "masked_branching_cross_modal_alignment",
    "retrieval": "recall_at_k",
    "metrics": "recall_at_k",
    "maps": "temporal_maps",
    "interventions": "knock_out block patch_from block_patches freeze_time shuffle",
    "chat": "plug unplug VideoChat",
    "kernels": "compile_report",
    "explorer": "explore",
    "figures": "contact_sheet",
    "trainer": "MaskedPass",
    "benchmark": "read_score",
    "timecheck": "check check_chat pipeline Report ChatReport",
    "moving_shapes": "Scene random_scene render caption opposite",
}


def test_names_of_the_contract_are_found_at_their_places():
    import bt_adapter

    at_the_top = {name: getattr(bt_adapter, name) for name in bt_adapter.__all__}
    for module, names in PLACES.items():
        for name in names.split():
            found = getattr(import_module(f"bt_adapter.{module}"), name)
            assert callable(found) and found is at_the_top.get(name, found), f"{module}.{name}"
    assert at_the_top.keys() <= {name for names in PLACES.values() for name in names.split()}


def test_names_are_found_at_their_old_places():
    from bt_adapter import ledger, metrics, pretrain, retrieval, scenes

    for name in ("recall_at_k", "ranks", "rank_figures", "match_table", "nearest"):
        assert getattr(retrieval, name) is getattr(metrics, name), name
    for name in ("append_csv", "check_csv"):
        assert getattr(retrieval, name) is getattr(ledger, name), name
    for old in (retrieval, pretrain):
        for name in old.OF_SCENES:
            assert getattr(old, name) is getattr(scenes, name), name
        assert not hasattr(old, "nothing")
