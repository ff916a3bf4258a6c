"""Can pip resolve the package and its extras on every Python that settings.ini promises?

python tests/resolve.py                       every promised Python, base and extra chat
python tests/resolve.py --extras chat,train   other extras
python tests/resolve.py --constraints         with the versions of tests/constraints.txt
python tests/resolve.py --freeze              write tests/constraints.txt: what is installed here

Nothing is installed: pip reads what the package registry says of each wheel. Needs network.
`.venv/bin/python tests/resolve.py --freeze` follows a `bash tests/run` that passed.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "tests/constraints.txt"


def settings():
    """settings.ini, as setup.py reads it."""
    parser = ConfigParser(delimiters=("=",), interpolation=None)
    parser.read_string((ROOT / "settings.ini").read_text(encoding="utf-8"))
    return parser["DEFAULT"]


def requirements(extras):
    """The requirement lines of the package with some of its extras."""
    keys = ["requirements", *(f"{extra}_requirements" for extra in extras)]
    lines = [line for key in keys for line in settings()[key].strip().splitlines()]
    return [line for line in lines if not line.startswith(settings()["dist_name"])]


def promised():
    """The Pythons from the first one to the last one that settings.ini names."""
    first, last = (int(settings()[key].split(".")[1]) for key in ("min_python", "max_python"))
    return [f"3.{minor}" for minor in range(first, last + 1)]


def resolve(python, extras, constraints=False):
    """What pip says when it cannot resolve, or None. Only wheels count, nothing is compiled."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--quiet",
            "--target",
            folder,
        ]
        command += ["--disable-pip-version-check", "--ignore-installed"]
        command += ["--python-version", python, "--only-binary", ":all:"]
        command += ["--constraint", str(CONSTRAINTS)] if constraints else []
        done = subprocess.run(
            [*command, *requirements(extras)], capture_output=True, text=True, check=False
        )
    return done.stderr.strip() if done.returncode else None


def freeze():
    """Write the installed versions, but for what torch itself pins and a build's local label."""
    found = {dist.name: dist.version.partition("+")[0] for dist in distributions()}
    skipped = re.compile(r"pip$|triton$|nvidia-|cuda-|" + settings()["dist_name"], re.I)
    kept = sorted((name for name in found if not skipped.match(name)), key=str.lower)
    head = (
        "# The versions with which all tests passed; python tests/resolve.py --freeze wrote them.\n"
    )
    CONSTRAINTS.write_text(
        head + "".join(f"{name}=={found[name]}\n" for name in kept), encoding="utf-8"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extras", default="chat", help="separated by commas")
    parser.add_argument("--constraints", action="store_true", help="use tests/constraints.txt")
    parser.add_argument("--freeze", action="store_true", help="write tests/constraints.txt")
    chosen = parser.parse_args()
    if chosen.freeze:
        return freeze()
    failed = False
    for python in promised():
        for extras in ([], chosen.extras.split(",")):
            wrong = resolve(python, extras, chosen.constraints)
            failed |= wrong is not None
            name = f"Python {python}" + "".join(f" + {extra}" for extra in extras)
            print(f"{name}: {'resolves' if wrong is None else 'FAILS'}", flush=True)
            if wrong:
                print(wrong)
    sys.exit(failed)


if __name__ == "__main__":
    main()
