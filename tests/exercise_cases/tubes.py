"""Right and wrong answers to the exercises on tubes."""

from fractions import Fraction

from bt_adapter.exercises.tubes import directions_found, share_left
from exercise_cases import Case

still = directions_found()[0]
CASES = {
    "moving": Case(
        right=[still, f"{100 * still:.1f}%"],
        wrong={0.0: "guessing", 1.0: "Measure", "many": "one number"},
    ),
    "neighbors": Case(
        right=[0.527, "53%", "51%", 1 - Fraction(44, 64) ** 2],
        wrong={20 / 64: "one neighbor", 0.4727: "both hide", 0.927: "seven"},
    ),
    "floor": Case(
        right=[0.59, "59%", share_left(1)],
        wrong={0.004: "CLIP still runs", 0.3: "count CLIP", 0.71: "all but one", 0.41: "save"},
    ),
}
