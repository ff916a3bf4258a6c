"""Right and wrong answers to the exercises of the lessons: a module a lesson, with `CASES`.

    CASES = {"share": Case(right=[0.3, "30%"], wrong={0.7: "hidden", "many": "one number"})}

tests/test_exercises.py gives each of them to `check`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """Answers to one exercise."""

    right: Sequence  # in forms that differ
    wrong: Mapping | Sequence[tuple]  # answer -> a word that is said to it; pairs, where unhashable

    def wrongs(self) -> Iterator[tuple]:
        """The wrong answers, each with the word that is said to it."""
        yield from self.wrong.items() if isinstance(self.wrong, Mapping) else self.wrong
