"""Instruction tuning: what is learned, by what, and that a stopped run goes on."""

import csv
import importlib
import json
import os
import signal
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_chat import PLAIN, adapter_for, clips, tower, video
from tiny import shake
from tiny_hosts import (  # noqa: F401 one_thread is used by all tests here
    IMAGE,
    VISION,
    byte_tokenizer,
    llava,
    one_thread,
    tiny_host,
    tiny_llama,
)
from torch import nn

from bt_adapter import chat, fitting, instruct
from bt_adapter import moving_shapes as world
from bt_adapter import store as frozen
from bt_adapter.backbone import load_clip
from bt_adapter.branch import BranchConfig, BTAdapter
from bt_adapter.chat import Turn, VideoChat, image_chat_model, image_host, load_chat, plug
from bt_adapter.instruct import (
    IGNORED,
    InstructConfig,
    answer_loss,
    answers,
    branch_parameters_read,
    exact_match,
    for_dialogues,
    greedy_answers,
    loop,
    make_batch,
    make_small_chat,
    read_dialogues,
    tokens_of,
    train_parameters,
)
from bt_adapter.precision import fast_dtype
from bt_adapter.shipped import samples_folder
from bt_adapter.video import read_clip

tuning = importlib.import_module("bt_adapter.instruct.tune")  # `instruct.tune` is its function
TURNS = (("What moves?", "a cup"), ("Which way?", "left"))


# --- what is learned ---


@pytest.mark.parametrize("between", ["</s>", "</s>\n"])
def test_tuning_writes_what_conversation_reads(between):
    form = replace(PLAIN, between=between)
    model, tokenizer = tiny_host("llava"), byte_tokenizer()
    plug(model, "mean")
    talk = VideoChat(model, tokenizer, video(), form)
    ids, labels = tokens_of(tokenizer, form, TURNS, [0] * 4)
    (q1, a1), (q2, a2) = TURNS
    turn = Turn(q1, a1, True, tokenizer(a1).input_ids)
    whole = talk.prompt.whole([turn], q2)
    answer = [*tokenizer(a2).input_ids, tokenizer.eos_token_id]
    assert len(ids) == len(labels) == whole.shape[1] + len(answer) and ids[-len(answer) :] == answer
    embedded = talk.prompt.embed(ids[: whole.shape[1]])
    embedded[:, :4] = talk.prompt.video(q1)
    assert torch.equal(embedded, whole)
    learned = tokenizer.decode([i for i in labels if i != IGNORED])
    assert learned == "a cup</s>left</s>"


@pytest.mark.parametrize("between", ["", "~"])
def test_a_template_that_drops_the_end_of_an_answer_is_not_tuned_with(between):
    with pytest.raises(ValueError, match="keeps what ends an answer, '</s>'"):
        tokens_of(byte_tokenizer(), replace(PLAIN, between=between), TURNS, [0] * 4)


def tuning_batch(tokenizer):
    pairs = [tokens_of(tokenizer, PLAIN, turns, [0] * 4) for turns in (TURNS, TURNS[:1])]
    return make_batch(pairs, tokenizer.eos_token_id)


def test_the_loss_is_that_of_all_logits_and_ignores_what_was_filled_up():
    model, tokenizer = tiny_host("llava"), byte_tokenizer()
    plug(model, "mean")
    tokens, batch = tower(model).encode(clips(b=2)), tuning_batch(tokenizer)
    loss = answer_loss(model, tokens, batch)
    everything = model(input_ids=batch.ids, pixel_values=tokens, attention_mask=batch.mask).logits
    long = nn.functional.cross_entropy(
        everything[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten()
    )
    torch.testing.assert_close(loss, long)
    other = batch._replace(ids=batch.ids.where(batch.mask.bool(), 7))
    torch.testing.assert_close(answer_loss(model, tokens, other), loss)


def test_the_vocabulary_is_asked_at_answers_only():
    model, tokenizer = tiny_host("llava"), byte_tokenizer()
    plug(model, "mean")
    rows, batch = [], tuning_batch(tokenizer)
    model.lm_head.register_forward_pre_hook(lambda m, args: rows.append(args[0].shape))
    answer_loss(model, tower(model).encode(clips(b=2)), batch)
    assert rows == [((batch.labels != IGNORED).sum(), 32)]


def test_gradients_reach_projector_and_the_used_branch_and_nothing_else():
    model, tokenizer = tiny_host("llava"), byte_tokenizer()
    plug(model, adapter_for(model))
    pool, projector = tower(model).branch_pool, model.model.multi_modal_projector
    projector.requires_grad_(True)
    loss = answer_loss(model, tower(model).encode(clips(b=2)), tuning_batch(tokenizer))
    loss.backward()
    moved = {n for n, p in pool.branch.named_parameters() if p.grad is not None}
    assert moved == {*branch_parameters_read(pool)} and moved
    assert all(p.grad.abs().sum() > 0 for p in projector.parameters())
    others = [*model.model.language_model.parameters(), *tower(model).tower.parameters()]
    assert all(p.grad is None for p in [*others, model.lm_head.weight])


def test_merging_a_lora_keeps_the_function(tmp_path):
    llama = tiny_llama()
    wrapped = instruct.with_lora(llama)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter).bfloat16().float() * 0.1
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        before = llama(input_ids=ids).logits
        instruct.merge_lora(wrapped, tmp_path / "lora", "a tiny Llama")
        torch.testing.assert_close(llama(input_ids=ids).logits, before, atol=5e-3, rtol=1e-2)
        assert not torch.equal(tiny_llama()(input_ids=ids).logits, before)
    written = (tmp_path / "lora" / "adapter_config.json").read_text()
    assert json.loads(written)["base_model_name_or_path"] == "a tiny Llama"
    assert sorted(p.name for p in (tmp_path / "lora").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


# --- questions and files ---


def test_answers_say_what_can_be_seen():
    for scene in world.gallery("train")[:400]:
        known, still = answers(scene), answers(scene, moves=False)
        thing = scene.things[0]
        assert known["motion"] in world.caption(scene) and known["shape"] == thing.shape
        assert "motion" not in still and "direction" not in still
        assert ("colour" in known) == (thing.motion not in ("turn", "return"))
        straight = {"left", "right", "up", "down", "up-left", "up-right", "down-left", "down-right"}
        assert ("direction" in known) == (thing.motion in straight)


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def said(*turns):
    return [{"from": who, "value": text} for who, text in turns]


GOOD = said(("human", "<video>\nWhat?"), ("gpt", "A cup."), ("human", "Where?"), ("gpt", "Here."))
BAD = {
    "not JSON": "{",
    "no list": "7",
    "no rows": [],
    "no text": [dict(video_id="v", q="", a="A cup.")],
    "no answer": [dict(video_id="v", q="What?")],
    "blank": [dict(video_id="v", q="What?", a=" ")],
    "silence": [dict(id="v", conversations=[])],
    "odd": [dict(id="v", conversations=GOOD[:3])],
    "two humans": [dict(id="v", conversations=[GOOD[0], GOOD[0]])],
    "strings": ["a", "b"],
}


def test_instructions_in_both_forms(tmp_path):
    rows = [
        dict(video_id="v_1", q=" What? ", a="A cup."),
        dict(id="v_2", video="v_2.pkl", conversations=GOOD),
    ]
    first, second = read_dialogues(write(tmp_path / "train.json", rows))
    assert first.turns == (("What?", "A cup."),) and Path(first.path).name == "v_1.mp4"
    assert second.turns == (("What?", "A cup."), ("Where?", "Here."))


@pytest.mark.parametrize("name", BAD)
def test_other_files_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"bad\.json") as caught:
        read_dialogues(write(tmp_path / "bad.json", BAD[name]))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"There is no annotation .*missing\.json"):
        read_dialogues(tmp_path / "missing.json")


def test_presets_are_those_of_table_8_and_of_the_released_code():
    paper, released = for_dialogues("paper", 100_000), for_dialogues("released", 100_000)
    assert (paper.betas, paper.weight_decay, paper.batch) == ((0.9, 0.998), 0.1, 4)
    assert (released.betas, released.weight_decay, released.batch) == ((0.9, 0.999), 0.0, 8)
    assert paper.lr == released.lr == paper.branch_lr == 2e-5 and released.warmup == 0.03
    assert released.embeddings and not paper.embeddings and paper.gates and not released.gates
    assert for_dialogues("paper", 1).steps == 1 and paper.steps == 75_000
    with pytest.raises(ValueError, match="'paper' or 'released'"):
        for_dialogues("mine", 10)
    with pytest.raises(ValueError, match="1 or more"):
        InstructConfig(0, 1, lr=1e-3)


def test_every_part_has_its_own_rate():
    config = InstructConfig(1, 1, lr=0.1, branch_lr=0.01, lora_lr=0.001)
    names = "projector.a", "branch.b", "layers.0.lora_A.c", "layers.0.lora_B.d"
    groups = instruct.optimizer_of({n: nn.Parameter(torch.zeros(1)) for n in names}, config)
    found = {group["lr"]: len(group["params"]) for group in groups.param_groups}
    assert found == {0.1: 1, 0.01: 1, 0.001: 2}


def test_a_dialogue_never_tells_the_answer_of_a_later_question():
    rng = np.random.default_rng(0)
    asked = [
        {question for question, _ in instruct.some_turns(answers(world.random_scene(rng)), rng)}
        for _ in range(300)
    ]
    motion, direction = (instruct.QUESTIONS[kind] for kind in ("motion", "direction"))
    assert not any({motion, direction} <= one for one in asked)
    assert {question for one in asked for question in one} == {*instruct.QUESTIONS.values()}


# --- words first ---


class Words:
    """A tokenizer of whole words."""

    eos_token_id = 0

    def __call__(self, text, add_special_tokens=False):
        words = "red blue star circle moves left right up".split()
        return types.SimpleNamespace(input_ids=[1 + words.index(word) for word in text.split()])


KNOWN = [
    dict(colour="red", shape="star", motion="moves left"),
    dict(colour="blue", shape="circle", motion="moves right"),
    dict(colour="blue", shape="star"),
]


def test_an_answer_is_told_from_the_others_of_its_kind():
    table = torch.randn(9, 16, generator=torch.Generator().manual_seed(0))
    said, rows = instruct.word_directions(table, Words(), KNOWN)["motion"]
    assert said == ["moves left", "moves right"]
    expected = table[[5, 6]].mean(0) - (table[[5, 6]].mean(0) + table[[5, 7]].mean(0)) / 2
    torch.testing.assert_close(rows[0], expected / expected.norm())
    torch.testing.assert_close(rows[0], -rows[1])  # "moves" says nothing


def test_one_token_that_shows_it_is_enough():
    directions = instruct.word_directions(torch.randn(9, 16), Words(), KNOWN)
    silent, red = torch.zeros(16), directions["colour"][1][1]
    assert directions["colour"][0][1] == "red"
    told = torch.stack([silent, silent, red, silent])[None]
    known = [dict(colour="red")]
    right = instruct.words_loss(told, known, directions)
    assert right < instruct.words_loss(0 * told, known, directions)
    assert right < instruct.words_loss(-told, known, directions)
    torch.testing.assert_close(right, instruct.words_loss(told.flip(1), known, directions))


def test_the_warm_up_trains_the_projector_and_sets_its_loudness(tmp_path):
    rng, table = torch.Generator().manual_seed(0), torch.randn(9, 16) / 10
    tokens = torch.randn(3, 4, 8, generator=rng)
    torch.manual_seed(0)
    projector = chat.Projector(8, 16)
    config = InstructConfig(60, 3, lr=1e-2)
    parts = projector, tokens, KNOWN, table, Words(), config, tmp_path
    instruct.projector_learns_words(*parts)
    made = projector(tokens)
    directions = instruct.word_directions(table, Words(), KNOWN)
    assert instruct.words_loss(made, KNOWN, directions) < 0.1
    torch.testing.assert_close(made.square().mean(), table.square().mean())


# --- the loop ---

CONFIG = InstructConfig(20, 2, lr=0.1, branch_lr=0.01)


def run(folder, on_step=lambda step: None, run=None, config=CONFIG):
    """Parameters after training towards numbers that differ in each step."""
    torch.manual_seed(0)
    named = {"a": nn.Parameter(torch.zeros(3)), "branch.b": nn.Parameter(torch.zeros(2))}

    def loss_of(step):
        on_step(step)
        goal = torch.randn(5, generator=torch.Generator().manual_seed(step))
        return (torch.cat([*named.values()]) - goal).square().sum()

    train_parameters(named, loss_of, config, folder, run or dict(name="toy"), every=6)
    return torch.cat([*named.values()]).detach()


def stop_at(number, how):
    def on_step(step):
        if step == number:
            how()

    return on_step


def fail():
    raise RuntimeError("power cut")


@pytest.mark.parametrize("number", [3, 6, 13, 19])
def test_a_run_that_died_goes_on_as_if_nothing_was(number, tmp_path):
    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError):
        run(tmp_path / "halves", stop_at(number, fail))
    assert torch.equal(run(tmp_path / "halves"), whole)
    seen = []
    assert torch.equal(run(tmp_path / "halves", seen.append), whole) and not seen  # all done


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_run_that_is_told_to_stop_keeps_its_last_step(number, error, tmp_path):
    whole, seen = run(tmp_path / "whole"), []
    with pytest.raises(error):
        run(tmp_path / "halves", stop_at(8, lambda: os.kill(os.getpid(), number)))
    assert torch.equal(run(tmp_path / "halves", seen.append), whole) and seen[0] == 9


def test_the_branch_has_its_own_rate(tmp_path):
    moved = run(tmp_path / "a").abs()
    assert moved[:3].max() > 3 * moved[3:].max()


def test_another_runs_checkpoint_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match="belongs to another run"):
        run(tmp_path, run=dict(name="other"))


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    named = {"a": nn.Parameter(torch.ones(1))}
    with pytest.raises(ValueError, match="no number"):
        train_parameters(named, lambda step: named["a"].sum() * float("nan"), CONFIG, tmp_path, {})


def test_gradients_that_are_no_numbers_end_the_run_and_keep_the_checkpoint(tmp_path):
    named, kept = {"a": nn.Parameter(torch.ones(1))}, tmp_path / "checkpoint.pt"

    def loss_of(step):
        # The square root of zero is a number, and its slope is not.
        return (named["a"] - (named["a"].detach() if step == 3 else 0)).square().sum().sqrt()

    def names_of(step):
        return [f"clip {step}"]

    with pytest.raises(
        ValueError, match=r"gradients are no numbers at step 3; the clips were clip 3"
    ):
        train_parameters(named, loss_of, CONFIG, tmp_path, {}, 2, names_of)
    assert named["a"].isfinite().all()
    assert loop.load_checkpoint(kept, {})["step"] == 2


def test_weights_that_are_no_numbers_are_not_saved(tmp_path, monkeypatch):
    true = fitting.descend

    def descend(weights, *given, step, **rest):
        norm = true(weights, *given, step=step, **rest)
        if step == 3:
            weights[0].data.fill_(float("inf"))
        return norm

    monkeypatch.setattr(fitting, "descend", descend)
    with pytest.raises(ValueError, match="weights are no numbers after step 4"):
        run(tmp_path, config=InstructConfig(4, 1, lr=0.1))
    assert not (tmp_path / "checkpoint.pt").exists()


# --- the whole, with a language model of random weights ---


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("instruct")
    special = ["<image>", "<|im_start|>", "<|im_end|>"]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", additional_special_tokens=special
    )
    torch.manual_seed(0)
    sizes = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=300, max_position_embeddings=256, **sizes))
    llama.save_pretrained(folder / "words")
    tokenizer.save_pretrained(folder / "words")
    stage = InstructConfig(4, 4, lr=1e-3, branch_lr=1e-3, lora_lr=1e-3)
    stages = dict(words=stage, pictures=stage, clips=stage)
    make = lambda: make_small_chat(  # noqa: E731
        folder / "chat",
        BTAdapter.from_pretrained("moving-shapes"),
        0,
        8,
        stages,
        folder / "words",
        kept=(24, 8),
        resume=True,
    )
    return folder, make(), make


@pytest.mark.slow
def test_what_is_finished_is_not_done_again(made, monkeypatch):
    folder, rows, make = made
    before = {p: p.read_bytes() for p in (folder / "chat").rglob("*.safetensors")}
    monkeypatch.setattr(fitting, "descend", lambda *_, **__: pytest.fail("a step was taken again"))
    assert make() == rows
    assert {p: p.read_bytes() for p in (folder / "chat").rglob("*.safetensors")} == before


@pytest.mark.slow
def test_what_is_made_is_what_is_loaded(made, monkeypatch):
    folder, rows, _ = made
    assert [row["model"].split(":")[0] for row in rows] == [
        "image model, mean frame",
        "zero-shot",
        "tuned on clips",
    ]
    monkeypatch.setattr(chat.load, "smollm2", lambda: folder / "words")
    scenes = world.gallery("test", 8)
    for plugged, row in ((None, rows[2]), ("moving-shapes", rows[1]), ("mean", rows[0])):
        model, tokenizer = load_chat(str(folder / "chat"), plugged)
        tokens = instruct.encoded(tower(model), [world.render(s) for s in scenes])
        found = exact_match(model, tokenizer, tokens, [answers(s) for s in scenes])
        assert found == {kind: row[kind] for kind in found}
        talk = VideoChat(model, tokenizer, world.render(scenes[0]), max_tokens=12)
        assert talk.prompt.template is chat.TEMPLATES["smollm2"]
        asked = instruct.QUESTIONS["shape"]
        assert (
            talk.ask(asked).strip()
            == greedy_answers(model, tokenizer, tokens[:1], asked)[0].strip()
        )


@pytest.mark.slow
def test_nothing_of_this_machine_is_written(made):
    folder, *_ = made
    for path in (folder / "chat").rglob("*"):
        if path.suffix in (".json", ".md", ".csv"):
            assert str(folder) not in path.read_text() and "/root" not in path.read_text()
    assert not list((folder / "chat").rglob("*.part"))


# --- a host of one's own ---

SHIPPED = samples_folder() / "clips"


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A LLaVA of random weights around the small CLIP, a file of dialogues, and their clips."""
    folder = tmp_path_factory.mktemp("tune")
    model = image_chat_model(load_clip("moving-shapes"), tiny_llama(), IMAGE)
    model.config.text_config.max_position_embeddings = 500
    model.save_pretrained(folder / "host")
    byte_tokenizer().save_pretrained(folder / "host")
    (folder / "clips").mkdir()
    for path in SHIPPED.iterdir():
        (folder / "clips" / path.name).write_bytes(path.read_bytes())
    (folder / "clips" / "broken.mp4").write_text("no film")
    names = sorted(path.stem for path in (folder / "clips").iterdir())
    rows = [dict(video_id=name, q="What happens?", a=f"{name}!") for name in names]
    rows += [dict(id=name, conversations=GOOD) for name in names[-2:]]
    rows += [dict(video_id="lost", q="Where?", a="Gone.")]
    rows += [
        dict(video_id="grow", q="why " * 200, a="So."),
        dict(video_id="grow", q="<image>", a="?"),
        dict(video_id="grow", q="Why?", a=" "),
        dict(id="grow", conversations="none"),
    ]
    write(folder / "data.json", rows)
    return folder


def tune(host, out, **changes):
    options = dict(data=host / "data.json", clips=host / "clips", steps=6, save_every=2)
    options = dict(model=str(host / "host")) | options | dict(store=host / "states")
    return instruct.tune(**(options | dict(out=out) | changes))


def weights_in(folder):
    from safetensors.torch import load_file

    return load_file(folder / "tuned.safetensors") | load_file(
        folder / "adapter/adapter.safetensors"
    )


def same_weights(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def tuned(host):
    tune(host, host / "tuned")
    return host / "tuned"


def test_a_tuned_host_is_put_together_again(host, tuned):
    before, _ = image_host(host / "host", fast_dtype())  # as load_chat does
    model, tokenizer = load_chat(str(host / "host"), str(tuned))
    new = model.state_dict()
    changed = {n for n, w in before.state_dict().items() if n in new and not torch.equal(w, new[n])}
    assert changed and all("multi_modal_projector" in name for name in changed)
    kept = weights_in(tuned)
    assert all(torch.equal(new[name], kept[name].to(new[name].dtype)) for name in changed)
    branch, old = tower(model).branch_pool.branch, BTAdapter.from_pretrained("moving-shapes").branch
    moved = {n for n, w in branch.state_dict().items() if not torch.equal(w, old.state_dict()[n])}
    assert (
        moved
        and moved <= {*branch_parameters_read(tower(model).branch_pool)}
        and "gates.2.w_b" in moved
    )
    talk = VideoChat(model, tokenizer, SHIPPED / "left.mp4", PLAIN, max_tokens=3)
    assert len(talk.prompt.whole([], "Why")[0]) == 64 + 4 and isinstance(talk.ask("Why?"), str)
    with plug(before, "mean"):
        other = talk.ask("Why?") and VideoChat(before, tokenizer, SHIPPED / "left.mp4", PLAIN)
        assert not torch.equal(other.prompt.whole([], "Why"), talk.prompt.whole([], "Why"))


def test_what_is_left_out_is_counted_and_named(host, tuned):
    card = json.loads((tuned / "training.json").read_text())
    counts = dict(learned=14, broken_clip=1, unfit=2, without_clip=1, faulty=2)
    assert card["dialogues"] == counts and card["skipped_steps"] == 0
    with (tuned / "broken.csv").open() as file:
        why = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    (clip,) = [path for path in why if Path(path).name == "broken.mp4"]
    assert why.pop(clip)
    rows = {
        int(path.removeprefix(f"{host / 'data.json'} row ")): said for path, said in why.items()
    }
    words = {16: "lost.mp4 is not there", 17: "tokens, and the model reads 500"}
    words |= {18: "the image's place", 19: "empty question or answer", 20: "another form"}
    assert rows.keys() == words.keys()
    assert all(words[row] in said for row, said in rows.items()), rows
    assert not (tuned / "checkpoint.pt").exists() and not list(tuned.rglob("*.part"))
    assert len(list((tuned.parent / "states").glob("??/*"))) == 12  # one for each clip


@pytest.mark.parametrize(("how", "error"), [("signal", SystemExit), ("power", RuntimeError)])
def test_a_stopped_tuning_ends_where_an_undisturbed_one_does(
    host, tuned, tmp_path, monkeypatch, how, error
):
    true, calls = instruct.answer_loss, []

    def loss(*given):
        calls.append(given)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM) if how == "signal" else fail()
        return true(*given)

    monkeypatch.setattr(tuning, "answer_loss", loss)
    with pytest.raises(error):
        tune(host, tmp_path / "halves")
    with pytest.raises(ValueError, match="add --resume"):
        tune(host, tmp_path / "halves")
    with pytest.raises(ValueError, match="belongs to another run: its seed"):
        tune(host, tmp_path / "halves", resume=True, seed=1)
    monkeypatch.setattr(frozen, "frozen_states", fail)  # all are in the store
    tune(host, tmp_path / "halves", resume=True)
    assert len(calls) == 4 + (2 if how == "signal" else 4)
    assert same_weights(weights_in(tuned), weights_in(tmp_path / "halves"))
    monkeypatch.setattr(tuning, "image_host", fail)  # it is complete
    tune(host, tmp_path / "halves", resume=True)


def test_the_released_settings_tune_the_embeddings_and_not_the_gates(host, tmp_path):
    tune(host, tmp_path / "out", preset="released", steps=2)
    before, _ = image_host(host / "host", fast_dtype())  # as load_chat does
    old = before.state_dict() | BTAdapter.from_pretrained("moving-shapes").branch.state_dict()
    changed = {n for n, w in weights_in(tmp_path / "out").items() if not torch.equal(w, old[n])}
    table = "model.language_model.embed_tokens.weight"
    assert table in changed and not any("gates" in name for name in changed)
    assert any(name.startswith("temporal") for name in changed)
    model, _ = load_chat(str(host / "host"), str(tmp_path / "out"))
    assert torch.equal(model.lm_head.weight, before.lm_head.weight)
    found = model.get_input_embeddings().weight
    assert torch.equal(found, weights_in(tmp_path / "out")[table].to(found.dtype))
    other = image_chat_model(load_clip("moving-shapes"), tiny_llama(), IMAGE, merge=2)
    with pytest.raises(ValueError, match=r"linear_1.weight does not fit"):
        chat.tuned_adapter(other, tmp_path / "out")


@pytest.mark.parametrize("convention", ["paper", "released"])
def test_tuning_reads_the_tokens_of_a_conversation(host, convention, tmp_path, monkeypatch):
    clip = load_clip("moving-shapes")
    adapter = BTAdapter(clip, BranchConfig(layers=3, convention=convention))
    shake(adapter.branch, 1, std=0.1)
    seen = []
    monkeypatch.setattr(tuning, "answer_loss", lambda m, tokens, b: seen.append(tokens))
    model, tokenizer = image_host(host / "host", torch.float32)
    plug(model, adapter)
    some, *_ = instruct.dialogues_here(host / "data.json", host / "clips")
    some = [one for one in some if "broken" not in one.path][:12]
    store, report = instruct.keep_states(adapter, some, tmp_path, 4)
    assert report.tried == 12
    config = InstructConfig(1, 12, lr=1)
    video = [IMAGE] * (tower(model).encode(torch.zeros(1, 4, 3, 64, 64)).shape[1] - 1)
    instruct.loss_on(model, adapter, tokenizer, some, store, PLAIN, video, config)(0)
    order = instruct.batch_of_step(0, 12, config)
    expected = torch.cat([tower(model).encode(clip_of(tower(model), some[i].path)) for i in order])
    assert (seen[0] - expected).norm() < 0.02 * expected.norm()
    assert len(video) == (64 if convention == "paper" else 65)


def clip_of(tower, path):
    return tower.transform(read_clip(path, 4))[None]


def test_every_dialogue_comes_once_an_epoch():
    config = replace(CONFIG, batch=4)
    drawn = [i for step in range(10) for i in instruct.batch_of_step(step, 10, config)]
    epochs = [drawn[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == [*range(10)] for epoch in epochs)
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])
    assert drawn[:4] != instruct.batch_of_step(0, 10, replace(config, seed=1))


# --- fp16, and many processes ---


def overflowing(folder, steps, stop=None, bad=(3, 4), precision=torch.float16):
    """Training in fp16, where the gradients of some steps are infinite; stopped before a step."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3))
    seen = []

    def loss_of(step):
        if step == stop:
            fail()
        seen.append(step)
        far = torch.full((3,), 1e38 if step in bad else 1.0)  # times 65536: no number of fp32
        return (weight * far).square().sum() if step not in bad else (weight * far).sum()

    config = InstructConfig(steps, 1, lr=0.05)
    options = dict(every=2, precision=precision)
    skipped = train_parameters(dict(w=weight), loss_of, config, folder, dict(r=1), **options)
    return weight.detach(), skipped, seen


def test_fp16_gradients_are_scaled_and_overflowing_steps_are_left_out_and_counted(tmp_path):
    from bt_adapter.runs import read_log

    weight, skipped, _ = overflowing(tmp_path / "whole", 10)
    assert skipped == 2 and weight.isfinite().all()
    log = read_log(tmp_path / "whole" / "log.csv")
    assert log["skipped"] == [0, 0, 0, 1, 2, *5 * [2]]
    assert log["scale"][:3] == 3 * [65536] and log["scale"][-1] == 65536 / 4
    with pytest.raises(RuntimeError):
        overflowing(tmp_path / "halves", 10, stop=7)
    again, skipped, seen = overflowing(tmp_path / "halves", 10)
    assert seen == [6, 7, 8, 9] and skipped == 2  # the scaler remembers, and so does the count
    assert torch.equal(weight, again)
    assert read_log(tmp_path / "halves" / "log.csv")["scale"] == log["scale"]


def test_without_fp16_nothing_is_scaled(tmp_path):
    from bt_adapter.runs import read_log

    _, skipped, _ = overflowing(tmp_path, 4, bad=(), precision=torch.float32)
    assert skipped == 0 and read_log(tmp_path / "log.csv").keys() == {"step", "loss", "clips/s"}


def test_small_gradients_of_fp16_are_not_lost(tmp_path):
    """1e-6 through a product in fp16 whose factors hold 1e-9: nothing, unless it is scaled."""
    weight = nn.Parameter(torch.ones(4))

    def loss_of(step):
        half = weight.half() * torch.full((4,), 1e-3).half()
        return half.float().sum() * 1e-6

    config = InstructConfig(3, 1, lr=0.1)
    train_parameters(dict(w=weight), loss_of, config, tmp_path, dict(r=1), precision=torch.half)
    assert (weight < 1).all()


def test_a_host_is_tuned_in_fp16(host, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "fast_dtype", lambda device: torch.float16)
    counts = tune(host, tmp_path / "out", steps=2)
    assert counts["learned"] == 14
    log = (tmp_path / "out" / "log.csv").read_text().splitlines()
    assert log[0] == "step,loss,scale,skipped,clips/s" and len(log) == 3


@pytest.mark.parametrize("what", ["tune", "small chat", "the loop"])
def test_many_processes_are_refused_before_anything_is_loaded_or_written(
    what, host, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("host_to_tune", "dialogues_here"):
        monkeypatch.setattr(tuning, name, lambda *a: pytest.fail("the work has begun"))
    calls = {
        "tune": lambda: tune(host, tmp_path / "out"),
        "small chat": lambda: make_small_chat(tmp_path / "out", None),
        "the loop": lambda: fitting.fit([], [], fail, steps=range(1), schedule=fitting.Schedule()),
    }
    with pytest.raises(ValueError, match=r"one of 2.*without torchrun") as caught:
        calls[what]()
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


MISTAKES = {
    "'paper' or 'released'": dict(preset="mine"),
    "There is no folder": dict(clips=Path("none")),
    "is in .*bare, such as appear.mp4": dict(clips=Path("bare")),
    "There is no annotation none.json": dict(data=Path("none.json")),
    "none is no adapter folder": dict(adapter="none"),
    "No template is called 'mine'": dict(template="mine"),
    r"<vid_end> .9 pieces.*take the template": dict(template="video-chatgpt"),
    "bare cannot be loaded": dict(model="bare"),
    "is another CLIP": dict(model="other"),
    "which is no CLIP": dict(model="siglip"),
    "only a llava can be tuned": dict(model="next"),
    "use the preset 'paper'": dict(model="tied", preset="released"),
    "No dialogue fits": dict(model="short"),
    "at most 64 frames": dict(frames=100),
}


@pytest.fixture(scope="module")
def others(host):
    """Models that cannot be tuned."""
    import transformers as hf

    clip = load_clip("moving-shapes")
    (host / "bare").mkdir()
    models = dict(other=tiny_host("llava"), next=tiny_host("llava-next"))
    models["siglip"] = llava(vision=hf.SiglipVisionConfig(**VISION, num_channels=3))
    models["tied"] = image_chat_model(clip, tiny_llama(tie_word_embeddings=True), IMAGE)
    models["tied"].config.tie_word_embeddings = True
    models["tied"].config.text_config.max_position_embeddings = 500
    models["short"] = image_chat_model(clip, tiny_llama(), IMAGE)
    for name, model in models.items():
        model.save_pretrained(host / name)
        byte_tokenizer().save_pretrained(host / name)


@pytest.mark.parametrize("words", MISTAKES)
def test_what_cannot_be_tuned(words, host, others, tmp_path, monkeypatch):
    monkeypatch.chdir(host)
    monkeypatch.setattr(tuning, "keep_states", lambda *a: pytest.fail("the work has begun"))
    with pytest.raises(ValueError, match=words) as caught:
        tune(host, tmp_path / "out", **MISTAKES[words])
    assert "\n" not in str(caught.value)
