"""Answers to the exercises on strategies."""

import torch

from exercise_cases import Case

CASES = {
    "no_time": Case(
        right=["ST-Adapter", "st-adapter."],
        wrong={"joint-ST": "sequence", "separate-ST": "first", "BT-Adapter": "order", "all": "one"},
    ),
    "five_frames": Case(
        right=[4, "4", torch.tensor(4)],
        wrong={7: "three frames", 2: "either side", 3: "frame 7", 3.5: "half", 8: "too large"},
    ),
    "time_last": Case(
        right=["P^t", "p^t", " P^t."],
        wrong={"attention": "mixes patches", "both": "after attention", "neither": "entry"}
        | {"P^t and attention": "Choose one", False: "Choose one"},
    ),
}
