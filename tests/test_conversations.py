"""Conversations about Moving Shapes: what is asked, what is right, and who judges it."""

import hashlib
import importlib
import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from test_chat import tower
from tiny_hosts import byte_tokenizer, one_thread, tiny_llama  # noqa: F401 used by all tests here

from bt_adapter import fitting, instruct
from bt_adapter import moving_shapes as world
from bt_adapter.branch import BTAdapter
from bt_adapter.chat import MERGE, image_chat_model, plug
from bt_adapter.instruct import InstructConfig, is_right, make_small_chat
from bt_adapter.instruct import conversations as talk
from bt_adapter.instruct.conversations import Asked, Questioner, Shown
from bt_adapter.instruct.interview import Item
from bt_adapter.instruct.questions import WORDINGS
from bt_adapter.instruct.unanswerable import CANNOT_TELL, NOUNS, OUTSIDE

interviews = importlib.import_module(
    "bt_adapter.instruct.interview"
)  # the package has its function

# --- the first level stays as it is ---


def test_level_one_draws_what_it_always_drew():
    rng, pictures = np.random.default_rng(3), hashlib.sha256()
    for number in range(12):
        image, known = instruct.picture(rng, number % 2 == 1)
        pictures.update(image.numpy().tobytes() + json.dumps(known).encode())
    level, batches = instruct.LEVELS[1], hashlib.sha256()
    known = [level.known(level.scene(rng)) for _ in range(40)]
    config = InstructConfig(9, 8, lr=0)
    batch_of = instruct.batches_of(known, byte_tokenizer(), config, [0] * 16, level.turns)
    for step in (0, 1, 8):
        which, batch = batch_of(step)
        for part in (which, batch.ids, batch.labels):
            batches.update(part.numpy().tobytes())
    assert pictures.hexdigest()[:16] == "151368551565843d"
    assert batches.hexdigest()[:16] == "f0d9db1ef1a88693"
    assert level.stages is instruct.LAPTOP and level.kept == (6000, 1200)
    assert [s.steps for s in level.stages.values()] == [300, 300, 150]


# --- wordings ---


def pattern_of(wording):
    """What a wording can look like once it is asked."""
    parts = re.split(r"\{\w+\}", wording.rstrip("?."))
    filled = r"(?:(?! or |[?.]).)+"
    return re.compile(filled.join(map(re.escape, parts)) + r"[?.]?", re.I)


def test_every_kind_has_ten_wordings_and_four_that_are_held_out():
    for kind, both in {**WORDINGS, "outside": OUTSIDE}.items():
        assert len({*both.trained}) >= 10 and len({*both.held_out}) >= 4, kind
    trained, held_out = (
        {w.lower() for both in (*WORDINGS.values(), OUTSIDE, NOUNS) for w in both[i]}
        for i in (0, 1)
    )
    assert not trained & held_out and "" not in trained | held_out


def scenes_of_all(rng, n=12):
    """Scenes of level 1, and of level 2 with one thing and two."""
    found = [world.random_scene(rng) for _ in range(n)]
    for things in (1, 2):
        found += [world.random_scene(rng, things=things, level=2) for _ in range(n)]
    return found


def all_shown(rng, n=12):
    for number, scene in enumerate(scenes_of_all(rng, n)):
        yield Shown(scene, moves=number % 3 > 0, film=number % 3 > 1)


def test_held_out_wordings_names_and_topics_are_never_trained():
    rng = np.random.default_rng(0)
    asked = [
        question
        for shown in all_shown(rng, 40)
        for _ in range(4)
        for question, _ in talk.conversation(shown, rng)
    ]
    frames = {w for kind in ("in a sentence", "in a word") for w in WORDINGS[kind].held_out}
    for wording in {w for both in (*WORDINGS.values(), OUTSIDE) for w in both.held_out} - frames:
        found = [q for q in asked if pattern_of(wording).fullmatch(q)]
        assert not found, (wording, found[:3])
    said = " ".join(asked).lower()
    assert not [noun for noun in NOUNS.held_out if re.search(rf"\b{noun}\b", said)]
    assert sum(bool(re.search(rf"\b{noun}\b", said)) for noun in NOUNS.trained) > 40


# --- right answers, found anew ---

WAYS = dict(left="left", right="right", up="up", down="down") | {
    f"{v}-{h}": f"{v} and {h}" for v in ("up", "down") for h in ("left", "right")
}
ELSE = dict(grow="grows", shrink="shrinks", appear="appears", disappear="disappears")
ELSE |= dict(clockwise="circles clockwise", orbit="orbits", bounce="bounces", still="stands still")
ELSE |= {"counter-clockwise": "circles counter-clockwise"}


def does_what(thing):
    """What a thing does, from a table of its own."""
    if thing.motion in WAYS:
        return f"moves {WAYS[thing.motion]}"
    turns = dict(turn=thing.other).get(thing.motion, thing.color)
    return ELSE.get(thing.motion, f"turns {turns}")


def truth_of(thing, scene, topic):
    return {
        "colour": thing.color,
        "shape": thing.shape,
        "background": scene.background,
        "motion": does_what(thing),
        "direction": WAYS.get(thing.motion),
    }[topic]


def test_answers_about_a_topic_are_those_of_the_scene():
    rng, seen = np.random.default_rng(1), Counter()
    for scene in scenes_of_all(rng, 30):
        for thing in scene.things:
            ask = Questioner(Shown(scene), rng)
            for topic in talk.known_of(ask.shown, thing):
                if not ask.can_name(thing, topic):
                    continue
                right = truth_of(thing, scene, topic)
                for make in (talk.open_question, talk.either_or, talk.its):
                    asked = make(ask, thing, topic)
                    assert asked.answer == right and right in asked.sentence
                    seen[topic] += 1
                asked = talk.either_or(ask, thing, topic)
                base = re.sub(r"^(\w+)s\b", r"\1", right) if topic == "motion" else right
                assert re.search(rf"\b{re.escape(base)}\b", asked.question), asked
    assert seen.keys() == {"colour", "shape", "background", "motion", "direction"}


@pytest.mark.parametrize("topic", ["colour", "shape", "background", "motion", "direction"])
def test_yes_and_no_are_equally_often_right_and_true(topic):
    rng, said = np.random.default_rng(2), Counter()
    opposite = 0
    for scene in scenes_of_all(rng, 25) * 3:
        thing, shown = scene.things[0], Shown(scene)
        ask = Questioner(shown, rng)
        if topic not in talk.known_of(shown, thing) or not ask.can_name(thing, topic):
            continue
        asked = talk.yes_or_no(ask, thing, topic)
        said[asked.answer] += 1
        value = truth_of(thing, scene, topic)
        if topic == "motion":
            forms = [f for f in talk.forms_of(value).values()]
            told = any(re.search(rf"\b{f}\b(?! and)", asked.question) for f in forms)
            turned = world.motion_named(world.motion_named(thing.motion).opposite)
            back = turned.phrase.format(colour=thing.color, other=thing.other)
            if thing.motion != "still" and asked.answer == "no":
                opposite += any(f in asked.question for f in talk.forms_of(back).values())
        else:
            told = re.search(rf"\b{value}\b(?! and)", asked.question) is not None
        assert told == (asked.answer == "yes"), asked
    assert abs(said["yes"] - said["no"]) < 4 * sum(said.values()) ** 0.5
    assert topic != "motion" or opposite > 0.3 * said["no"]


def test_either_or_names_the_right_one_first_in_half_of_the_cases():
    rng, first = np.random.default_rng(3), []
    for scene in scenes_of_all(rng, 30):
        thing = scene.things[0]
        asked = talk.either_or(Questioner(Shown(scene), rng), thing, "background")
        first.append(re.search("|".join(world.BACKGROUNDS), asked.question)[0] == asked.answer)
    assert 0.3 < np.mean(first) < 0.7


def test_of_what_is_not_there_nothing_is_told():
    rng = np.random.default_rng(4)
    for scene in scenes_of_all(rng, 30):
        present = {t.shape for t in scene.things} | {f"{t.color} {t.shape}" for t in scene.things}
        present |= {f"{t.color} thing" for t in scene.things}
        for foreign in (True, False):
            asked = talk.nothing_called(Questioner(Shown(scene), rng), foreign)
            noun = re.fullmatch(r"There is no (.+)\.", asked.answer)[1]
            assert noun in asked.question and noun not in present
            assert (noun in NOUNS.trained) == foreign
        asked = talk.is_there(Questioner(Shown(scene), rng))
        noun = asked.sentence.rstrip(".").split(" a ")[-1].split(" an ")[-1].split(" no ")[-1]
        assert (noun in present or any(noun == t.shape for t in scene.things)) == (
            asked.answer == "yes"
        ), asked


def test_a_conversation_never_tells_what_it_asks_for():
    rng, kinds = np.random.default_rng(5), Counter()
    for shown in all_shown(rng, 30):
        ask, before = Questioner(shown, rng), []
        for _ in range(6):
            asked = talk.next_question(ask, before)
            said = " ".join(f"{one.question} {one.answer}" for one in before)
            if asked.topic in ("colour", "shape", "background") and asked.kind != "the other one":
                value = truth_of(asked.thing, shown.scene, asked.topic)
                told = re.search(rf"\b{value}\b", said)
                both = len(shown.scene.things) == 2
                assert not told or both, (said, asked)
            if not shown.moves:
                assert asked.topic not in ("motion", "direction") and asked.kind != "which"
            kinds[asked.kind] += 1
            before.append(asked)
    assert {"yes or no", "either or", "pronoun", "describe", "which", "the other one"} <= {*kinds}
    assert {"false premise", "out of the world", "in a sentence", "in a word"} <= {*kinds}
    refused = kinds["false premise"] + kinds["out of the world"]
    assert 0.1 < refused / kinds.total() < 0.45


def test_names_do_not_tell_the_answer_and_belong_to_one_thing():
    rng = np.random.default_rng(6)
    for scene in scenes_of_all(rng, 30):
        for thing in scene.things:
            ask = Questioner(Shown(scene), rng)
            for topic in ("colour", "shape", "motion"):
                for name in ask.names(thing, topic):
                    words = name.split()
                    assert topic != "colour" or thing.color not in words
                    assert topic != "shape" or thing.shape not in words
                    meant = [
                        t
                        for t in scene.things
                        if {*words[1:]} <= {t.color, t.shape, "thing", "object"}
                    ]
                    assert len(meant) == 1 and meant[0] is thing


# --- the judge ---

SQUARE = world.Thing("blue", "square", "up-left", other="red")
STAR = world.Thing("red", "star", "shrink", other="blue", center=(0.5, 0.0))
ONE = Shown(world.Scene((SQUARE,), "black"))
TWO = Shown(world.Scene((SQUARE, STAR), "black"))
TURNING = world.Thing("red", "heart", "turn", other="blue")
TURNS = Shown(world.Scene((TURNING,), "navy"))


def about(topic, kind=None, thing=SQUARE, shown=ONE, answer=None):
    answer = answer or talk.known_of(shown, thing)[topic]
    return Asked(kind or topic, "?", answer, thing=thing, topic=topic), shown


MARKED = [
    (about("colour"), ["blue", "Blue.", "It is blue.", "The square is blue.", "not red but blue"]),
    (about("shape"), ["square", "a square", "It is a square."]),
    (about("background"), ["black", "The background is black."]),
    (about("motion"), ["moves up and left", "up-left", "It is moving to the left and up."]),
    (about("direction"), ["up and left", "left and up", "It moves up and left.", "upwards, left"]),
    (about("motion", thing=STAR, shown=TWO), ["shrinks", "The star is shrinking.", "it shrinks"]),
    (about("motion", thing=TURNING, shown=TURNS), ["turns blue", "It becomes blue."]),
    (about("colour", "yes or no", answer="yes"), ["yes", "Yes, it is blue.", "YES!"]),
    (about("colour", "yes or no", answer="no"), ["no", "No, it is not red.", "No. It is blue."]),
    (about("colour", "in a sentence", answer="It is blue."), ["It is blue.", "The one is blue."]),
    (about("colour", "in a word"), ["blue", "Blue"]),
]
WRONG = [
    (
        about("colour"),
        ["red", "blue or red", "blue, red", "It is not blue.", "", "The circle is blue."],
    ),
    (
        about("colour"),
        ["I cannot tell.", "There is no square.", "blue and it moves down", "square"],
    ),
    (about("shape"), ["circle", "square or circle", "red square", "It circles clockwise."]),
    (about("background"), ["navy", "black and navy", "blue"]),
    (about("motion"), ["moves up", "moves down and right", "up, left, down", "It grows.", "moves"]),
    (about("motion"), ["moves up and left and grows", "circles clockwise", "turns blue"]),
    (about("direction"), ["up", "left", "up and right", "left or right"]),
    (about("motion", thing=STAR, shown=TWO), ["grows", "moves up and left", "The square shrinks."]),
    (about("motion", thing=TURNING, shown=TURNS), ["turns red", "blue", "turns blue and red"]),
    (
        about("colour", "yes or no", answer="yes"),
        ["no", "It is blue.", "yes, no", "Yes, it is red."],
    ),
    (about("colour", "yes or no", answer="no"), ["yes", "No, yes", "No, it is green.", "blue"]),
    (about("colour", "in a sentence", answer="It is blue."), ["blue", "It is red."]),
    (about("colour", "in a word"), ["It is blue.", "The square is blue."]),
]


@pytest.mark.parametrize(("question", "said"), MARKED)
def test_right_answers_are_right_in_any_form(question, said):
    assert [text for text in said if not is_right(text, *question)] == []


@pytest.mark.parametrize(("question", "said"), WRONG)
def test_what_names_too_much_or_something_false_is_wrong(question, said):
    assert [text for text in said if is_right(text, *question)] == []


REFUSED = {
    "There is no dog.": (
        ["There is no dog.", "there isn't a dog", "There's no dog here.", "I see no dog."],
        ["There is no cat.", "no", "I cannot tell.", "There is no dog, it is green.", "a dog"],
    ),
    "There is no red star.": (
        ["There is no red star.", "There is no red star; there is a blue square."],
        ["There is no star, it is red.", "There is no red circle.", "moves left"],
    ),
    CANNOT_TELL: (
        [CANNOT_TELL, "I can't tell", "I don't know.", "That cannot be seen, I cannot say."],
        ["blue", "no", "There is no dog.", "I cannot tell, but it is blue.", ""],
    ),
}


@pytest.mark.parametrize("answer", REFUSED)
def test_refusals_are_told_apart(answer):
    kind = "out of the world" if answer == CANNOT_TELL else "false premise"
    right, wrong = REFUSED[answer]
    assert [said for said in right if not is_right(said, Asked(kind, "?", answer), ONE)] == []
    assert [said for said in wrong if is_right(said, Asked(kind, "?", answer), ONE)] == []


def test_descriptions_bind_what_they_name():
    answer = f"{world.caption(TWO.scene)}."
    asked = Asked("describe", "?", answer)
    swapped = "A red star moves up and left and a blue square shrinks on a black background."
    other = "A blue square moves up and left and a red star shrinks on a navy background."
    half = "A blue square moves up and left."
    turned = "a red star is shrinking while a blue square moves left and up"
    assert [is_right(said, asked, TWO) for said in (answer, turned)] == [True, True]
    assert not any(is_right(said, asked, TWO) for said in (swapped, other, half, "", "yes"))
    which = Asked("which", "?", "the red star", thing=STAR)
    assert all(is_right(said, which, TWO) for said in ("the red star", "the star", "the red one"))
    assert not any(
        is_right(s, which, TWO) for s in ("the blue square", "red star, blue square", "it")
    )


def test_all_reference_answers_are_right_and_those_of_another_question_are_not():
    scenes = world.gallery("test", 30) + world.gallery("test", 8, level=2)
    for held_out in (False, True):
        items = interviews.items_of(scenes, held_out)
        kinds = Counter(item.asked.kind for item in items)
        assert len(kinds) == 16, kinds
        for item in items:
            shown = Shown(scenes[item.clip])
            assert is_right(item.asked.answer, item.asked, shown), item
            assert not is_right("", item.asked, shown)
            refuses = item.asked.kind == "out of the world"
            assert is_right(CANNOT_TELL, item.asked, shown) == refuses
        verdicts = Counter(i.asked.answer for i in items if i.asked.kind == "yes or no")
        assert min(verdicts.values()) >= 0.3 * verdicts.total()


# --- the model ---

STAGE = InstructConfig(2, 3, lr=1e-3, branch_lr=1e-3, lora_lr=1e-3)
STAGES = dict(words=STAGE, pictures=STAGE, clips=STAGE)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A language model of random weights, in a folder."""
    folder = tmp_path_factory.mktemp("words")
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def make(words, out, **options):
    given = dict(kept=(8, 6), resume=True, level=2) | options
    return make_small_chat(
        out, BTAdapter.from_pretrained("moving-shapes"), 0, 6, STAGES, words, **given
    )


@pytest.fixture(scope="module")
def made(words, tmp_path_factory):
    out, rng = tmp_path_factory.mktemp("made") / "chat", np.random.default_rng(0)
    clips = [world.random_scene(rng, "test", things, level=2) for things in (1, 2)]
    with pytest.MonkeyPatch.context() as patch:  # a gallery of level 2 takes long to draw
        patch.setattr(instruct.laptop, "interview_clips", lambda scenes: clips)
        return out, make(words, out)


def weights_in(out):
    return {p.relative_to(out): p.read_bytes() for p in out.rglob("*.safetensors")}


@pytest.mark.slow
def test_level_two_is_trained_and_interviewed(made):
    out, rows = made
    assert [row["model"].split(":")[0] for row in rows][-1] == "tuned on clips"
    card = json.loads((out / "training.json").read_text())
    assert card["level"] == 2
    shares = (out / "conversation.csv").read_text().splitlines()
    assert shares[0] == "model,wordings,things,kind,n,right,low,high,cannot_tell"
    models = {line.split(",")[0].strip('"') for line in shares[1:]}
    assert "tuned on clips" in models and len({line.split(",")[1] for line in shares[1:]}) >= 2
    assert (out / "interview.csv").read_text().startswith("model,wordings,clip,kind,question,")


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 3])
def test_a_stopped_making_of_level_two_goes_on_bit_for_bit(
    made, words, tmp_path, monkeypatch, stop
):
    whole, calls = made[0], []
    true = instruct.laptop.answer_loss

    def loss(*given):
        calls.append(given)
        if len(calls) == stop + 1:
            raise RuntimeError("power cut")
        return true(*given)

    monkeypatch.setattr(instruct.laptop, "answer_loss", loss)
    monkeypatch.setattr(instruct.laptop, "interview", lambda *_: ([dict(a=1)], [dict(a=1)]))
    monkeypatch.setattr(instruct.laptop, "interview_clips", lambda scenes: [])
    with pytest.raises(RuntimeError):
        make(words, tmp_path / "halves")
    with pytest.raises(ValueError, match="belongs to another run"):
        make(words, tmp_path / "halves", level=1)
    make(words, tmp_path / "halves")
    assert weights_in(tmp_path / "halves") == weights_in(whole)
    monkeypatch.setattr(fitting, "descend", lambda *_, **__: pytest.fail("a step was taken again"))
    make(words, tmp_path / "halves")


def test_a_level_that_is_not_there_is_refused(words, tmp_path):
    with pytest.raises(ValueError, match="levels 1 and 2, not 3"):
        make(words, tmp_path / "out", level=3)
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_answers_to_prompts_of_different_lengths_are_those_one_by_one():
    from bt_adapter.backbone import load_clip

    model = image_chat_model(load_clip("moving-shapes"), tiny_llama(), merge=MERGE)
    scenes, tokenizer = world.gallery("test", 4), byte_tokenizer()
    plug(model, "mean")
    tokens = instruct.encoded(tower(model), [world.render(scene) for scene in scenes])
    texts = ["What?", "What does the star do?", "Is it red?", "Where does it go, please?"]
    asked = [Asked("colour", text, "red") for text in texts]
    items = [Item(i, (("Hm?", "no"),) * (i % 2), one) for i, one in enumerate(asked)]
    together = interviews.said_to(model, tokenizer, tokens, items)
    alone = [interviews.said_to(model, tokenizer, tokens, [item])[0] for item in items]
    assert together == alone and len({*together}) > 1
