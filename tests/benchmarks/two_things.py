"""Which motion of two things does an adapter take for which, and is it in its embeddings at all?

    python tests/benchmarks/two_things.py [ADAPTER ...] [--clips 408] [--learn 720] [--csv FILE]

For test clips of level 2, the motion of the thing that is named first is chosen among fourteen, by
the caption nearest to the clip. A wrong answer is the opposite, the other thing's motion, its
opposite, or a third. Then linear probes, which learn from other clips (of the training split):
which two motions are in a clip, read from the clip's embedding, and read from the embedding of its
own caption? Where the second is right and the first is not, the branch is the limit, otherwise the
text tower. An adapter is a folder, or "moving-shapes-2", the shipped one, which is the default.
"""

import argparse
import sys
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from temporal_attention import processor

from bt_adapter.branch import BTAdapter
from bt_adapter.ledger import append_csv, check_csv, command_line, today
from bt_adapter.moving_shapes import (
    BACKGROUNDS,
    MOTIONS,
    caption,
    gallery,
    meetings_of,
    motions_of,
    render,
)
from bt_adapter.retrieval import adapter_methods, encode_clips, weights_hash
from bt_adapter.twins import first_motions, two_things_group

KINDS = "right", "opposite", "the other thing's", "opposite of the other thing's", "a third"
SAME = ("date", "device", "torch", "command", "adapter", "weights", "fingerprint")
COLUMNS = (*SAME, "clips", "learned from", *KINDS, "both motions: clip", "both motions: caption")
RIDGE = 0.01  # of the mean square of the embeddings


def kind_of(scene, answer):
    "What is wrong with an answer, if anything is."
    own, other = (thing.motion for thing in scene.named)
    opposites = [MOTIONS[m].opposite if m in MOTIONS else m for m in (own, other)]
    return dict(zip([own, opposites[0], other, opposites[1]], KINDS)).get(answer, KINDS[-1])


def answers(clips, scenes, encode_text):
    "The motion of the thing named first, for each clip."
    told = encode_text([text for scene in scenes for text in first_motions(scene)])
    told = told.view(len(scenes), -1, told.shape[-1])
    return [motions_of(2)[i] for i in torch.einsum("nc,nmc->nm", clips, told).argmax(1)]


def in_clip(scenes):
    "Which of the fourteen motions are in each clip, (n, 14)."
    shown = [{thing.motion for thing in scene.things} for scene in scenes]
    return torch.tensor([[motion in own for motion in motions_of(2)] for own in shown])


def both_read(known, known_scenes, asked, asked_scenes):
    "Share of clips whose two motions have the two highest scores of a linear probe."
    middle, wanted = known.mean(0), 2.0 * in_clip(known_scenes) - 1
    known, asked = known - middle, asked - middle
    products = known.T @ known
    ridge = RIDGE * products.diagonal().mean() * torch.eye(len(products))
    weights = torch.linalg.solve(products + ridge, known.T @ wanted)
    two = torch.zeros(len(asked), wanted.shape[1]).scatter(1, (asked @ weights).topk(2).indices, 1)
    return (two.bool() == in_clip(asked_scenes)).all(1).double().mean().item()


def learned(count):
    "Scenes of two moving things, of the training split."
    rng, meetings = np.random.default_rng(0), meetings_of("train")
    groups = (two_things_group(rng, meetings, rng.choice([*BACKGROUNDS])) for _ in range(count))
    moving = (s for s in chain.from_iterable(groups) if in_clip([s]).sum() == 2)
    return list(islice(moving, count))


def judged(model, clips, learn):
    "The row of an adapter."
    test, train = gallery("test", clips, level=2), learned(learn)
    ways = {"clip": adapter_methods(model)["BT-Adapter"]}
    films = (render(scene) for scene in chain(test, train))
    seen = encode_clips(model.clip, list(films), ways, model.config.states)["clip"].float()
    told = model.encode_text([caption(scene) for scene in chain(test, train)]).float()
    found = [kind_of(s, a) for s, a in zip(test, answers(seen[:clips], test, model.encode_text))]
    row = {kind: f"{100 * found.count(kind) / clips:.1f}" for kind in KINDS}
    for name, features in (("clip", seen), ("caption", told)):
        share = both_read(features[clips:], train, features[:clips], test)
        row[f"both motions: {name}"] = f"{100 * share:.1f}"
    return row


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapters", nargs="*", default=["moving-shapes-2"])
    parser.add_argument("--clips", type=int, default=408, help="of the test split")
    parser.add_argument("--learn", type=int, default=720, help="of the training split")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    torch.set_num_threads(1)
    for name in args.adapters:
        model = BTAdapter.from_pretrained(name)
        same = (today(), processor(), torch.__version__, command_line("two_things.py"), name)
        row = dict(zip(SAME, (*same, weights_hash(model.branch), model.clip.fingerprint)))
        row |= {"clips": args.clips, "learned from": args.learn}
        with torch.inference_mode():
            row |= judged(model, args.clips, args.learn)
        print(name, *(f"{key}: {row[key]}" for key in COLUMNS[len(SAME) :]), sep="\n  ")
        if args.csv:
            append_csv(args.csv, [row])


if __name__ == "__main__":
    sys.exit(main())
