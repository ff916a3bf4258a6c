"""Answers to the exercises on finding clips."""

import torch

from exercise_cases import Case

CASES = {
    "backwards": Case(
        right=["near 0", "Near 0."],
        wrong={"near 50": "Shuffled", "near 100": "would not notice", "0": "Choose one"},
    ),
    "closed": Case(
        right=["near 50", "Near 50"],
        wrong={"near 100": "lets nothing", "near 0": "no answer at all"},
    ),
    "no_time": Case(
        right=[1, "1.0", "100%", torch.tensor(1.0)],
        wrong={0: "Which tokens differ", -1: "Opposite captions", 0.5: "too small"},
    ),
}
