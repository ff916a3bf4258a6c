"""Answers to the exercises of `kernel`, right and wrong."""

from fractions import Fraction

from exercise_cases import Case

CASES = {
    "scores": Case(
        right=[0.5625, "56%", Fraction(9, 16), 144 / 256],
        wrong={0.75: "row and a column", 0.4375: "not used", 0.25: "empty"},
    ),
    "unmasked": Case(
        right=["right results, and other memory overwritten", "Right results", "overwritten."],
        wrong=[("all is right", "eight"), ("wrong results", "row 9"), (True, "Choose one")],
    ),
    "frames": Case(right=[306, "306", 306.0], wrong={153: "frames", 76.5: "two", 8: "too small"}),
}
