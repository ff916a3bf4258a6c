"""Commands in a process of their own, with a terminal or without."""

import multiprocessing
import os
import pty
import select
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import bt_adapter

# Commands are forked from a process that has loaded them and computed nothing: torch takes no
# gradients in the fork of one that has taken some.
CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload([m.name for m in walk_packages(bt_adapter.__path__, "bt_adapter.")])


def run(folder, command, arguments):
    """A command with the streams as they are; the process ends with its status."""
    os.chdir(folder)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)
    sys.argv = [f"bta-{command}", *map(str, arguments)]
    import_module(f"bt_adapter.cli.{command}").main()


def run_at(terminal_end, *what):
    """A command whose terminal is this one."""
    os.setsid()
    screen = os.open(terminal_end, os.O_RDWR)  # the first that is opened rules the session
    for stream in (0, 1, 2):
        os.dup2(screen, stream)
    os.environ |= dict(COLUMNS="300", TERM="xterm")
    run(*what)


def run_into(files, before, *what):
    """A command that writes into files, after something that is done in its process."""
    for stream, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    before()
    run(*what)


def without_terminal(folder, command, *arguments, before):
    """What `subprocess.run` would say; `before`, of a module, is called in the process first."""
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place, name) for name in ("out", "err")]
        process = CLEAN.Process(target=run_into, args=(files, before, folder, command, arguments))
        process.start()
        process.join()
        said = [file.read_text(encoding="utf-8") for file in files]
    return subprocess.CompletedProcess([command, *arguments], process.exitcode, *said)


def in_terminal(folder, command, *arguments):
    """Status and bytes of a command in a terminal of its own."""
    here, there = pty.openpty()
    process = CLEAN.Process(target=run_at, args=(os.ttyname(there), folder, command, arguments))
    process.start()
    said = b""
    while process.is_alive() or select.select([here], [], [], 0)[0]:
        if select.select([here], [], [], 0.05)[0]:
            said += os.read(here, 2**16)
    process.join()
    os.close(here)
    os.close(there)
    return process.exitcode, said
