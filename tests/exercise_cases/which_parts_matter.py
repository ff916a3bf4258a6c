"""Answers to the exercises on which parts matter."""

from fractions import Fraction

from exercise_cases import Case

CASES = {
    "interval": Case(
        right=["too close to call", "Too close"],
        wrong={"better": "interval", "as good": "8 points", "worse": "Choose one"},
    ),
    "by_chance": Case(
        right=[3, 2.9, "2.875", Fraction(23, 8)],
        wrong={1.25: "three", 0: "some", 0.115: "one pair", 11.5: "percentage", 25: "all"},
    ),
    "which_row": Case(
        right=["gates started open", "Gates"],
        wrong={"addition": "no gates", "branch alone": "losses", "no mask": "mask"},
    ),
}
