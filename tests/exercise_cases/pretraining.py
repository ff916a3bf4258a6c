"""Answers to the exercises of `pretraining`, right and wrong."""

import math
from fractions import Fraction

from exercise_cases import Case

CASES = {
    "gate": Case(
        right=["chance", "Chance."], wrong={"as before": "Eq. 5", "in between": "patches"}
    ),
    "shuffle": Case(
        right=[1.386, 2 * math.log(2), "1.39"],
        wrong={0: "tell right from left", 6.356: "nothing", 0.693: "one direction"},
    ),
    "negatives": Case(
        right=["chance", "CHANCE"],
        wrong={"as before": "wrong caption", "worse than chance": "prefer"},
    ),
    "mask": Case(
        right=[64 / 7, "9.14", Fraction(64, 7)], wrong={10: "no whole", 7: "stay", 0.9: "hidden"}
    ),
}
