"""Answers to the exercises on attention maps."""

import torch

from exercise_cases import Case

CASES = {
    "backwards": Case(
        right=["reversed", "Reversed"],
        wrong={"the same": "asks last", "another": "new place"},
    ),
    "four": Case(
        right=[1.25, "5/4", torch.tensor(1.25)],
        wrong={1.5: "the two between", 5 / 3: "itself", 1: "the ends"},
    ),
    "memory": Case(
        right=[67.1, 67],
        wrong={2.097152: "enters twice", 16.777216: "4 layers, and 4 bytes"},
    ),
}
