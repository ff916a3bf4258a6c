"""Answers to the exercises of the lesson on conversation."""

from exercise_cases import Case

CASES = {
    "tokens": Case(
        right=[640, "640", 640.0],
        wrong={160: "small CLIP", 256: "one frame", 2048: "every patch", 512: "fast ones"},
    ),
    "fourth": Case(
        right=["unchanged", "Unchanged."],
        wrong={"mean frame": "gate 3", "zero": "lets CLIP through", 4: "Choose one of"},
    ),
    "no_time": Case(
        right=["no", "No.", False],
        wrong={"yes": "first", True: "first", "left": "Choose one of"},
    ),
}
