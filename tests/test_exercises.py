"""The exercises: right answers in any form are right, wrong ones are told something useful."""

import json
import math
import re
import sys
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from importlib import import_module

import numpy as np
import pytest
import torch
from exercise_cases import Case
from form import exercises_in
from tidy import LESSONS

import bt_adapter.exercises
from bt_adapter.exercises import check, exercises, lessons
from bt_adapter.exercises.answers import Verdict, choice, function, number, tensor

NAMES = [f"{lesson}.{name}" for lesson in lessons() for name in exercises(lesson)]


def named(answer):
    """The name of a case: the same in every process, so without addresses."""
    return repr(answer).split(" at 0x")[0][:30]


def cases(lesson):
    """The answers to a lesson's exercises."""
    return import_module(f"exercise_cases.{lesson}").CASES


def faults(name: str, case: Case):
    """What is wrong with an exercise or its case, sentence by sentence."""
    lesson, which = name.split(".")
    exercise, asked, shown = exercises(lesson)[which], check(name), check(name, solution=True)
    if asked.right is not None or exercise.question not in asked.text:
        yield "without an answer, it does not ask"
    if (open_ := check(name, ...)).right is not None or "in place of `...`" not in open_.text:
        yield "where nobody has answered, it does not say how to"
    if exercise.question in open_.text:
        yield "it repeats the question below the question"
    if shown.right is not None or shown.text != exercise.solution or not shown.text.strip():
        yield "it does not show its solution"
    if len({repr(answer) for answer in case.right}) < 2:
        yield "it has fewer than two right answers in forms that differ"
    if len(list(case.wrongs())) < 2:
        yield "it has fewer than two wrong answers"
    answers = [(answer, True, "") for answer in case.right]
    answers += [(answer, False, word) for answer, word in case.wrongs()]
    for answer, right, word in answers:
        said, given = check(name, answer), repr(answer)[:80]
        if said.right is not right:
            yield f"{given} is {'not ' * right}right: {said}"
        elif not said.text.strip() or word.casefold() not in said.text.casefold():
            yield f"to {given} it does not say {word!r}: {said}"
        if exercise.question in said.text:
            yield f"to {given} it repeats the question"


@pytest.mark.parametrize("name", NAMES)
def test_right_and_wrong_answers(name):
    lesson, exercise = name.split(".")
    assert exercise in cases(lesson), f"tests/exercise_cases/{lesson}.py has no case for it"
    assert not list(faults(name, cases(lesson)[exercise]))


@pytest.mark.parametrize("lesson", lessons())
def test_every_case_has_an_exercise(lesson):
    assert cases(lesson).keys() <= exercises(lesson).keys()


def asked_in_lessons():
    """How often the lessons check each exercise."""
    notebooks = [json.loads(path.read_text(encoding="utf-8")) for path in LESSONS]
    cells = [cell for notebook in notebooks for cell in notebook["cells"]]
    return Counter(name for cell in cells for name in exercises_in(cell))


def test_lessons_ask_the_exercises_that_there_are():
    asked = asked_in_lessons()
    assert not asked.keys() - set(NAMES), "lessons ask exercises that are not there"
    assert not set(NAMES) - asked.keys(), "no lesson asks these exercises"


MADE_UP = """
from bt_adapter.exercises.answers import Exercise, choice, number

EXERCISES = {
    "share": Exercise("Which share stays?", number(0.3, {0.7: "That is hidden."}), "1 - 0.7."),
    "order": Exercise("Does order matter?", choice("no", {"yes": "Sum it.", "no": "True."}), "No."),
}
"""


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """A module of exercises that no lesson has."""
    (tmp_path / "made_up.py").write_text(MADE_UP)
    package = bt_adapter.exercises
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    yield
    sys.modules.pop("bt_adapter.exercises.made_up", None)
    vars(package).pop("made_up", None)


GOOD = {
    "share": Case(right=[0.3, "30%", Fraction(3, 10)], wrong={0.7: "hidden", "many": "one number"}),
    "order": Case(right=["No.", False], wrong=[("yes", "sum"), (["no", "yes"], "choose")]),
}


def test_good_cases_of_a_made_up_lesson(made_up):
    assert "made_up" in lessons()
    for name, case in GOOD.items():
        assert list(faults(f"made_up.{name}", case)) == []


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        (Case([0.3, 0.3], {0.7: "hidden", 1: "large"}), "two right answers"),
        (Case([0.3, "30%"], {0.7: "hidden"}), "two wrong answers"),
        (Case([0.3, 0.7], {0.7: "hidden", 1: "large"}), "0.7 is not right"),
        (Case([0.3, "30%"], {0.7: "hidden", "3/10": "large"}), "'3/10' is right"),
        (Case([0.3, "30%"], {0.7: "tubes", 1: "large"}), "does not say 'tubes'"),
    ],
)
def test_bad_cases_of_a_made_up_lesson(made_up, case, fault):
    (found,) = faults("made_up.share", case)
    assert fault in found


@pytest.mark.parametrize(
    "name", ["tubes", "nowhere.share", "made_up.nothing", "answers.number", ""]
)
def test_there_is_no_such_exercise(made_up, name):
    with pytest.raises(ValueError, match="choose among"):
        check(name)


GRAD = torch.tensor(0.3, requires_grad=True)
MARKUP = "<img src=x onerror=alert(1)> **`$x$`** \x1b[31m\u202e"


NUMBERS = [0.3, "0.3", " 3 / 10 ", "30%", "30 %", "3e-1", Fraction(3, 10), Decimal("0.3"), GRAD]
NUMBERS += [GRAD[None], np.float32(0.3), np.array([0.3]), torch.tensor(0.3, dtype=torch.bfloat16)]


@pytest.mark.parametrize("answer", NUMBERS, ids=named)
def test_a_number_in_any_form(answer):
    assert number(0.3)(answer)


NO_NUMBER = [
    math.nan,
    math.inf,
    -math.inf,
    "nan",
    "inf",
    "1e999999999",
    10**400,
    "9" * 10_000,
    "1/0",
]
NO_NUMBER += [
    "",
    "%",
    "/",
    "1/2/3",
    MARKUP,
    None,
    [],
    [1, 2],
    {},
    1j,
    object(),
    print,
    torch.ones(2),
]
NO_NUMBER += [torch.ones(2, requires_grad=True), torch.tensor(math.nan), Decimal("sNaN")]


@pytest.mark.parametrize("answer", [*NO_NUMBER, "0,3 <b>"], ids=named)
def test_what_is_no_number_is_told_with_examples(answer):
    said = number(0.3, {0.7: "hidden", (lambda given: given > 1): "Too much."}.items())(answer)
    assert said.right is False and said.text.startswith("This takes one number, such as `0.3`")


def test_a_share_in_percent_is_recognised_and_a_count_is_not():
    assert '`"30%"`' in number(0.3)(30).text
    assert "too large" in number(8)(800).text and "too small" in number(8)(-1e300).text


@pytest.mark.parametrize("answer", [*NO_NUMBER, True, 3], ids=named)
def test_a_choice_says_what_there_is_and_repeats_nothing(answer):
    said = choice("left", {"left": "It does.", "right": "Look again."})(answer)
    assert said.right is False and said.text == 'Choose one of `"left"`, `"right"`.'


def test_a_choice_may_be_the_start_of_one_option_only():
    judge = choice("slower", {"slower": "", "slow": "", "fast": ""})
    assert judge("slower") and judge("SLOWER.") and judge("slowe") and not judge("slow")
    assert "Choose one" in judge("s").text


WANTED = [[0.5, 0.5], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ([[0.5, math.nan], [1, 0]], "not finite"),
        ([[0.5, math.inf], [1, 0]], "not finite"),
        ([[0.5, 1e30], [1, 0]], "differ by up to 1e+30"),
        (np.array([[0.5, 1e300], [1, 0]]), "differ by up to 1e+300"),
        ([[10**400, 0], [0, 0]], "numbers in the shape (2, 2)"),
        ([[1j, 0], [0, 0]], "numbers in the shape"),
        ([[1, 2], [3]], "numbers in the shape"),
        (MARKUP, "numbers in the shape"),
        (None, "numbers in the shape"),
        ({"a": 1}, "numbers in the shape"),
        (torch.ones(2, 2, device="meta"), "numbers in the shape"),
        (torch.ones(0), "(0,)"),
        (0.5, "()"),
    ],
    ids=named,
)
def test_what_is_no_such_tensor_is_told(answer, word):
    said = tensor(WANTED)(answer)
    assert said.right is False and word in said.text and "<img" not in said.text


def test_a_tensor_in_any_form():
    judge = tensor(lambda: torch.tensor(WANTED, requires_grad=True))
    grad = torch.tensor(WANTED, requires_grad=True)
    for answer in (WANTED, np.array(WANTED), grad, grad.half(), torch.tensor(WANTED).bfloat16()):
        assert judge(answer)
    masks = tensor([[0.0, -math.inf], [1.0, 0.0]])
    assert masks([[0.0, -math.inf], [1, 0]])
    assert "differ by up to 1" in masks([[0.0, -math.inf], [2, 0]]).text


def raises(error):
    def answer(*_):
        raise error

    return answer


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (2, "without calling it"),
        (MARKUP, "without calling it"),
        (lambda: 0, "TypeError"),
        (lambda x: None, "numbers in the shape"),
        (lambda x: MARKUP, "numbers in the shape"),
        (lambda x: x[:1], "The shape is (1,)"),
        (lambda x: x / 0, "not finite"),
        (raises(ValueError("a\nb")), "It stops with `ValueError: a b`."),
        (raises(RuntimeError("x" * 10_000)), "RuntimeError"),
        (raises(RecursionError()), "RecursionError"),
    ],
    ids=named,
)
def test_what_is_no_such_function_is_told(answer, word):
    said = function(lambda x: 2 * x, [(torch.ones(2),)])(answer)
    assert said.right is False and word in said.text and len(said.text) < 300


def test_what_a_students_function_says_is_shown_and_not_obeyed():
    said = function(lambda x: x, [(1,)])(raises(ValueError(MARKUP)))
    code = re.fullmatch(r"It stops with `([^`]*)`\.", said.text)[1]  # Markdown obeys nothing there
    assert "<img src=x onerror=alert(1)>" in code and "\\x1b[31m\\u202e" in code
    assert said._repr_markdown_() == f"❌ {said.text}"


def test_a_function_that_changes_what_it_is_given():
    def doubled(x):
        x *= 2
        return x

    judge = function(lambda x: 2 * x, [(torch.ones(2),)])
    assert judge(doubled) and judge(doubled) and judge(lambda x: x + 1)


def test_verdicts():
    assert [bool(Verdict(right, "")) for right in (True, False, None)] == [True, False, False]
    assert [Verdict(right, "x")._repr_markdown_()[0] for right in (True, False, None)] == list(
        "✅❌✏"
    )
