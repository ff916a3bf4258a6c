"""Answers to the exercises of the lesson on a frozen CLIP."""

from bt_adapter.exercises.frozen_clip import layers_to_leave_out
from exercise_cases import Case

CASES = {
    "shuffled_patches": Case(
        right=["no", "No.", False],
        wrong={"yes": "patch came first", "perhaps": "Choose"},
    ),
    "leave_out": Case(
        right=[layers_to_leave_out(), str(layers_to_leave_out())],
        wrong={
            layers_to_leave_out() - 1: "one more",
            0: "more than nine in ten",
            12: "Without any layer",
            2.5: "whole",
        },
    ),
    "ends": Case(
        right=["better", "Better"],
        wrong={"chance": "changes its sign", "worse": "Turned round", "same": "Choose"},
    ),
}
