"""Answers to the exercises of `large_batches`, right and wrong."""

import math
from fractions import Fraction

from exercise_cases import Case

CASES = {
    "alone": Case(
        right=[4.159, "4.16", 6 * math.log(2)], wrong={8.318: "64 captions", 2.079: "one direction"}
    ),
    "factor": Case(right=[4, "4.0", Fraction(8, 2)], wrong={1: "mean of four", 0.25: "once more"}),
    "time": Case(
        right=[4 / 3, "4/3", Fraction(4, 3)], wrong={2: "twice", 1.5: "Count", 4: "without"}
    ),
    "halves": Case(right=[16, "16.0", Fraction(32, 2)], wrong={0: "mean over", 8: "halves"}),
}
