"""The package as it is installed: metadata, what importing costs, and the files it carries."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import entry_points, metadata, packages_distributions, requires

import pytest
from tidy import ROOT

parser = ConfigParser(delimiters=("=",), interpolation=None)
parser.read_string((ROOT / "settings.ini").read_text(encoding="utf-8"))
settings = parser["DEFAULT"]
PACKAGE = ROOT / "bt_adapter"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("[!_]*.py")
)


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
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
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
    assert installed.get_all("Provides-Extra") == ["train", "chat", "lab", "dev"]


def test_versions_agree():
    import bt_adapter

    assert bt_adapter.__version__ == settings["version"]


def test_nbdev_agrees_with_settings_ini():
    from nbdev.config import get_config

    config = get_config(ROOT)
    assert str(config.version) == settings["version"]
    assert config.lib_path == ROOT / settings["lib_path"]
    assert config.nbs_path == ROOT / settings["nbs_path"]


def test_importing_the_package_imports_nothing_heavy():
    loaded = json.loads(
        python("import bt_adapter, json, sys; print(json.dumps(list(sys.modules)))")
    )
    assert "bt_adapter" in loaded
    assert not {"torch", "matplotlib", "numpy", "open_clip", "decord"}.intersection(loaded)


@pytest.mark.parametrize("module", MODULES)
def test_importing_a_module_takes_under_three_seconds(module):
    code = (
        "import time; t = time.process_time(); import bt_adapter.{}; print(time.process_time() - t)"
    )
    assert float(python(code.format(module))) < 3


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_required(module):
    base = names(line for line in requires("bt-adapter") if "extra ==" not in line)
    optional = names(requires("bt-adapter"))
    distributions = packages_distributions()
    for name, always in imports(module):
        if name not in sys.stdlib_module_names and name != "bt_adapter":
            assert names(distributions.get(name, [name])) & (base if always else optional), name


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
    code = "from bt_adapter.backbone import samples_folder; print(samples_folder())"
    assert python(code, PYTHONPATH=str(site)).strip() == str(site / "bt_adapter/data_samples")
    assert python(code).strip() == str(ROOT / "data_samples")
