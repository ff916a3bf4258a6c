"""Forms of prompts: what is publicly known of each, which host gets which, and what fits."""

import json
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from tiny_hosts import byte_tokenizer, llava, one_thread, tiny_host  # noqa: F401

from bt_adapter import chat
from bt_adapter.chat import TEMPLATES, Template, VideoChat, choose_template, load_chat, plug
from bt_adapter.chat.choosing import authors_template, name_says, read_chat_template
from bt_adapter.chat.conversation import written
from bt_adapter.chat.load import CHAT_FILES, chat_template_of, tuned_template

USER = "A chat between a curious user and an artificial intelligence assistant. The assistant gives"
USER += " helpful, detailed, and polite answers to the user's questions."
HUMAN = USER.replace("user", "human")
VISUAL = "You are a helpful language and vision assistant. You are able to understand the visual"
VISUAL += " content that the user provides, and assist the user with a variety of tasks using"
VISUAL += " natural language."
VIDEO = "You are Video-ChatGPT, a large vision-language assistant. You are able to understand the"
VIDEO += " video content that the user provides, and assist the user with a variety of tasks using"
VIDEO += " natural language.Follow the instructions carefully and explain your answers in detail"
VIDEO += " based on the provided video."
IMAGE = "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once"
IMAGE += " I provide it to you. Please answer my questions."


# How those who made a model write a conversation: an opening, two roles, what ends a question and
# what ends an answer, as their code has them as fields. P stands for the picture.


def colons(system, roles, ends, sep=" ", picture="P\n{}"):
    """`ROLE: text`, with a separator after the opening, the questions and the answers."""
    (asks, says), (question_end, answer_end) = roles, ends
    turn = f"{asks}: {{}}{question_end}{says}:"
    return f"{system}{sep}{turn.format(picture)} A1{answer_end}{turn}"


def brackets(system, between):
    opening = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
    return f"[INST] {opening}P\n{{}} [/INST] A1 {between}[INST] {{}} [/INST]"


def chatml(system, end):
    user, answer = "<|im_start|>user\n", "<|im_start|>assistant\n"
    opening = f"<|im_start|>system\n{system}{end}" if system else ""
    return f"{opening}{user}P\n{{}}{end}{answer}A1{end}{user}{{}}{end}{answer}"


def header(role):
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


LLAMA_3 = ("system", "user", "assistant", "user")
VICUNA = ("USER", "ASSISTANT"), (" ", "</s>")
HASHES = ("Human", "Assistant"), ("###", "###")
LAST = "{}\n<vid_start>P<vid_end>"  # where BT-Adapter's inference puts a clip, in every form


def shown_first(answer):
    """An opening that shows how a question is answered."""
    asked = "What are the key differences between renewable and non-renewable energy sources?"
    return f"{HUMAN}###Human: {asked}###Assistant: {answer}"


LONG = TEMPLATES["v0"].first.split("Assistant: ")[1].split("###")[0]  # held to its hash below
KNOWN = {
    "llava": colons(USER, *VICUNA),
    "llava_v1": colons(HUMAN, *VICUNA),
    "llava-hf": colons("", *VICUNA, sep=""),  # as the documentation of transformers has it
    "llava-lightning": colons(HUMAN, *VICUNA, picture="<im_start>P<im_end>\n{}"),
    "llava_v0": colons(HUMAN, *HASHES, sep="###"),
    "v0": colons(shown_first(LONG), *HASHES, sep="###"),
    "video-chatgpt": colons(VIDEO, *VICUNA, picture=LAST),
    "vicuna_v1_1": colons(USER, *VICUNA, picture=LAST),
    "v1_2": colons(
        shown_first("Renewable energy sources are those that can be replenished naturally.\n"),
        *HASHES,
        sep="###",
        picture=LAST,
    ),
    "llava-mistral": brackets("", "</s>"),
    "llava_llama_2": brackets(VISUAL, "</s><s>"),
    "llava_llama_3": "".join(
        f"{header(role)}{text}<|eot_id|>"
        for role, text in zip(LLAMA_3, (VISUAL, "P\n{}", "A1", "{}"), strict=True)
    )
    + header("assistant"),
    "chatml_direct": chatml("Answer the questions.", "<|im_end|>"),
    "qwen_1_5": chatml("You are a helpful assistant.", "<|im_end|>\n"),
    "smollm2": chatml("", "<|im_end|>\n"),
    "blip2": "PQuestion: {} Answer: A1 Question: {} Answer:",
    "instructblip": "P{} A1</s>P{}",
    "minigpt4": f"{IMAGE}###Human: <Img>P</Img> {{}}###Assistant: A1###Human: {{}}###Assistant: ",
    "minigpt4-llama2": f"{IMAGE}<s>[INST] <Img>P</Img> {{}} [/INST] A1<s>[INST] {{}} [/INST] ",
}
STOPS = {
    **dict.fromkeys(("llava_v0", "v0", "v1_2", "minigpt4"), "###"),
    **dict.fromkeys(("chatml_direct", "qwen_1_5", "smollm2"), "<|im_end|>"),
    "llava_llama_3": "<|eot_id|>",
    "blip2": "\n",
}
SAYS = {  # an answer as a model writes it: with the blanks that it was tuned to write around it
    **dict.fromkeys(("llava-mistral", "llava_llama_2"), " A1 "),
    **dict.fromkeys(("smollm2", "qwen_1_5", "chatml_direct", "llava_llama_3"), "A1"),
    **dict.fromkeys(("minigpt4", "minigpt4-llama2"), "A1"),
}


def conversation_text(name):
    template = TEMPLATES[name]
    first, later = (form.replace("{question}", "{}") for form in (template.first, template.later))
    whole = first + SAYS.get(name, " A1") + template.between + later
    return whole.replace("<video>", "P")


@pytest.mark.parametrize("name", TEMPLATES)
def test_two_turns_are_written_as_is_publicly_known(name):
    assert conversation_text(name) == KNOWN[name]
    assert TEMPLATES[name].stop == STOPS.get(name, "</s>")
    assert KNOWN.keys() == TEMPLATES.keys()


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_model_reads_are_the_ids_of_that_text(name):
    """Piece by piece as all at once, every marker one id."""
    template = TEMPLATES[name]
    words = byte_tokenizer(*template.markers)
    ids = []
    for first in (True, False):
        for piece in written(words, template, "{}", first):
            ids += words("P").input_ids if piece is None else piece
        if first:
            text = SAYS.get(name, " A1") + template.between
            ids += words(text, add_special_tokens=False).input_ids
    assert ids == words(KNOWN[name]).input_ids
    for marker in template.markers:
        assert len(words(marker).input_ids) == 1


AUTHORS = {  # by the name in their own tables of conversations
    "BT-Adapter": {
        "default": KNOWN["v1_2"],
        "video-chatgpt_v1": colons(VIDEO, *VICUNA, picture=LAST),
        "vicuna_v1_1": colons(USER, *VICUNA, picture=LAST),
    },
    "LLaVA": {
        "v0": KNOWN["v0"],
        "v1": colons(USER, *VICUNA),
        "vicuna_v1": colons(USER, *VICUNA),
        "llava_v0": colons(HUMAN, *HASHES, sep="###"),
        "llava_v1": colons(HUMAN, *VICUNA),
        "llava_llama_2": brackets(VISUAL, "</s><s>"),
        "mistral_instruct": brackets("", "</s>"),
        "chatml_direct": chatml("Answer the questions.", "<|im_end|>"),
    },
}


def test_the_authors_names_are_understood():
    """Each of their names gives the text that their code makes, and ours are all among them."""
    theirs = {name: text for table in AUTHORS.values() for name, text in table.items()}
    for name, text in theirs.items():
        assert conversation_text(chat.templates.template_name(name)) == text, name
    assert chat.ALIASES.keys() <= theirs.keys()
    assert len(LONG) == 1383 and sha256(LONG.encode()).hexdigest().startswith("29c0f588aa19dd65")
    for name in ("llava-v1", "LLAVA_V1", " llava_v1 "):
        assert chat.named_template(name) is TEMPLATES["llava_v1"]
    for bad in ("llava-9", "", None, 3):
        with pytest.raises(ValueError, match="No template is called"):
            chat.named_template(bad)


# Markers.


def test_a_marker_that_falls_into_letters_is_no_marker():
    talk, words = host(), byte_tokenizer()
    with pytest.raises(ValueError, match=r"<vid_end> \(9 pieces\), <vid_start> \(11 pieces\)"):
        VideoChat(talk, words, video(), "video-chatgpt")
    words = byte_tokenizer("<vid_start>", "<vid_end>")
    assert VideoChat(talk, words, video(), "video-chatgpt").chosen.why == "as you asked"
    own = Template("<clip><video></clip>{question}", "{question}")
    with pytest.raises(ValueError, match="</clip>"):
        VideoChat(talk, words, video(), own)
    spelled = replace(own, spelled=("<clip>", "</clip>"))
    assert VideoChat(talk, words, video(), spelled).prompt.template is spelled


def test_an_unknown_word_is_one_piece_and_no_marker():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    words = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>")
    with pytest.raises(ValueError, match="<vid_start>"):
        chat.check_markers(TEMPLATES["video-chatgpt"], words)
    chat.check_markers(TEMPLATES["llava"], words)


def test_a_question_cannot_pretend_to_be_a_marker():
    words = byte_tokenizer()
    words.add_tokens(["<vid_start>", "<vid_end>"])  # as a tokenizer's plain words
    assert "<vid_start>" not in words.all_special_tokens
    talk = VideoChat(host(), words, video(), "video-chatgpt")
    for bad in ("What <vid_start> moves?", "a<video>b", "over</s>"):
        with pytest.raises(ValueError, match="meaning of its own"):
            talk.ask(bad)


FAMILIES = ("llava", "llava-next", "blip-2", "instructblip", "minigpt4")


@pytest.mark.parametrize("kind", FAMILIES)
def test_markers_can_be_added_to_a_host(kind):
    """Rows of chance, the same each time; all that was learned stays, bit by bit."""
    models = [host(kind), host(kind), host(kind)]
    plain = {name: weight.clone() for name, weight in models[0].state_dict().items()}
    for model, seed in zip(models, (0, 0, 1), strict=True):
        words = byte_tokenizer()
        added = chat.add_markers(model, words, "video-chatgpt", seed)
        assert added == ["<vid_end>", "<vid_start>"]
        assert chat.add_markers(model, words, "vicuna_v1_1", seed) == []
    ids = [*map(words.convert_tokens_to_ids, added)]
    grown = [name for name, old in plain.items() if models[0].state_dict()[name].shape != old.shape]
    few = len(plain[grown[0]]) if grown else None
    layers = models[0].get_input_embeddings(), models[0].get_output_embeddings()
    assert not grown or few <= min(ids)
    for name, weight in models[0].state_dict().items():
        old, same = plain[name], models[1].state_dict()[name]
        other = models[2].state_dict()[name]
        assert torch.equal(weight, same)
        kept = [i for i in range(len(old)) if i not in ids] if old.ndim else ...
        assert torch.equal(weight[: len(old)][kept] if old.ndim else weight, old[kept])
        if any(weight.data_ptr() == layer.weight.data_ptr() for layer in layers):
            assert not torch.equal(weight[ids], other[ids]) and weight[ids].abs().max() < 0.1
        else:
            assert torch.equal(weight, other)
    reads = dict(qformer_tokenizer=byte_tokenizer()) if kind == "instructblip" else {}
    talk = VideoChat(models[0], words, video(), "video-chatgpt", max_tokens=3, **reads)
    assert talk.ask("Why?") is not None and len(talk.turns) == 1
    first = [
        i for piece in written(words, TEMPLATES["video-chatgpt"], "Why?", True) for i in piece or ()
    ]
    assert first.count(ids[0]) == first.count(ids[1]) == 1


def test_a_table_of_embeddings_that_is_full_grows():
    model, words = host(), byte_tokenizer()
    rows = len(model.get_input_embeddings().weight)
    words.add_tokens([f"<more{i}>" for i in range(rows - len(words))])
    frozen = [weight for weight in model.parameters()]
    chat.add_markers(model, words, "video-chatgpt")
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    assert [len(layer.weight) for layer in layers] == [rows + 2] * 2
    assert model.config.text_config.vocab_size == rows + 2
    assert all(a is b for a, b in zip(frozen, model.parameters(), strict=True))
    assert not any(weight.requires_grad for weight in model.parameters())
    talk = VideoChat(model, words, video(), "video-chatgpt", max_tokens=3)
    talk.ask("Why?")
    chat.unplug(model)
    assert all(weight.requires_grad for weight in model.parameters())


def test_what_ends_an_answer_cannot_be_added():
    model, words = host(), byte_tokenizer()
    for name, stop in {"smollm2": "im_end", "llava_llama_3": "eot_id"}.items():
        with pytest.raises(ValueError, match=rf"<\|{stop}\|> cannot be added.*not learned") as told:
            chat.add_markers(model, words, name)
        assert "\n" not in str(told.value) and f"<|{stop}|>" not in words.get_vocab()
    with pytest.raises(ValueError, match="No template is called"):
        chat.add_markers(model, words, "llava-9")


def test_the_command_asks_in_the_papers_prompt(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from bt_adapter.cli import chat as command
    from bt_adapter.video import write_clip

    write_clip(tmp_path / "clip.mp4", torch.zeros(8, 16, 16, 3, dtype=torch.uint8))
    monkeypatch.setattr(chat, "load_chat", lambda *_: (host(), byte_tokenizer()))
    line = [
        str(tmp_path / "clip.mp4"),
        *"--model a/x --video mean --max-tokens 3 --ask Why?".split(),
    ]
    for name, markers in {"vicuna_v1_1": ["--add-markers"], "default": ["--add-markers"]}.items():
        asked = [*line, "--template", name]
        refused = CliRunner().invoke(command.app, asked)
        assert "add them to the vocabulary" in str(refused.exception)
        run = CliRunner().invoke(command.app, [*asked, *markers])
        assert run.exit_code == 0, run.exception
        assert "note: <vid_end> and <vid_start> are new to this model" in run.stderr
        ours = chat.templates.template_name(name)
        assert f"prompt: {ours}, as you asked" in run.stderr


# Chat templates. The first two are those of LLaVA-1.5 and of v1.6-mistral in other words: one
# writes no </s> after an answer, one a misprint of it.

ROLES = """{% for m in messages %}{{ m.role | upper }}: {% for part in m.content %}
{%- if part.type == 'image' %}<image>
{% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor -%}
{% if add_generation_prompt %}ASSISTANT:{% endif %}"""
INST = """{% for m in messages %}{% if m.role == 'user' %}[INST] {% for part in m.content %}
{%- if part.type == 'image' %}{{ '<image>\\n' }}{% else %}{{ part.text }}{% endif %}
{%- endfor %} [/INST]
{%- else %} {{ m.content[0].text }}<\\s> {% endif %}{% endfor %}"""
PLAIN = """{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
OWN = """Be brief. {% for m in messages %}{% for part in m.content %}
{%- if part.type == 'image' %}<image> {% else %}<{{ m.role }}>{{ part.text }}{% endif %}{% endfor %}
{%- endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
UNUSABLE = {
    "{{ nothing.at.all }}": "cannot be used here",
    "{% for": "cannot be used here",
    "no messages": "shows no picture",
    ROLES.replace("<image>", ""): "shows no picture",
    "{{ raise_exception('for text only') }}": "for text only",
    ROLES + "{{ messages | length }}": "otherwise once it is answered",
    ROLES.replace("m.role |", "'LAST' if loop.index == 5 else m.role |"): "in different ways",
}
MARKERS = ("<|im_start|>", "<|im_end|>", "<user>", "<assistant>")


def video():
    return torch.zeros(4, 16, 16, 3, dtype=torch.uint8)


def host(name="llava", **noted):
    model = tiny_host(name)
    plug(model, "mean")
    model.config.text_config.max_position_embeddings = 2000
    for key, value in noted.items():
        setattr(model, key, value)
    return model


def asked_by_transformers(words, text, count):
    """What a chat template makes of a conversation, in parts or as plain text."""
    turns, parts = [], "m.content }}" not in text
    for i in range(count):
        for role, said in (("user", f"Q{i}?"), ("assistant", f"A{i}.")):
            own = [dict(type="text", text=said)]
            if role == "user" and i == 0:
                own, said = [dict(type="image"), *own], f"<image>\n{said}"
            turns.append(dict(role=role, content=own if parts else said))
    how = dict(chat_template=text, tokenize=False, add_generation_prompt=True)
    return words.apply_chat_template(turns[:-1], **how)


@pytest.mark.parametrize("text", [ROLES, INST, PLAIN, OWN])
def test_a_chat_template_is_read_as_it_writes(text):
    words = byte_tokenizer(*MARKERS)
    read = read_chat_template(text, words)
    blank = " " if text in (ROLES, INST) else ""
    whole = read.first.replace("{question}", "Q0?").replace("<video>", "<image>")
    for i in range(1, 3):
        whole += f"{blank}A{i - 1}.{read.between}" + read.later.replace("{question}", f"Q{i}?")
    assert whole == asked_by_transformers(words, text, 3)
    assert read.stop == {PLAIN: "<|im_end|>", OWN: "<user>"}.get(text, "</s>")


@pytest.mark.parametrize("text", UNUSABLE)
def test_a_chat_template_that_cannot_be_read_is_passed_over_and_told(text):
    words = byte_tokenizer()
    with pytest.raises(ValueError, match=UNUSABLE[text]) as caught:
        read_chat_template(text, words)
    assert "\n" not in str(caught.value)
    chosen = VideoChat(host(chat_template=text), words, video()).chosen
    assert chosen.name == "llava" and UNUSABLE[text] in str(chosen)


def test_a_start_token_is_written_once():
    from tokenizers.processors import TemplateProcessing

    words = byte_tokenizer(*MARKERS)
    assert read_chat_template(PLAIN, words).first.startswith("<s><|im_start|>")
    adds = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    words._tokenizer.post_processor = adds
    talk = VideoChat(host(chat_template=PLAIN), words, video())
    assert talk.chosen.name == "smollm2"
    ids = written(words, talk.prompt.template, "Q0?", True)[0]
    assert ids.count(1) == 1 and ids[0] == 1


# The choice.

CHOICES = {  # host, what is noted with it, its markers -> template, by what
    ("llava", "llava"): {},
    ("llava-next", "llava_v1"): {},
    ("blip-2", "minigpt4"): {},  # a Llama behind a Q-Former
    ("minigpt4", "minigpt4"): {},
    ("instructblip", "instructblip"): {},
    ("llava", "llava-hf"): dict(chat_template=ROLES),
    ("llava-next", "llava-hf"): dict(chat_template=ROLES),
    ("llava-next", "llava-mistral"): dict(chat_template=INST),
    ("llava", "smollm2"): dict(chat_template=PLAIN),
    ("llava", "its own"): dict(chat_template=OWN),
    ("llava", "llava_v0"): dict(loaded_from="liuhaotian/LLaVA-7b-v0"),
    ("llava", "llava_llama_2"): dict(loaded_from="x/llava-llama-2-7b"),
    ("llava", "chatml_direct"): dict(usual_template="chatml_direct", chat_template=ROLES),
}


@pytest.mark.parametrize("case", CHOICES)
def test_each_host_gets_the_template_that_it_was_tuned_with(case):
    kind, name = case
    words = byte_tokenizer(*MARKERS)
    model = host(kind, **CHOICES[case])
    reads = dict(qformer_tokenizer=words) if kind == "instructblip" else {}
    chosen = VideoChat(model, words, video(), **reads).chosen
    assert chosen.name == name and str(chosen).startswith(f"prompt: {name}, ")
    if name in TEMPLATES:
        assert chosen.template.later == TEMPLATES[name].later
        assert chosen.template.between == TEMPLATES[name].between
    named = VideoChat(model, words, video(), "llava_v1", **reads).chosen
    assert named.template is TEMPLATES["llava_v1"] and named.why == "as you asked"


LANGUAGES = {
    ("llava", "mistral", 32_000): "llava-mistral",
    ("llava_next", "mistral", 32_064): "llava-mistral",
    ("llava_next", "llama", 32_064): "llava_v1",
    ("llava_next", "llama", 64_064): "chatml_direct",
    ("llava_next", "llama", 128_320): "llava_llama_3",
    ("llava_next", "qwen2", 152_064): "qwen_1_5",
    ("blip-2", "opt", 50_272): "blip2",
}


@pytest.mark.parametrize("case", LANGUAGES)
def test_a_family_is_known_by_its_language_model(case):
    from types import SimpleNamespace as Of

    kind, language, size = case
    config = Of(model_type=kind, text_config=Of(model_type=language, vocab_size=size))
    words = byte_tokenizer(*TEMPLATES[LANGUAGES[case]].markers)
    assert choose_template(Of(config=config), words).name == LANGUAGES[case]


def test_a_template_whose_markers_are_missing_is_passed_over_and_told():
    words = byte_tokenizer()
    chosen = VideoChat(host(chat_template=PLAIN, usual_template="smollm2"), words, video()).chosen
    assert chosen.name == "llava" and "<|im_start|>" in chosen.why
    with pytest.raises(ValueError, match=r"<\|im_start\|>"):
        VideoChat(host(), words, video(), "smollm2")


def test_where_nothing_fits_there_is_one_sentence():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    words = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    with pytest.raises(ValueError, match=r"No template fits this model.*</s>") as caught:
        choose_template(host(), words)
    assert "\n" not in str(caught.value)


def test_names_are_read_as_the_authors_command_reads_them():
    named = {
        "liuhaotian/llava-v1.5-7b": "llava_v1",
        "liuhaotian/llava-v1.6-34b": "chatml_direct",
        "liuhaotian/llava-v1.6-mistral-7b/": "llava-mistral",
        "liuhaotian/llava-llama-2-13b-chat-lightning-preview": "llava_llama_2",
        "liuhaotian/LLaVA-7b-delta-v0": "llava_v0",
        "v1/mine": None,
    }
    assert {name: name_says(name) for name in named} == named
    marked = authors_template(dict(mm_use_im_start_end=True), "LLaVA-Lightning-7B-v1-1")
    assert marked.template == TEMPLATES["llava-lightning"] and marked.name == "llava-lightning"
    marked = authors_template(dict(mm_use_im_start_end=True), "mine")
    assert "<im_start><video><im_end>" in marked.template.first and "llava with" in marked.name
    assert authors_template({}, "mine").template is TEMPLATES["llava"]
    assert authors_template(dict(_name_or_path="x/LLaVA-v1"), "mine").name == "llava_v1"


@pytest.mark.parametrize("file", CHAT_FILES)
def test_the_chat_template_in_a_hosts_folder_is_found(file, tmp_path):
    model = llava(next=True)
    model.save_pretrained(tmp_path)
    byte_tokenizer(*MARKERS).save_pretrained(tmp_path)
    text = ROLES if file.endswith("jinja") else json.dumps(dict(chat_template=ROLES))
    (tmp_path / file).write_text(text)
    assert chat_template_of(str(tmp_path)) == ROLES
    model, words = load_chat(str(tmp_path), "mean")
    model.config.text_config.max_position_embeddings = 2000
    talk = VideoChat(model, words, video(), max_tokens=3)
    assert talk.chosen.name == "llava-hf" and talk.chosen.why == "by the model's chat template"
    one = asked_by_transformers(words, ROLES, 1)
    pieces = written(words, talk.prompt.template, "Q0?", True)
    ids = [i for piece in pieces for i in (words("<image>").input_ids if piece is None else piece)]
    assert ids == words(one).input_ids
    talk.ask("Why?")


def test_a_tuned_host_is_asked_as_it_was_tuned(tmp_path):
    for named, name in {None: "llava", "v1": "llava", "mistral_instruct": "llava-mistral"}.items():
        (tmp_path / "training.json").write_text(json.dumps(dict(run=dict(template=named))))
        chosen = tuned_template(tmp_path)
        assert chosen.name == name and "tuned" in chosen.why
