"""Package metadata, read from settings.ini."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=("=",), interpolation=None)
parser.read_string(Path("settings.ini").read_text(encoding="utf-8"))
settings = parser["DEFAULT"]


def lines(key):
    """The lines of a setting that has several."""
    return settings[key].strip().splitlines()


first, last = (int(settings[key].split(".")[1]) for key in ("min_python", "max_python"))
pythons = [f"3.{minor}" for minor in range(first, last + 1)]

setup(
    name=settings["dist_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=settings["keywords"].split(),
    license_expression=settings["license"],
    license_files=["LICENSE"],
    python_requires=">=" + settings["min_python"],
    classifiers=[f"Programming Language :: Python :: {python}" for python in pythons],
    # data_samples/ stands at the root of the repository and inside the installed package
    packages=[*find_packages(include=["bt_adapter*"]), "bt_adapter.data_samples"],
    package_dir={"bt_adapter.data_samples": "data_samples"},
    package_data={"bt_adapter": ["static/*"], "bt_adapter.data_samples": ["**/*"]},
    install_requires=lines("requirements"),
    extras_require={
        key.removesuffix("_requirements"): lines(key)
        for key in settings
        if key.endswith("_requirements")
    },
    entry_points={group: lines(group) for group in ("console_scripts", "pytest11")},
)
