"""The time check as tasks of mteb, and as a folder of lmms-eval."""

import json
import re
import runpy
import subprocess
import sys
from importlib.metadata import requires
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import yaml

from bt_adapter import moving_shapes as world
from bt_adapter import timecheck
from bt_adapter.branch import BTAdapter
from bt_adapter.extras import remedy
from bt_adapter.timecheck import for_lmms_eval, for_mteb, lmms_eval_utils, rendered
from bt_adapter.timecheck.for_lmms_eval import write_lmms_eval
from bt_adapter.timecheck.for_mteb import mteb_model, mteb_tasks
from bt_adapter.video import read_clip

FEW = dict(frames=4, pairs=4)


# mteb.


@pytest.fixture(scope="module")
def mteb():
    if find_spec("mteb") is None:  # the extra dev brings it; one that is broken fails
        pytest.skip(f"mteb is not installed: {remedy('mteb')}")
    import mteb

    return mteb


@pytest.fixture(scope="module")
def adapter():
    return BTAdapter.from_pretrained("moving-shapes")


@pytest.fixture
def without_video_extra(mteb, monkeypatch):
    """mteb without its extra for videos: of what that brings, only `datasets` is there."""
    brought = [need for need in requires("mteb") if need.endswith('extra == "video"')]
    brought = {re.match(r"[\w-]+", need)[0] for need in brought}
    assert brought == {"datasets", "torchcodec"}
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(ModuleNotFoundError):
        import torchcodec  # noqa: F401


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("without_video_extra")
def test_mteb_finds_the_numbers_of_the_check(mteb, adapter, monkeypatch):
    monkeypatch.setattr(rendered, "BINDING", 6)
    monkeypatch.setattr(rendered, "STILLS", 16)
    monkeypatch.setattr(rendered, "SHUFFLED", 8)
    how, names = dict(cache=None, show_progress_bar=False), ("direction", "motion", "binding")
    model = mteb_model(adapter, frames=4, name="me/mine")
    judged = mteb.evaluate(model, tasks=mteb_tasks(names, **FEW), **how)
    wanted = timecheck.check(adapter, **FEW).found
    for result, name in zip(judged.task_results, names, strict=True):
        (scores,) = result.scores["test"]
        assert result.task_name == f"MovingShapes{name.title()}"
        assert scores["main_score"] == scores["accuracy"] == round(wanted[name].value, 5)
        assert scores["chance"] == wanted[name].line
        assert scores["pair_chance"] == wanted[name].line ** 2
        assert 0 < scores["pair_accuracy"] < scores["accuracy"]
    blind = mteb_model(adapter.clip, frames=4)
    (result,) = mteb.evaluate(blind, tasks=mteb_tasks("direction", **FEW), **how).task_results
    (scores,) = result.scores["test"]
    assert scores["accuracy"] == 0.5 and scores["pair_accuracy"] == 0
    with pytest.raises(ValueError, match=r"supports \['video'\], but none overlap"):
        wordless = mteb_model(lambda clips: clips[:, 0, :2, 0].flatten(1).float())
        mteb.evaluate(wordless, tasks=mteb_tasks("direction", **FEW), **how)


class Task:
    name = "some task"


def test_a_model_of_mteb_embeds_what_it_can(mteb):
    seen = []

    def embed(clips):
        seen.append(tuple(clips.shape))
        return clips.float().mean((2, 3)).flatten(1)

    def words(texts):
        return torch.eye(12)[[len(text) for text in texts]]

    model = mteb_model(embed, words, frames=4, size=16)
    encode = lambda *batches: model.encode(  # noqa: E731
        batches, task_metadata=Task, hf_split="test", hf_subset="default"
    )
    scene = rendered.turning_scenes(1)[0]
    clips = [for_mteb.RenderedClip(scene, 8, size) for size in (16, 32)]
    rows = encode(dict(video=clips), dict(video=clips[:1] * 2))
    assert rows.shape == (4, 12) and torch.equal(rows[0], rows[2])
    assert seen == [(1, 4, 16, 16, 3), (1, 4, 16, 16, 3), (1, 4, 32, 32, 3), (2, 4, 16, 16, 3)]
    assert encode(dict(text=["a", "bcd"])).argmax(1).tolist() == [1, 3]
    for batch, said in [
        (dict(video=clips, text=["a", "b"]), "some task asks embed to embed text and video"),
        (dict(image=[]), "to embed image: it embeds clips, or texts"),
        (dict(id=["a"]), "to embed neither"),
        (dict(text=["a", "b"]), "the same for every caption"),
    ]:
        with pytest.raises(ValueError, match=said):
            encode(batch)
    names = {mteb_model(embed, name=n).mteb_model_meta.name for n in ("me/mine", "a b/c/d", "$")}
    assert names == {"me/mine", "bt_adapter/a-b-c-d", "bt_adapter/encoder"}


def test_another_model_of_the_same_name_has_another_revision(mteb, adapter):
    revisions = [
        mteb_model(model, frames=frames, name="me/mine").mteb_model_meta.revision
        for model, frames in ((adapter, 4), (adapter, 4), (adapter, 8), (adapter.clip, 4))
    ]
    assert revisions[0] == revisions[1] and len({*revisions}) == 3


def test_the_check_renders_as_many_clips_as_its_words_say():
    asked = []

    def embed(clips):
        asked.append(len(clips))
        return clips.float().mean((2, 3)).flatten(1)

    timecheck.check(embed, lambda texts: torch.rand(len(texts), 6), frames=2, size=8)
    (said,) = re.findall(r"on (\d+) rendered clips", timecheck.check.__doc__)
    assert sum(asked) == int(said)


def test_each_clip_has_its_captions_to_choose_from(adapter):
    for what, ask in for_mteb.QUESTIONS.items():
        asked = list(ask(4, 1))
        assert len({len(question.captions) for question in asked}) == 1
        for question, other in zip(asked[::2], asked[1::2], strict=True):
            assert question.captions[0] == world.caption(question.scene)
            assert other.scene == world.opposite(question.scene)
            if what == "direction":
                assert question.captions == other.captions[::-1]
        if what == "motion":
            assert {*asked[0].captions} == {*world.motion_candidates(asked[0].scene)}


def test_a_rendered_clip_answers_as_a_decoder_does():
    clip = for_mteb.RenderedClip(rendered.turning_scenes(1)[0], 8, 16)
    seen = clip.get_frames_at([7, 0]).data
    assert seen.dtype == torch.uint8 and seen.shape == (2, 3, 16, 16) and len(clip) == 8
    assert clip.metadata.num_frames == 8 and clip.metadata.end_stream_seconds == 1
    assert not torch.equal(seen[0], seen[1])


def test_tasks_that_cannot_be(monkeypatch):
    for settings, said in [
        (dict(names="time"), "no task is called 'time': use direction, motion, binding"),
        (dict(frames=1), "frames must be a whole number from 2"),
        (dict(size=4), "size must be"),
        (dict(pairs=49), "pairs must be"),
        (dict(seed=-1), "seed must be"),
    ]:
        with pytest.raises(ValueError, match=said):
            mteb_tasks(**settings)
    monkeypatch.setattr("bt_adapter.extras.find_spec", lambda name: None)
    for made in (for_mteb._task_class, for_mteb._model_class):
        made.cache_clear()
    for ask in (mteb_tasks, lambda: mteb_model(lambda clips: clips)):
        with pytest.raises(ModuleNotFoundError, match=r"This needs mteb: pip install .*mteb"):
            ask()


# lmms-eval.


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_lmms_eval(tmp_path_factory.mktemp("lmms") / "a task", frames=4, size=32, pairs=2)


@pytest.fixture(scope="module")
def functions(task):
    return runpy.run_path(str(task / "utils.py"))


def docs_of(task):
    return [json.loads(line) for line in (task / "questions.jsonl").read_text().splitlines()]


class Loader(yaml.SafeLoader):
    """Reads the names of functions as lmms-eval does."""


Loader.add_constructor("!function", lambda loader, node: node.value)


def test_the_yaml_names_what_is_there(task, functions):
    (file,) = task.glob("*.yaml")
    read = yaml.load(file.read_text(), Loader)
    assert read["task"] == file.stem == for_lmms_eval.TASK
    assert (task / read["dataset_kwargs"]["data_files"][read["test_split"]]).is_file()
    named = [read[key] for key in ("doc_to_visual", "doc_to_text", "process_results")]
    named += [metric["aggregation"] for metric in read["metric_list"]]
    assert all(callable(functions[name.removeprefix("utils.")]) for name in named)
    assert read["doc_to_target"] in docs_of(task)[0] and read["cluster_key"] in docs_of(task)[0]
    result = functions["process_results"](docs_of(task)[0], ["A"])
    assert list(result) == [metric["metric"] for metric in read["metric_list"]]
    words = read["lmms_eval_specific_kwargs"]["default"]
    assert functions["doc_to_text"](docs_of(task)[0], words).endswith(
        "\nAnswer with the letter alone."
    )


def test_the_folder_needs_nothing_but_python(task):
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print('numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, task / "utils.py"], capture_output=True, text=True
    )
    assert done.stdout == "False\n" and "bt_adapter" not in (task / "utils.py").read_text().split()


def test_documents_and_clips_come_in_pairs(task, functions):
    docs = docs_of(task)
    assert (
        len(docs) == 32 == len({doc["id"] for doc in docs})
        and len(list(task.glob("clips/*"))) == 32
    )
    for one, other in zip(docs[::2], docs[1::2], strict=True):
        assert one["pair"] == other["pair"] and one["options"] == other["options"]
        assert {one["answer"], other["answer"]} == {"A", "B"}
        forwards, back = (
            read_clip(functions["doc_to_visual"](doc)[0], 4).float() for doc in (one, other)
        )
        same, turned = (forwards - back).abs().mean(), (forwards - back.flip(0)).abs().mean()
        assert turned < 2 and turned < same / 2
        assert f"{one['answer']}. {one['options']['AB'.index(one['answer'])]}" in functions[
            "doc_to_text"
        ](one)
    assert 0 < sum(doc["answer"] == "A" for doc in docs[::2]) < 16


def scores(docs, replies):
    """The three scores, as lmms-eval adds them up."""
    found = [lmms_eval_utils.process_results(d, [r]) for d, r in zip(docs, replies, strict=True)]
    of = lambda name: [one[name] for one in found]  # noqa: E731
    share, pairs = lmms_eval_utils.share, lmms_eval_utils.share_of_pairs
    return share(of("direction")), pairs(of("both_directions")), share(of("answered"))


def test_scores_and_their_chance_lines(task):
    docs = docs_of(task)
    assert scores(docs, [doc["answer"] for doc in docs]) == (1, 1, 1)
    assert scores(docs, ["A"] * 32) == (0.5, 0, 1)  # who likes a letter
    assert scores(docs, ["a pretty picture"] * 32) == (0, 0, 0)
    blind = [docs[2 * (i // 2)]["answer"] for i in range(32)]  # the same of both
    assert scores(docs, blind) == (0.5, 0, 1)
    told = [doc["options"]["AB".index(doc["answer"])].capitalize() + "." for doc in docs]
    assert scores(docs, told) == (1, 1, 1)
    rng = np.random.default_rng(0)
    many = docs * 100
    many = [doc | dict(pair=i // 2) for i, doc in enumerate(many)]
    one, both, _ = scores(many, rng.choice(["A", "B"], len(many)))
    assert abs(one - 0.5) < 0.04 and abs(both - 0.25) < 0.05
    assert scores(docs[:3], [doc["answer"] for doc in docs[:3]]) == (1, 1, 1)
    assert lmms_eval_utils.share([]) == lmms_eval_utils.share_of_pairs([]) == 0


def test_the_same_folder_twice(task, tmp_path):
    again = write_lmms_eval(tmp_path / "a task", frames=4, size=32, pairs=2)
    files = [path.relative_to(task) for path in task.rglob("*") if path.is_file()]
    assert len(files) == 36 and all(
        (task / f).read_bytes() == (again / f).read_bytes() for f in files
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    for folder, settings, said in [
        ("full", {}, "full is not empty: name a new folder"),
        ("full/mine.txt", {}, "cannot be made a folder"),
        ("new", dict(frames=1), "frames must be a whole number from 2"),
        ("new", dict(size=33), "size must be even"),
        ("new", dict(pairs=0), "pairs must be"),
        ("new", dict(seed=0.5), "seed must be"),
    ]:
        with pytest.raises(ValueError, match=said):
            write_lmms_eval(tmp_path / folder, **settings)
    assert not (tmp_path / "new").exists()


def test_the_command_writes_the_folder(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from bt_adapter.cli import timecheck as command

    monkeypatch.chdir(tmp_path)
    run = lambda *words: CliRunner().invoke(command.app, list(words))  # noqa: E731
    small = ["--pairs", "4", "--size", "16", "--frames", "2"]
    done = run("--lmms-eval", "task", *small, "--seed", "3")
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("--tasks moving_shapes_time --include_path task\n")
    assert len(docs_of(tmp_path / "task")) == 64
    for words, said in [
        (["--lmms-eval", "task"], "not empty"),
        (["mine:embed", "--lmms-eval", "new"], "a name has no use beside --lmms-eval"),
        (["--lmms-eval", "new", "--batch", "3"], "--batch has no use beside --lmms-eval"),
    ]:
        assert said in str(run(*words).exception)
