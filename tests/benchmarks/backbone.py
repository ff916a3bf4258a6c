"""CPU time of bf16 against fp32 for a video through CLIP and through BT-Adapter, on one thread.

    python tests/benchmarks/backbone.py [--model ViT-B-16] [--frames 8] [--rounds 5] [--csv FILE]

Weights are random, which changes neither the work nor its time. All cases take turns in a round.
Prints the least and the median of the rounds, how many times faster bf16 is, and the cosine between
the embeddings of both. --csv appends the rows to a file.

bf16 pays where the processor multiplies it in hardware: with AMX (amx_bf16) four times and more are
to be expected, with AVX-512 alone (avx512_bf16) two times, without either nothing.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from temporal_attention import processor

from bt_adapter.backbone import load_clip
from bt_adapter.branch import BTAdapter
from bt_adapter.ledger import append_csv, check_csv, today

COLUMNS = (
    *("date", "device", "torch", "threads", "model", "frames", "case", "type", "rounds"),
    *("least seconds", "median seconds", "times faster", "cosine"),
)


def make_models(name):
    "One adapter in fp32 and the same in bf16, CLIP and branch."
    torch.manual_seed(0)
    full = BTAdapter(load_clip(name))
    half = BTAdapter(load_clip(name))
    half.load_state_dict(full.state_dict())
    return {"fp32": full.eval(), "bf16": half.eval().bfloat16()}


@torch.no_grad()
def encode(model, case, frames):
    "Seconds of CPU time and the embedding."
    start = time.process_time()
    if case == "frozen CLIP":
        embedding = model.clip.encode_video(frames)
    else:
        embedding = model.encode_video(frames).embedding
    return time.process_time() - start, embedding.double()


def measure(models, frames, rounds):
    "Seconds of each round and the last embedding, by case and type."
    seconds, embeddings = {}, {}
    for turn in range(rounds + 1):  # the first warms up
        for case in ("frozen CLIP", "BT-Adapter"):
            for kind, model in models.items():
                spent, embeddings[case, kind] = encode(model, case, frames)
                if turn:
                    seconds.setdefault((case, kind), []).append(spent)
    return seconds, embeddings


def rows(args, seconds, embeddings):
    "One row for the CSV file a case and type."
    for (case, kind), spent in seconds.items():
        baseline = seconds[case, "fp32"]
        cosine = torch.cosine_similarity(embeddings[case, kind], embeddings[case, "fp32"])
        values = (
            *(today(), processor(), torch.__version__),
            *(torch.get_num_threads(), args.model, args.frames, case, kind, args.rounds),
            *(f"{min(spent):.3f}", f"{statistics.median(spent):.3f}"),
            *(f"{min(baseline) / min(spent):.2f}", f"{cosine.item():.5f}"),
        )
        yield dict(zip(COLUMNS, values, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    torch.set_num_threads(1)
    print(f"{processor()}, torch {torch.__version__}, 1 thread, {args.rounds} rounds")
    models = make_models(args.model)
    size = models["fp32"].clip.image_size
    frames = torch.randn(1, args.frames, 3, *size, generator=torch.Generator().manual_seed(0))
    table = list(rows(args, *measure(models, frames, args.rounds)))
    for row in table:
        print(
            f"{row['case']:11}  {row['type']}  least {row['least seconds']:>7} s  "
            f"median {row['median seconds']:>7} s  {row['times faster']:>5} times  "
            f"cosine {row['cosine']}"
        )
    if args.csv:
        append_csv(args.csv, table)


if __name__ == "__main__":
    main()
