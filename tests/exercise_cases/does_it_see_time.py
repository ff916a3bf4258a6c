"""Answers to the exercises on seeing time."""

import torch

from exercise_cases import Case

CASES = {
    "last_frame": Case(
        right=[0, "0", torch.tensor(0)],
        wrong={1: "frame alone", 2: "more than a picture", 3: "no words"},
    ),
    "few": Case(right=["no", "No", False], wrong={"yes": "interval", "perhaps": "choose"}),
    "third": Case(
        right=["wrong stride", "Wrong stride"],
        wrong={
            "reversed": "order of time",
            "repeated": "twice",
            "out of order": "order of time",
            "channels swapped": "Red",
            "frames of another clip": "asked for",
        },
    ),
    "fixed": Case(right=["no", "No"], wrong={"yes": "same clip", 1: "choose"}),
}
