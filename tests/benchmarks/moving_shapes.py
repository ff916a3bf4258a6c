"""What Moving Shapes costs: level 2 beside level 1, drawn, rendered, stored and trained on.

    python tests/benchmarks/moving_shapes.py [clips clip_step adapter_step] [--csv FILE]

clips         milliseconds for drawing a scene, a clip and a trail of two things, level 2 against 1
clip_step     seconds of a training step of the small CLIP: drawing its pictures, and the whole step
adapter_step  milliseconds for the frozen states of a clip, and of a training step of the adapter at
              4, 8 and 16 frames, 36 clips, as `bta-pretrain --level 2` takes it

All by default. Times are CPU time on one thread, cases take turns in a round, the least of the
rounds counts. What adapters are worth on level 2 tells `bta-evaluate --level 2`.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from temporal_attention import processor

from bt_adapter import moving_shapes, scenes, small_clip
from bt_adapter.backbone import load_clip, load_tokenizer
from bt_adapter.branch import BTAdapter
from bt_adapter.ledger import append_csv, check_csv, today
from bt_adapter.pretrain import QUICK
from bt_adapter.shipped import samples_folder
from bt_adapter.trainer import Batch, Trainer

COLUMNS = ("date", "device", "torch", "measure", "case", "milliseconds", "against", "ratio")


def in_turns(cases, rounds):
    "Least CPU time of each case in milliseconds; every case once a round."
    least = dict.fromkeys(cases, float("inf"))
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.process_time()
            case()
            least[name] = min(least[name], 1000 * (time.process_time() - start))
    return least


def clips(rounds):
    "Level 2 against level 1, both with two things."
    rng, n = np.random.default_rng(0), 40
    draw = {k: partial(moving_shapes.random_scene, rng, "train", 2, k) for k in (1, 2)}
    drawn = {level: [draw[level]() for _ in range(n)] for level in (1, 2)}
    work = dict(
        scene=lambda level: [draw[level]() for _ in range(n)],
        clip=lambda level: [moving_shapes.render(scene) for scene in drawn[level]],
        trail=lambda level: [moving_shapes.long_exposure(scene) for scene in drawn[level]],
    )
    for name, task in work.items():
        least = in_turns({k: partial(task, k) for k in (1, 2)}, rounds)
        for level, taken in least.items():
            yield "clips", f"{name}, level {level}", taken / n, "level 1", taken / least[1]


def clip_step(rounds):
    "A step of the small CLIP at level 1 (156 pictures) and 2 (162)."
    model, rng = load_clip("moving-shapes").model, np.random.default_rng(0)
    tokenize = load_tokenizer(samples_folder() / "clip")
    one, two = small_clip.stills, small_clip.two_stills

    def drawn(level):
        few = (7, 2) if level == 2 else (14, 4)
        pictures = one(rng, few[0]), small_clip.trails(rng, few[1])
        return pictures if level == 1 else (*pictures, two(rng, 7), small_clip.two_trails(rng, 2))

    def step(pictures):
        parts = small_clip.clip_loss(model, tokenize, *pictures[:2])
        if len(pictures) > 2:
            parts |= small_clip.two_loss(model, tokenize, *pictures[2:])
        sum(parts.values()).backward()

    model.train().requires_grad_(True)
    kept = {level: drawn(level) for level in (1, 2)}
    for name, task in (("pictures", drawn), ("loss and gradients", lambda k: step(kept[k]))):
        least = in_turns({k: partial(task, k) for k in (1, 2)}, rounds)
        for level, taken in least.items():
            yield "clip_step", f"{name}, level {level}", taken, "level 1", taken / least[1]
    words = small_clip.two_wordings(rng, ("black", "navy"))
    read = lambda: sum(small_clip.wordings_loss(model, tokenize, words).values()).backward()  # noqa: E731
    least = in_turns(dict(words=read, pictures=partial(step, kept[2])), rounds)
    share = least["words"] / least["pictures"]
    yield "clip_step", "two wordings", least["words"], "pictures of level 2", share


def adapter_step(rounds):
    "Frozen states of 24 frames, and steps at several numbers of frames."
    clip = load_clip("moving-shapes")
    groups = scenes.scenes_of_both(np.random.default_rng(0), 1)
    states, model = {}, BTAdapter(clip, QUICK.branch)
    rendered, frames = scenes.BothLevels.rendered(groups), scenes.BothLevels.stored
    start = time.process_time()
    scenes.scene_states(clip, rendered, model.config.states, states, frames)
    taken = 1000 * (time.process_time() - start) / len(rendered)
    yield "adapter_step", f"states of a clip of {frames} frames", taken, "", ""
    source = scenes.BothLevels(clip, groups, states, batch=36)
    trainer = Trainer(model, QUICK)
    (batch,) = (b for b, _ in zip(source(0, model.config.states), range(1)))
    whole = torch.stack([states[key] for key in list(states) * 2][:36])

    def step(count):
        few = whole[:, :, torch.arange(count) * frames // count]
        trainer.update(Batch(batch.names, few, batch.text))

    least = in_turns({count: partial(step, count) for count in (4, 8, 16)}, rounds)
    for count, taken in least.items():
        yield "adapter_step", f"{count} frames", taken, "8 frames", taken / least[8]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = dict(clips=clips, clip_step=clip_step, adapter_step=adapter_step)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    torch.set_num_threads(1)
    for part in args.parts or parts:
        rows = []
        for measure, case, taken, against, ratio in parts[part](args.rounds):
            told = f"{ratio:.2f}" if ratio else ""
            print(f"{measure:14}{case:36}{taken:10.2f} ms  {told}", flush=True)
            first = (today(), processor(), torch.__version__)
            values = (*first, measure, case, round(taken, 2), against, told)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
        if args.csv:
            append_csv(args.csv, rows)


if __name__ == "__main__":
    main()
