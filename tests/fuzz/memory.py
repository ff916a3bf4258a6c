"""Memory and time of the worst inputs: all of tests/faults, and what is too large to be kept there.

python tests/fuzz/memory.py                  the table
python tests/fuzz/memory.py --csv FILE       and write it

Each input has a process of its own; its peak is counted over what the process had before. A peak of
1 GB, 10 seconds, or an end that is not expected make the status 1.
"""

import argparse
import csv
import gzip
import io
import json
import os
import resource
import shutil
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from targets import be_quiet  # which makes the tests importable
from test_faults import EXPECTED, FAULTS, refused
from test_video_faults import gif

from bt_adapter.backbone import load_clip
from bt_adapter.benchmark.model_judge import Replies
from bt_adapter.branch import BTAdapter
from bt_adapter.datasets import Shards, index_shards, read_examples
from bt_adapter.files import read_json
from bt_adapter.released import load_released
from bt_adapter.runs import load_checkpoint
from bt_adapter.shipped import samples_folder
from bt_adapter.video import read_clip

SAMPLES = samples_folder()
WORST = {}


def worst(kind: str, what: str):
    """An input that is made where it is read."""
    return lambda made: WORST.update({(kind, what): made})


@worst("clip", "GIF of 43 bytes, 65535 x 65535")
def _(folder):
    (path := folder / "a.gif").write_bytes(gif(65_535, 65_535))
    refused(read_clip, path, name=path)


@worst("clip", "GIF, 20 pictures of the largest size, 4096 x 2304")
def _(folder):
    (path := folder / "a.gif").write_bytes(gif(4096, 2304, 20))
    assert read_clip(path).shape == (8, 2304, 4096, 3)


@worst("captions", "200,000 rows, and a quotation mark that stays open in the first")
def _(folder):
    (path := folder / "a.csv").write_text('file,caption\na,"x\n' + "b.mp4,a dog\n" * 200_000)
    assert sum(example.fault is None for example in read_examples(path)) == 1


@worst("captions", "a line of 50 MB")
def _(folder):
    (path := folder / "a.csv").write_bytes(b"file,caption\na.mp4," + b"x" * 50_000_000)
    refused(read_examples, path, name=path)


@worst("JSON", "20 million open brackets")
def _(folder):
    (path := folder / "a.json").write_bytes(b"[" * 20_000_000)
    refused(read_json, path, name=path)


@worst("JSON", "a file of 4 GB that is a hole")
def _(folder):
    (path := folder / "a.json").touch()
    os.truncate(path, 2**32)
    refused(read_json, path, name=path)


def claiming(folder, kind, size):
    member = tarfile.TarInfo("a.mp4")
    member.type, member.size = kind, size
    (folder / "0.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    refused(index_shards, folder, name=folder)


@worst("shards", "a long name of 8 TB")
def _(folder):
    claiming(folder, tarfile.GNUTYPE_LONGNAME, 2**43)


@worst("shards", "a header of 8 TB")
def _(folder):
    claiming(folder, tarfile.XHDTYPE, 2**43)


@worst("shards", "an index of as many clips as may be, and a shard of none")
def _(folder):
    listed = [dict(url="0.tar", nsamples=10**6)] * 1000
    (folder / "index.json").write_text(json.dumps(dict(shardlist=listed)))
    (folder / "0.tar").touch()
    refused(Shards(folder).example, 10**9 - 1, name="0.tar")


def with_adapter(folder, **branch):
    shutil.copytree(SAMPLES / "adapter", folder / "a")
    settings = json.loads((folder / "a/adapter.json").read_text())
    settings["branch"] |= branch
    (folder / "a/adapter.json").write_text(json.dumps(settings))
    refused(BTAdapter.from_pretrained, folder / "a", name=folder / "a")


@worst("adapter", "as many frames as may be")
def _(folder):
    with_adapter(folder, max_frames=2**16)


@worst("adapter", "as many layers as may be")
def _(folder):
    with_adapter(folder, layers=2**16)


@worst("adapter", "tensors that claim 8 TB")
def _(folder):
    shutil.copytree(SAMPLES / "adapter", folder / "a")
    claim = dict(dtype="F32", shape=[2**20, 2**21], data_offsets=[0, 2**43])
    text = json.dumps({"time": claim}).encode()
    (folder / "a/adapter.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    refused(BTAdapter.from_pretrained, folder / "a", name=folder / "a")


@worst("CLIP folder", "the widest that may be")
def _(folder):
    shutil.copytree(SAMPLES / "clip", folder / "c")
    path = folder / "c/open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["vision_cfg"] |= dict(width=2**14, layers=256)
    path.write_text(json.dumps(config))
    refused(load_clip, folder / "c", name=folder / "c")


@worst("CLIP folder", "merges of 1 MB, unpacked 1 GB")
def _(folder):
    shutil.copytree(SAMPLES / "clip", folder / "c")
    (folder / "c/merges.txt.gz").write_bytes(gzip.compress(b"a b\n" * 2**18) * 2**10)
    refused(load_clip, folder / "c", name=folder / "c")


def released(folder, name, tensor, pack=zipfile.ZIP_STORED):
    state = load_file(Path(__file__).parent / "corpus/released/clipsafetensors") | {name: tensor}
    torch.save(state, folder / "a.pth")
    if pack != zipfile.ZIP_STORED:
        os.rename(folder / "a.pth", folder / "plain")
        with zipfile.ZipFile(folder / "plain") as old:
            with zipfile.ZipFile(folder / "a.pth", "w", pack) as new:
                for part in old.namelist():
                    new.writestr(part, old.read(part))
    refused(lambda: load_released(folder / "a.pth", heads=2), name="")


@worst("released", "a tensor of one number, repeated to 400 TB")
def _(folder):
    released(folder, "extra_proj.0.weight", torch.ones(1).expand(10**7, 10**7))


@worst("released", "layer 99,999,999")
def _(folder):
    released(folder, "backbone.btadapter_S_layers.99999999.layer_norm1.bias", torch.ones(8))


@worst("checkpoint", "1 MB of zeros and ones")
def _(folder):
    (path := folder / "a.pt").write_bytes(os.urandom(2**20))
    refused(load_checkpoint, path, {}, name=path)


@worst("replies", "a line of 100 MB")
def _(folder):
    (path := folder / "r.jsonl").write_bytes(b'{"key": "' + b"x" * 10**8 + b'"}')
    assert not Replies(path).known


def measured(work) -> tuple[float, float, str]:
    """MB over what was there before, seconds, and how it ended; in a process of its own."""
    came, goes = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        verdict = "as expected"
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                work(Path(folder))
            except BaseException as error:
                verdict = f"{type(error).__name__}: {error}"[:200]
        seconds = time.monotonic() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(goes, json.dumps([peak / 1024, seconds, verdict]).encode())
        os._exit(0)
    os.close(goes)
    with open(came) as file:
        told = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return tuple(json.loads(told)) if told else (0.0, 0.0, f"ended with {code}")


def table() -> list[dict]:
    """A row for each input."""
    load_clip("moving-shapes")  # what is loaded once is no input's
    works = {("tests/faults", name): (lambda folder, n=name, do=do: do(FAULTS / n, folder))
             for name, do in EXPECTED.items()}  # fmt: skip
    rows = []
    for (kind, what), work in (works | WORST).items():
        peak, seconds, verdict = measured(work)
        row = {"kind": kind, "input": what, "MB": round(peak), "seconds": round(seconds, 1)}
        rows.append(row | {"verdict": verdict})
        print(f"{row['MB']:>6} MB {row['seconds']:>5} s  {kind:>12}: {what}  {verdict}", flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", type=Path, help="receives the table")
    chosen = parser.parse_args()
    be_quiet()
    rows = table()
    if chosen.csv:
        csv.DictWriter(text := io.StringIO(), [*rows[0]], lineterminator="\n").writeheader()
        csv.DictWriter(text, [*rows[0]], lineterminator="\n").writerows(rows)
        chosen.csv.write_text(text.getvalue())
    bad = [r for r in rows if r["MB"] >= 1024 or r["seconds"] > 10 or r["verdict"] != "as expected"]
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
