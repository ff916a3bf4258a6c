"""Make the inputs that fuzzing begins with: python tests/fuzz/seeds.py (writes tests/fuzz/corpus).

Findings that were mended are kept beside them as found-*; they stay where they are. Matroska and
WebM are written with another number of their own each time; all else is the same again.
"""

import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import torch
from mutate import join_pair
from targets import CLIP, SMALL  # which makes the tests importable
from test_video import encode, moving, numbered
from tiny import shake, tiny_clip, tiny_eva

from bt_adapter.branch import BranchConfig, BTAdapter
from bt_adapter.released import save_released

HERE = Path(__file__).resolve().parent
CORPUS, FAULTS = HERE / "corpus", HERE.parent / "faults"
X264 = {"options": {"x264-params": "bframes=2:keyint=6"}}
FILMS = {
    "plain.mp4": X264,
    "open.mp4": {"options": {"x264-params": "open-gop=1:keyint=6:bframes=2:b-adapt=0"}},
    "sound.mp4": {"audio": True},
    "short.mkv": X264,
    "vp9.webm": {"codec": "libvpx-vp9", "gop_size": 6},
    "vp8.webm": {"codec": "libvpx", "gop_size": 6},
    "b.avi": {"codec": "mpeg4", "gop_size": 6, "max_b_frames": 2},
    "old.mpg": {"codec": "mpeg2video", "gop_size": 6, "max_b_frames": 2},
    "cast.ts": X264,
    "a.flv": {"codec": "flv1"},
    "a.asf": {"codec": "wmv2"},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=6"}},
    "b.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "a.mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "raw.h264": X264,
    "a.ivf": {"codec": "libvpx", "gop_size": 6},
}


def films() -> dict[str, bytes]:
    """Clips of a few kB in all kinds of containers, and the small ones among the faults."""
    with tempfile.TemporaryDirectory() as folder:
        made = {}
        for name, how in FILMS.items():
            try:
                path = encode(Path(folder) / name, moving(12, 48, 64), **how)
            except (ValueError, OSError) as error:  # a codec that is not built in
                print(f"{name}: {error}", file=sys.stderr)
                continue
            made[name] = path.read_bytes()
        long = encode(Path(folder) / "long.mp4", numbered(60, 32, 32), **X264)
        made["long.mp4"] = long.read_bytes()
    for name in "mirror_h.mp4 rot90.mp4 sar_2x1.mp4 size-change.flv anim.apng anim.gif".split():
        made[name] = (FAULTS / name).read_bytes()
    for name in "raw.y4m cut_60s.mkv bomb-4000x4000.gif tape.mxf phone.3gp".split():
        made[name] = (FAULTS / name).read_bytes()
    return made


TABLE = 'id,file,caption,label,start,end\na,a.mp4,a dog,x,0,2.5\nb,b.mp4,"a, cat",,,\n'
SENTENCES = [dict(video_id="v1", caption="a dog"), dict(video_id="v2", caption="a cat")]
MSRVTT = dict(videos=[dict(video_id=v, split="train") for v in ("v1", "v2")], sentences=SENTENCES)
CAPTIONS = {
    "csv": TABLE,
    "tsv": TABLE.replace(",", "\t"),
    "semicolons": ("csv", TABLE.replace(",", ";")),
    "utf16": ("csv", TABLE.encode("utf-16")),
    "latin1": ("csv", "file,caption\na.mp4,\xe9t\xe9\nb.mp4,tea\n".encode("latin-1")),
    "jsonl": '{"file": "a.mp4", "caption": "a"}\n{"file": "b", "caption": ["a", "b"], "start": 1, '
    '"end": 2, "id": 7}\n',
    "webvid": "videoid,contentUrl,duration,page_dir,name\n1,x,PT1S,000,a dog\n2,x,PT1S,001,a cat\n",
    "msrvtt": json.dumps(MSRVTT),
    "msrvtt-csv": "key,vid_key,video_id,sentence\nret0,msr1,video1,a dog\nret1,msr2,video2,a cat\n",
    "didemo": json.dumps([dict(video="a.mp4", description="up"), dict(video="b", description="x")]),
    "activitynet": json.dumps({"v_a": dict(duration=9.5, sentences=["a dog", "a cat"])}),
    "lsmdc": "m_a\t1\t2\t3\t4\tup\nm_b\t1\t2\t3\t4\tdown\n",
    "kinetics400": "label,youtube_id,time_start,time_end,split\nup,a,0,10,train\ndown,b,1,11,val\n",
    "ucf101": "JumpUp/v_a.avi 1\nSit/v_b.avi\n",
    "hmdb51": "a.avi 1\nb.avi 2\nc.avi 1\n",
}


def captions() -> dict[str, bytes]:
    """A table of each format, with the format in the first line."""
    made = {}
    for name, told in CAPTIONS.items():
        kind, text = told if isinstance(told, tuple) else (name, told)
        made[name] = kind.encode() + b"\n" + (text if isinstance(text, bytes) else text.encode())
    rows = pa.table(dict(file=["a.mp4", "b.mp4"], caption=["a dog", "a cat"], start=[0.0, None]))
    pyarrow.parquet.write_table(rows, packed := io.BytesIO())
    made["parquet"] = b"parquet\n" + packed.getvalue()
    for path in sorted(FAULTS.glob("captions-*")):
        made[path.stem] = path.suffix[1:].encode() + b"\n" + path.read_bytes()
    return made


def tar(*members: tuple[str, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue().rstrip(b"\0") + bytes(1024)


def shards() -> dict[str, bytes]:
    """Shards of films of a few bytes, and indexes."""
    known = dict(id="a", captions=["a dog"], label="x", span=[0, 2], turns=[["q", "a"]])
    good = [("a.mp4", b"film"), ("a.json", json.dumps(known).encode())]
    good += [("b.mp4", b"other"), ("b.txt", b"a cat"), ("b.wav", b"")]
    made = dict(good=tar(*good), pax=tar(("\xe9" * 90 + ".mp4", b"x"), form=tarfile.PAX_FORMAT))
    made["long"] = tar(("d/" * 90 + "a.mp4", b"x"), *good, form=tarfile.GNU_FORMAT)
    listed = [dict(url="x.tar", nsamples=2), dict(url="y.tar", nsamples=1)]
    made["index"] = json.dumps(dict(shardlist=listed)).encode()
    for path in sorted([*FAULTS.glob("index-*"), *FAULTS.glob("shard-*")]):
        made[path.stem] = path.read_bytes()
    return made


def adapters() -> dict[str, bytes]:
    """Settings and weights of small adapters, one after another."""
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for convention in ("paper", "released"):
            config = BranchConfig(layers=2, max_frames=4, convention=convention)
            model = BTAdapter(CLIP, config)
            shake(model.branch)
            model.save_pretrained(folder)
            parts = [(Path(folder) / f"adapter.{kind}").read_bytes() for kind in
                     ("json", "safetensors")]  # fmt: skip
            made[convention] = join_pair(*parts)
        for path in sorted(FAULTS.glob("adapter-*.json")):
            made[path.stem] = join_pair(path.read_bytes(), parts[1])
    return made


def weights() -> dict[str, bytes]:
    """Released state dicts: of a small CLIP, of the branch alone, of an EVA, and what is none."""
    clips = dict(clip=tiny_clip(True, **SMALL), eva=tiny_eva(embed_dim=8, depth=3, num_heads=2))
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, clip in clips.items():
            combination = "addition" if name == "eva" else "weighted"
            config = dict(layers=1, max_frames=4, combination=combination, align=name != "eva")
            model = BTAdapter(clip, BranchConfig(convention="released", **config))
            shake(model.branch)
            for suffix in (".safetensors", ".pth"):
                for whole in (True, False) if name == "clip" else (True,):
                    save_released(model, path := Path(folder, f"x{suffix}"), clip=whole)
                    made[f"{name}{'' if whole else '-branch'}{suffix[1:]}"] = path.read_bytes()
    strange = {"a": torch.ones(2), "b": torch.ones(1).expand(10**6, 10**6)}
    for name, content in dict(strange=strange, nested={"state_dict": {"a": torch.ones(1)}}).items():
        torch.save(content, packed := io.BytesIO())
        made[name] = packed.getvalue()
    return made


def dialogues() -> dict[str, bytes]:
    """Instructions in both forms."""
    said = [{"from": "human", "value": "<video>\nWhat is it?"}, {"from": "gpt", "value": "A dog."}]
    both = [dict(q="What?", a="A dog.", video_id="v1"), dict(id="v2", conversations=said * 2)]
    return dict(both=json.dumps(both).encode(), indented=json.dumps(both, indent=1).encode())


MADE = dict(clip=films, captions=captions, shards=shards, adapter=adapters, released=weights)
MADE |= dict(dialogues=dialogues)


def main():
    for reader, make in MADE.items():
        folder, seen = CORPUS / reader, set()
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            seen.add(old.read_bytes()) if old.name.startswith("found-") else old.unlink()
        for name, content in make().items():
            if content not in seen:
                seen.add(content)
                (folder / name).write_bytes(content)
        files = [*folder.iterdir()]
        print(f"{reader:>10}: {len(files)} inputs, {sum(f.stat().st_size for f in files):,} bytes")


if __name__ == "__main__":
    main()
