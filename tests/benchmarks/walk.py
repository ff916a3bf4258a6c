"""The way of a command through the package: how often it enters which module.

    python tests/benchmarks/walk.py pretrain --data data_samples/captions.csv \\
        --clips data_samples/clips --steps 2 --batch 4 --out runs/walk --overwrite

Counts each function once, where it is first called; a module that is left and entered again counts
anew. With `PYTHONPATH=CHECKOUT` before it, the package of another checkout is walked through.
"""

import sys
from collections import Counter
from importlib import import_module
from itertools import groupby
from pathlib import Path

import bt_adapter

PACKAGE = Path(bt_adapter.__file__).parent


class Walk:
    "Modules of the package in the order of the first calls of their functions."

    def __init__(self):
        self.modules, self.known = [], set()

    def __call__(self, frame, event, _):
        code = frame.f_code
        path = Path(code.co_filename)
        if event != "call" or code in self.known or not path.is_relative_to(PACKAGE):
            return
        self.known.add(code)
        if not code.co_name.startswith("<"):
            self.modules.append(".".join(path.relative_to(PACKAGE).with_suffix("").parts))

    def entries(self) -> Counter:
        "How often each module is entered."
        return Counter(module for module, _ in groupby(self.modules))


def main():
    command, sys.argv[1:] = sys.argv[1], sys.argv[2:]
    program, walk = import_module(f"bt_adapter.cli.{command}"), Walk()
    sys.setprofile(walk)
    try:
        program.main()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.setprofile(None)
    entries = walk.entries()
    print(f"{len(walk.modules)} functions, {entries.total()} entries, {len(entries)} modules")
    for module, count in entries.most_common():
        print(f"{count:4d} {module}")


if __name__ == "__main__":
    main()
