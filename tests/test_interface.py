"""What a reader of the package meets: names, docstrings, hints, sources and the first example."""

import ast
import importlib
import inspect
import re

from test_packaging import MODULES, PACKAGE, python
from tidy import ROOT

TREES = {module: ast.parse(path.read_text()) for module, path in MODULES.items()}
MODEL = """backbone.FrozenCLIP branch.TemporalLayer branch.Branch branch.BTAdapter
chat.VideoTower chat.BranchPool chat.VideoChat trainer.Trainer""".split()
CONTRACT = """
video.read_clip backbone.load_clip backbone.FrozenCLIP.transform backbone.FrozenCLIP.encode_text
backbone.FrozenCLIP.layer_outputs masking.tube_mask temporal_attention.temporal_attention
branch.BTAdapter.forward branch.BTAdapter.encode_video branch.BTAdapter.encode_text
branch.BTAdapter.save_pretrained branch.BTAdapter.from_pretrained released.load_released
losses.video_text_contrastive losses.masked_branching_token_alignment
losses.masked_branching_cross_modal_alignment metrics.recall_at_k retrieval.recall_at_k
maps.temporal_maps
interventions.knock_out interventions.block interventions.patch_from
chat.plug chat.unplug chat.VideoChat.ask chat.VideoChat.stream kernels.compile_report
explorer.explore figures.contact_sheet timecheck.check timecheck.check_chat timecheck.pipeline
timecheck_plugin.TimeCheck.encoder timecheck_plugin.TimeCheck.reader
""".split()


def load(module):
    return importlib.import_module(f"bt_adapter.{module}")


def find(name):
    """The object of a dotted name below the package."""
    module, *rest = name.split(".")
    thing = load(module)
    for part in rest:
        thing = (
            inspect.getattr_static(thing, part) if inspect.isclass(thing) else getattr(thing, part)
        )
    return getattr(thing, "__func__", thing)


def test_no_public_name_is_none():
    left = [
        f"{m}.{n}" for m in MODULES for n, v in vars(load(m)).items() if v is None and n[0] != "_"
    ]
    assert not left, left


def test_modules_have_docstrings():
    without = [module for module, tree in TREES.items() if not ast.get_docstring(tree)]
    assert not without, without


def package_imports(module):
    """(the imported module of the package, whether at the top, the node) of a module."""
    tree, here = TREES[module], MODULES[module].relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            found = [*base, *(node.module.split(".") if node.module else [])]
            named = [".".join([*found, name.name]) for name in node.names]
            targets = [name for name in named if name in TREES] or [".".join(found)]
            for target in filter(TREES.__contains__, targets):
                yield target, node in tree.body, node


def test_imports_are_relative():
    absolute = [
        f"{module}:{node.lineno}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and node.module.startswith("bt_adapter")
        )
        or (
            isinstance(node, ast.Import)
            and any(a.name.startswith("bt_adapter.") for a in node.names)
        )
    ]
    assert not absolute, absolute


def test_imports_have_no_circle():
    above = {m: {t for t, top, _ in package_imports(m) if top} for m in TREES}
    while free := [m for m, needs in above.items() if not needs & above.keys()]:
        for module in free:
            del above[module]
    assert not above, {m: sorted(needs & above.keys()) for m, needs in above.items()}


def test_classes_are_whole():
    patched = [m for m in MODULES if re.search(r"^@patch", inspect.getsource(load(m)), re.M)]
    assert not patched, patched
    for name in MODEL:
        thing = find(name)
        source = inspect.getsource(thing)
        for method, value in vars(thing).items():
            value = inspect.unwrap(
                getattr(value, "fget", None) or getattr(value, "__func__", value)
            )
            if inspect.isfunction(value) and value.__module__ == thing.__module__:
                assert f"def {value.__name__}(" in source, f"{name}.{method}"


def test_help_says_what_a_function_takes_gives_and_refuses():
    wrong = []
    for name in CONTRACT:
        function = inspect.unwrap(find(name))
        hints = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.name not in ("self", "cls")
        ]
        wrong += [
            f"{name}: no hint for {p.name}"
            for p in hints
            if p.annotation is p.empty or "Any" in re.findall(r"\w+", str(p.annotation))
        ]
        if inspect.signature(function).return_annotation is inspect.Signature.empty:
            wrong.append(f"{name}: no hint for what it gives")
        told = inspect.getdoc(function) or ""
        wrong += [f"{name}: no {part}" for part in ("Raises:", "Source:") if part not in told]
    assert not wrong, "\n".join(wrong)


def test_the_readme_example_runs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example, *others = re.findall(r"```python\n(.*?)```\n", text, re.S)
    assert len(example.strip().splitlines()) <= 10 and "import" in example
    shown = re.search(r"```\n\n((?: {4}.*\n)+)", text[text.index(example) :])[1]
    assert python(example).split() == shown.split()
    for other in others:  # for other files than those that are shipped
        ast.parse(other)


def test_the_map_names_every_module():
    import bt_adapter

    tops = {module.split(".")[0] for module in MODULES}
    missing = sorted(name for name in tops if not re.search(rf"\b{name}\b", bt_adapter.__doc__))
    assert not missing, missing
