"""Clips: exact frames in every kind of file, one clear sentence for every file that is no clip."""

import os
import random
import resource
import struct
import subprocess
import sys
from fractions import Fraction
from multiprocessing import get_context

import av
import numpy as np
import pytest
import torch

from bt_adapter import video
from bt_adapter.video import (
    ClipError,
    list_clips,
    read_clip,
    read_clips,
    sample_indices,
    write_clip,
)

# ---------- clips which know their frame numbers


def numbered(count, height=64, width=64):
    """uint8 (count, h, w, 3); frame i shows the bits of i in 16 blocks."""
    bits = np.arange(count)[:, None] >> np.arange(16) & 1
    blocks = (bits.reshape(count, 4, 4) * 200 + 20).astype(np.uint8)
    clip = blocks.repeat(height // 4, 1).repeat(width // 4, 2)
    return np.broadcast_to(clip[..., None], (*clip.shape, 3))


def numbers(clip):
    clip = np.asarray(clip)
    count, height, width, _ = clip.shape
    blocks = clip.mean(-1).reshape(count, 4, height // 4, 4, width // 4).mean((2, 4))
    return ((blocks.reshape(count, 16) > 128) << np.arange(16)).sum(1).tolist()


def encode(
    path, clip, codec="libx264", options=None, times=None, audio=False, pix_fmt="yuv420p", **context
):
    """Write a clip with any codec; times are in 1/250 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 25, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], pix_fmt
        base = Fraction(1, 250 if times else 25)
        stream.codec_context.time_base = base
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        sound = container.add_stream("aac", rate=44100, layout="mono") if audio else None
        for i, picture in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))
            frame.pts, frame.time_base = times[i] if times else i, base
            container.mux(stream.encode(frame))
            if sound:
                container.mux(sound.encode(noise(i)))
        container.mux(stream.encode())
        if sound:
            container.mux(sound.encode())
    return path


def noise(i):
    samples = np.random.default_rng(i).normal(size=(1, 1024)).astype(np.float32) / 10
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate, frame.pts = 44100, 1024 * i
    return frame


def only_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        for i in range(20):
            container.mux(stream.encode(noise(i)))
        container.mux(stream.encode())


def turn(path, degrees):
    """Note in an mp4 file that it is to be shown turned clockwise."""
    data, one = bytearray(path.read_bytes()), 1 << 16
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[degrees]
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def cut_start(path, frames):
    """Cut frames off the start of an mp4 file without encoding it again, by its edit list."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4 + 12
    (start,) = struct.unpack(">i", data[at : at + 4])
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data[at : at + 4] = struct.pack(">i", start + frames * packets[0].duration)
    path.write_bytes(data)


class Watched:
    """A container that counts what is taken from it: packets of each walk, threads."""

    def __init__(self, container, seen):
        self.container, self.seen = container, seen

    def __getattr__(self, name):
        return getattr(self.container, name)

    def __enter__(self):
        self.container.__enter__()
        return self

    def __exit__(self, *error):
        (stream,) = self.container.streams.video
        self.seen["threads"].append(stream.codec_context.thread_count)
        self.container.__exit__(*error)

    def demux(self, *streams):
        self.seen["packets"].append(0)
        for packet in self.container.demux(*streams):
            self.seen["packets"][-1] += 1
            yield packet


def watch(monkeypatch):
    """What all files opened from now on are asked for."""
    seen, real = {"packets": [], "counted": 0, "threads": []}, av.open
    monkeypatch.setattr(av, "open", lambda *args, **kwargs: Watched(real(*args, **kwargs), seen))
    walk = video._good_frames

    def counted(*args):
        for frame in walk(*args):
            seen["counted"] += 1
            yield frame

    monkeypatch.setattr(video, "_good_frames", counted)
    return seen


# ---------- which frames


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 8, 12, 16, 64])
def test_sampling_is_the_middle_of_equal_segments(frames):
    for total in [*range(1, 200), 10_000, 2**31]:
        got = sample_indices(total, frames).tolist()
        assert got == [
            int((Fraction(i) + Fraction(total // 2, total)) * total / frames) for i in range(frames)
        ]
        middle = [(Fraction(2 * i + 1, 2) * total / frames) for i in range(frames)]
        assert all(m - 1 < g <= m for g, m in zip(got, middle, strict=True))
        assert got == sorted(got) and 0 <= got[0] and got[-1] < total


@pytest.mark.parametrize("times", [1, 2, 3, 10])
def test_sampling_of_multiples(times):
    for frames in (1, 5, 8, 64):
        wanted = [i * times + times // 2 for i in range(frames)]
        assert sample_indices(times * frames, frames).tolist() == wanted


@pytest.mark.parametrize("total, frames", [(20, 8), (100, 8), (5, 8), (1, 4), (8, 8)])
def test_random_sampling_stays_in_its_segments_and_prefers_no_frame(total, frames):
    dice, draws = torch.Generator().manual_seed(0), 4000
    taken = torch.stack([sample_indices(total, frames, dice) for _ in range(draws)])
    for i, column in enumerate(taken.T):
        assert i * total // frames <= column.min()
        assert column.max() <= ((i + 1) * total - 1) // frames
    share = torch.bincount(taken.flatten(), minlength=total) / taken.numel()
    assert torch.allclose(
        share, torch.full((total,), 1 / total), atol=5 / (taken.numel() / total) ** 0.5 / total
    )


@pytest.mark.parametrize("total, frames", [(0, 8), (8, 0), (8, -1)])
def test_nothing_to_sample(total, frames):
    with pytest.raises(ValueError, match="at least 1"):
        sample_indices(total, frames)


# ---------- exact frames

KINDS = {
    "plain.mp4": {},
    "b_frames.mp4": {"options": {"x264-params": "bframes=8:b-adapt=0:keyint=250"}},
    "open_groups.mp4": {"options": {"x264-params": "open-gop=1:keyint=30:bframes=8:b-adapt=0"}},
    "short_groups.mkv": {"options": {"x264-params": "keyint=12:bframes=3:b-adapt=0"}},
    "sound.mp4": {"audio": True},
    "vp9.webm": {"codec": "libvpx-vp9", "gop_size": 30},
    "b_frames.avi": {"codec": "mpeg4", "gop_size": 12, "max_b_frames": 2},
    "old.mpg": {"codec": "mpeg2video", "gop_size": 12, "max_b_frames": 2},
    "broadcast.ts": {"options": {"x264-params": "keyint=30:bframes=3"}},
}
if "libx265" in av.codecs_available:  # opens its groups by default
    KINDS["hevc.mp4"] = {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=30"}}
COUNTED = {"b_frames.avi", "old.mpg", "broadcast.ts"}  # their packets do not tell the frames


@pytest.mark.parametrize("name", KINDS)
def test_frame_i_is_the_frame_shown_at_place_i(tmp_path, name, monkeypatch):
    total = 150
    path = encode(tmp_path / name, numbered(total), **KINDS[name])
    seen = watch(monkeypatch)
    for frames in (1, 8, 13, total, total + 5):
        assert numbers(read_clip(path, frames)) == sample_indices(total, frames).tolist()
    for seed in range(5):
        got = numbers(read_clip(path, 11, torch.Generator().manual_seed(seed)))
        assert got == sample_indices(total, 11, torch.Generator().manual_seed(seed)).tolist()
    assert bool(seen["counted"]) == (name in COUNTED)  # else jumps to key frames found all


def test_variable_frame_rate(tmp_path):
    times = np.cumsum(np.random.default_rng(0).integers(1, 400, 90)).tolist()
    path = encode(tmp_path / "vfr.mp4", numbered(90), times=times)
    assert numbers(read_clip(path, 90)) == list(range(90))


@pytest.mark.parametrize("hidden", [[70], [5, 33, 149]])
def test_hidden_frames_do_not_count(tmp_path, hidden):
    """VP8 stores pictures which only lend to later frames, and are not shown, in packets."""
    path = encode(tmp_path / "hidden.webm", numbered(150), codec="libvpx", gop_size=30)
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    data, place = bytearray(path.read_bytes()), 0
    for i, packet in enumerate(packets):
        place = data.index(packet, place)
        data[place] &= ~16 if i in hidden else 255
        place += len(packet)
    path.write_bytes(data)
    shown = [i for i in range(150) if i not in hidden]
    assert numbers(read_clip(path, len(shown))) == shown


@pytest.mark.parametrize(
    "options", [{}, KINDS["open_groups.mp4"]["options"]], ids=["closed", "open"]
)
@pytest.mark.parametrize("frames", [1, 7, 40])
def test_frames_cut_off_by_an_edit_list_are_not_shown(tmp_path, frames, options):
    path = encode(tmp_path / "cut.mp4", numbered(120), options=options)
    cut_start(path, frames)
    got = numbers(read_clip(path, 120 - frames))
    assert got == list(range(frames, 120))


@pytest.mark.parametrize("hidden", [0, 10], ids=["jump", "walk"])
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_clips_come_out_upright(tmp_path, degrees, hidden):
    path = encode(tmp_path / "turned.mp4", numbered(150, 32, 64))
    if hidden:
        cut_start(path, hidden)
    turn(path, degrees)
    upright = np.rot90(numbered(150, 32, 64)[hidden:], -degrees // 90, (1, 2))
    got = read_clip(path, 150 - hidden)
    assert got.shape == upright.shape
    assert np.abs(got.numpy().astype(int) - upright).mean() < 3


def test_every_width(tmp_path):
    """In memory the lines of narrow pictures are padded."""
    for width in [2, 4, 8, *range(14, 132, 2), 176, 320, 426]:
        clip = np.random.default_rng(width).integers(0, 256, (5, 6, width, 3), dtype=np.uint8)
        clip = clip.repeat(4, 1)
        path = encode(tmp_path / "width.mp4", clip)
        with av.open(str(path)) as container:
            wanted = np.stack(
                [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            )
        assert np.array_equal(read_clip(path, 5), wanted), width


@pytest.mark.parametrize("height, width", [(63, 65), (1, 1), (33, 32)])
def test_odd_sizes(tmp_path, height, width):
    clip = np.random.default_rng(0).integers(0, 256, (6, height, width, 3), dtype=np.uint8)
    path = encode(tmp_path / "odd.mkv", clip, "ffv1", pix_fmt="bgr0")
    assert np.array_equal(read_clip(path, 6), clip)


def test_one_frame(tmp_path):
    path = encode(tmp_path / "one.mp4", numbered(6)[5:])
    assert numbers(read_clip(path, 4)) == [5, 5, 5, 5]


@pytest.mark.parametrize("keyint", [1, 2, 3, 12])
def test_jumping_between_many_key_frames(tmp_path, keyint, monkeypatch):
    options = {"x264-params": f"keyint={keyint}:bframes=2:b-adapt=0"}
    path = encode(tmp_path / "keys.mp4", numbered(60), options=options)
    seen = watch(monkeypatch)
    for frames in (1, 7, 60):
        assert numbers(read_clip(path, frames)) == sample_indices(60, frames).tolist()
    assert not seen["counted"]


@pytest.mark.parametrize("name", ["plain.mp4", "open_groups.mp4", "short_groups.mkv", "old.mpg"])
def test_a_part_of_a_clip_and_a_clip_in_memory(tmp_path, name):
    path = encode(tmp_path / name, numbered(100), **KINDS[name])  # 25 frames in a second
    data = path.read_bytes()
    assert numbers(read_clip("memory", 9, data=data)) == sample_indices(100, 9).tolist()
    assert numbers(read_clip(path, 25, span=(2, 3))) == list(range(50, 75))
    assert numbers(read_clip("memory", 5, span=(3.8, 99), data=data)) == list(range(95, 100))
    drawn = read_clip(path, 6, torch.Generator().manual_seed(0), span=(1, 2))
    assert all(25 <= number < 50 for number in numbers(drawn))
    for span in ((5, 6), (2, 2)):
        with pytest.raises(ClipError, match="no frame lies in seconds"):
            read_clip(path, span=span)


def test_broken_files_in_memory(tmp_path, capfd):
    for name, words in broken_files(tmp_path).items():
        if words in ("no such file", "folder", "no ordinary file"):
            continue
        with pytest.raises(ClipError, match=words) as error:
            read_clip("shard.tar/7.mp4", data=(tmp_path / name).read_bytes())
        assert "shard.tar/7.mp4" in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("long") / "long.mp4", numbered(10_000))


def test_ten_thousand_frames(long_clip, monkeypatch):
    """Once through the packets; then at most a group of 250 frames for each frame wanted."""
    seen = watch(monkeypatch)
    assert numbers(read_clip(long_clip, 8)) == sample_indices(10_000, 8).tolist()
    survey, *jumps = seen["packets"]
    assert survey - 10_000 in (0, 1) and len(jumps) == 8 and max(jumps) <= 260
    assert not seen["counted"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip(tmp_path, long_clip):
    write_clip(tmp_path / "short.mp4", numbered(8).copy())
    code = (
        "import resource, sys; from bt_adapter.video import read_clip;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "read_clip(sys.argv[1]); before = peak(); read_clip(sys.argv[2]); print(peak() - before)"
    )
    command = [sys.executable, "-c", code, tmp_path / "short.mp4", long_clip]
    grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(grown) < 40_000  # kB; its frames are 123,000


def test_a_file_that_has_changed(tmp_path):
    path = tmp_path / "a.mp4"
    write_clip(path, torch.tensor(numbered(40)))
    assert numbers(read_clip(path, 40)) == list(range(40))
    encode(path, numbered(30), **KINDS["open_groups.mp4"])
    assert numbers(read_clip(path, 30)) == list(range(30))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ClipError):
        read_clip(path)


# ---------- decord gives the same frames, or one sentence

REFUSED = {  # by decord, with a word of the reason
    "open_groups.mp4": "open",
    "hevc.mp4": "open",
    "b_frames.avi": "avi",
    "old.mpg": "mpeg",
    "broadcast.ts": "mpegts",
}


def both(path, *args, **kwargs):
    """A clip from decord, which must be what PyAV gives; or what is said instead."""
    ours = read_clip(path, *args, **kwargs)
    try:
        theirs = read_clip(path, *args, **kwargs, reader="decord")
    except ClipError as error:
        message = str(error)
        assert f"{path} with decord: " in message and 'reader="pyav"' in message
        assert "\n" not in message and message.count(".") - str(path).count(".") <= 1
        return message
    assert torch.equal(ours, theirs)
    return theirs


def moving(count, height=96, width=160):
    """uint8 (count, height, width, 3): coloured noise that walks."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    shown = np.stack([np.roll(noise, (i // 2, i), (0, 1)) for i in range(count)])
    return shown.repeat(4, 1).repeat(4, 2)


@pytest.mark.parametrize("name", KINDS)
def test_decord_gives_the_same_frames_or_says_why_not(tmp_path, name, capfd):
    path = encode(tmp_path / name, moving(150), **KINDS[name])
    data = path.read_bytes()
    for frames in (1, 8, 150, 155):
        dice = [torch.Generator().manual_seed(frames) for _ in range(2)]
        if name in REFUSED:
            assert REFUSED[name] in both(path, frames)
            continue
        assert len(both(path, frames)) == len(both("memory", frames, data=data)) == frames
        assert len(both(path, frames, span=(1.5, 4))) == frames
        drawn = [
            read_clip(path, frames, generator, reader=reader)
            for generator, reader in zip(dice, ("pyav", "decord"), strict=True)
        ]
        assert torch.equal(*drawn)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("keyint", [1, 2, 12, 250])
def test_decord_between_many_key_frames(tmp_path, keyint):
    options = {"x264-params": f"keyint={keyint}:bframes=2:b-adapt=0"}
    path = encode(tmp_path / "keys.mp4", moving(60), options=options)
    for frames in (1, 7, 60):
        assert len(both(path, frames)) == frames


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_decord_turns_clips_upright(tmp_path, degrees):
    path = encode(tmp_path / "turned.mp4", moving(30, height=128))
    turn(path, degrees)
    assert both(path, 8).shape[1:3] == ((128, 160) if degrees == 180 else (160, 128))


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("width, height", [(160, 96), (96, 160), (96, 144), (72, 128)])
def test_decord_and_widths_of_turned_clips(tmp_path, degrees, width, height):
    """It is the width as shown that must not look padded; the same on every processor."""
    path = encode(tmp_path / "turned.mp4", moving(5, height, width))
    if degrees:
        turn(path, degrees)
    shown = height if degrees in (90, 270) else width
    told = both(path, 5)
    if shown in (72, 96, 144):
        assert f"lines of {shown} pixels" in told
    else:
        assert told.shape[2] == shown


@pytest.mark.parametrize("side, seed", [(32, 1), (46, 1), (48, 5), (64, 3), (80, 1)])
def test_a_clip_is_written_the_same_every_time(tmp_path, side, seed):
    """With AVX-512, x264 left to itself wrote some of these in two ways."""
    clip = torch.tensor(np.random.default_rng(seed).integers(0, 256, (4, side, side, 3)))
    files = set()
    for i in range(150):
        used = [np.full(1 + (i * 7919 + j * 997) % 50_000, i, np.uint8) for j in range(6)]
        del used  # memory that is handed out again
        write_clip(tmp_path / "clip.mp4", clip.to(torch.uint8))
        files.add((tmp_path / "clip.mp4").read_bytes())
    assert len(files) == 1


def test_decord_and_a_variable_frame_rate(tmp_path):
    times = np.cumsum(np.random.default_rng(0).integers(1, 400, 90)).tolist()
    path = encode(tmp_path / "vfr.mp4", moving(90), times=times)
    assert len(both(path, 90)) == 90 and len(both(path, 5, span=(20, 40))) == 5


def test_decord_and_widths(tmp_path):
    """Padded to 8, 16, 32 or 64 pixels, some lines are a whole number of widths long."""
    for width in (2, 8, 12, 16, 24, 32, 48, 72, 96, 144):
        path = encode(tmp_path / "width.mp4", moving(5, 96, 256)[:, :, :width])
        assert f"lines of {width} pixels" in both(path, 5)
    for width in (10, 14, 22, 64, 100, 128, 160, 176, 256):
        path = encode(tmp_path / "width.mp4", moving(5, 96, 256)[:, :, :width])
        assert both(path, 5).shape[2] == width


@pytest.mark.parametrize(
    "name, settings, word",
    [
        ("lines.mp4", dict(options={"x264-params": "interlaced=1"}), "interlaced h264"),
        ("ten_bits.mp4", dict(pix_fmt="yuv420p10le"), "yuv420p10le"),
        ("lossless.mkv", dict(codec="ffv1", pix_fmt="bgr0"), "ffv1"),
        ("vp8.webm", dict(codec="libvpx"), "hidden"),
        (
            "refreshed.mkv",
            dict(options={"x264-params": "intra-refresh=1:keyint=5:bframes=0"}),
            "open",
        ),
    ],
)
def test_where_decord_would_give_other_frames(tmp_path, name, settings, word):
    assert word in both(encode(tmp_path / name, moving(40), **settings), 8)


def test_decord_counts_frames_that_an_edit_list_hides(tmp_path):
    path = encode(tmp_path / "cut.mp4", moving(60))
    cut_start(path, 7)
    assert "hidden" in both(path, 8)


def test_decord_and_a_file_of_two_videos(tmp_path):
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", 25) for _ in range(2)]
        for stream in streams:
            stream.height, stream.width = 96, 160
        for picture in moving(10):
            for stream in streams:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        for stream in streams:
            container.mux(stream.encode())
    assert "more than one video" in both(path, 8)


@pytest.mark.parametrize("how", ["fails", "counts", "measures"])
def test_what_decord_gives_is_counted_and_measured(tmp_path, monkeypatch, how):
    import decord

    class Reader(decord.VideoReader):
        def __len__(self):
            return super().__len__() + (how == "counts")

        def get_batch(self, indices):
            if how == "fails":
                raise decord.DECORDError("threaded_decoder.cc:218: Check failed")
            found = super().get_batch(indices).asnumpy()
            padded = np.concatenate([found, found], -1) if how == "measures" else found
            return decord.nd.array(padded)

    path = encode(tmp_path / "a.mp4", moving(40))
    monkeypatch.setattr(decord, "VideoReader", Reader)
    assert "fails, or gives other pictures" in both(path, 8)


def test_files_that_are_no_clips_are_told_before_decord_sees_them(tmp_path, capfd):
    for name, words in broken_files(tmp_path).items():
        with pytest.raises(ClipError, match=words) as error:
            read_clip(tmp_path / name, reader="decord")
        assert "decord" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_only_two_readers(tmp_path):
    path = encode(tmp_path / "a.mp4", moving(8))
    for call in (lambda: read_clip(path, reader="opencv"), lambda: read_clips([path], reader=None)):
        with pytest.raises(ValueError, match=r"No reader is called .* pyav, decord") as error:
            call()
        assert not isinstance(error.value, ClipError)


@pytest.mark.parametrize("workers", [0, 2])
def test_many_clips_with_decord(tmp_path, workers):
    fine = encode(tmp_path / "a.mp4", moving(40))
    other = encode(tmp_path / "b.avi", moving(40), **KINDS["b_frames.avi"])
    first, refused, again = read_clips([fine, other, fine], 8, workers, reader="decord")
    assert torch.equal(first, read_clip(fine)) and torch.equal(first, again)
    assert isinstance(refused, ClipError) and "with decord: " in str(refused)


# ---------- several threads for one long clip


@pytest.fixture
def two_threads(monkeypatch):
    """Every clip counts as long, and torch has two threads."""
    monkeypatch.setattr(video, "LONG", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", KINDS)
def test_more_threads_give_the_same_frames(tmp_path, name, request):
    path = encode(tmp_path / name, moving(80), **KINDS[name])
    one = [read_clip(path, frames) for frames in (1, 8, 80)]
    request.getfixturevalue("two_threads")
    for clip in one:
        assert torch.equal(read_clip(path, len(clip)), clip)
        both(path, len(clip))


def _threads_of(path):
    """Threads that decode this clip, here; for a loader, in its worker."""
    with pytest.MonkeyPatch.context() as patched:
        seen = watch(patched)
        read_clip(path)
    return torch.tensor(seen["threads"])


def test_only_long_clips_outside_of_workers_take_more_threads(tmp_path, two_threads, monkeypatch):
    path = encode(tmp_path / "a.mp4", moving(20), codec="libx265")
    work = torch.utils.data.DataLoader([path], None, num_workers=1, collate_fn=_threads_of)
    assert [_threads_of(path), *work] == [2, 1]
    assert _threads_of(encode(tmp_path / "b.mp4", moving(20))) == 1  # of H.264
    monkeypatch.setattr(video, "LONG", 20 * 96 * 160)
    assert _threads_of(path) == 1


# ---------- torch first, then decord


def run(*lines):
    """A process of its own: its exit status, and the warnings that it gave."""
    code = "\n".join(["import warnings; warnings.simplefilter('default')", *lines])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.returncode, done.stderr.count("decord was imported before torch")


@pytest.mark.parametrize(
    "lines",
    [
        ("import decord, torch", "import bt_adapter.masking", "import bt_adapter.video"),
        ("import bt_adapter, decord", "import bt_adapter.video", "import bt_adapter.video"),
    ],
)
def test_who_imported_decord_before_torch_is_warned_once(lines):
    assert run(*lines) == (0, 1)


def test_the_reader_imports_torch_first(tmp_path):
    path = encode(tmp_path / "a.mp4", moving(20))
    reads = f"from bt_adapter.video import read_clip; read_clip({str(path)!r}, reader='decord')"
    product = "torch.randn(512, 512) @ torch.randn(512, 512)"
    assert run(reads, "import torch", product) == (0, 0)


# ---------- any encoder, any damage

ENCODERS = {
    "keyint": (1, 2, 5, 12, 250),
    "bframes": (0, 1, 3, 8, 16),
    "b-pyramid": ("none", "strict", "normal"),
    "b-adapt": (0, 1, 2),
    "ref": (1, 3, 8),
    "weightp": (0, 2),
    "direct": ("temporal", "spatial"),
    "intra-refresh": (0, 0, 1),
    "open-gop": (0, 0, 1),
    "interlaced": (0, 0, 1),
    "slices": (1, 4),
}


@pytest.mark.parametrize("seed", range(8))
def test_any_settings_of_the_encoder(tmp_path, seed):
    dice = random.Random(seed)
    chosen = [f"{name}={dice.choice(values)}" for name, values in ENCODERS.items()]
    noise = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    shown = np.stack([np.roll(noise, (i // 2, i), (0, 1)) for i in range(70)])
    path = tmp_path / dice.choice(["a.mp4", "a.mkv", "a.mov"])
    wider = shown.repeat(4, 1).repeat(4, 2).repeat(2, 2)
    encode(path, wider, options={"x264-params": ":".join(chosen)})
    with av.open(str(path)) as container:
        every = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    for frames in (1, 7, 70):
        wanted = every[sample_indices(70, frames).numpy()]
        assert np.array_equal(read_clip(path, frames), wanted), chosen
        both(path, frames)


def test_frames_that_lend_nothing_and_are_not_wanted_are_skipped(tmp_path):
    """So they may be rubbish: who does not decode them does not see it."""
    options = {"x264-params": "keyint=250:scenecut=0:bframes=3:b-adapt=0:b-pyramid=none"}
    path = encode(tmp_path / "a.mp4", numbered(121), options=options)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data, rank = bytearray(path.read_bytes()), sorted(packet.pts for packet in packets)
    for packet in packets:
        lends = packet.is_keyframe or bytes(packet)[4] >> 5 & 3  # two bits of the packet
        assert bool(lends) == (rank.index(packet.pts) % 4 == 0)
        if not lends and packet.pts != rank[118]:
            data[packet.pos + 5 : packet.pos + packet.size] = bytes([255] * (packet.size - 5))
    path.write_bytes(data)
    wanted = (118 / 25, 119 / 25)
    assert numbers(read_clip(path, 1, span=wanted)) == [118]
    with pytest.warns(video.DamageWarning, match="of 121 frames"):
        read_clip(path, 121)


def test_a_frame_that_is_not_where_the_packets_say_is_counted(tmp_path, monkeypatch):
    """Key frames of this clip are whole only after some more frames."""
    options = {"x264-params": "intra-refresh=1:keyint=5:bframes=0"}
    path = encode(tmp_path / "a.mkv", numbered(60), options=options)
    seen = watch(monkeypatch)
    assert numbers(read_clip(path, 7)) == sample_indices(60, 7).tolist()
    assert len(seen["packets"]) > 1 and seen["counted"]


@pytest.mark.slow
def test_real_clips(real_clips):
    for path in real_clips:
        with av.open(str(path)) as container:
            total = sum(1 for _ in container.decode(video=0))
        wanted = sample_indices(total, 8).tolist()
        with av.open(str(path)) as container:
            frames = {i: f for i, f in enumerate(container.decode(video=0)) if i in wanted}
        expected = np.stack([frames[i].to_ndarray(format="rgb24") for i in wanted])
        assert np.array_equal(read_clip(path, 8, pixels="stored"), expected)
        both(path, 8, pixels="stored")


# ---------- files which are no clips


def broken_files(folder):
    """name -> words of the sentence about it."""
    encode(folder / "whole.mp4", numbered(60))
    encode(folder / "front.mp4", numbered(60), audio=True)
    only_sound(folder / "sound.mp4")
    whole = (folder / "whole.mp4").read_bytes()
    (folder / "text.mp4").write_text("once upon a time\n" * 50)
    (folder / "empty.mp4").touch()
    (folder / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "zeros.mp4").write_bytes(bytes(5000))
    (folder / "folder.mp4").mkdir()
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile whole.mp4\n")
    (folder / "stream.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{folder}/whole.mp4\n"
    )
    (folder / "codec.mp4").write_bytes(whole.replace(b"avc1", b"zzzz"))
    os.mkfifo(folder / "pipe.mp4")
    return {
        "missing.mp4": "no such file",
        "text.mp4": "no video file",
        "empty.mp4": "empty",
        "half.mp4": "cut off",
        "zeros.mp4": "no video file",
        "folder.mp4": "folder",
        "sound.mp4": "no video",
        "list.mp4": "no video file",
        "stream.mp4": "no video file",
        "codec.mp4": "codec",
        "pipe.mp4": "no ordinary file",
    }


def test_one_sentence_for_each_broken_file_and_no_noise(tmp_path, capfd):
    for name, words in broken_files(tmp_path).items():
        with pytest.raises(ClipError) as error:
            read_clip(tmp_path / name)
        message = str(error.value)
        assert words in message and str(tmp_path / name) in message and "\n" not in message, message
        assert error.value.__cause__ is None and (
            error.value.__context__ is None or error.value.__suppress_context__
        )
    assert capfd.readouterr() == ("", "")


def test_cut_off_behind_the_index(tmp_path, capfd):
    path = tmp_path / "front.mp4"
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", 25)
        stream.height = stream.width = 64
        for picture in numbered(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    whole = path.read_bytes()
    for end in (places[1][0], places[30][0], places[30][0] + 1, places[31][0] - 1, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ClipError, match=r"front\.mp4"):
            read_clip(path)
    assert capfd.readouterr() == ("", "")


def test_a_file_without_frames(tmp_path):
    path = tmp_path / "none.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", 25)
        stream.height = stream.width = 64
        stream.pix_fmt = "bgr0"
        container.start_encoding()
    with pytest.raises(ClipError, match=r"no frames|no video"):
        read_clip(path)


def test_the_cover_of_a_song_is_no_video(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=44100, layout="mono")
        cover = container.add_stream("mjpeg", 25)
        cover.height = cover.width = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        for i in range(20):
            container.mux(sound.encode(noise(i)))
    with pytest.raises(ClipError, match="no video"):
        read_clip(path)


def _read_as_nobody(path, answer):
    if os.geteuid() == 0:  # root may read everything
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        read_clip(path)
        answer.put("read")
    except ClipError as error:
        answer.put(str(error))


def test_permissions(tmp_path):
    path = tmp_path / "secret.mp4"
    write_clip(path, numbered(8).copy())
    path.chmod(0)
    fork = get_context("fork")
    answer = fork.SimpleQueue()
    process = fork.Process(target=_read_as_nobody, args=(path, answer))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert answer.get() == f"Cannot read {path}: its permissions do not allow it."


@pytest.mark.parametrize("frames", [0, -3])
def test_no_frames_wanted(tmp_path, frames):
    write_clip(tmp_path / "a.mp4", numbered(8).copy())
    with pytest.raises(ValueError, match="at least 1"):
        read_clip(tmp_path / "a.mp4", frames)
    with pytest.raises(ValueError, match="at least 1"):
        read_clips([tmp_path / "a.mp4"], frames)


def test_a_sentence_also_when_decoding_fails(tmp_path, capfd):
    write_clip(tmp_path / "a.mp4", numbered(60).copy())
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    start = data.index(b"mdat") + 4
    data[start : data.index(b"moov") - 4] = bytes(data.index(b"moov") - 4 - start)
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(ClipError, match=r"a\.mp4: .*damaged"):
        read_clip(tmp_path / "a.mp4")
    assert "h264" not in capfd.readouterr().err


def _damaged(folder):
    """Read damaged files; what is neither a clip nor a ClipError ends the process."""
    for name in (
        "plain.mp4",
        "short_groups.mkv",
        "vp9.webm",
        "b_frames.avi",
        "broadcast.ts",
        "old.mpg",
    ):
        whole = (folder / name).read_bytes()
        for seed in range(8):
            rng, data = np.random.default_rng(seed), bytearray(whole)
            for _ in range(rng.integers(1, 6)):
                start = rng.integers(0, len(data))
                size = min(int(rng.integers(1, 80)), len(data) - start)
                data[start : start + size] = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
            path = folder / f"damaged_{seed}_{name}"
            path.write_bytes(data[: rng.integers(len(data) // 2, len(data) + 1)])
            try:
                assert read_clip(path).shape[0] == 8
            except ClipError as error:
                assert str(path) in str(error)


@pytest.mark.slow
def test_damaged_files_neither_crash_nor_hang(tmp_path):
    for name in (
        "plain.mp4",
        "short_groups.mkv",
        "vp9.webm",
        "b_frames.avi",
        "broadcast.ts",
        "old.mpg",
    ):
        encode(tmp_path / name, numbered(60), **KINDS[name])
    process = get_context("fork").Process(target=_damaged, args=(tmp_path,))
    process.start()
    process.join(120)
    alive = process.is_alive()
    process.kill()
    assert not alive and process.exitcode == 0


# ---------- writing


def test_written_clips_come_back(tmp_path):
    write_clip(tmp_path / "a.mp4", torch.tensor(numbered(12, 320, 256)), fps=12.5)
    assert numbers(read_clip(tmp_path / "a.mp4", 12)) == list(range(12))
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.pix_fmt, stream.codec.name) == (
            Fraction(25, 2),
            "yuv420p",
            "h264",
        )
    write_clip(tmp_path / "b.mp4", torch.tensor(numbered(12, 320, 256)), fps=12.5)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert b" threads=1 " in (tmp_path / "a.mp4").read_bytes()  # or the bytes depend on the machine


@pytest.mark.parametrize(
    "name, clip, fps, words",
    [
        ("a.mp4", np.zeros((8, 63, 64, 3), np.uint8), 8, "even sizes, not 63 x 64"),
        ("a.mp4", np.zeros((0, 64, 64, 3), np.uint8), 8, "uint8"),
        ("a.mp4", np.zeros((8, 64, 64, 3), np.float32), 8, "uint8"),
        ("a.mp4", np.zeros((8, 3, 64, 64), np.uint8), 8, "uint8"),
        ("a.avi", np.zeros((8, 64, 64, 3), np.uint8), 8, ".mp4"),
        ("no/a.mp4", np.zeros((8, 64, 64, 3), np.uint8), 8, "folder"),
        ("a.mp4", np.zeros((8, 64, 64, 3), np.uint8), 0, "frames per second"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, clip, fps, words):
    with pytest.raises(ValueError, match=words):
        write_clip(tmp_path / name, clip, fps)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_clip_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    write_clip(path, numbered(8).copy())
    old, real, calls = path.read_bytes(), av.VideoFrame.from_ndarray, []

    def fail_late(*args, **kwargs):
        calls.append(args)
        if len(calls) == 150:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(
        av, "VideoFrame", type("VideoFrame", (), {"from_ndarray": staticmethod(fail_late)})
    )
    with pytest.raises(KeyboardInterrupt):
        write_clip(path, numbered(200).copy())
    assert len(calls) == 150 and path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


# ---------- many clips


@pytest.fixture
def some_clips(tmp_path):
    for i in range(7):
        write_clip(tmp_path / f"{i}.mp4", numbered(100, 32, 32)[10 * i : 10 * i + 20].copy())
    (tmp_path / "3.mp4").write_text("no clip")
    return [tmp_path / f"{i}.mp4" for i in range(7)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_clips_come_in_order_with_the_broken_one_as_its_error(some_clips, workers):
    clips = list(read_clips(some_clips, 4, workers))
    assert isinstance(clips[3], ClipError) and "3.mp4" in str(clips[3])
    for i in (0, 1, 2, 4, 5, 6):
        assert numbers(clips[i]) == [10 * i + 2, 10 * i + 7, 10 * i + 12, 10 * i + 17]


def test_random_places_do_not_depend_on_the_workers(some_clips):
    one, two, other = (
        [
            numbers(clip)
            for clip in read_clips(some_clips[:3], 4, w, torch.Generator().manual_seed(s))
        ]
        for w, s in ((0, 0), (2, 0), (0, 1))
    )
    assert one == two != other


def _hold_many(path, answer):
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    answer.put(len(list(read_clips([path] * 150, 1, workers=1))))


def test_thousands_of_clips_can_be_kept(some_clips):
    fork = get_context("fork")
    answer = fork.SimpleQueue()
    process = fork.Process(target=_hold_many, args=(some_clips[0], answer))
    process.start()
    process.join(60)
    assert process.exitcode == 0 and answer.get() == 150


def test_listing(tmp_path):
    for name in (
        "b.mp4",
        "a.MOV",
        "inner/c.webm",
        "inner/deep/d.avi",
        "notes.txt",
        "._b.mp4",
        "list/e.mkv",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = ["a.MOV", "b.mp4", "inner/c.webm", "inner/deep/d.avi", "list/e.mkv"]
    assert (
        list_clips(tmp_path) == list_clips([str(tmp_path)]) == [tmp_path / name for name in names]
    )
    assert list_clips([tmp_path / "notes.txt", tmp_path / "inner/deep"]) == [
        tmp_path / "notes.txt",
        tmp_path / "inner/deep/d.avi",
    ]
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match=r"no clip in the folder .*bare"):
        list_clips([tmp_path / "bare"])
    with pytest.raises(ClipError, match="no such file"):
        list_clips([tmp_path / "missing.mp4"])
