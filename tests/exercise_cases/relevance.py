"""Answers to the exercises on relevance."""

import torch

from bt_adapter.exercises.relevance import lost_without
from exercise_cases import Case

HINTS = {
    "least": {"more": "hot or the cool", "less": "Hide them and compare"},
    "stranger": {"more": "know more", "less": "Hide them and compare"},
}
FOUND = {"least": ("least", "chance"), "stranger": ("stranger", "most")}


def compared(name):
    """What the shipped adapter says, and the other answer."""
    right = lost_without(*FOUND[name])
    wrong = {answer: hint for answer, hint in HINTS[name].items() if answer != right}
    return Case(right=[right, right.title()], wrong=wrong | {"as much": "choose"})


CASES = {
    "least": compared("least"),
    "stranger": compared("stranger"),
    "own": Case(
        right=["1/8", 0.125, torch.tensor(0.125)],
        wrong={0.5: "one layer", 0.25: "two layers", 1 / 6: "halves"},
    ),
}
