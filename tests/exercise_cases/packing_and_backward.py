"""Answers to the exercises of `packing_and_backward`, right and wrong."""

from fractions import Fraction

import torch

from bt_adapter.exercises.packing_and_backward import added_late, with_maps
from exercise_cases import Case


def by_autograd(query, key, value, d_out, d_maps):
    three = torch.stack([query, key, value]).detach().requires_grad_()
    maps = (three[0] @ three[1].mT / query.shape[-1] ** 0.5).softmax(-1)
    return torch.autograd.grad([maps @ three[2], maps], three, [d_out, d_maps])[0]


CASES = {
    "larger": Case(
        right=[3.2, "16/5", Fraction(16, 5)],
        wrong={16: "how many series", 4: "Five", 819.2: "Divide", 0.3125: "other way"},
    ),
    "empty": Case(
        right=["right forward, NaN backward", "Right forward"],
        wrong=[("all is right", "minus infinity"), ("NaN both ways", "row i"), (0, "Choose one")],
    ),
    "maps": Case(
        right=[with_maps, by_autograd],
        wrong=[
            (added_late, "mean"),
            (lambda *x: with_maps(*x[:4], 0 * x[4]), "nowhere"),
            (lambda *x: with_maps(*x)[:2], "shape"),
            (lambda *x: tuple(with_maps(*x)), "shape"),
            (torch.zeros(3), "function"),
        ],
    ),
}
