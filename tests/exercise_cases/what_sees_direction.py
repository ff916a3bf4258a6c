"""Answers to the exercises on what makes it see direction."""

import torch

from bt_adapter.exercises.finding_clips import near
from bt_adapter.exercises.what_sees_direction import right_answers
from exercise_cases import Case

HINTS = {"near 100": "Blocked frames", "near 50": "two ends", "near 0": "keep their order"}
ENDS = near(right_answers(frozen=False))  # of the adapter that is shipped

CASES = {
    "frozen": Case(
        right=["near 50", "Near 50"],
        wrong={"near 100": "the first frame", "near 0": "none at all"},
    ),
    "ends": Case(
        right=[ENDS, ENDS.title()],
        wrong={answer: hint for answer, hint in HINTS.items() if answer != ENDS},
    ),
    "both": Case(
        right=[0, "0.0", torch.tensor(0.0)],
        wrong={1: "2 at most", 0.1: "whatever it has found", 0.5: "too large"},
    ),
}
