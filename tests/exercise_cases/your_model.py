"""Answers to the exercises on a model of one's own."""

from exercise_cases import Case

CASES = {
    "guess": Case(right=["no", "No"], wrong={"yes": "is a half in it", "perhaps": "choose"}),
    "blind": Case(right=["no", "No"], wrong={"yes": "same mean", "perhaps": "choose"}),
    "states": Case(
        right=[84, 84.2],
        wrong={67.4: "last layer", 16.84: "one state"},
    ),
}
