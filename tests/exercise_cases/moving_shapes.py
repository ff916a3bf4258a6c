"""Answers to the exercises of the lesson on Moving Shapes."""

import numpy as np
import torch

from exercise_cases import Case


def pulse(s, phase):
    return dict(scale=1 + 0.3 * np.sin(np.pi * s))


def there_and_back(s, phase):
    return dict(x=s * (1 - s), y=0)


CASES = {
    "half": Case(
        right=[[0, 1, 2, 3, 7, 6, 5, 4], torch.tensor([4, 5, 6, 7, 3, 2, 1, 0])],
        wrong=[
            ([7, 6, 5, 4, 3, 2, 1, 0], "other way"),
            (range(8), "still"),
            ([0, 1, 2, 3, 4, 4, 4, 4], "each once"),
            ("backwards", "eight numbers"),
            ([1, 0, 2, 3, 7, 6, 5, 4], "first half"),
        ],
    ),
    "first_half": Case(
        right=["orbits and bounces", "Orbits", "orbits and bounces."],
        wrong={"left and right": "on the right", "none": "films", "up": "Choose"},
    ),
    "last_frame": Case(right=[7, "7", 7.0], wrong={9: "circle", 0: "when", 3: "small"}),
    "own_opposite": Case(
        right=[pulse, there_and_back],
        wrong=[
            (lambda s, phase: dict(x=s), "x"),
            (lambda s, phase: dict(x=0.5), "still"),
            (lambda s, phase: dict(size=s * (1 - s)), "size"),
            (lambda s: s, "TypeError"),
            (3, "function"),
        ],
    ),
}
