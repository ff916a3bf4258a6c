"""Time and memory of exact ranks without their matrix, and whether they are those of the matrix.

    python tests/benchmarks/retrieval.py [--clips 100000] [--width 512] [--megabytes 256]
        [--device cpu] [--csv FILE]

Queries are unit vectors near the candidates of the same number, so that ranks of all sizes occur.
After as many clips as asked for, 5,000 are ranked both in pieces and by the whole matrix, in single
and in double precision: single precision may order two similarities otherwise that differ in their
last bit. Memory is the highest that the process has had so far, PyTorch itself included.
"""

import argparse
import resource
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from temporal_attention import processor

from bt_adapter.ledger import append_csv, check_csv, today
from bt_adapter.metrics import rank_figures, ranks, ranks_in_pieces

COLUMNS = (
    *("date", "device", "torch", "threads", "clips", "width", "megabytes", "seconds of CPU"),
    *("seconds", "highest memory in GB", "ranks unlike the matrix's", "unlike in fp64", "R@1"),
)


def gallery(clips, width, device):
    "Queries and candidates of unit length."
    draw = torch.Generator().manual_seed(0)
    candidates = F.normalize(torch.randn(clips, width, generator=draw), dim=-1)
    noise = F.normalize(torch.randn(clips, width, generator=draw), dim=-1)
    queries = F.normalize(candidates + 4 * noise, dim=-1)
    return queries.to(device), candidates.to(device)


def unlike(queries, candidates, found):
    "How many ranks differ from those of the whole matrix, in single and in double precision."
    single, double = (ranks(q @ c.T).cpu() for q, c in (
        (queries, candidates), (queries.double(), candidates.double())
    ))  # fmt: skip
    return (found != single).sum().item(), (found != double).sum().item()


def measure(args, clips):
    "One row."
    queries, candidates = gallery(clips, args.width, args.device)
    start, cpu = time.time(), time.process_time()
    found = ranks_in_pieces(queries, candidates, megabytes=args.megabytes)
    spent = time.process_time() - cpu, time.time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    differ = unlike(queries, candidates, found) if clips <= 5000 else ("", "")
    recall = rank_figures(found, clips)["R@1"]
    device = processor() if args.device == "cpu" else torch.cuda.get_device_name()
    values = (
        *(today(), device, torch.__version__),
        *(torch.get_num_threads(), clips, args.width, args.megabytes),
        *(f"{spent[0]:.1f}", f"{spent[1]:.1f}", f"{memory:.2f}", *differ, f"{recall:.2f}"),
    )
    return dict(zip(COLUMNS, values, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--megabytes", type=float, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    torch.set_num_threads(1)
    table = []
    for clips in sorted({min(5000, args.clips), args.clips}, reverse=True):
        table.append(measure(args, clips))
        print(", ".join(f"{name} {value}" for name, value in table[-1].items() if value != ""))
    if args.csv:
        append_csv(args.csv, table)


if __name__ == "__main__":
    main()
