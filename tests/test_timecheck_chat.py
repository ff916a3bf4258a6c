"""The time check of chat models: what they are asked, how it is read, and what is said of them."""

import json
from dataclasses import replace

import pytest
import torch

from bt_adapter import moving_shapes as world
from bt_adapter import timecheck
from bt_adapter.cli import options
from bt_adapter.timecheck.chat_report import chat_verdict
from bt_adapter.timecheck.choices import FORMS, does, phrase_of, questions
from bt_adapter.timecheck.degrees import Share
from bt_adapter.timecheck.for_lmms_eval import lmms_questions
from bt_adapter.timecheck.lmms_eval_utils import LETTERS
from bt_adapter.timecheck.rendered import drawn, turning_scenes

FRAMES, SIZE = 4, 16


def check(answer, **settings):
    return timecheck.check_chat(answer, **(dict(frames=FRAMES, size=SIZE) | settings))


def frames_of(clip):
    return [frame.numpy().tobytes() for frame in clip]


class Oracle:
    """Knows every clip by its pixels, as far as `seen` lets it look at them."""

    def __init__(self, seen=tuple, form="letters"):
        self.seen, self.known = seen, {}
        for choices in questions(4).values():
            for one in choices:
                clip = frames_of(drawn(one.scene, FRAMES, SIZE)())
                told = one.phrases if form == "words" else one.captions
                key = seen(clip), FORMS[form].ask(one)
                self.known.setdefault(key, told[LETTERS.index(one.answer)])

    def __call__(self, frames, question):
        return self.known.get((self.seen(frames_of(frames)), question), "A")


@pytest.fixture(scope="module")
def seeing():
    return check(Oracle(), name="a <b>|$x$")


def test_who_sees_the_clips_is_right_about_every_pair(seeing):
    assert seeing.verdict.sees and not seeing.notes
    assert seeing.verdict.sentence.startswith("It sees time: it tells a clip from its reversal in")
    for name in ("motion", "direction", "binding"):
        found = seeing.shares[name]
        assert found.right == found.n == 32 and found.line == 0.25, name
        assert seeing.by_clip[name].right == seeing.by_clip[name].n == 64
    assert seeing.shares["one frame"].right == 0  # nothing moves, and it says A
    assert seeing.unread == (0, 3 * 64, 0.0) and seeing.unsteady.n == 8


def test_it_is_asked_in_words_as_well():
    found = check(Oracle(form="words"), form="words")
    assert found.verdict.sees and found.shares["direction"].value == 1
    assert found.shares["binding"].value == 1 and found.unread.right == 0


def test_who_always_says_the_same_is_told():
    for letter, option in zip(LETTERS, ("first", "second"), strict=True):
        found = check(lambda frames, question, letter=letter: letter)
        assert found.verdict.sees is False and "one frame" not in found.shares
        assert all(share.right == 0 for share in found.shares.values())
        assert {share.value for share in found.by_clip.values()} == {0.5}
        assert found.notes == [
            f"It chose the {option} option in 192 of 192 readable replies: whoever always does is "
            "right about half of the clips, and about no pair."
        ]
        assert "in 0% (0 to 17) of pairs, and guessing in 25%" in found.verdict.sentence


def test_of_a_few_replies_and_in_words_none_is_one_sided(seeing):
    (note,) = replace(seeing, first=Share(0, 16)).notes
    assert "second option in 16 of 16 readable replies" in note
    assert not replace(seeing, first=Share(0, 15)).notes
    assert not replace(seeing, first=Share(0, 16), form="words").notes  # no option is shown


def test_who_guesses_is_at_chance():
    generator = torch.Generator().manual_seed(0)
    drawn_once = {}

    def guess(frames, question):
        key = tuple(frames_of(frames)), question
        number = int(torch.randint(2, (), generator=generator))
        return LETTERS[drawn_once.setdefault(key, number)]

    found = check(guess)
    assert found.verdict.sees is not True and not found.notes
    assert all(0.03 < share.value < 0.5 and not share.above for share in found.shares.values())


def test_one_frame_and_a_heap_of_frames_do_not_see_time():
    for which in (0, -1):
        found = check(Oracle(lambda clip, which=which: clip[which]))
        still, way = found.shares["one frame"], found.shares["direction"]
        assert still.value == way.value == way.line > 0.4 and found.verdict.sees is False
        assert "and with one frame in the place of all in" in found.verdict.sentence
    found = check(Oracle(lambda clip: tuple(sorted(clip))))
    assert found.shares["direction"].right == 0 and found.shares["motion"].value == 1
    assert found.verdict.sees is False
    assert "It does tell two motions apart" in found.verdict.sentence


def test_replies_that_cannot_be_read_are_counted():
    babble = check(lambda frames, question: "striped [x](y) <b>")
    assert "cannot be said in this form: 64 of 64 replies about dir" in babble.verdict.sentence
    assert "192 of 192 replies could not be read as one of the two answers" in str(babble)
    assert "<b>" not in babble.markdown() and babble.verdict.sees is None
    assert babble.card()["verdict"]["sees"] is None
    assert "such as 'striped \\[x\\](y) &lt;" in babble.markdown()
    oracle = Oracle()

    def sometimes(frames, question):
        said = oracle(frames, question)
        return "" if " star " in said else f"The answer is: {said}."

    found = check(sometimes)
    assert found.verdict.sees and 0 < found.unread.value < 0.5
    assert found.notes == [
        f"{found.unread.right} of 192 replies could not be read as one of the two answers, such as "
        "''; they count as wrong."
    ]
    assert found.by_clip["direction"].value < 1


def test_the_verdict_is_of_replies_about_direction():
    oracle, asked = Oracle(), questions(4)
    told = {name: {FORMS["letters"].ask(one) for one in found} for name, found in asked.items()}
    told["direction"] -= told["motion"] | told["binding"]

    def about(way):
        return lambda clip, question: (
            oracle(clip, question) if way == (question in told["direction"]) else "striped"
        )

    found = check(about(True))
    assert found.verdict.sees and found.unread.value > 0.5
    assert found.unread_by["binding"].value == 1 and "could not be read" in found.notes[0]
    found = check(about(False))
    assert found.unread_by["direction"].value > 0.5 > found.unread.value
    assert found.verdict.sees is None and "cannot be said" in found.verdict.sentence
    card = found.card()["unread_by_question"]
    assert sum(one["count"] for one in card.values()) == found.unread.right


def test_what_few_pairs_do_not_show_is_left_open():
    none, all_read = Share(0, 32, 0.25), Share(0, 64, 0.0)
    for right, sees in [(32, True), (13, None), (9, None), (8, False), (0, False)]:
        way = Share(right, 32, 0.25)
        told = chat_verdict(dict(motion=none, direction=way, binding=none), all_read)
        assert told.sees is sees and ("more pairs may tell" in told.sentence) == (sees is None)
        assert ("It does not see time" in told.sentence) == (sees is False)


def test_who_replies_differently_when_asked_again_is_told():
    replies = []

    def sampling(frames, question):
        replies.append(question)
        return f"A, says reply {len(replies)}"

    assert "8 of 8 questions got another reply when asked again: is it" in str(check(sampling))


def test_what_is_no_chat_model_is_told():
    for answer, said in [
        (3, "int is no chat model"),
        (torch.nn.Linear(1, 1), "Linear is no chat model: .* object with such a method answer"),
        (lambda frames, question: 1 / 0, r"fails on frames uint8 \(4, 16, 16, 3\).*ZeroDivision"),
        (lambda frames: "A", "fails on frames"),
        (lambda frames, question: ["A"], "replies with list"),
    ]:
        with pytest.raises(ValueError, match=said):
            check(answer)
    for settings, said in [
        (dict(pairs=3), "pairs must be a whole number from 4 to 48"),
        (dict(seed=-1), "seed must be"),
        (dict(frames=1), "frames must be a whole number from 2"),
        (dict(size=2), "size must be"),
        (dict(form="song"), "form must be 'letters' or 'words', not 'song'"),
    ]:
        with pytest.raises(ValueError, match=said):
            check(lambda frames, question: "A", **settings)


def test_a_module_with_a_method_answer_is_asked():
    class Answering(torch.nn.Module):
        def answer(self, frames, question):
            return "A"

    found = timecheck.chat_of(Answering(), frames=4)
    assert found.name == "Answering" and found.form == "letters"
    assert found.ask(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), "?") == "A"


def test_a_model_is_asked_in_its_own_form(monkeypatch):
    some = {name: found[:2] for name, found in questions(4).items()}
    monkeypatch.setattr("bt_adapter.timecheck.answers.questions", lambda pairs, seed: some)

    def always(frames, question):
        return "moves left"

    own = timecheck.Chat(always, form="words")
    assert check(own).form == "words" and check(own, form="letters").form == "letters"
    assert check(always).form == "letters"
    with pytest.raises(ValueError, match="form must be 'letters' or 'words', not 'song'"):
        check(replace(own, form="song"))


def test_there_is_one_set_of_questions():
    docs, asked = lmms_questions(turning_scenes(4, 3), 3), questions(4, 3)["direction"]
    assert [(doc["options"], doc["answer"]) for doc in docs] == [
        (one.captions, one.answer) for one in asked
    ]
    for choices in questions(4, 3).values():
        for one, other in zip(choices[::2], choices[1::2], strict=True):
            assert one[1:4] == other[1:4] and {one.answer, other.answer} == {*LETTERS}
            assert one.captions[LETTERS.index(one.answer)] == world.caption(one.scene)
        assert 4 < sum(one.answer == "A" for one in choices[::2]) < 28
    assert options.FORMS == (*FORMS,)


def test_both_things_are_asked_about_in_words():
    bound = questions(4)["binding"]
    places = set()
    for one in bound:
        looks = {f"the {thing.color} {thing.shape}": does(thing) for thing in one.scene.named}
        places.add([*looks].index(one.thing))
        assert looks[one.thing] == one.phrases[LETTERS.index(one.answer)]
        assert FORMS["words"].ask(one) == f"What does {one.thing} do?"
    assert places == {0, 1}
    for one, other in zip(bound[::2], bound[1::2], strict=True):  # so both phrases are of one look
        assert (one.thing, one.phrases) == (other.thing, other.phrases)
        assert one.answer != other.answer
    assert phrase_of("It moves up and right.", ["moves up", "grows"]) == ""
    assert phrase_of("It moves up and grows.", ["moves up", "grows"]) == ""
    assert phrase_of("It  Moves\nup!", ["moves up", "grows"]) == "A"


def test_the_card(seeing, tmp_path):
    seeing.save(tmp_path / "new")
    files = {file.name: file for file in (tmp_path / "new").iterdir()}
    assert files.keys() == {"timecheck.json", "timecheck.md", "timecheck.png"}
    card = json.loads(files["timecheck.json"].read_text())
    assert card["verdict"]["sees"] and card["form"] == "letters"
    measures = {row["measure"]: row["pairs"] for row in card["measures"]}
    assert measures == dict.fromkeys(["motion", "direction", "one frame", "binding"], 32)
    assert [*measures] == [*timecheck.ChatReport.questions]
    assert card["unread"] == dict(count=0, of=192) and card["by_clip"]["motion"]["right"] == 64
    text = files["timecheck.md"].read_text()
    assert "<b>" not in text and "&lt;b&gt;\\|" in text and "Asked in letters." in text
    labels = [label.get_text() for label in seeing.figure().axes[0].get_yticklabels()]
    assert labels[1:3] == ["says which way", "... when one frame stands for all"]


def test_the_command(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from bt_adapter.cli import timecheck as command

    monkeypatch.chdir(tmp_path)
    (tmp_path / "some_chat.py").write_text("def answer(frames, question):\n    return 'B'\n")
    run = lambda *words: CliRunner().invoke(command.app, list(words))  # noqa: E731
    small = ["--chat", "--size", "16", "--frames", "4"]
    done = run("some_chat:answer", *small, "--out", "card")
    assert done.exit_code == 0 and "It does not see time" in done.stdout, done.output
    assert "chose the second option in 192 of 192" in done.output
    told = json.loads((tmp_path / "card/timecheck.json").read_text())
    assert told["chat"] == "some_chat:answer"
    told = json.loads(run("some_chat:answer", *small, "--form", "words", "--json").stdout)
    assert told["form"] == "words" and told["unread"]["count"] == 192


def test_a_folder_that_holds_a_chat_model_is_asked(tmp_path):
    from typer.testing import CliRunner

    from bt_adapter.cli import timecheck as command

    mine, host, tower = (tmp_path / name for name in ("mine", "host", "tower"))
    for folder in (mine, host, tower):
        folder.mkdir()
    (mine / "projector.safetensors").touch()
    (host / "config.json").write_text('{"architectures": ["LlavaForConditionalGeneration"]}')
    (tower / "config.json").write_text('{"architectures": ["CLIPModel"]}')
    assert [command.holds_chat(str(f)) for f in (mine, host, tower)] == [True, True, False]
    assert not command.holds_chat("moving-shapes")
    for kinds in ("5", "null", '"LlavaForConditionalGeneration"', "{}", "[5]"):
        (tower / "config.json").write_text(f'{{"architectures": {kinds}}}')
        assert not command.holds_chat(str(tower)), kinds
    with pytest.raises(ValueError, match="ask it with check_chat"):
        timecheck.encoder_named(str(mine))
    refused = {
        (str(host),): "has no --video",
        (str(host), "--video", "nowhere"): "no adapter folder",
        (str(mine), "--form", "song"): "No question has the form 'song'",
        (str(tower), "--form", "words"): "--form belongs to --chat",
        (str(tower), "--video", "mean"): "--video belongs to --chat",
    }
    for words, said in refused.items():
        done = CliRunner().invoke(command.app, list(words))
        assert isinstance(done.exception, ValueError) and said in str(done.exception), words
