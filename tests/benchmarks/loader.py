"""What the loader costs and survives: speed, memory, worker processes and broken clips.

    python tests/benchmarks/loader.py [speed memory workers broken] [--clip FILE ...] [--csv FILE]

speed    CPU time on one thread of 8 frames of a clip of 250, decoded and cropped to 224 x 224,
         against decord alone, which opens the file and decodes the same frames; drawn clips, and
         those of --clip
memory   growth of resident memory over 2,000 clips after 200, in this process and in one worker
workers  two epochs with 0, 1 and 4 worker processes, and one left in the middle; after 120 s it
         counts as a deadlock
broken   1,000 clips in shards, 50 of them cut off, empty, a text or sound alone: one epoch of
         training

All four by default. Prints a line for each figure and what is wanted; --csv appends them to a file.
The exit status is 1 if a figure is not as wanted.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import psutil
import torch
from temporal_attention import processor

from bt_adapter.backbone import load_clip
from bt_adapter.branch import BTAdapter
from bt_adapter.datasets import (
    ClipDataset,
    Example,
    Shards,
    crop_frames,
    encode_tokens,
    loader,
    normalize_frames,
    read_examples,
    write_shards,
)
from bt_adapter.ledger import append_csv, check_csv, today
from bt_adapter.losses import video_text_contrastive
from bt_adapter.masking import tube_mask
from bt_adapter.shipped import samples_folder
from bt_adapter.video import read_clip, sample_indices

COLUMNS = ("date", "device", "torch", "measure", "case", "value", "unit", "wanted", "met")


def draw_clip(path, height, width, frames=250, codec="libx264", **options):
    "Blocks of random colours that drift to the left."
    blocks = np.random.default_rng(0).integers(0, 255, (height // 8 + 1, width // 8 + 64, 3))
    wide = blocks.astype(np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 25, options=options)
        stream.height, stream.width = height, width
        for i in range(frames):
            picture = np.ascontiguousarray(wide[:height, 2 * i % 512 : 2 * i % 512 + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    return path


def decode_and_crop(path):
    crop_frames(read_clip(path), (224, 224))


def decord_alone(path):
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    reader.get_batch(sample_indices(len(reader), 8).tolist()).asnumpy()


def speed(folder, clips):
    "Times faster than decord alone, by clip."
    drawn = {
        "drawn 336 x 596": ((336, 596), {}),
        "drawn 336 x 596, no B frames": ((336, 596), {"bf": "0"}),
        "drawn 240 x 320, a key frame in 12": ((240, 320), {"g": "12"}),
    }
    files = {
        name: draw_clip(folder / f"{i}.mp4", *size, **options)
        for i, (name, (size, options)) in enumerate(drawn.items())
    }
    for name, path in (files | {path.name: path for path in clips}).items():
        spent = {decode_and_crop: [], decord_alone: []}
        for _ in range(15):
            for call, seconds in spent.items():
                start = time.process_time()
                call(path)
                seconds.append(time.process_time() - start)
        own, raw = (1000 * min(seconds) for seconds in spent.values())
        print(f"{name}: {own:.1f} ms, decord alone {raw:.1f} ms")
        yield name, round(raw / own, 2), "times decord's speed", ">= 0.9", raw / own >= 0.9


def resident(process):
    return process.memory_info().rss / 2**20


def memory(folder, clips):
    "Growth of resident memory over 2,000 clips, in MB."
    samples = samples_folder()
    shipped = read_examples(samples / "captions.csv", clips=samples / "clips")
    shipped.append(Example("long", str(draw_clip(folder / "long.mp4", 240, 320)), ("drawn",)))
    many = [Example(f"{i}", shipped[i % 13].path, ("a clip",)) for i in range(2200)]
    for workers in (0, 1):
        run = loader(ClipDataset(many, (64, 64), training=True), 20, workers=workers)
        for number, _ in enumerate(run, 1):
            if number == 1:
                watched = psutil.Process().children()[-1] if workers else psutil.Process()
            if number == 10:
                before = resident(watched)
            if number == 110:
                grown = resident(watched) - before
        name = "one worker" if workers else "this process"
        yield name, round(grown, 1), "MB over 2,000 clips", "< 50", grown < 50


def workers(folder, clips):
    "Whether epochs come to their end."
    samples = samples_folder()
    shipped = read_examples(samples / "captions.csv", clips=samples / "clips")

    def late(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    for number in (0, 1, 4):
        start, ended = time.time(), True
        signal.alarm(120)
        try:
            run = loader(ClipDataset(shipped * 5, (64, 64), training=True), 6, workers=number)
            next(iter(run))  # and leave it
            count = sum(1 for _ in run) + sum(1 for _ in run)
            ended = count == 2 * len(run) - 1 and run.epoch == 2
        except TimeoutError:
            ended = False
        signal.alarm(0)
        print(f"{number} workers: {time.time() - start:.1f} s")
        yield f"{number} workers", int(ended), "two epochs ended", "1", ended


def only_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        for i in range(20):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = 44100, 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def thousand_clips(folder):
    "Examples of 950 good clips and 50 broken ones of four kinds, mixed."
    samples = samples_folder()
    shipped = read_examples(samples / "captions.csv", clips=samples / "clips")
    made = [Example(f"good {i}", e.path, e.captions) for i, e in enumerate(shipped * 80)][:950]
    whole = Path(shipped[0].path).read_bytes()
    for i in range(50):
        path = folder / f"broken{i}.mp4"
        if i % 4 == 3:
            only_sound(path)
        else:
            path.write_bytes([whole[: len(whole) // 2], b"", b"once upon a time\n" * 50][i % 4])
        made.append(Example(f"broken {i}", str(path), ("nothing to see",)))
    random.Random(0).shuffle(made)
    return made


def train(run, clip):
    "One epoch of contrastive training of a fresh adapter."
    torch.manual_seed(0)
    model = BTAdapter(clip)
    optimizer = torch.optim.AdamW(model.branch.parameters(), lr=1e-4)
    for batch in run:
        keep = tube_mask(len(batch.ids), clip.grid[0] * clip.grid[1], 0.7)
        embedding = model.encode_video(normalize_frames(batch.frames, clip), keep).embedding
        loss = video_text_contrastive(embedding, encode_tokens(clip, batch.tokens), 0.04)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield len(batch.ids)


def broken(folder, clips):
    "One epoch over 1,000 clips in shards, 50 of them broken."
    clip, made = load_clip("moving-shapes"), thousand_clips(folder)
    write_shards(made, folder / "shards", per_shard=100)
    dataset = ClipDataset(Shards(folder / "shards"), clip.image_size, training=True)
    run = loader(dataset, 20, clip.tokenizer, workers=1)
    sizes = list(train(run, clip))
    report = run.report
    yield "clips trained on", sum(sizes), "clips", "1000", sizes == [20] * 50
    wanted = {e.id for e in made if e.id.startswith("broken")}
    at = {dataset.examples[i].path: dataset.examples[i].id for i in range(1000)}
    named = {at[path] for path in report.broken}
    yield "broken clips named", len(named), "clips", "50", named == wanted
    report.write(folder / "broken.csv")


MEASURES = {"speed": speed, "memory": memory, "workers": workers, "broken": broken}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measures", nargs="*", choices=[[], *MEASURES])
    parser.add_argument("--clip", type=Path, nargs="*", default=[], help="more clips for speed")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    if args.csv:
        check_csv(args.csv, COLUMNS)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    made = (today(), processor(), torch.__version__)
    table = []
    for name in args.measures or MEASURES:
        with tempfile.TemporaryDirectory() as folder:
            for case, value, unit, wanted, met in MEASURES[name](Path(folder), args.clip):
                row = (*made, name, case, value, unit, wanted, int(met))
                table.append(dict(zip(COLUMNS, row, strict=True)))
                print(f"{name:8} {case}: {value} {unit}, wanted {wanted}", flush=True)
    if args.csv:
        append_csv(args.csv, table)
    sys.exit(not all(row["met"] for row in table))


if __name__ == "__main__":
    main()
