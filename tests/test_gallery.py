"""The chat models of Moving Shapes side by side, and the record of a gallery: the whole path from
a folder to answers, with a tiny language model in the place of SmolLM2."""

import pytest
import torch
from tiny_hosts import one_thread, tiny_chat  # noqa: F401 one_thread is used by all tests here
from typer.testing import CliRunner

from bt_adapter import gallery, paraphrases
from bt_adapter import moving_shapes as world
from bt_adapter.chat import VideoChat, load, load_small_chat
from bt_adapter.cli.gallery import app
from bt_adapter.gallery import FURTHER, KINDS, MODELS, chat_panel
from bt_adapter.instruct import QUESTIONS, answers, encoded
from bt_adapter.paraphrases import ask_paraphrases
from bt_adapter.shipped import samples_folder
from bt_adapter.video import read_clip

LEFT = samples_folder() / "clips" / "left.mp4"
VIDEOS = dict(zip(MODELS, ("mean", "moving-shapes", None), strict=True))


@pytest.fixture(scope="module")
def chat(made_once):
    """The folder of a chat model; its language model is loaded in the place of SmolLM2."""
    folder = made_once("tiny_chat", tiny_chat)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "smollm2", lambda: folder / "words")
        patch.setattr(load, "fast_dtype", lambda: torch.float32)  # one by one as in batches
        yield folder / "chat"


@pytest.fixture(scope="module")
def alone(chat):
    """alone(model, clip, *questions) -> what a model says that was loaded without the others."""
    loaded = {name: load_small_chat(chat, video) for name, video in VIDEOS.items()}

    def ask(name, clip, *questions):
        talk = VideoChat(*loaded[name], clip, max_tokens=12)
        return [talk.ask(question) for question in questions]

    return ask


def test_each_model_of_a_panel_answers_as_it_does_alone(chat, alone):
    panel = chat_panel("left", MODELS, chat, max_tokens=12)
    asked = [QUESTIONS[kind] for kind in ("shape", "motion", "direction")]
    for question in asked:
        panel.ask(question)
    told = {name: [x.replies[name] for x in panel.talks.exchanges] for name in MODELS}
    said = {name: [reply.text for reply in replies] for name, replies in told.items()}
    assert {reply.state for replies in told.values() for reply in replies} == {"whole"}
    assert said == {name: alone(name, read_clip(LEFT), *asked) for name in MODELS}
    assert len({*map(tuple, said.values())}) == len(MODELS)  # no two are alike
    hosts = [talk.model for talk in panel.talks.chats.values()]
    assert len({id(host.lm_head) for host in hosts}) == 1
    assert panel.examples[-len(FURTHER) :] == FURTHER  # its card says level 2


def test_clips_that_are_shipped_and_clips_of_ones_own_are_told_apart(chat):
    for clip, own in (("left", False), (LEFT, False), (read_clip(LEFT), False)):
        assert chat_panel(clip, MODELS[:1], chat).talks.own_clip is own


def test_a_record_holds_what_each_model_says(chat, alone, tmp_path):
    scenes = world.gallery("test", 3)
    rows = gallery.ask_all(chat, scenes)
    expected = []
    for kind in KINDS:
        for i, scene in enumerate(scenes):
            if kind in answers(scene):
                clip, asked = world.render(scene), QUESTIONS[kind]
                said = {name: alone(name, clip, asked)[0].strip() for name in MODELS}
                expected.append(dict(clip=i, kind=kind, answer=answers(scene)[kind]) | said)
    assert rows == expected
    gallery.keep(tmp_path, rows)
    assert gallery.recorded(tmp_path) == rows


def test_tokens_are_told_as_the_clip_is(chat, alone):
    panel = chat_panel("left", MODELS[1:], chat)
    film = read_clip(LEFT)
    for name in MODELS[1:]:
        tower = panel.talks.chats[name].model.model.vision_tower
        tokens = encoded(tower, [film, film.flip(0)])
        both = [alone(name, clip, QUESTIONS["motion"])[0].strip() for clip in (film, film.flip(0))]
        assert gallery.said_by(panel, name, tokens.float(), "motion") == both


@pytest.fixture
def seer(monkeypatch):
    """seer(tower, scenes): from now on the models say the truth about the clip whose tokens they
    are given, one of these scenes or their opposites."""

    def see(tower, scenes):
        known = [*scenes, *map(world.opposite, scenes)]
        tokens = encoded(tower, [*map(world.render, known)])
        kinds = {question: kind for kind, question in QUESTIONS.items()}

        def said(model, words, given, question):
            near = [(tokens - one).flatten(1).norm(dim=1).argmin() for one in given]
            return [answers(known[i])[kinds[question]] for i in near]

        monkeypatch.setattr(gallery, "said_of_many", said)

    return see


def test_reversal_shows_the_models_reversed_clips(chat, seer):
    scenes = world.gallery("test", 12)
    panel = chat_panel("left", MODELS[2:], chat)
    tower = panel.talks.chats["tuned"].model.model.vision_tower
    clips = torch.stack([tower.transform(world.render(scene)) for scene in scenes])
    rows = [
        dict(clip=i, kind=kind, answer=answers(scene)[kind], tuned=answers(scene)[kind])
        for kind in ("motion", "shape")
        for i, scene in enumerate(scenes)
    ]
    turning = sum(world.MOTIONS[scene.things[0].motion].backwards for scene in scenes)
    seer(tower, scenes)
    shape, motion = (
        gallery.after_reversal(panel, clips, scenes, rows, kind) for kind in ("shape", "motion")
    )
    assert 0 < turning < len(scenes) and shape["n"] == motion["n"] == turning
    assert (shape["kept"], shape["right"]) == (1, 1)
    assert (motion["kept"], motion["right"]) == (0, 1)
    assert 0.05 < motion["moved"] == shape["moved"] < 2
    wrong = [row | dict(tuned="stands still") for row in rows[1:]]  # is not asked about again
    assert gallery.after_reversal(panel, clips, scenes, rows[:1] + wrong, "motion")["n"] <= 1


def test_other_words_are_judged_by_their_meaning(chat, monkeypatch):
    """A model that knows all is right everywhere, one that says nothing nowhere."""
    scenes = world.gallery("test", 36)
    films = list(map(world.render, scenes))
    asked = {p.question: p for p in paraphrases.paraphrases()}

    def numbers(tower, clips):  # of the clips, in the place of their tokens
        return torch.tensor([next(i for i, f in enumerate(films) if f.equal(c)) for c in clips])

    def said(model, words, tokens, question):
        return [asked[question].of(scenes[i]).answer for i in tokens]

    monkeypatch.setattr(paraphrases, "encoded", numbers)
    monkeypatch.setattr(paraphrases, "said_of_many", said)
    rows = ask_paraphrases(chat, scenes)
    assert {row["question"] for row in rows} == {*asked}
    assert {row["right"] for row in rows} == {100} and max(row["n"] for row in rows) == 12
    monkeypatch.setattr(paraphrases, "said_of_many", lambda m, w, tokens, q: ["?"] * len(tokens))
    assert {row["right"] for row in ask_paraphrases(chat, scenes[:3])} == {0}


def test_the_command_shows_other_words_and_keeps_a_record(chat):
    clips = [*map(answers, world.gallery("test", 12))]
    possible = [p for p in paraphrases.paraphrases() if p.clips(clips, paraphrases.MOST)]
    record = chat / gallery.RECORD

    def run(*more):
        return CliRunner().invoke(app, [str(chat), "--scenes", "12", *more], env={"COLUMNS": "200"})

    shown = run("--wordings")
    assert shown.exit_code == 0 and not record.exists(), shown.output
    assert len(possible) >= 10 and all(p.question in shown.output for p in possible)
    gallery.keep(chat, [dict(clip=0, kind="shape", answer="star")])
    before, refused = record.read_bytes(), run()
    assert "add --overwrite" in str(refused.exception) and record.read_bytes() == before
    assert run("--overwrite").exit_code == 0
    found = gallery.read_record(chat)
    assert len(found["rows"]) == sum(kind in about for about in clips for kind in KINDS)
    assert [row["question"] for row in found["wordings"]] == [p.question for p in possible]
    record.unlink()
