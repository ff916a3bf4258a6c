"""Commands in a terminal of their own."""

import multiprocessing
import os
import pty
import select
import sys
from importlib import import_module
from pkgutil import walk_packages

import bt_adapter

# Commands are forked from a process that has loaded them and computed nothing: torch takes no
# gradients in the fork of one that has taken some.
CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload([m.name for m in walk_packages(bt_adapter.__path__, "bt_adapter.")])


def run_at(terminal_end, folder, command, arguments):
    """A command whose terminal is this one; the process ends with its status."""
    os.setsid()
    screen = os.open(terminal_end, os.O_RDWR)  # the first that is opened rules the session
    for stream in (0, 1, 2):
        os.dup2(screen, stream)
    os.chdir(folder)
    os.environ |= dict(COLUMNS="300", TERM="xterm")
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)
    sys.argv = [f"bta-{command}", *map(str, arguments)]
    import_module(f"bt_adapter.cli.{command}").main()


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
