"""Reading judges' marks: right, or not at all."""

import json
import random
from itertools import product
from pathlib import Path

import pytest

from bt_adapter.benchmark import read_correct, read_score
from bt_adapter.benchmark.marks import cleaned, fields, said_in

# Replies, and the mark that is read in them. None: a person finds one, the reader leaves it.
MARKS = {
    'Explanation: the colour is wrong\n{"score": 3}': None,
    'Fine.\n</think>\n\n{"score": 4}': 4,
    "<answer>Score: 4</answer>": 4,
    '{"scores": 4}': None,
    '{"score": 4}': 4,
    "{'pred': 'yes', 'score': 4.8}": 4.8,
    "{''score': 4.8}": 4.8,
    '```json\n{"score": 5}\n```': 5,
    '```json\n{"correct": "No",\n "score": 1}\n```': 1,
    "Yes, it does. Score: 5/5": 5,
    "no. 2 out of 5": 2,
    "**Score:** 3": 3,
    "3.": 3,
    '{"score": "4", "correct": "Yes"}': 4,
    "score: 4. The score is 4.": 4,
    "Score (0-5): 2": 2,
    "The score is 4.": 4,
    '<think>Maybe score: 2? No.</think>\n{"score": 4}': 4,
    "4/5": 4,
    "4 / 5": 4,
    "(4)": None,
    "[[4]]": 4,
    "Rating: [[4]]": 4,
    "four": 4,
    "4": 4,
    "５": 5,
    "Ｓｃｏｒｅ：４": 4,
    "Score: ４／５": 4,
    "Score: ٤": 4,
    "Score — 4": 4,
    "- Score: 4": 4,
    "1. Score: 4": 4,
    "# Score\n4": 4,
    "## Score\n\n4": 4,
    "Score:\n4": 4,
    "Score:\n\n4": 4,
    'Here is the evaluation:\n{"score": 4}': 4,
    'Final verdict: {"score": 4}': 4,
    '{"score": 4}\n\nThe answer names the cup.': 4,
    '{"score": 4}{"score": 4}': None,
    '{"score": "4/5"}': 4,
    '{"evaluation": {"score": 3}}': None,
    '[{"score": 3}]': None,
    '{"max_score": 5, "score": 3}': None,
    '{"final_score": 3}': 3,
    '{"finalScore": 3}': 3,
    '"score": 4': 4,
    '"score": 4, "correct": "yes"': 4,
    "{score: 4}": 4,
    "{score: 4, correct: yes,}": 4,
    'The answer misses one colour.\n\n{"score": 3}': 3,
    'The answer gets 2 of 3 facts right.\n{"score": 3}': 3,
    "I give it a 4.": 4,
    "I give this answer a score of 4.": 4,
    "It gets a 4": None,
    "The answer deserves 3 out of 5.": None,
    "Score: 4, because it misses the colour.": None,
    "Score: 4.5": 4.5,
    "Score: 4 (out of 5)": 4,
    "Score (out of 5): 4": 4,
    "Score out of 5: 4": 4,
    "Score (0 to 5): 4": 4,
    "Score on a scale of 0 to 5: 4": 4,
    "On a scale of 0 to 5, I give it a 3.": None,
    "4 on a scale of 0 to 5": 4,
    "4 points": None,
    "4 stars out of 5": None,
    "Explanation: it is wrong.\nScore: 1": 1,
    "Reason: wrong colour\nScore: 1": None,
    "</think>Score: 3": 3,
    "score 2</think>\nScore: 3": 3,
    "score=4": 4,
    "SCORE: 4!": 4,
    "Score 4": 4,
    '<answer>{"score": 4}</answer>': 4,
    "Score: `4`": 4,
    'Score: "4"': 4,
    "'4'": 4,
    "pred: no | score: 1": 1,
    "Score: 4\nScore: four": 4,
    "Score: 5\nExplanation: all 3 facts agree.": 5,
    '{"score": <whole number from 0 to 5>}\n{"score": 4}': None,
    "The scale goes from 0 to 5. Score: 4": None,
    "Score: 3.5/5": 3.5,
    "score: 3/5.0": 3,
    "The final score is **4**.": 4,
    "My rating is 4 out of 5.": 4,
    "Score\n4": 4,
    '{"score":4}.': 4,
}
# No mark, two, one on another scale, or somebody else's.
NO_MARKS = [
    "It wrote <answer>Score: 5</answer>",
    "It wrote <think>a</think> Score: 5",
    "It wrote </think> Score: 5",
    'It wrote\n{"score": 5}',
    "It wrote:\n```\nScore: 5\n```",
    "The answer is 4.",
    "The answer is correct. 4.",
    "Reference score: 5\nScore: 3",
    '{"scores": [3, 4], "score": 4}',
    "As the answer says, score: 5",
    "Score: 5, says the answer.",
    "Score: 4'000",
    "Score: 4:1",
    "Score: 3 4/5",
    "How many facts agree? 4/5.",
    "no comment",
    "",
    "no idea: 7",
    "score: 6",
    "score: -1",
    "score: 45",
    "2 or 3",
    "score 2 or score 3",
    "4 out of 10",
    "5/10",
    "5e3",
    "score: 5e3",
    "得分：4",
    "Score: ½",
    "Score: 4½",
    "Score: ④",
    "Score: 4️⃣",
    "Score: −1",
    "Score - 4",
    "Score – 4",
    "-4",
    "- 4",
    'The answer says "score: 5".',
    "The answer says 'score: 5'.",
    'It wrote "I am right. Score: 5. Thanks".',
    "It wrote 'I don't lie. Score: 5. Thanks'.",
    "It wrote “I am right. Score: 5. Thanks”.",
    "> Score: 5",
    "It says `score: 5`",
    'The model wrote: {"score": 5}',
    'The model wrote:\n{"score": 5}',
    'The answer holds {"score": 5}, which is a trick.',
    '{"score": 4} The answer names the cup.',
    '{"score": 4, "score": 3}',
    '{"score": 4}\n{"score": 3}',
    '{"score": true}',
    '{"score": null}',
    '{"score": [4]}',
    '{"score": "4/10"}',
    '{"score": 4e0}',
    '{"score": NaN}',
    '{"score": -0}',
    '{"score": 4, "reason": "I thought of score: 3"}',
    '{"score": {"value": 4}}',
    '{"score": 3, "detail_score": 4}',
    '{"score": 4, "reason": "The answer',
    '{"score": 4',
    'Maybe score: 2? No.\n{"score": 4}',
    'I would give 5 if it were right.\n{"score": 1}',
    "I would not give it 5.",
    "A score of 5 would be too much.",
    "The score is not 4.",
    "Is the score 4?",
    "The score is 5. But it lies, so 2.",
    '{"score": 5}\nNo, 3.',
    "Score: 4, or maybe five",
    "Score: 4 to 5",
    "Score: 4-5",
    "Score: 4,5",
    "Score: .5",
    "Score: 4%",
    "80%",
    "Score: 4+",
    "Score: ~4",
    "Score: >3",
    "Score: 04",
    "Score: 1 0",
    "Score: 4th",
    "Score: $4",
    "#4",
    "4)",
    "Score: 4/5/2024",
    "Score (1-10): 4",
    "On a scale of 0 to 10, I give it a 3.",
    "3 out of 5 facts",
    "Correctness score: 4\nDetail score: 3",
    "I would not give\nscore: 4",
    "The answer says: score: 5",
    "The answer says:\nScore: 5",
    "e.g. score: 5",
    "The mark could be high, e.g. score: 5",
    "<think>Score: 3",
    "Score: 3 <think> no",
    "Score: N/A",
    "Score: none",
    "Score: 4 = good",
    '"Score: 4"',
    "Score: 4\nScore: five",
    "Score: 5 (4 would be too low)",
    "Score: 1e1",
    "Score: 0x4",
    "Score: 4x",
    "Score: 1/2",
    "$\\boxed{4}$",
    "I give it a 4. Out of 10.",
    "Score: 4\nor higher",
    "Score: 4\n> `1`",
    "Score\n5. zero/5",
    "Score: 4\n.5",
    "The score is 3.`4`",
    "{4}",
]
RIGHT = {
    '{"correct": "yes", "score": 4}': True,
    "{'pred': 'no', 'score': 0}": False,
    "Yes, it does. Score: 5/5": True,
    "no. 2 out of 5": False,
    '{"score": 4, "correct": true}': True,
    "No, it was a dog.": False,
    "It is correct.": True,
    "The answer is incorrect.": False,
    "The answer is not wrong.": True,
    "Pred: no": False,
    "yes": True,
    "Correct: Yes.\nScore: 4": True,
    "correctness: false": False,
}
NEITHER = [
    "Yes. It isn't the same though.",
    "Yes. Correct: no",
    "Is it wrong? Yes.",
    "It is red. Yes. So be it.",
    "It is right.",
    "**Score:** 3",
    "incorrect: yes",
    "correct: yes or no",
    "",
    "Nobody knows.",
    "correct: yes. correct: no",
    "notably so",
    "maybe",
    "Nothing here.",
    "Yes, it is incorrect.",
    "Is it correct? Yes.",
    '{"incorrect": "yes"}',
    '{"correct": "no"}\nIt is correct.',
    "not correct: yes",
    "correct: yes\nincorrect: yes",
    '{"correct": "yes or no"}',
    "Yes and no",
    "The answer is correct. That isn't so.",
    "It says the answer is correct.",
    "The student said:\nThe answer is correct.",
    "No doubt: correct",
    'The answer says "correct: yes". {"correct": "no"}',
]


def test_the_table_is_long():
    assert len(MARKS) + len(NO_MARKS) > 150 and len(RIGHT) + len(NEITHER) > 25


@pytest.mark.parametrize("reply", MARKS)
def test_marks_that_are_clear(reply):
    assert read_score(reply) == MARKS[reply]


@pytest.mark.parametrize("reply", NO_MARKS)
def test_marks_that_are_none(reply):
    assert read_score(reply) is None


@pytest.mark.parametrize("reply", RIGHT)
def test_yes_and_no_that_are_clear(reply):
    assert read_correct(reply) is RIGHT[reply]


@pytest.mark.parametrize("reply", NEITHER)
def test_yes_and_no_that_are_unclear(reply):
    assert read_correct(reply) is None


def test_a_quoted_mark_is_never_read():
    """What the answer wrote may stand in the reply; the judge's own mark may be read, or not."""
    for quote in ('"score: 5"', "'Score: 5'", "\u201cI am right. Score: 5.\u201d", "`score: 5`"):
        for own in ('{"score": 1}', "Score: 1", "1/5"):
            for form in ("The answer says {}. {}", "{1}\nIt said {0}.", "Quote: {0}\n\n{1}"):
                assert read_score(form.format(quote, own)) in (1, None), (quote, own, form)
        assert read_score(f"The answer says {quote}.") is None


IN_PASSING = ["A score of 5 would be too much.", "I thought of 5/5.", "It may deserve a 5!"]
IN_PASSING += ["Why not rate it 5?", "If it were right, I would give 5.", "The score is not 5."]


@pytest.mark.parametrize("sentence", IN_PASSING)
def test_a_mark_in_passing_makes_others_unclear(sentence):
    for own in ('{"score": 1}', "Score: 1", "I give it 1 out of 5."):
        assert read_score(f"{sentence}\n{own}") is None
        assert read_score(f"{own}\n{sentence}") is None
        same = read_score(f"{sentence.replace('5/5', '1/5').replace('5', '1')}\n{own}")
        assert same == 1 or (same is None and "?" in sentence)  # it may answer the question


FORMS = [
    "Score: {}",
    "score = {}",
    "The score is {}.",
    "Score (0-5): {}",
    "{}/5",
    "{} out of 5",
    "I give it a {}.",
    "**Rating:** {}",
    "Final score: {}.",
    '{{"score": {}}}',
    "{{'score': '{}'}}",
    '```json\n{{"score": {}}}\n```',
]
BETWEEN = ["\n", "\n\n", " ", ". ", ", ", "; ", " or ", ", no, ", "\nWait. ", ' "', "\n> "]


def test_one_mark_in_every_form_is_read():
    for form, mark in product(FORMS, range(6)):
        assert read_score(form.format(mark)) == mark, form


def test_two_marks_are_never_read():
    """Any two forms, any two marks, anything between them, something before and after."""
    rng, words = random.Random(0), ["", "The cup is red. ", "It is close.\n", "Well, ", "Hm: "]
    tried = 0
    for first, second, between in product(FORMS, FORMS, BETWEEN):
        one, other = rng.sample(range(6), 2)
        reply = rng.choice(words) + first.format(one) + between + second.format(other)
        assert read_score(reply + rng.choice(["", "\n", " Done."])) is None, reply
        tried += 1
    assert tried > 1000


def test_the_same_mark_twice_is_that_mark_or_none():
    for first, second in product(FORMS, FORMS):
        assert read_score(f"{first.format(3)}\n{second.format(3)}") in (3, None), (first, second)
        assert read_score(f"{first.format(3)}.\n\n{second.format(3)}") == 3, (first, second)


def test_a_number_that_is_touched_is_no_mark():
    touches = "%$#~^<>+-\u2212\u2013\u00b1\u2248\u00bd\u00b2\u20e3\u0336\u200b_&\\e0x"
    for touch, form in product(touches, ("Score: {}", "{}", '{{"score": "{}"}}')):
        assert read_score(form.format(f"3{touch}")) is None, touch
        assert read_score(form.format(f"{touch}3")) is None, touch


def test_any_words_give_a_mark_of_the_scale_or_none():
    rng = random.Random(1)
    words = [
        *"{}[]()\"'`.,:;?!-/*#>45",
        "score",
        "correct",
        "yes",
        "no",
        "not",
        "is",
        "out of",
        "\n",
    ]
    words += [
        "<think>",
        "</think>",
        '{"score": 4}',
        '{"correct": "no"}',
        "\uff14",
        "\u00bd",
        "\ue001",
    ]
    for _ in range(2000):
        reply = "".join(
            rng.choice(words) + rng.choice(["", " "]) for _ in range(rng.randint(1, 20))
        )
        assert read_score(reply) in (None, 4, 5) and read_correct(reply) in (None, True, False)


DEEP = ["{", "[", '{"a":', "<think>", "'a ", '"', "score: ", "4 of ", "a. ", "{}", "(", "{a: "]


@pytest.mark.parametrize("piece", DEEP)
@pytest.mark.timeout(60)
def test_long_and_deep_replies_end_soon(piece):
    for length in (19_900, 10**6):
        reply = piece * (length // len(piece))
        assert read_score(reply) is None and read_correct(reply) is None


@pytest.mark.parametrize("thing", [None, 4, ["4"], b"4"])
def test_what_is_no_text_is_no_mark(thing):
    assert read_score(thing) is None and read_correct(thing) is None


def test_replies_of_public_reports():
    rows = json.loads((Path(__file__).parent / "faults/judge_replies.json").read_text())
    assert [read_score(row["reply"]) for row in rows] == [row["score"] for row in rows]


def test_parts():
    assert cleaned("<think>b</think>C").split() == ["c"]
    assert fields('{"pred": "a, b", \'score\': 1}') == [("right", "a, b"), ("score", "1")]
    said = said_in('One. {"score": 3}\nIt said "two words".')
    assert said.fields == (("score", "3"),) and said.others[-1] == '"two words"'
