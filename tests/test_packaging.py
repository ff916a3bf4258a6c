"""The package as it is installed: metadata, what importing costs, and the files it carries."""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from configparser import ConfigParser
from importlib.metadata import entry_points, metadata, packages_distributions, requires

import pytest
from tidy import ROOT

parser = ConfigParser(delimiters=("=",), interpolation=None)
parser.read_string((ROOT / "settings.ini").read_text(encoding="utf-8"))
settings = parser["DEFAULT"]
PACKAGE = ROOT / "bt_adapter"
SOURCES = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.stat().st_size]
MODULES = {  # a package inside has the name of its folder
    ".".join(path.with_suffix("").parts).removesuffix(".__init__"): PACKAGE / path
    for path in sorted(SOURCES)
    if str(path) not in ("__init__.py", "_modidx.py")
}


def python(code, **env):
    """What a fresh interpreter prints, without this run's coverage."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("COV")} | env
    run = {"env": env, "cwd": sys.prefix, "check": True, "capture_output": True, "text": True}
    return subprocess.run([sys.executable, "-c", code], **run).stdout


def names(requirements):
    """Distribution names, as an index compares them."""
    found = [re.match(r"[\w.-]+", line)[0] for line in requirements]
    return {re.sub(r"[-_.]+", "-", name).lower() for name in found}


def imports(module):
    """(top-level name, whether importing the module imports it) of all a module's imports."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        full = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            full = [node.module]
        yield from ((name.split(".")[0], node in tree.body) for name in full)


def test_installed_metadata_is_settings_ini():
    installed = metadata("bt-adapter")
    assert installed["Name"] == settings["dist_name"]
    assert installed["Version"] == settings["version"]
    assert installed["Summary"] == settings["description"]
    assert installed["License-Expression"] == settings["license"] == "Apache-2.0"
    assert installed["Requires-Python"] == f">={settings['min_python']}"
    assert installed.get_all("Provides-Extra") == ["train", "chat", "mteb", "lab", "dev"]


def test_what_tests_use_brings_every_other_extra():
    # Tests may be skipped where a package is missing; none is missing where all of them run.
    *extras, dev = metadata("bt-adapter").get_all("Provides-Extra")
    brought = settings["dev_requirements"].split()[0]
    assert dev == "dev" and brought == f"{settings['dist_name']}[{','.join(sorted(extras))}]"


def test_versions_agree():
    import bt_adapter

    assert bt_adapter.__version__ == settings["version"]


def test_nbdev_agrees_with_settings_ini():
    from nbdev.config import get_config

    config = get_config(ROOT)
    assert str(config.version) == settings["version"]
    assert config.lib_path == ROOT / settings["lib_path"]
    assert config.nbs_path == ROOT / settings["nbs_path"]


# What a module may not load when it is imported: it is imported where it is used.
LATE = {"open_clip", "torchvision", "timm", "transformers", "peft", "accelerate", "gguf", "openai"}
LATE |= {
    "av",
    "decord",
    "mteb",
    "datasets",
    "webdataset",
    "pyarrow",
    "pandas",
    "tensorboard",
    "IPython",
    "ipywidgets",
    "anywidget",
}
LATE |= {"sympy"}  # torch's compiler, which takes as long to import as torch
PICTURES = {"matplotlib", "PIL"}
DRAWS = {"figures", "explorer", "gallery", "demo", "study_figures", "benchmark", "instruct"}
DRAWS |= {"map_figures", "playing", "drawings", "films", "score_figures", "token_pictures"}
DRAWS |= {"paraphrases"}
DRAWS |= {"front_page", "released.pictures", "strategy_figures", "timecheck.drawing"}
WITHOUT_TORCH = {"benchmark", "clip_names", "evaluation", "progress", "timecheck_plugin"}
WITHOUT_TORCH |= {"tracking"}
WITHOUT_TORCH |= {module for module in MODULES if module.startswith(("cli.", "benchmark."))}
WHAT_LOADS = """
import importlib, json, sys
for module in MODULES:
    importlib.import_module(module)
print(json.dumps([*sys.modules]))
"""


def loaded(modules):
    """All that is there once these are imported into a fresh interpreter."""
    return {*json.loads(python(f"MODULES = {modules}\n{WHAT_LOADS}"))}


def loads_of(modules, unwanted):
    """{module: what it loads of the unwanted}; one by one only if all together load any of it."""
    found = unwanted & loaded(modules)
    each = {module: unwanted & loaded([module]) for module in modules} if found else {}
    return {module: sorted(names) for module, names in each.items() if names}


def not_to_load(module):
    """The packages that a module may not load."""
    name = module.removeprefix("bt_adapter").removeprefix(".")
    if not name or name in WITHOUT_TORCH:
        return LATE | PICTURES | {"torch", "numpy", "triton"}
    return LATE if {name, name.split(".")[0]} & DRAWS else LATE | PICTURES


@pytest.mark.parametrize("light", [True, False], ids=["light", "heavy"])
def test_a_module_loads_nothing_that_it_does_not_need(light):
    alike = defaultdict(list)  # by what they may not load
    for module in ["bt_adapter", *(f"bt_adapter.{name}" for name in MODULES)]:
        alike[frozenset(not_to_load(module))].append(module)
    chosen = {names: modules for names, modules in alike.items() if ("torch" in names) == light}
    assert chosen
    for names, modules in chosen.items():
        assert not loads_of(modules, names)


def test_what_loads_too_much_is_named():
    heavy = "bt_adapter.clip_names"
    assert loads_of(["bt_adapter.progress", heavy], {heavy}) == {heavy: [heavy]}


TOP = """
BTAdapter BranchConfig ClipError FrozenCLIP VideoChat contact_sheet explore load_clip load_released
plug read_clip recall_at_k temporal_attention temporal_maps tube_mask unplug
""".split()


def test_names_at_the_top():
    import bt_adapter

    shown = {}  # what editors are told
    for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            shown |= {name.name: node.module for name in node.names}
    assert bt_adapter.__all__ == TOP == sorted(shown)
    assert set(TOP) <= set(dir(bt_adapter))
    for name, module in shown.items():
        home = importlib.import_module(f"bt_adapter.{module}")
        assert getattr(bt_adapter, name) is getattr(home, name), name
        assert name in home.__all__, name
    with pytest.raises(AttributeError, match="'bt_adapter' has no attribute 'nothing'"):
        bt_adapter.nothing  # noqa: B018
    with pytest.raises(ImportError, match="nothing"):
        from bt_adapter import nothing  # noqa: F401


ORDERS = """
import importlib, itertools, os, sys, einops, ftfy, jaxtyping, numpy, torch  # for all
STEPS = {
    "name": "from bt_adapter import temporal_attention as f; assert f.__name__",
    "inside": "from bt_adapter.temporal_attention import temporal_attention, reference_attention",
    "module": "import bt_adapter.temporal_attention; bt_adapter.temporal_attention.choose_backend",
    "as": "import bt_adapter.temporal_attention as m; m.choose_backend, m.temporal_attention",
    "attribute": "import bt_adapter; bt_adapter.temporal_attention(torch.zeros(1, 2, 1, 3, 1, 4))",
    "other": "import bt_adapter.branch",
}
END = '''
from importlib import import_module
from bt_adapter import temporal_attention
assert temporal_attention is import_module("bt_adapter.temporal_attention").temporal_attention
assert temporal_attention is bt_adapter.temporal_attention and callable(temporal_attention)
'''
for order in itertools.permutations(STEPS, 2):
    if os.fork() == 0:
        try:
            for step in order:
                exec(STEPS[step], {"torch": torch})
            exec("import bt_adapter" + END, {})
            os._exit(0)
        finally:
            print(order, sys.exc_info()[1], flush=True)
            os._exit(1)
    os.wait()
"""


def test_a_function_may_have_the_name_of_its_module():
    assert python(ORDERS) == ""


def test_imports_are_required():
    base = names(line for line in requires("bt-adapter") if "extra ==" not in line)
    optional, distributions = names(requires("bt-adapter")), packages_distributions()
    own = sys.stdlib_module_names | {"bt_adapter"}
    used = [(m, name, always) for m in MODULES for name, always in imports(m) if name not in own]
    used.remove(("timecheck_plugin", "pytest", True))  # pytest is there: it is what loads a plugin
    missing = [
        f"{module} imports {name}"
        for module, name, always in used
        if not names(distributions.get(name, [name])) & (base if always else optional)
    ]
    assert used and not missing, missing


@pytest.mark.parametrize("line", settings["console_scripts"].strip().splitlines())
def test_command_starts(line):
    name = line.split("=")[0].strip()
    (command,) = entry_points(group="console_scripts", name=name)
    assert callable(command.load())


@pytest.mark.slow
def test_wheel_carries_the_samples(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("bt_adapter", "data_samples"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", tmp_path, source], check=True, stdin=subprocess.DEVNULL)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    samples = {p.relative_to(ROOT) for p in (ROOT / "data_samples").rglob("*") if p.is_file()}
    assert samples and samples == {
        p.relative_to(site / "bt_adapter")
        for p in (site / "bt_adapter/data_samples").rglob("*")
        if p.is_file()
    }
    assert list(site.glob("bt_adapter-*.dist-info/licenses/LICENSE"))
    for files in ("**/*.py", "static/*"):
        carried = {p.relative_to(PACKAGE) for p in PACKAGE.glob(files)}
        inside = {p.relative_to(site / "bt_adapter") for p in (site / "bt_adapter").glob(files)}
        assert carried and carried == inside
    code = "from bt_adapter.shipped import samples_folder; print(samples_folder())"
    assert python(code, PYTHONPATH=str(site)).strip() == str(site / "bt_adapter/data_samples")
    assert python(code).strip() == str(ROOT / "data_samples")
