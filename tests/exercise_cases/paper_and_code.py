"""Answers to the exercises on the paper and its code."""

from fractions import Fraction

import torch

from exercise_cases import Case

CASES = {
    "constant": Case(
        right=["the same token", "The same token.", "the same"],
        wrong={"its own token": "never shows", "both": "Choose one"},
    ),
    "frames": Case(
        right=[66, "66", torch.tensor(66)],
        wrong={64: "> 64", 65: "paired", 2: "grouped", 128: "too large"},
    ),
    "one_frame": Case(
        right=[1, "1", 1.0, Fraction(1)],
        wrong={2: "deviations", 8: "too large", "one": "one number"},
    ),
}
