"""Answers to the exercises on clips of one's own."""

import math

import torch

from exercise_cases import Case

CASES = {
    "floor": Case(
        right=[2 * math.log(4), "2.77", torch.tensor(2.7726)],
        wrong={
            0: "differ",
            math.log(4): "sum of two",
            2 * math.log(24): "nothing",
            2 * math.log(6): "How often",
        },
    ),
    "enough": Case(
        right=[35, "35", torch.tensor(35)],
        wrong={10: "72%", 12: "76%", 34: "Very nearly", 9: "share", 100: "too large"},
    ),
    "taken": Case(
        right=[200, "200", torch.tensor(200)],
        wrong={237: "stop button", 250: "next one", 0: "Only without", 50: "last checkpoint"},
    ),
    "neighbors": Case(
        right=["no", False, "No."],
        wrong={"yes": "neighbors", "maybe": "Choose one"},
    ),
}
