"""Instruction tuning: what is learned, by what, and that a stopped run goes on."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from test_chat import PLAIN, adapter_for, clips, tower, video
from tiny_hosts import byte_tokenizer, tiny_host, tiny_llama
from torch import nn

from bt_adapter import chat, instruct
from bt_adapter import moving_shapes as world
from bt_adapter.branch import BTAdapter
from bt_adapter.chat import Turn, VideoChat, load_chat, plug
from bt_adapter.instruct import (
    IGNORED,
    InstructConfig,
    answer_loss,
    answers,
    exact_match,
    for_dialogues,
    make_batch,
    make_small_chat,
    read_dialogues,
    said_of,
    tokens_of,
    train,
    used,
)

TURNS = (("What moves?", "a cup"), ("Which way?", "left"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    whole = talk._whole([turn], q2)
    answer = [*tokenizer(a2).input_ids, tokenizer.eos_token_id]
    assert len(ids) == len(labels) == whole.shape[1] + len(answer) and ids[-len(answer) :] == answer
    embedded = talk._embed(ids[: whole.shape[1]])
    embedded[:, :4] = talk._video(q1)
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
    assert moved == {*used(pool)} and moved
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
    "odd": [dict(id="v", conversations=GOOD[:3])],
    "two humans": [dict(id="v", conversations=[GOOD[0], GOOD[0]])],
    "strings": ["a", "b"],
}


def test_instructions_in_both_forms(tmp_path):
    rows = [
        dict(video_id="v_1", q=" What? ", a="A cup."),
        dict(id=3, video="v_2.pkl", conversations=GOOD),
    ]
    first, second = read_dialogues(write(tmp_path / "train.json", rows))
    assert first == ("v_1", (("What?", "A cup."),))
    assert second == ("v_2.pkl", (("What?", "A cup."), ("Where?", "Here.")))


@pytest.mark.parametrize("name", BAD)
def test_other_files_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"bad\.json") as caught:
        read_dialogues(write(tmp_path / "bad.json", BAD[name]))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no file of instructions"):
        read_dialogues(tmp_path / "missing.json")


def test_presets_are_those_of_table_8_and_of_the_released_code():
    paper, released = for_dialogues("paper", 100_000), for_dialogues("released", 100_000)
    assert (paper.betas, paper.weight_decay, paper.batch) == ((0.9, 0.998), 0.1, 4)
    assert (released.betas, released.weight_decay, released.batch) == ((0.9, 0.999), 0.0, 8)
    assert paper.lr == released.lr == paper.branch_lr == 2e-5 and released.warmup == 0.03
    assert released.embeddings and not paper.embeddings
    with pytest.raises(ValueError, match="'paper' or 'released'"):
        for_dialogues("mine", 10)
    with pytest.raises(ValueError, match="1 or more"):
        InstructConfig(0, 1, 1e-3, 1e-3)


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

    train(named, loss_of, config, folder, run or dict(name="toy"), every=6)
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
        train(named, lambda step: named["a"].sum() * float("nan"), CONFIG, tmp_path, {})


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
    stage = InstructConfig(4, 4, lr=1e-3, branch_lr=1e-3)
    adapter = BTAdapter.from_pretrained("moving-shapes")
    stages = dict(pictures=stage, clips=stage)
    rows = make_small_chat(folder / "chat", adapter, 0, 8, stages, folder / "words", kept=(24, 8))
    return folder, rows


@pytest.mark.slow
def test_what_is_made_is_what_is_loaded(made, monkeypatch):
    folder, rows = made
    assert [row["model"].split(":")[0] for row in rows] == [
        "image model, mean frame",
        "zero-shot",
        "tuned on clips",
    ]
    monkeypatch.setattr(chat, "smollm2", lambda: folder / "words")
    scenes = world.gallery("test", 8)
    for plugged, row in ((None, rows[2]), ("moving-shapes", rows[1]), ("mean", rows[0])):
        model, tokenizer = load_chat(str(folder / "chat"), plugged)
        tokens = instruct.encoded(tower(model), [world.render(s) for s in scenes])
        found = exact_match(model, tokenizer, tokens, [answers(s) for s in scenes])
        assert found == {kind: row[kind] for kind in found}
        talk = VideoChat(model, tokenizer, world.render(scenes[0]), max_tokens=12)
        assert talk.template is chat.TEMPLATES["smollm2"]
        asked = instruct.QUESTIONS["shape"]
        assert talk.ask(asked).strip() == said_of(model, tokenizer, tokens[:1], asked)[0].strip()


@pytest.mark.slow
def test_nothing_of_this_machine_is_written(made):
    folder, _ = made
    for path in (folder / "chat").rglob("*"):
        if path.suffix in (".json", ".md", ".csv"):
            assert str(folder) not in path.read_text() and "/root" not in path.read_text()
    assert not list((folder / "chat").rglob("*.part"))
