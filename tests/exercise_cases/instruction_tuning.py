"""Answers to the exercises of the lesson on instruction tuning."""

import torch

from exercise_cases import Case


def rolled(labels):
    following = labels.roll(-1, dims=1)
    following[:, -1] = -100
    return following != -100


def padded(labels):
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100) != -100


CASES = {
    "learned": Case(
        right=[9, "9", 9.0],
        wrong={7: "over", 8: "of its own", 16: "read, not learned", 30: "too large"},
    ),
    "once": Case(
        right=["CLIP", "clip."],
        wrong={"branch": "learns in stage 2", "language model": "what it reads", 3: "Choose one"},
    ),
    "places": Case(
        right=[rolled, padded],
        wrong=[
            (lambda labels: labels != -100, "next token"),
            (lambda labels: labels[:, 1:] != -100, "shape"),
            (lambda labels: labels.nothing, "stops with"),
            (7, "function"),
        ],
    ),
}
