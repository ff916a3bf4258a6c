"""What the explorer saves by asking nothing twice: one run, batches, and layers that do not change.

    python tests/benchmarks/explorer.py [--clip ViT-B-32] [--frames 8] [--captions 2] [--rounds 3]
        [--csv FILE]

Both ways answer the same: maps over time and in space, the relevance of captions, and cosines
without each head and each frame, of a clip beside itself backwards. The plain way runs the model
for each answer. They take turns, so that a busy machine slows down both; the ratio is that of the
least processor times. Weights are random and the answers of both ways are compared.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from temporal_attention import processor

from bt_adapter.backbone import load_clip
from bt_adapter.branch import BranchConfig, BTAdapter
from bt_adapter.explorer import explore
from bt_adapter.interventions import block, knock_out, time_heads
from bt_adapter.ledger import append_csv, check_csv, today
from bt_adapter.maps import spatial_maps, temporal_maps
from bt_adapter.relevance import relevance

COLUMNS = (
    *("date", "device", "torch", "threads", "clip", "frames", "captions", "rounds"),
    *("seconds, one by one", "seconds", "ratio", "largest difference"),
)


def changes(model, frames):
    "Every head taken out, then every frame."
    yield from (knock_out(model, [pair]) for pair in time_heads(model))
    yield from (block(model, None, None, frame) for frame in range(frames))


def one_by_one(model, clip, captions):
    "A run of the model for each answer."
    frames = model.clip.transform(clip)[None]
    layers = range(model.config.layers)
    space = [spatial_maps(model, frames, k, queries=[0])[0, :, :, 0, 1:] for k in layers]
    states = model.clip.layer_outputs(frames, model.config.states)
    found = [model.encode_states(states).embedding]
    for change in changes(model, len(clip)):
        with change:
            found.append(model.encode_states(states).embedding)
    heats = [relevance(model, frames, [caption]).heat[0] for caption in captions]
    cosines = torch.cat(found) @ model.encode_text(captions).T
    maps = temporal_maps(model, frames)[:, 0]
    return [maps, torch.stack(space).transpose(1, 2), cosines, torch.stack(heats)]


@torch.no_grad()
def plain(model, clip, captions):
    "Of the clip, and of the clip backwards."
    return [x.numpy() for one in (clip, clip.flip(0)) for x in one_by_one(model, one, captions)]


def asked(model, clip, captions):
    "The same of the explorer."
    explorer, found = explore(model, clip, captions, other=clip.flip(0)), []
    for one in explorer.both():
        heats = [one.relevance(caption)[1] for caption in captions]
        found += [one.maps, one.spatial, one.cosines(captions), np.stack(heats)]
    return found


def timed(way, *given):
    "Seconds of processor time, and what came out."
    start = time.process_time()
    found = way(*given)
    return time.process_time() - start, found


def measure(args):
    "The row."
    torch.manual_seed(0)
    model = BTAdapter(load_clip(args.clip, "random"), BranchConfig(max_frames=args.frames)).eval()
    for layer in model.branch.temporal:  # W_t starts at zero, and then no head does anything
        torch.nn.init.normal_(layer.project.weight, std=0.02)
    clip = torch.randint(256, (args.frames, 256, 256, 3), dtype=torch.uint8)
    given = model, clip, [f"caption {i}" for i in range(args.captions)]
    seconds, differences = {plain: [], asked: []}, []
    for _ in range(args.rounds):
        found = {}
        for way, spent in seconds.items():
            one, found[way] = timed(way, *given)
            spent.append(one)
        differences += [np.abs(a - b).max() for a, b in zip(*found.values(), strict=True)]
    before, after = (min(spent) for spent in seconds.values())
    values = (
        *(today(), processor(), torch.__version__, torch.get_num_threads()),
        *(args.clip, args.frames, args.captions, args.rounds),
        *(f"{before:.2f}", f"{after:.2f}", f"{before / after:.2f}", f"{max(differences):.1e}"),
    )
    return dict(zip(COLUMNS, values, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", default="ViT-B-32")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--captions", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--csv", type=Path, help="append the row to this file")
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    torch.set_num_threads(1)
    row = measure(args)
    print(", ".join(f"{name} {value}" for name, value in row.items()))
    assert float(row["largest difference"]) < 1e-5, "The two ways answer differently."
    if args.csv:
        append_csv(args.csv, [row])


if __name__ == "__main__":
    main()
