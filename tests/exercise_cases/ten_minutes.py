"""Answers to the exercises of BT-Adapter in ten minutes."""

from math import factorial

from exercise_cases import Case

CASES = {
    "mirror": Case(
        right=["left", "Left.", "LEFT"],
        wrong={"right": "second", "both": "Choose"},
    ),
    "orders": Case(
        right=[1, "1", 1.0],
        wrong={factorial(8): "mean", 2: "bars", 8: "eight"},
    ),
    "gate": Case(
        right=[1, "1", 0.999, "100%"],
        wrong={0: "nothing in common", -1: "circle is the same", 0.5: "shut off"},
    ),
}
