"""Answers to the exercises on the paper and its code."""

from fractions import Fraction

import torch

from exercise_cases import Case

CASES = {
    "constant": Case(
        right=["the same token", "The same token.", "the same"],
        wrong={"its own token": "never shows", "both": "Choose one"},
    ),
    "hidden": Case(
        right=[[(1, 0), (2, 1)], torch.tensor([[1, 0], [2, 1]]), ((1.0, 0.0), (2.0, 1.0))],
        wrong=[
            ([(2, 0), (2, 1)], "was meant"),
            ([(0, 1), (1, 2)], "comes first"),
            ([(2, 1), (1, 0)], "order of the list"),
            ([2, 5], "shape"),
        ],
    ),
    "one_frame": Case(
        right=[1, "1", 1.0, Fraction(1)],
        wrong={2: "deviations", 8: "too large", "one": "one number"},
    ),
}
