"""Time of temporal attention and of a temporal layer; the methods take turns in each round.

    python tests/benchmarks/temporal_attention.py [--threads 1] [--frames 8 16 32] [--csv FILE]

Prints, for each shape, type and mode, the least time of each method over --rounds rounds, and its
ratio to what the package picks, round by round: lowest, median and highest. Ratios of neighbours
hold on a busy machine, too, where times do not. "permuted" is the usual way: copy each patch's
frames side by side, then scaled_dot_product_attention; for a layer, nn.MultiheadAttention, then
W_t, as in the authors' code. --csv appends the rows, with the median ratio, to a file.
"""

import argparse
import platform
import statistics
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from bt_adapter.branch import TemporalLayer
from bt_adapter.ledger import append_csv, today
from bt_adapter.temporal_attention import choose_backend, temporal_attention

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def processor() -> str:
    "The processor's name, as far as the system tells it, and its bf16 instructions."
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    bf16 = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in text]
    return " ".join([names[0] if names else platform.processor() or platform.machine(), *bf16])


def permuted(qkv):
    "Copies in (b l) h t c order for PyTorch's fused attention, and the result back."
    copies = [rearrange(x, "b t l h c -> (b l) h t c").contiguous() for x in qkv.unbind(3)]
    out = F.scaled_dot_product_attention(*copies)
    return rearrange(out, "(b l) h t c -> b t l h c", b=len(qkv))


class PermutedLayer(nn.Module):
    "Eq. 2 with nn.MultiheadAttention over permuted patches."

    def __init__(self, width, heads):
        super().__init__()
        self.norm, self.project = nn.LayerNorm(width), nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, patches):
        series = self.norm(rearrange(patches, "b t l d -> (b l) t d"))
        attended, _ = self.attention(series, series, series, need_weights=False)
        update = rearrange(self.project(attended), "(b l) t d -> b t l d", b=len(patches))
        return patches + update


def forward(method, x):
    "Seconds for a forward pass, up to the memory layout the next layer reads."
    with torch.no_grad():
        start = time.perf_counter()
        method(x).contiguous()
        return time.perf_counter() - start


def training(method, x):
    "Seconds for a forward and a backward pass."
    x.grad = None
    if isinstance(method, nn.Module):
        method.zero_grad()
    start = time.perf_counter()
    out = method(x).contiguous()
    out.backward(out.detach())
    return time.perf_counter() - start


def cores(shape, kind):
    "The methods for the attention alone, its input, and what the package picks in each mode."
    qkv = torch.randn(shape).to(TYPES[kind]).requires_grad_()
    names = ("reference", "bmm", "sdpa")
    methods = {name: partial(temporal_attention, backend=name) for name in names}
    with torch.no_grad():
        picks = {"forward": choose_backend(qkv)}
    return methods | {"permuted": permuted}, qkv, picks | {"training": choose_backend(qkv)}


def layers(shape, kind):
    "The methods for a whole layer, its input, and what the package picks in each mode."
    batch, frames, patches, _, heads, width = shape
    width *= heads
    methods = {"layer": TemporalLayer(width, heads, "random")}
    methods["permuted"] = PermutedLayer(width, heads)
    methods = {name: module.to(TYPES[kind]) for name, module in methods.items()}
    x = torch.randn(batch, frames, patches, width).to(TYPES[kind]).requires_grad_()
    return methods, x, dict.fromkeys(("forward", "training"), "layer")


def measure(methods, x, rounds):
    "The seconds of each method, round by round, by mode; all methods take turns within a round."
    seconds = defaultdict(list)
    for _ in range(rounds + 1):
        for mode in (forward, training):
            for name, method in methods.items():
                seconds[mode.__name__, name].append(mode(method, x))
    return {key: times[1:] for key, times in seconds.items()}  # the first round warms up


def rows(part, shape, kind, rounds):
    "One row for the CSV file a mode and method, and the range of its ratios."
    torch.manual_seed(0)
    methods, x, picks = (cores if part == "core" else layers)(shape, kind)
    found = measure(methods, x, rounds)
    for (mode, name), seconds in found.items():
        ratios = [own / pick for own, pick in zip(seconds, found[mode, picks[mode]])]
        yield (
            {
                "date": today(),
                "device": processor(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "part": part,
                "b t l 3 h d/h": " ".join(map(str, shape)),
                "type": kind,
                "mode": mode,
                "method": name,
                "milliseconds": f"{1e3 * min(seconds):.3f}",
                "against the pick": f"{statistics.median(ratios):.2f}",
                "picked": int(name == picks[mode]),
            },
            (min(ratios), max(ratios)),
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--patches", type=int, default=256)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{processor()}, torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds")
    table, cases = [], [("core", frames) for frames in args.frames] + [("layer", args.frames[0])]
    for part, frames in cases:
        shape = (args.batch, frames, args.patches, 3, args.heads, args.width // args.heads)
        for kind in TYPES:
            for row, (lowest, highest) in rows(part, shape, kind, args.rounds):
                table.append(row)
                mark = "<- picked" if row["picked"] else ""
                print(
                    f"{part:5} t {frames:3}  {kind}  {row['mode']:9} {row['method']:10} "
                    f"{row['milliseconds']:>9} ms  "
                    f"{lowest:.2f} / {row['against the pick']} / {highest:.2f} {mark}"
                )
    if args.csv:
        append_csv(args.csv, table)


if __name__ == "__main__":
    main()
