"""Answers to the exercises of the lesson on the branch."""

from bt_adapter.exercises.branch import half_backwards
from exercise_cases import Case

HALF = half_backwards()  # of the weights that are shipped
OTHER = {"yes": "no", "no": "yes"}[HALF]

CASES = {
    "closed": Case(
        right=["patches", "Patches.", "patch"],
        wrong={"embedding": "other side", "both": "closed gate", "neither": "last line"},
    ),
    "third": Case(
        right=["no", "No.", False],
        wrong={"yes": "layer 4", True: "come in", 3: "Choose one of"},
    ),
    "half": Case(
        right=[HALF, HALF.upper(), HALF == "yes"],
        wrong={OTHER: "frame" if OTHER == "yes" else "begins", "left": "Choose one of"},
    ),
}
