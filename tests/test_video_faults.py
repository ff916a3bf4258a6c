"""Clips as they come: mirrored, cut off, damaged, too large, of two sizes, in other formats."""

import gzip
import io
import resource
import struct
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from test_video import KINDS, both, encode, moving, numbered, numbers

from bt_adapter import video
from bt_adapter.containers import FORMATS, SUFFIXES, find_clips, is_clip, why_no_video
from bt_adapter.pictures import MAX_PIXELS, shown_size, upright
from bt_adapter.video import (
    ClipError,
    DamageWarning,
    list_clips,
    read_clip,
    read_clips,
    sample_indices,
    sample_times,
)

FAULTS = Path(__file__).parent / "faults"
ONE = 1 << 16
ORIENTATIONS = {  # a b c d of the display matrix: what is shown of a picture (..., h, w, 3)
    (1, 0, 0, 1): lambda p: p,
    (0, 1, -1, 0): lambda p: np.rot90(p, -1, (1, 2)),
    (-1, 0, 0, -1): lambda p: np.rot90(p, 2, (1, 2)),
    (0, -1, 1, 0): lambda p: np.rot90(p, 1, (1, 2)),
    (-1, 0, 0, 1): lambda p: p[:, :, ::-1],
    (1, 0, 0, -1): lambda p: p[:, ::-1],
    (0, 1, 1, 0): lambda p: p.swapaxes(1, 2),
    (0, -1, -1, 0): lambda p: p.swapaxes(1, 2)[:, ::-1, ::-1],
}


def set_matrix(path, a, b, c, d):
    """Write a display matrix into an mp4 file; the factors may be fractions."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (round(factor * ONE) for factor in (a, b, c, d))
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


# ---------- how pictures are meant


@pytest.mark.parametrize("kind", [{}, {"options": {"x264-params": "open-gop=1:keyint=9"}}])
@pytest.mark.parametrize("four", ORIENTATIONS)
def test_eight_orientations(tmp_path, four, kind):
    path = encode(tmp_path / "a.mp4", moving(30, height=128), **kind)
    plain = read_clip(path, 30).numpy()
    set_matrix(path, *four)
    expected = ORIENTATIONS[four](plain)
    assert np.array_equal(read_clip(path, 30), expected)
    told = both(path, 8)  # decord agrees, or is refused with a reason
    a, b, c, d = four
    if not kind:
        assert ("mirrored" in told) if a * d - b * c < 0 else torch.is_tensor(told)


@pytest.mark.parametrize("angle", [-30, -1, 20, 44, 46, 100, 135.5, 170])
def test_angles_between_are_shown_as_the_nearest_turn(tmp_path, angle):
    path = encode(tmp_path / "a.mp4", moving(5))
    plain, radians = read_clip(path, 5).numpy(), np.deg2rad(angle)
    cos, sin = np.cos(radians), np.sin(radians)
    set_matrix(path, cos, sin, -sin, cos)
    turned = np.rot90(plain, -round(angle / 90), (1, 2))
    assert np.array_equal(read_clip(path, 5), turned)
    assert "at an angle" in both(path, 5)  # from -45 to -1, decord shows it otherwise


def test_a_matrix_of_zeros_changes_nothing():
    picture = moving(1)[0]
    assert np.array_equal(upright(picture, bytes(36)), picture)


@pytest.mark.parametrize(
    "name, corners",
    [("mirror_h", "grxb"), ("transpose", "rbgx"), ("rot90", "brxg")],
)
def test_mirrors_of_public_files(name, corners):
    colours = {"r": (255, 0, 0), "g": (0, 255, 0), "b": (0, 0, 255), "x": (128, 128, 128)}
    (frame,) = read_clip(FAULTS / f"{name}.mp4", 1).int()
    height, width = frame.shape[:2]
    places = [(y, x) for y in (8, height - 8) for x in (8, width - 8)]
    for place, colour in zip(places, corners, strict=True):
        assert (frame[place] - torch.tensor(colours[colour])).abs().max() < 30, (name, place)


def with_aspect(path, ratio, clip):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 25)
        stream.height, stream.width = clip.shape[1:3]
        stream.codec_context.sample_aspect_ratio = Fraction(ratio)
        for picture in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("ratio, width", [("2", 320), ("12/11", 175), ("1/2", 80)])
def test_pixels_that_are_not_square_are_shown_in_their_shape(tmp_path, name, ratio, width):
    path = with_aspect(tmp_path / name, ratio, moving(10))
    assert read_clip(path, 4).shape == (4, 96, width, 3)
    assert read_clip(path, 4, pixels="stored").shape == (4, 96, 160, 3)
    assert "not square" in both(path, 4)
    assert torch.is_tensor(both(path, 4, pixels="stored"))
    (clip,) = read_clips([path], 4, pixels="stored")
    assert clip.shape[2] == 160


def test_square_pixels_change_nothing(tmp_path):
    plain = encode(tmp_path / "plain.mp4", moving(10))
    nearly = with_aspect(tmp_path / "nearly.mp4", "1281/1280", moving(10))
    for path in (plain, nearly):
        assert torch.equal(read_clip(path, 10), read_clip(path, 10, pixels="stored"))
    assert read_clip(FAULTS / "sar_2x1.mp4").shape == (8, 64, 128, 3)


def test_a_picture_is_stretched_before_it_is_turned(tmp_path):
    path = with_aspect(tmp_path / "a.mp4", 2, moving(10))
    set_matrix(path, 0, 1, -1, 0)
    assert read_clip(path, 3).shape == (3, 320, 96, 3)


def test_frames_are_shrunk_while_they_are_read(tmp_path):
    path = encode(tmp_path / "a.mp4", numbered(20, 64, 128))
    small = read_clip(path, 20, size=32)
    assert small.shape == (20, 32, 64, 3) and numbers(small) == list(range(20))
    assert torch.equal(read_clip(path, 20, size=64), read_clip(path, 20, size=5000))
    (clip,) = read_clips([path], 20, size=32)
    assert torch.equal(clip, small)
    set_matrix(path, 0, 1, -1, 0)
    assert read_clip(path, 20, size=32).shape == (20, 64, 32, 3)
    assert "smaller size" in both(encode(tmp_path / "b.mp4", moving(10)), 8, size=48)


# ---------- limits


def gif(width, height, frames=2):
    """A GIF whose screen has any size, and whose pictures are a pixel each."""
    screen = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(6)
    picture = b"," + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0\2\2\x44\1\0"
    return screen + picture * frames + b";"


@pytest.mark.parametrize("size", [(16_000, 16_000), (4000, 4000), (65_535, 200)])
def test_a_bomb_is_refused_before_it_is_allocated(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for make in (gif(*size), *([(FAULTS / "bomb-4000x4000.gif").read_bytes()] * 2)):
        with pytest.raises(ClipError, match=r"max_pixels = 9,437,184"):
            read_clip("bomb.gif", data=make)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000  # kB


def test_the_limit_can_be_set(tmp_path):
    large = read_clip("large.gif", 2, data=gif(4000, 3000), max_pixels=12_000_000, size=30)
    assert large.shape == (2, 30, 40, 3)
    path = encode(tmp_path / "a.mp4", moving(10))
    assert read_clip(path, max_pixels=160 * 96).shape == (8, 96, 160, 3)
    with pytest.raises(ClipError, match=r"15,360 pixels, more than max_pixels = 15,359"):
        read_clip(path, max_pixels=160 * 96 - 1)
    wide = with_aspect(tmp_path / "wide.mp4", 20, moving(10))
    with pytest.raises(ClipError, match=r"307,200 pixels, more than max_pixels = 300,000"):
        read_clip(wide, max_pixels=300_000)
    assert 3840 * 2160 < MAX_PIXELS < 4000 * 4000
    for word in ("max_pixels", "size"):
        with pytest.raises(ValueError, match="at least 1"):
            read_clip(path, **{word: 0})


WORST = """
import resource, sys, torch, av
from bt_adapter.video import read_clip
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_clip(sys.argv[1]); before = peak()
read_clip(sys.argv[2]); print(peak() - before)
"""


@pytest.mark.slow
def test_memory_of_the_largest_picture_that_is_read(tmp_path):
    (tmp_path / "large.gif").write_bytes(gif(4096, 2304, 20))
    small = encode(tmp_path / "a.mp4", moving(10))
    command = [sys.executable, "-c", WORST, small, tmp_path / "large.gif"]
    grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(grown) < 600_000  # kB; eight pictures have 227,000


@pytest.mark.slow
def test_many_tiny_frames():
    data = gzip.decompress((FAULTS / "bomb-many-frames.gif.gz").read_bytes())
    assert read_clip("many.gif", data=data).shape == (8, 2, 2, 3)


# ---------- what changes in mid-stream


@pytest.mark.parametrize("frames", [1, 2, 8, 30])
def test_a_size_that_changes(frames):
    with pytest.raises(ClipError, match="two sizes, 64 x 48 and 66 x 48"):
        read_clip(FAULTS / "size-change.flv", frames)


def two_sizes(path, codec, **options):
    """Two films of one codec, one behind the other, in one stream."""
    parts = [encode(path.with_name(f"{i}.mkv"), moving(20, 96, 160 - 32 * i), codec, **options)
             for i in range(2)]  # fmt: skip
    with av.open(str(parts[0])) as first, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(first.streams.video[0])
        shift = 0
        for part in parts:
            with av.open(str(part)) as container:
                for packet in container.demux(video=0):
                    if packet.size:
                        packet.pts, packet.dts = packet.pts + shift, (packet.dts or 0) + shift
                        packet.stream = stream
                        out.mux(packet)
            shift += 10_000
    return path


IN_BAND = (
    {"options": {"x264-params": "repeat-headers=1"}},
    {"options": {"x265-params": "log-level=none:repeat-headers=1"}},
)


@pytest.mark.parametrize(
    "codec, name, options",
    [
        ("libvpx-vp9", "a.webm", {}),
        ("libvpx", "b.webm", {}),
        ("libx264", "c.mkv", IN_BAND[0]),
        ("libx265", "d.mkv", IN_BAND[1]),
    ],
)
def test_a_size_that_changes_at_a_key_frame_is_told_for_every_request(
    tmp_path, codec, name, options
):
    path = two_sizes(tmp_path / name, codec, **options)
    for frames, span in ((1, None), (8, None), (3, (0, 0.5)), (40, None)):
        with pytest.raises(ClipError, match="two sizes"):
            read_clip(path, frames, span=span)


def test_a_stream_that_appears_in_mid_stream(tmp_path, monkeypatch):
    """PyAV has no number for it, and stumbles when all packets have come."""
    path = encode(tmp_path / "a.ts", numbered(60), **KINDS["broadcast.ts"])
    expected, real = numbers(read_clip(path)), av.open

    class Late:
        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def __enter__(self):
            self.container.__enter__()
            return self

        def __exit__(self, *error):
            self.container.__exit__(*error)

        def demux(self, *streams):
            yield from self.container.demux(*streams)
            raise IndexError("tuple index out of range")

    monkeypatch.setattr(av, "open", lambda *args, **kwargs: Late(real(*args, **kwargs)))
    assert numbers(read_clip(path)) == expected


@pytest.mark.parametrize(
    "error", [IndexError, RuntimeError, KeyError, ZeroDivisionError, MemoryError]
)
def test_no_error_of_pyav_reaches_the_caller(tmp_path, monkeypatch, error):
    path = encode(tmp_path / "a.mp4", numbered(20))

    def fail(*_, **__):
        raise error("inside")

    monkeypatch.setattr(video, "_survey", fail)
    with pytest.raises(ClipError, match=r"a\.mp4") as found:
        read_clip(path)
    assert "inside" not in str(found.value)


# ---------- files that were cut off


def rest_of(path, whole, share):
    cut = path.with_stem(f"cut{share}")
    cut.write_bytes(whole[: int(len(whole) * share)])
    return cut


@pytest.mark.parametrize(
    "name, kind",
    [
        ("a.mkv", {}),
        ("sound.mkv", {"audio": True}),
        ("vp9.webm", {"codec": "libvpx-vp9", "gop_size": 20}),
        ("vp8.webm", {"codec": "libvpx", "gop_size": 20}),
        ("a.flv", {"codec": "flv1"}),
        ("a.asf", {"codec": "wmv2"}),
    ],
)
def test_a_file_that_was_cut_off(tmp_path, name, kind):
    path = encode(tmp_path / name, moving(150), **kind)
    whole = path.read_bytes()
    assert len(read_clip(path)) == 8
    for share in (0.2, 0.5, 0.8):
        cut = rest_of(path, whole, share)
        for frames in (1, 8):
            with pytest.raises(ClipError, match="cut off"):
                read_clip(cut, frames)
        with pytest.raises(ClipError, match="cut off"):
            read_clip("in memory", data=cut.read_bytes())


def live(clip, codec="libx264", **options):
    """Matroska as it is sent while it is made: it says neither its size nor its length."""
    stored = io.BytesIO()
    stored.seekable = lambda: False
    file = type("Pipe", (), {"write": stored.write})()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream(codec, 25, options=options)
        stream.height, stream.width = clip.shape[1:3]
        for picture in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))))
        container.mux(stream.encode())
    return stored.getvalue()


def test_no_false_alarm_without_a_length():
    data = live(numbered(60))
    assert numbers(read_clip("live.mkv", 60, data=data)) == list(range(60))
    assert len(read_clip("live.mkv", data=data[: len(data) * 2 // 3])) == 8  # nobody can know


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.mp4"])
def test_no_false_alarm_with_a_long_last_frame_or_a_late_first(tmp_path, name):
    kind = {"codec": "libvpx-vp9"} if name == "a.webm" else {}
    for times in ([*range(0, 190, 10), 20_000], [5000 + 10 * i for i in range(20)]):
        path = encode(tmp_path / name, numbered(20), times=times, **kind)
        assert numbers(read_clip(path, 20)) == list(range(20))


@pytest.mark.parametrize(
    "name, codec, pix_fmt",
    [
        ("a.ts", "libx264", "yuv420p"),
        ("a.mpg", "mpeg2video", "yuv420p"),
        ("a.gif", "gif", "rgb8"),
        ("a.y4m", "wrapped_avframe", "yuv420p"),
        ("a.ivf", "libvpx", "yuv420p"),
        ("a.h264", "libx264", "yuv420p"),
        ("a.mjpeg", "mjpeg", "yuvj420p"),
    ],
)
def test_formats_that_do_not_tell_how_long_they_are(tmp_path, name, codec, pix_fmt):
    """As the notebook on containers says: what is left is read as if it were all."""
    path = encode(tmp_path / name, moving(60), codec, pix_fmt=pix_fmt)
    assert len(read_clip(rest_of(path, path.read_bytes(), 0.6))) == 8


def test_public_files_cut_and_whole():
    with pytest.raises(ClipError, match=r"cut off, 10\.\d of 60\.0 seconds"):
        read_clip(FAULTS / "cut_60s.mkv")
    assert len(read_clip(FAULTS / "whole.mkv")) == 8


# ---------- a damaged frame


def spoilt(path, places, total=100):
    """An mp4 of `total` frames in which the packets at these places (in the file) are rubbish."""
    encode(path, numbered(total), options={"x264-params": "bframes=0:keyint=10:scenecut=0"})
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for place in places:
        start, size = packets[place]
        data[start : start + size] = b"\xff" * size
    path.write_bytes(data)
    return path


def verdict(path, **request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamageWarning)
        try:
            return len(read_clip(path, **request)) == request.get("frames", 8)
        except ClipError:
            return "refused"


REQUESTS = [
    {"frames": 1},
    {"frames": 2},
    {"frames": 8},
    {"frames": 100},
    {"span": (0, 1)},
    {"span": (3, 4)},
    {"generator": torch.Generator().manual_seed(0)},
    {"by": "time"},
]


@pytest.mark.parametrize(
    "spoil", [[77], [0], [99], [0, 50], range(30, 60), range(5, 100), range(1, 100, 2)]
)
def test_the_verdict_on_a_damaged_file_does_not_depend_on_the_request(tmp_path, spoil):
    path = spoilt(tmp_path / "a.mp4", spoil)
    assert {verdict(path, **request) for request in REQUESTS} == {True}


@pytest.mark.parametrize("kind", ["b_frames.avi", "broadcast.ts", "vp9.webm", "short_groups.mkv"])
def test_the_verdict_in_other_formats(tmp_path, kind):
    path = encode(tmp_path / kind, moving(60), **KINDS[kind])
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for start in rng.integers(len(data) // 4, len(data) * 3 // 4, 3):
        data[start : start + 40] = rng.integers(0, 256, 40, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    requests = [r for r in REQUESTS if "span" not in r and r.get("frames") != 100]
    assert len({verdict(path, **request) for request in requests}) == 1


def test_nothing_left_is_refused_whatever_is_asked_for(tmp_path):
    path = spoilt(tmp_path / "a.mp4", range(100))
    assert {verdict(path, **request) for request in REQUESTS} == {"refused"}


def test_the_nearest_good_frame_stands_in_and_is_told(tmp_path):
    path = spoilt(tmp_path / "a.mp4", [40, 41, 42, 43, 44, 45, 46, 47, 48, 49])  # a whole group
    with pytest.warns(DamageWarning, match=r"a\.mp4 is damaged: for 10 of 100 frames"):
        got = numbers(read_clip(path, 100))
    nearest = [39] * 5 + [50] * 5  # as near: the earlier one
    assert got == [*range(40), *nearest, *range(50, 100)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert numbers(read_clip(path, 4, span=(0, 1))) == [3, 9, 15, 21]  # far from the damage


@pytest.mark.parametrize("frames", [1, 2, 8, 100])
def test_one_bad_frame_of_a_public_file(frames):
    assert verdict(FAULTS / "one_bad_frame.mp4", frames=frames) is True
    assert verdict(FAULTS / "one_bad_frame.mp4", frames=frames, span=(0, 2)) is True


# ---------- formats, and reasons for those that are none


@pytest.mark.parametrize(
    "name, codec, pix_fmt",
    [
        ("a.mxf", "mpeg2video", "yuv420p"),
        ("a.y4m", "wrapped_avframe", "yuv420p"),
        ("a.ivf", "libvpx", "yuv420p"),
        ("a.apng", "apng", "rgb24"),
        ("a.h264", "libx264", "yuv420p"),
        ("a.mjpeg", "mjpeg", "yuvj420p"),
        ("a.gif", "gif", "rgb8"),
        ("a.3gp", "mpeg4", "yuv420p"),
        ("a.m2ts", "libx264", "yuv420p"),
        ("a.vob", "mpeg2video", "yuv420p"),
        ("a.asf", "wmv2", "yuv420p"),
    ],
)
def test_formats_that_are_read_and_found(tmp_path, name, codec, pix_fmt):
    path = encode(tmp_path / name, numbered(60), codec, pix_fmt=pix_fmt)
    assert numbers(read_clip(path, 8)) == sample_indices(60, 8).tolist()
    assert list_clips(tmp_path) == [path]


def test_public_files_of_other_formats():
    for name in ("tape.mxf", "raw.y4m", "anim.apng", "phone.3gp", "anim.gif"):
        assert len(read_clip(FAULTS / name)) == 8 and is_clip(FAULTS / name)


@pytest.mark.parametrize(
    "data, word",
    [
        (b"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1/a.ts\n", "play list"),
        (b"ffconcat version 1.0\nfile a.mp4\n", "play list"),
        (b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011">', "play list"),
        (b"<!DOCTYPE html>\n<html><title>404</title></html>", "web page"),
        (b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\0\0\0\x10\x07\x10\x11\x11\x88\x88\xfe\7\0", "WebP"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(100), "single picture"),
        (b"%PDF-1.7\n" + bytes(100), "PDF"),
        (b"PK\3\4" + bytes(100), "archive"),
        (b".RMF" + bytes(100), "RealMedia"),
    ],
)
def test_what_is_no_video_is_named(data, word):
    with pytest.raises(ClipError, match=f"it is no video file, but .*{word}"):
        read_clip("a.mp4", data=data)
    assert word in why_no_video(data, True)


def test_an_encrypted_film_is_called_encrypted(tmp_path):
    path = tmp_path / "a.mp4"
    options = {
        "encryption_scheme": "cenc-aes-ctr",
        "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
        "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
    }
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", 25)
        stream.height = stream.width = 64
        for picture in numbered(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))))
        container.mux(stream.encode())
    with pytest.raises(ClipError, match="encrypted"):
        read_clip(path)


@pytest.mark.parametrize("name", ["a\0.mp4", "\ud800.mp4"])
def test_names_that_no_file_can_have(name):
    with pytest.raises(ClipError, match="no file can have this name") as error:
        read_clip(name)
    assert str(error.value).isascii() and str(error.value).isprintable()


def test_no_format_names_other_files():
    refused = {"hls", "concat", "concatf", "dash", "sdp", "image2", "rtsp", "imf", "tee", "lavfi"}
    assert not refused & set(FORMATS)


# ---------- finding clips


def test_finding(tmp_path):
    names = ["A.3GP", "b.ogv", "c.gif", "d.m2ts", "e.mts", "f.asf", "g.vob", "in/h.webm"]
    for name in [*names, "notes.txt", "song.mp3", ".i.mp4", "table.csv"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    encode(tmp_path / "j.mp4", numbered(4)).rename(tmp_path / "v_abc")  # no suffix, but a clip
    (tmp_path / "README").write_text("no clip")
    (tmp_path / "k.ogg").write_bytes(b"OggS" + bytes(24) + b"\x01vorbis")
    found = [str(path.relative_to(tmp_path)) for path in find_clips(tmp_path)]
    assert found == [*names, "v_abc"]
    assert [p.name for p in find_clips(tmp_path, deep=False)] == [*names[:-1], "v_abc"]
    assert list_clips(tmp_path) == find_clips(tmp_path)
    assert {".mp4", ".mkv", ".3gp", ".ogv", ".wmv"} < SUFFIXES


# ---------- by time


@pytest.mark.parametrize("frames", [1, 3, 8, 50])
def test_by_time_is_the_middle_of_equal_stretches(frames):
    rng = np.random.default_rng(frames)
    for _ in range(50):
        starts = (np.cumsum(rng.integers(1, 40, 30)) - rng.integers(0, 500)).tolist()
        end = starts[-1] + int(rng.integers(1, 200))
        total = end - starts[0]
        got = sample_times(starts, end, frames).tolist()
        for i, place in enumerate(got):
            moment = starts[0] + (Fraction(i) * total + total // 2) / frames
            assert starts[place] <= moment < [*starts, end][place + 1]
        drawn = sample_times(starts, end, frames, torch.Generator().manual_seed(0)).tolist()
        assert drawn == sorted(drawn) and 0 <= drawn[0] and drawn[-1] < 30


def test_by_time_is_by_number_where_frames_are_even():
    for total in (1, 7, 20, 100):
        for frames in (1, 3, 8, 30):
            starts = list(range(5, 5 + 12 * total, 12))
            by_time = sample_times(starts, 5 + 12 * total, frames).tolist()
            assert by_time == sample_indices(total, frames).tolist()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_film_with_pauses(tmp_path, name):
    times = [*range(0, 150, 10), 500, 1000, 1500, 2000]  # in 1/250 s
    path = encode(tmp_path / name, numbered(19), times=times)
    by_time = numbers(read_clip(path, 5, by="time"))
    ends = {"a.mp4": [14, 15, 16, 17, 18], "a.mkv": [14, 15, 16, 16, 17]}  # its last frame is short
    assert by_time == ends[name]
    assert numbers(read_clip(path, 5)) == sample_indices(19, 5).tolist()
    part = numbers(read_clip(path, 3, by="time", span=(0, 0.6)))  # 15 frames, the last one long
    assert part[-1] == 14
    (clip,) = read_clips([path], 5, by="time")
    assert numbers(clip) == by_time


def test_times_out_of_all_measure_do_not_change_the_verdict(tmp_path):
    path = encode(tmp_path / "a.ivf", numbered(60), "libvpx")
    data = bytearray(path.read_bytes())
    at = 32  # the frames follow the header
    for _ in range(59):
        at += 12 + int.from_bytes(data[at : at + 4], "little")
    data[at + 4 : at + 12] = (2**61).to_bytes(8, "little")  # when the last frame is shown
    for request in REQUESTS[:3] + REQUESTS[-2:]:
        assert len(read_clip("a.ivf", data=bytes(data), **request)) == request.get("frames", 8)


def test_settings_that_are_none(tmp_path):
    path = encode(tmp_path / "a.mp4", numbered(4))
    for settings in ({"by": "seconds"}, {"pixels": "round"}):
        for call in (read_clip, lambda path, **how: read_clips([path], **how)):
            with pytest.raises(ValueError, match="can be") as error:
                call(path, **settings)
            assert not isinstance(error.value, ClipError)


def test_shown_size_never_vanishes():
    assert shown_size(10, 10, Fraction(1, 10**6)) == (1, 10)
    assert shown_size(10_000, 10, None, size=1) == (1000, 1)
