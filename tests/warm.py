"""Runs notebooks in forked children of one process that has imported what they share.

A kernel of its own takes ten seconds and more to start and to import torch, matplotlib and
open_clip; a fork takes none. The children share nothing else: each runs in a folder of its own, as
`__main__`, in IPython's shell and inside a running event loop, as in a kernel. The package itself
is imported by each child. `Warm` is the tests' end of it; the other end is `python tests/warm.py`.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from importlib import import_module

SHARED = "torch torchvision matplotlib.figure matplotlib.pyplot open_clip timm PIL.Image einops av"
SHARED += " numpy pandas IPython ipywidgets anywidget fastcore.test transformers"


class Warm:
    """The process that has imported everything; it is started when it is first needed."""

    def __init__(self):
        self.process = None

    def run(self, cells, folder, limit, without=()):
        """Run the cells (id -> source) in a folder, offline, as if some packages were not there.

        AssertionError says which cell failed, and how.
        """
        if self.process is None:
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.process = subprocess.Popen([sys.executable, __file__], **pipes)
        job = dict(cells=cells, folder=str(folder), limit=limit, without=[*without])
        print(json.dumps(job), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        wrong = json.loads(answer) if answer else "the process that runs notebooks has ended"
        assert wrong is None, wrong

    def close(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()


async def run_cells(shell, cells, limit):
    """None, or the cell that failed and how. A cell that takes longer ends the process."""
    for name, source in cells.items():
        signal.alarm(limit)
        code = shell.transform_cell(source)
        done = await shell.run_cell_async(source, transformed_cell=code, store_history=True)
        error = done.error_before_exec or done.error_in_exec
        if error is not None:
            told = "".join(traceback.format_exception(error))
            return f"cell {name}:\n{source}\n{told}"
        await asyncio.sleep(0)  # as between two cells of a kernel: what waits may go on


def take_away(packages):
    """Importing one of these packages fails from now on, also where it was imported before."""
    loaded = [name for name in sys.modules if name.partition(".")[0] in packages]
    sys.modules.update(dict.fromkeys([*packages, *loaded]))


LOCAL = (None, "", "localhost", "127.0.0.1", "::1")
REACHED = socket.getaddrinfo


def reach_no_network(host, *arguments, **more):
    """As on a train: only this machine has an address."""
    if host not in LOCAL:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return REACHED(host, *arguments, **more)


def child(job, out):
    """A notebook, in the process that was forked for it."""
    from IPython.core.interactiveshell import InteractiveShell

    take_away(job["without"])
    socket.getaddrinfo = reach_no_network
    os.setsid()
    os.chdir(job["folder"])
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with open(os.path.join(job["folder"], os.pardir, "output.txt"), "w") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    shell = InteractiveShell.instance()
    shell.showtraceback = lambda *_, **__: None  # it is told once, by run_cells
    wrong = asyncio.run(run_cells(shell, job["cells"], job["limit"]))
    out.write(json.dumps(wrong))
    out.flush()


def serve():
    """Read jobs, fork a child for each, and answer with what went wrong, or null."""
    for name in SHARED.split():
        try:
            import_module(name)
        except ImportError:
            pass
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        reading, writing = os.pipe()
        number = os.fork()
        if number == 0:
            os.close(reading)
            with os.fdopen(writing, "w") as out:
                try:
                    child(job, out)
                finally:
                    finish()
        os.close(writing)
        with os.fdopen(reading) as said:
            answer = said.read()
        status = os.waitpid(number, 0)[1]
        try:
            os.killpg(number, signal.SIGKILL)  # what the notebook started and left running
        except ProcessLookupError:
            pass
        if not answer:
            answer = json.dumps(
                f"the notebook's process ended: {os.waitstatus_to_exitcode(status)}"
            )
        print(answer, file=answers, flush=True)


def finish():
    """Save what coverage counted, and end without the parent's clean-up."""
    if "coverage" in sys.modules:
        counted = sys.modules["coverage"].Coverage.current()
        if counted is not None:
            counted.stop()
            counted.save()
    os._exit(0)


if __name__ == "__main__":
    serve()
