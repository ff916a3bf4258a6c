"""Readers of clips with and without faults. They know nothing of how the time check finds them."""

from functools import lru_cache, partial

import av
import numpy as np
import torch
from PIL import Image

from bt_adapter import pixels
from bt_adapter.video import read_clip


@lru_cache(maxsize=32)
def decoded(path):
    """All frames of a clip (n, h, w, 3), and when they are shown."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return np.stack([f.to_ndarray(format="rgb24") for f in frames]), np.array(
        [float(f.pts * f.time_base) for f in frames]
    )


def middles(n, t=8):
    return (np.arange(t) * n + n // 2) // t


def take(path, t=8):
    """The middles of t equal parts."""
    frames, _ = decoded(path)
    return frames[middles(len(frames), t)]


def spread(path, where, t=8):
    """Frames at other places of equal parts."""
    frames, _ = decoded(path)
    n = len(frames)
    return frames[where(n, t)]


def ends(n, t):
    return np.linspace(0, n - 1, t).round().astype(int)


def starts(n, t):
    return np.arange(t) * n // t


def somewhere(n, t):
    rng = np.random.default_rng(n)
    return (np.arange(t) * n + rng.integers(n, size=t)) // t


def timed(path, t=8, later=0.0):
    frames, times = decoded(path)
    chosen = middles(len(frames), t)
    return frames[chosen], times[chosen] + later


def resized(path, size):
    frames = torch.from_numpy(take(path)).permute(0, 3, 1, 2)
    return pixels.resize(frames, size)


def normalized(path):
    frames = pixels.fit(torch.from_numpy(take(path)), (96, 96))
    return pixels.normalize(frames, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))


class Batch:
    """What torchcodec gives."""

    def __init__(self, frames, times):
        self.data, self.pts_seconds = torch.from_numpy(frames).permute(0, 3, 1, 2), times


def window(path, step=4, t=5):
    frames, _ = decoded(path)
    return frames[2 : 2 + step * t : step]


def letterbox(path):
    return np.pad(take(path), ((0, 0), (30, 30), (0, 0), (0, 0)))


# Name -> a reader, and what `pipeline` is told of it.
HEALTHY = {
    "all frames": (lambda path: decoded(path)[0], {}),
    "read_clip": (read_clip, {}),
    "read_clip by time": (partial(read_clip, by="time"), {}),
    "read_clip, random places": (
        lambda path: read_clip(path, generator=torch.Generator().manual_seed(1)),
        {},
    ),
    "decord": (partial(read_clip, frames=6, reader="decord"), {}),
    "both ends": (partial(spread, where=ends), {}),
    "starts": (partial(spread, where=starts), {}),
    "somewhere": (partial(spread, where=somewhere), {}),
    "sixteen": (partial(take, t=16), {}),
    "three": (partial(take, t=3), {}),
    "one": (partial(take, t=1), {}),
    "small": (partial(resized, size=(56, 56)), {}),
    "large, as shares": (lambda path: resized(path, (200, 300)).float() / 255, {}),
    "normalized and cut": (normalized, {}),
    "channels first of all": (lambda path: normalized(path).half().movedim(1, 0), {}),
    "pictures": (lambda path: [Image.fromarray(frame) for frame in take(path)], {}),
    "with times": (timed, dict(timed=True)),
    "torchcodec": (lambda path: Batch(*timed(path, later=0.02)), dict(timed=True)),
    "a loader": (lambda paths: [take(path) for path in paths], dict(together=True)),
    "a loader, stacked": (
        lambda paths: torch.stack([normalized(path) for path in paths]),
        dict(together=True),
    ),
    "every fourth": (window, dict(stride=4)),
    "letterbox": (letterbox, {}),
}


def montage(path, rows, columns):
    frames = take(path, rows * columns)
    bands = [np.concatenate(frames[i * columns : (i + 1) * columns], 1) for i in range(rows)]
    return np.concatenate(bands, 0)


def half_repeated(path):
    frames = take(path).copy()
    frames[4:] = frames[0]
    return frames


def overrun(path):
    """A step that is twice too long, stopped at the end."""
    frames, _ = decoded(path)
    return frames[np.minimum(np.arange(8) * len(frames) // 4, len(frames) - 1)]


def exchanged(paths):
    first, second, *rest = [take(path) for path in paths]
    return [second, first, *rest]


class Buffer:
    """A reader that keeps frames of the clip before."""

    def __init__(self, kept):
        self.kept, self.last = kept, None

    def __call__(self, path):
        frames = take(path).copy()
        if self.last is not None:
            frames[: self.kept] = self.last[: self.kept]
        self.last = take(path)
        return frames


def numbers_as_times(path):
    frames, _ = timed(path)
    return frames, np.arange(len(frames))


def together(read):
    return read, dict(together=True)


# Name of the fault -> two variants of it, made anew for each run.
FAULTS = {
    "reversed": [
        lambda: (lambda path: take(path)[::-1], {}),
        lambda: (lambda path: normalized(path).flip(0), {}),
    ],
    "repeated": [
        lambda: (lambda path: take(path)[[0] * 8], {}),
        lambda: (half_repeated, {}),
    ],
    "montage": [
        lambda: (partial(montage, rows=2, columns=4), {}),
        lambda: (lambda path: montage(path, 3, 3)[None, ::2, ::2], {}),
    ],
    "wrong stride": [
        lambda: (lambda path: decoded(path)[0][:8], {}),
        lambda: (overrun, {}),
    ],
    "channels swapped": [
        lambda: (lambda path: take(path)[..., ::-1], {}),
        lambda: (lambda path: normalized(path)[:, [1, 2, 0]], {}),
    ],
    "batch mixed up": [
        lambda: together(lambda paths: [take(path) for path in [*paths[1:], paths[0]]]),
        lambda: together(exchanged),
    ],
    "timestamps lost": [
        lambda: (lambda path: (take(path), np.zeros(8)), dict(timed=True)),
        lambda: (numbers_as_times, {}),
    ],
    "frames of another clip": [lambda: (Buffer(4), {}), lambda: (Buffer(1), {})],
}
