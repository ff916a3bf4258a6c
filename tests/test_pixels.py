"""Resizing, cutting and normalizing frames: the bits of torchvision."""

import pytest
import torch

from bt_adapter.pixels import check_clip, fit, normalize, resize, transformed


def random_clip(draw, longest=150):
    t, h, w = (int(torch.randint(1, n, (), generator=draw)) for n in (4, longest, longest))
    return torch.randint(0, 256, (t, h, w, 3), generator=draw, dtype=torch.uint8)


@pytest.mark.parametrize("margin", [1.0, 256 / 224])
def test_fitting_is_torchvisions(margin):
    from torchvision.transforms.v2 import InterpolationMode, functional

    draw = torch.Generator().manual_seed(1)
    for _ in range(200):
        clip, size = random_clip(draw), torch.randint(1, 90, (2,), generator=draw).tolist()
        frames = clip.permute(0, 3, 1, 2)
        scale = max(size[0] / clip.shape[1], size[1] / clip.shape[2]) * margin
        whole = [max(w, round(n * scale)) for n, w in zip(clip.shape[1:3], size, strict=True)]
        theirs = functional.resize(frames, whole, InterpolationMode.BICUBIC)
        assert torch.equal(resize(frames, whole), theirs)
        assert torch.equal(fit(clip, size, margin), functional.center_crop(theirs, size))


def test_slices_of_a_longer_video_are_no_exception():
    from torchvision.transforms.v2 import InterpolationMode, functional

    video = random_clip(torch.Generator().manual_seed(2)).repeat(8, 1, 1, 1)
    for part in (video[2:3], video[::3], video[:, 5:-5, 3:-8], video[1:2, :, ::2]):
        theirs = functional.resize(part.permute(0, 3, 1, 2), [33, 47], InterpolationMode.BICUBIC)
        assert torch.equal(resize(part.permute(0, 3, 1, 2), (33, 47)), theirs)


def test_normalizing_is_torchvisions():
    from torchvision.transforms.v2 import functional

    clip = random_clip(torch.Generator().manual_seed(3)).permute(0, 3, 1, 2)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    theirs = functional.normalize(clip.float().div_(255), mean, std)
    assert torch.equal(normalize(clip, mean, tuple(std)), theirs)
    assert clip.dtype == torch.uint8


class Towers:
    """Something with a `transform`, which counts its calls."""

    def __init__(self):
        self.calls = 0

    def transform(self, clip):
        self.calls += 1
        return normalize(fit(clip, (8, 8)), [0.5] * 3, [0.5] * 3)


@pytest.mark.parametrize("chunk", [1, 2, 5, 9])
def test_many_clips_are_transformed_in_chunks_each_once_and_as_they_are_needed(chunk):
    draw, tower = torch.Generator().manual_seed(4), Towers()
    clips = list(torch.randint(0, 256, (5, 2, 12, 10, 3), generator=draw, dtype=torch.uint8))
    several = transformed(tower, clips, chunk)
    first = next(several)
    assert len(first) == tower.calls == min(chunk, 5)
    whole = torch.cat([first, *several])
    assert torch.equal(whole, torch.stack([Towers().transform(clip) for clip in clips]))
    assert tower.calls == 5


WRONG = [
    torch.zeros(2, 8, 8, 3),
    torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
    torch.zeros(8, 8, 3, dtype=torch.uint8),
    torch.zeros(0, 8, 8, 3, dtype=torch.uint8),
]


@pytest.mark.parametrize(
    "wrong", [*WRONG, *(clip.numpy() for clip in WRONG), "a.mp4", None], ids=str
)
def test_all_who_are_given_a_clip_refuse_what_is_none_in_the_same_words(wrong, tmp_path):
    from bt_adapter.datasets import crop_frames
    from bt_adapter.figures import contact_sheet
    from bt_adapter.video import write_clip

    doors = [check_clip, lambda clip: crop_frames(clip, (8, 8))]
    if hasattr(wrong, "shape"):
        doors += [lambda clip: write_clip(tmp_path / "a.mp4", clip)]
        doors += [lambda clip: contact_sheet([clip])]
    for door in doors:
        with pytest.raises(ValueError, match=r"A clip is uint8 \(t, h, w, 3\), not") as told:
            door(wrong)
        assert "torch." not in str(told.value)
    assert not list(tmp_path.iterdir())


def test_a_clip_is_a_tensor_or_an_array():
    clip = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    check_clip(clip)
    check_clip(clip.numpy())
