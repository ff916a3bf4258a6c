"""Masks over many sizes, and what must not slip through."""

import math
import re
from fractions import Fraction

import pytest
import torch

from bt_adapter.masking import keep_patches, kept_patches, tube_mask


def test_the_hidden_number_is_rounded_down_for_every_size_and_ratio():
    for patches in range(1, 301):
        for percent in range(100):
            hidden = math.floor(Fraction(percent, 100) * patches)  # exact, no floating point
            assert kept_patches(patches, percent / 100) == patches - hidden, (patches, percent)


@pytest.mark.parametrize("ratio", [1 - 1e-12, math.nextafter(1, 0)])
def test_one_patch_stays_however_close_to_one_the_ratio_is(ratio):
    assert kept_patches(3, ratio) == kept_patches(1, ratio) == 1
    assert kept_patches(256, ratio) >= 1


@pytest.mark.parametrize("ratio", [1, 1.5, -1e-9, float("nan"), float("inf")])
def test_a_ratio_outside_zero_to_one_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio must lie in"):
        tube_mask(2, 16, ratio)


@pytest.mark.parametrize(("batch", "patches"), [(0, 16), (2, 0), (-1, 16)])
def test_a_mask_of_nothing_is_refused(batch, patches):
    with pytest.raises(ValueError, match="at least one clip and one patch"):
        tube_mask(batch, patches, 0.5)


def test_without_a_generator_the_global_seed_decides():
    torch.manual_seed(3)
    first, second = tube_mask(4, 64, 0.7), tube_mask(4, 64, 0.7)
    torch.manual_seed(3)
    assert torch.equal(first, tube_mask(4, 64, 0.7)) and not torch.equal(first, second)


def test_clips_of_a_batch_differ_and_indices_are_sorted_and_unique():
    keep = tube_mask(50, 64, 0.7)
    assert len({tuple(row) for row in keep.tolist()}) == 50
    assert (keep.diff(dim=1) > 0).all() and keep.min() >= 0 and keep.max() < 64


def test_the_device_is_where_the_indices_go():
    assert tube_mask(2, 16, 0.5, torch.Generator(), device="meta").device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_gathering_equals_a_loop_on_contiguous_sliced_and_permuted_memory(dtype):
    states = (torch.rand(3, 5, 17, 6) * 200).to(dtype)
    keep = tube_mask(3, 16, 0.6)
    views = (
        states[:, :, 1:],
        states[:, :, 1:].contiguous(),
        states.transpose(0, 1).contiguous().transpose(0, 1)[:, :, 1:],
    )
    for patches in views:
        expected = torch.stack([p[:, k] for p, k in zip(patches, keep, strict=True)])
        assert torch.equal(keep_patches(patches, keep), expected)


def test_gathering_works_under_a_full_graph_compile():
    patches, keep = torch.randn(2, 3, 16, 4), tube_mask(2, 16, 0.7)
    compiled = torch.compile(keep_patches, fullgraph=True, backend="eager")
    assert torch.equal(compiled(patches, keep), keep_patches(patches, keep))


def test_a_compiled_program_refuses_places_that_are_not_there_too():
    compiled = torch.compile(keep_patches, fullgraph=True, backend="eager")
    patches, keep = torch.randn(2, 3, 16, 4), tube_mask(2, 16, 0.7)
    compiled(patches, keep)
    for wrong in (keep - 16, keep + 16):
        with pytest.raises(RuntimeError, match="keep must hold whole numbers from 0 to 15"):
            compiled(patches, wrong)


def test_the_sentence_for_a_boolean_mask_says_what_to_do():
    patches, keep = torch.randn(2, 3, 16, 4), tube_mask(2, 16, 0.7)
    mask = torch.zeros(2, 16, dtype=torch.bool).scatter(1, keep, True)
    with pytest.raises(ValueError, match=re.escape("mask.nonzero()[:, 1].view(len(mask), -1)")):
        keep_patches(patches, mask)
    assert torch.equal(mask.nonzero()[:, 1].view(len(mask), -1), keep)


@pytest.mark.parametrize(
    ("patches", "keep"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 1, dtype=torch.long)),
        (torch.zeros(2, 3, 4, 5), torch.zeros(3, 1, dtype=torch.long)),
        (torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 1, dtype=torch.long)),
        (torch.zeros(2, 3, 4, 5), torch.full((2, 1), 4)),
        (torch.zeros(2, 3, 4, 5), torch.tensor([[0, 1], [4, 2]])),
        (torch.zeros(2, 3, 4, 5), torch.tensor([[0], [-1]])),
        (torch.zeros(2, 3, 4, 5), torch.zeros(2, 1)),
        (torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, dtype=torch.uint8)),
        (torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, dtype=torch.bool)),
    ],
    ids=[
        *("rank", "batch", "index rank", "beyond the last patch", "one beyond the last patch"),
        *("before the first patch", "fractions", "bytes", "mask"),
    ],
)
def test_a_wrong_shape_or_index_is_one_sentence(patches, keep):
    with pytest.raises(ValueError, match=r"^keep(_patches)? .*\.$"):
        keep_patches(patches, keep)
