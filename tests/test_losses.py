"""The losses against plain sums over many sizes, in low precision, and at the edges."""

import pytest
import torch

from bt_adapter.losses import (
    masked_branching_cross_modal_alignment,
    masked_branching_token_alignment,
    video_text_contrastive,
)


def nce(x, y, tau):
    "One direction of Eq. 6, written out."
    x, y = x / x.norm(dim=-1, keepdim=True), y / y.norm(dim=-1, keepdim=True)
    powers = (torch.einsum("mc, nc -> mn", x, y) / tau).exp()
    return -(powers.diagonal() / powers.sum(1)).log().mean()


@pytest.mark.parametrize("tau", [0.02, 0.1, 1, 10])
@pytest.mark.parametrize(("b", "c"), [(1, 3), (2, 8), (17, 32)])
def test_vtc_and_mbca_are_the_equations(b, c, tau):
    torch.manual_seed(b)
    x, y = torch.randn(2, b, c, dtype=torch.double)
    expected = nce(x, y, tau) + nce(y, x, tau)
    torch.testing.assert_close(video_text_contrastive(x, y, tau), expected)
    tokens = torch.randn(b, 3, 5, c, dtype=torch.double)
    mean = torch.einsum("btlc -> bc", tokens) / 15
    expected = nce(mean, y, tau) + nce(y, mean, tau)
    torch.testing.assert_close(masked_branching_cross_modal_alignment(tokens, y, tau), expected)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (4, 1, 1, 1), (6, 7)])
def test_mbta_is_the_equation_in_both_kinds(shape):
    torch.manual_seed(0)
    x, y = torch.randn(2, *shape, dtype=torch.double)
    tokens = x[..., 0].numel()
    expected = torch.einsum("...c, ...c ->", x - y, x - y) / tokens
    torch.testing.assert_close(masked_branching_token_alignment(x, y), expected)
    cosines = torch.nn.functional.cosine_similarity(x, y, dim=-1)
    expected = (2 - 2 * cosines).mean()
    torch.testing.assert_close(masked_branching_token_alignment(x, y, "cosine"), expected)


CALLS = {
    "vtc": (video_text_contrastive, (12, 32), (12, 32)),
    "mbta": (masked_branching_token_alignment, (3, 4, 5, 32), (3, 4, 5, 32)),
    "mbta cosine": (
        lambda x, y: masked_branching_token_alignment(x, y, "cosine"),
        (3, 4, 5, 32),
        (3, 4, 5, 32),
    ),
    "mbca": (masked_branching_cross_modal_alignment, (12, 2, 3, 32), (12, 32)),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_low_precision_features_lose_nothing_more(name, dtype, autocast):
    call, first, second = CALLS[name]
    torch.manual_seed(1)
    x, y = (torch.randn(s).to(dtype).requires_grad_() for s in (first, second))
    a, b = (z.detach().double().requires_grad_() for z in (x, y))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = call(x, y)
    truth = call(a, b)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-5)
    loss.backward(), truth.backward()
    for low, exact in ((x, a), (y, b)):
        assert low.grad.dtype == dtype
        scale = exact.grad.abs().max()
        assert (low.grad - exact.grad).abs().max() / scale < max(torch.finfo(dtype).eps, 1e-5)


@pytest.mark.parametrize("name", CALLS)
def test_types_may_differ_and_empty_vectors_do_no_harm(name):
    call, first, second = CALLS[name]
    x, y = torch.zeros(first, dtype=torch.bfloat16), torch.zeros(second, dtype=torch.double)
    x.requires_grad_()
    call(x, y).backward()
    assert x.grad.isfinite().all()


def test_a_sharp_temperature_and_long_features_stay_finite():
    x = torch.eye(8) * 1e4
    wrong = video_text_contrastive(x, -x, tau=1e-4)
    assert wrong.isfinite() and wrong > 1e4
    assert video_text_contrastive(x.half(), x.half()) < 1e-5


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_number_is_told_with_its_rows(name, value, side):
    call, *shapes = CALLS[name]
    inputs = [torch.randn(shape) for shape in shapes]
    inputs[side][2].view(-1)[-1] = value
    argument = r"(video|text|teacher|student|patches) must be finite"
    with pytest.raises(ValueError, match=rf"^{argument}, but .* in rows \[2\]\.$"):
        call(*inputs)


def test_a_loop_may_look_for_itself():
    tokens, rows = torch.full((2, 1, 1, 3), torch.nan), torch.ones(2, 3)
    free = dict(check_finite=False)
    losses = [
        video_text_contrastive(tokens[:, 0, 0], rows, **free),
        masked_branching_token_alignment(tokens, tokens, **free),
        masked_branching_cross_modal_alignment(tokens, rows, **free),
    ]
    assert all(loss.isnan() for loss in losses)


def test_gradients_flow_to_the_trained_side_only():
    teacher, student = torch.randn(2, 2, 3, 4, 8)
    student.requires_grad_()
    masked_branching_token_alignment(teacher, student).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_a_pair_of_swapped_captions_costs_more():
    x = torch.eye(4)
    assert video_text_contrastive(x, x[[1, 0, 2, 3]]) > video_text_contrastive(x, x) + 50


WRONG = {
    "batches": lambda: video_text_contrastive(torch.ones(3, 4), torch.ones(2, 4)),
    "channels": lambda: video_text_contrastive(torch.ones(3, 4), torch.ones(3, 5)),
    "rank": lambda: video_text_contrastive(torch.ones(3, 2, 4), torch.ones(3, 2, 4)),
    "empty": lambda: video_text_contrastive(torch.ones(0, 4), torch.ones(0, 4)),
    "tau 0": lambda: video_text_contrastive(torch.ones(3, 4), torch.ones(3, 4), 0),
    "tau nan": lambda: video_text_contrastive(torch.ones(3, 4), torch.ones(3, 4), float("nan")),
    "tokens": lambda: masked_branching_token_alignment(torch.ones(2, 3, 4), torch.ones(2, 4, 4)),
    "no tokens": lambda: masked_branching_token_alignment(*torch.ones(2, 2, 0, 4)),
    "kind": lambda: masked_branching_token_alignment(*torch.ones(2, 3, 4), kind="l1"),
    "patches": lambda: masked_branching_cross_modal_alignment(torch.ones(3, 4), torch.ones(3, 4)),
    "none kept": lambda: masked_branching_cross_modal_alignment(
        torch.ones(3, 2, 0, 4), torch.ones(3, 4)
    ),
    "texts": lambda: masked_branching_cross_modal_alignment(
        torch.ones(3, 2, 2, 4), torch.ones(2, 4)
    ),
    "mbca tau": lambda: masked_branching_cross_modal_alignment(
        torch.ones(3, 2, 2, 4), torch.ones(3, 4), -1
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_sentence(name):
    with pytest.raises(ValueError, match=r"^[a-z].* must be .*\.$"):
        WRONG[name]()
