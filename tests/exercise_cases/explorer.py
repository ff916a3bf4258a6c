"""Answers to the exercises on the explorer."""

from exercise_cases import Case

CASES = {
    "even": Case(
        right=[12.5, "12.5"],
        wrong={100: "all frames together", 1: "receives", 0.125: "how many percent"},
    ),
    "together": Case(
        right=["less", "Less"],
        wrong={"more": "twice", "the same": "take all out"},
    ),
    "ticks": Case(
        right=[11, "11"],
        wrong={10: "all its ticks", 24: "one part", 8: "each", 7: "frames"},
    ),
}
