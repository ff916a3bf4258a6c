"""What the choices that follow the machine are worth on this one.

    python tests/benchmarks/machine.py [CASE ...] [--rounds 5] [--threads 1 2] [--csv FILE]

Each row sets what the package does beside what it does not do, in turns; the ratio is that of the
two, round by round: lowest, median and highest. Below one the package's choice is the faster.

answer    a chat answer of 10 or 40 tokens about a new clip: `fast_dtype`, and the other of fp32
          and bf16
fold      W_t W_o of a layer in bf16: `weight_product`, and PyTorch's product
adapter   a B/16 with a branch of 4 layers, 8 frames: `fast_dtype`, and the other type
chunks    a B/16, 64 frames: at most 16 at once, and all of them
decoding  8 frames of a clip of 20 s, 1280 x 720, in H.265: as many threads as torch has, and one

`pretraining.py muon` does the same for the products of Muon, `temporal_attention.py` for the
attention, `startup.py` for the imports. To see a machine without bf16 instructions on one that has
them, set ATEN_CPU_CAPABILITY=avx2 and ONEDNN_MAX_CPU_ISA=AVX2.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from chat import chat_model, one_round
from loader import draw_clip
from temporal_attention import processor

from bt_adapter import frozen_tower, video
from bt_adapter import moving_shapes as world
from bt_adapter.backbone import load_clip
from bt_adapter.branch import BTAdapter
from bt_adapter.folding import weight_product
from bt_adapter.ledger import append_csv, check_csv, today
from bt_adapter.precision import fast_dtype

COLUMNS = (
    *("date", "device", "torch", "threads", "case", "choice", "other", "rounds"),
    *("seconds", "other's seconds", "lowest ratio", "ratio", "highest ratio"),
)
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def both_types():
    "This machine's type first."
    return sorted(NAMES, key=lambda dtype: dtype != fast_dtype())


def answers():
    "One of each type; every call asks about another clip."
    scenes = iter(world.gallery("test", 200))

    def ask(model, tokenizer, tokens):
        first, each = one_round(model, tokenizer, next(scenes), tokens, clock=time.perf_counter)
        return first + (tokens - 1) * each

    models = {NAMES[dtype]: chat_model(dtype) for dtype in both_types()}
    for n in (10, 40):
        yield f"answer of {n}", {name: partial(ask, *m, n) for name, m in models.items()}


def folds():
    layer = BTAdapter(load_clip("ViT-B-16", pretrained="random")).branch.temporal[0]
    a, b = layer.project.weight.bfloat16(), layer.out.weight.bfloat16()
    with torch.no_grad():
        yield "fold", {"weight_product": partial(weight_product, a, b), "a @ b": lambda: a @ b}


def adapters():
    cases = {}
    for dtype in both_types():
        model = BTAdapter(load_clip("ViT-B-16", pretrained="random", precision=NAMES[dtype]))
        cases[NAMES[dtype]] = partial(model, torch.rand(1, 8, 3, 224, 224))
    with torch.no_grad():
        yield "adapter", cases


def chunks():
    clip, frames = load_clip("ViT-B-16", pretrained="random"), torch.rand(1, 64, 3, 224, 224)

    def at_once(limit):
        with mock.patch.object(frozen_tower, "MAPPED", limit), torch.no_grad():
            clip.encode_video(frames)

    yield "chunks", {"16": partial(at_once, frozen_tower.MAPPED), "64": partial(at_once, 2**62)}


def decoding():
    def read(path, long):
        with mock.patch.object(video, "LONG", long):
            video.read_clip(path, 8)

    quiet = {"x265-params": "log-level=none"}
    with tempfile.TemporaryDirectory() as folder:
        path = draw_clip(Path(folder) / "clip.mp4", 720, 1280, 500, codec="libx265", **quiet)
        if (threads := torch.get_num_threads()) > 1:
            ours = {str(threads): partial(read, path, video.LONG)}
            yield "decoding", ours | {"1": partial(read, path, 2**62)}


CASES = dict(answer=answers, fold=folds, adapter=adapters, chunks=chunks, decoding=decoding)


def seconds(case):
    "Of a call; or what it says itself."
    start = time.perf_counter()
    own = case()
    return own if isinstance(own, float) else time.perf_counter() - start


def measure(wanted, threads, rounds):
    "Rows for the CSV file."
    torch.set_num_threads(threads)
    about = (today(), processor(), torch.__version__, threads)
    for group in wanted:
        for name, cases in CASES[group]():
            turns = [[seconds(case) for case in cases.values()] for _ in range(rounds + 1)][1:]
            ratios = [own / other for own, other in turns]
            times = map(statistics.median, zip(*turns, strict=True))
            figures = (*times, min(ratios), statistics.median(ratios), max(ratios))
            words = (f"{value:.4g}" for value in figures)
            yield dict(zip(COLUMNS, (*about, name, *cases, rounds, *words), strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    if unknown := set(args.cases) - set(CASES):
        parser.error(f"there is no case {unknown.pop()!r}: take {', '.join(CASES)}")
    if args.csv:
        check_csv(args.csv, COLUMNS)
    rows = []
    for threads in args.threads:
        for row in measure(args.cases or CASES, threads, args.rounds):
            print(
                "  ".join(f"{row[name]:>{max(14, len(name))}}" for name in COLUMNS[3:]), flush=True
            )
            rows.append(row)
    if args.csv:
        append_csv(args.csv, rows)


if __name__ == "__main__":
    main()
