"""Memory of what the lesson "Your model, your question" runs, for one clip of a real CLIP.

    python tests/benchmarks/form_memory.py [--phases states sweep explorer] [--clip ViT-L-14]
                                           [--frames 16] [--csv FILE]

A branch of four layers beside a CLIP with random weights and one clip of random pixels: the states,
a sweep that takes out one head, and the explorer of the clip beside itself backwards, with two
captions and its page. Each phase is a process of its own, which loads the model first. A row has
the highest resident memory of the process (VmHWM), which counts Python and PyTorch, too; how much
of it is above the loaded model; and the weights. The rows of form_memory.csv are made so, in some
minutes of one core (Linux only).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from memory_plan import status
from temporal_attention import processor

from bt_adapter import circuit
from bt_adapter.backbone import load_clip
from bt_adapter.branch import BranchConfig, BTAdapter
from bt_adapter.explorer import explore
from bt_adapter.ledger import append_csv, check_csv, command_line, today

LAYERS, CAPTIONS = 4, ["a hand opens", "a hand closes"]
SAME = ("date", "device", "torch", "command", "clip", "frames")
COLUMNS = (*SAME, "phase", "weights_MB", "above_MB", "process_MB")


def states(model, clip):
    frames = model.clip.transform(clip)[None]
    return model.clip.layer_outputs(frames, model.config.states)


def sweep(model, clip):
    cases = circuit.Cases(states(model, clip), *model.encode_text(CAPTIONS)[:, None])
    changes = {"whole": circuit.nothing, "one": circuit.without(model, [(0, 0)])}
    return circuit.sweep(model, [cases], changes)


def explorer(model, clip):
    found = explore(model, clip, CAPTIONS, other=clip.flip(0))
    with tempfile.TemporaryDirectory() as folder:
        found.to_html(Path(folder) / "page.html", title=CAPTIONS[0])
    return found


PHASES = dict(states=states, sweep=sweep, explorer=explorer)


def measured(phase: str, name: str, frames: int) -> dict[str, float]:
    "In megabytes; this process is of no further use."
    model = BTAdapter(load_clip(name, "random"), BranchConfig(layers=LAYERS)).eval()
    pixels = torch.Generator().manual_seed(0)
    shape = frames, *model.clip.image_size, 3
    clip = torch.randint(0, 256, shape, dtype=torch.uint8, generator=pixels)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = status("VmRSS")
    PHASES[phase](model, clip)
    peak = status("VmHWM")
    weights = 4 * sum(p.numel() for p in model.parameters())
    sizes = dict(weights_MB=weights, above_MB=peak - before, process_MB=peak)
    return {name: round(size / 1e6) for name, size in sizes.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phases", nargs="*", choices=PHASES, default=[*PHASES])
    parser.add_argument("--clip", default="ViT-L-14")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--here", action="store_true", help="one phase, in this process")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measured(args.phases[0], args.clip, args.frames)))
        return
    if args.csv:
        check_csv(args.csv, COLUMNS)
    sizes = ["--clip", args.clip, "--frames", str(args.frames)]
    for phase in args.phases:
        command = [sys.executable, __file__, "--phases", phase, "--here", *sizes]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        same = (today(), processor(), torch.__version__, command_line("form_memory.py"))
        same = (*same, args.clip, args.frames)
        row = dict(zip(SAME, same)) | dict(phase=phase) | json.loads(told.splitlines()[-1])
        print(*(f"{key} {row[key]}" for key in COLUMNS[len(SAME) :]), sep=", ", flush=True)
        if args.csv:
            append_csv(args.csv, [row])


if __name__ == "__main__":
    main()
