"""JupyterLab on loopback, with a home of its own, for tests in a browser and for tests/look.py."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from tidy import ROOT

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update"
)
IDLE = re.compile(r"\| Idle$")  # what the status line says of a kernel that has nothing to do


def write_settings(folder: Path, dark: bool):
    """No question about news, and every cell on the page, not only those in sight."""
    quiet = {"checkForUpdates": False, "fetchNews": "false"}
    for name, values in {
        "apputils-extension/notification": quiet,
        "apputils-extension/themes": {"theme": "JupyterLab Dark" if dark else "JupyterLab Light"},
        "notebook-extension/tracker": {"windowingMode": "none"},
    }.items():
        path = folder / f"@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))


def answers(address: str) -> bool:
    try:
        return urlopen(f"{address}/api", timeout=5).status == 200
    except OSError:
        return False


@contextmanager
def jupyterlab(home: Path, work: Path, *options: str, dark: bool = False):
    """The address of a JupyterLab that shows the files in `work`; its kernels import this tree."""
    write_settings(home / "settings", dark)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER")}
    env |= dict(HOME=str(home), JUPYTERLAB_SETTINGS_DIR=str(home / "settings"), OMP_NUM_THREADS="1")
    env |= dict(PYTHONPATH=str(ROOT), JUPYTER_PLATFORM_DIRS="1", NO_PROXY="127.0.0.1")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"]
    command += [f"--port={port}", "--allow-root", "--ServerApp.port_retries=0"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={work}"]
    command += ["--LabApp.collaborative=False", *options]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=work)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 200
    try:
        while not answers(address):
            said = (home / "log").read_text()[-2000:]
            assert server.poll() is None and time.monotonic() < end, said
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(20)


def run_all(page):
    """Run all cells of the notebook on a page of JupyterLab, through the menu."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
