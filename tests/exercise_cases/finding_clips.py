"""Answers to the exercises on finding clips."""

import torch

from exercise_cases import Case

CASES = {
    "ties": Case(
        right=[0, "0%", torch.tensor(0.0)],
        wrong={50: "luck", 100: "as near as", 25: "too large"},
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
