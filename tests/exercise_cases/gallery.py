"""Answers to the exercises of the lesson on the gallery."""

from fractions import Fraction
from math import comb

from exercise_cases import Case


def counted(gained, lost):
    n = gained + lost
    return sum(comb(n, k) for k in range(gained, n + 1)) / 2**n


def coins(gained, lost):
    """The same, coin by coin."""
    shares = [1.0]
    for _ in range(gained + lost):
        shares = [(a + b) / 2 for a, b in zip([0, *shares], [*shares, 0])]
    return sum(shares[gained:])


CASES = {
    "opposite": Case(
        right=[0.8, "80%", Fraction(4, 5)],
        wrong={0.5: "hyphen", 2 / 3: "share of the right", 1: "missing", "two": "one number"},
    ),
    "guessing": Case(
        right=[23, "23", 23.0],
        wrong={22: "still within", 12: "on average", 15: "Take three", 216: "too large"},
    ),
    "sign_test": Case(
        right=[counted, coins],
        wrong=[
            (lambda a, b: min(1.0, 2 * counted(max(a, b), min(a, b))), "both sides"),
            (lambda a, b: counted(a + 1, b - 1) if b else 0.0, "as many gains"),
            (lambda a: a, "stops with"),
            (0.03, "function"),
        ],
    ),
}
