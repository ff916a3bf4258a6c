"""An environment whose own packages come before those of the Python that makes it."""

import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path


def make_environment(folder: Path, whole: Iterable[str], alone: Iterable[str] = ()) -> Path:
    "Its Python. Installed are some packages with what they need, and others alone."
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    own = Path(sysconfig.get_path("purelib", vars=dict(base=str(folder))))
    (own / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--no-compile"]
    if alone:
        subprocess.run([*install, "--no-deps", *alone], check=True)
    subprocess.run([*install, *whole], check=True)
    return python


def versions(python: Path, names: Iterable[str]) -> str:
    "Of what runs there."
    code = "from importlib.metadata import version; import sys; print(*map(version, sys.argv[1:]))"
    found = subprocess.run([python, "-c", code, *names], check=True, capture_output=True, text=True)
    return ", ".join(f"{name} {number}" for name, number in zip(names, found.stdout.split()))
