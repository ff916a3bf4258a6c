"""Hosts from files: every weight is read or the host is refused, and the reason is the true one."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_chat import PLAIN, adapter_for, clips, old_llava, small_chat, tower, video  # noqa: F401
from tiny_hosts import (  # noqa: F401 one_thread is used by all tests here
    MAKERS,
    VISION,
    byte_tokenizer,
    one_thread,
    qformer,
    tiny_host,
    tiny_llama,
)

from bt_adapter import chat
from bt_adapter.chat import VideoChat, authors, convert, load_chat, plug
from bt_adapter.chat.hosts import clip_of_tower, same_clip
from bt_adapter.weights import difference, give_weights, rounded_to

PUBLISHED = [name for name in MAKERS if name != "minigpt4"]


def saved(model, folder):
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def change(folder, edit):
    """Edit the tensors of a saved model."""
    file = folder / "model.safetensors"
    state = load_file(file)
    edit(state)
    save_file(state, file, dict(format="pt"))


def refused(call, *words):
    """The one sentence with which a call is refused."""
    with pytest.raises(ValueError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said
    return said


# --- never an answer from weights that were not read ---


def first(state, part):
    return next(name for name in sorted(state) if part in name)


FAULTS = {
    "lacks": lambda state, name: state.pop(name),
    "has no use for": lambda state, name: state.update({f"{name}.more": torch.ones(2)}),
    "another shape": lambda state, name: state.update({name: torch.ones(3, 5)}),
}


@pytest.mark.parametrize("host", PUBLISHED)
@pytest.mark.parametrize("words", FAULTS)
def test_a_host_whose_weights_are_not_all_read_is_refused(host, words, tmp_path, capfd):
    saved(tiny_host(host), tmp_path)
    part = "layers.1.self_attn.q_proj.weight" if "llava" in host else "query.weight"
    change(tmp_path, lambda state: FAULTS[words](state, first(state, part)))
    refused(lambda: load_chat(str(tmp_path), "mean"), words, part)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_many_missing_weights_are_counted_and_not_listed(tmp_path):
    saved(tiny_host("llava"), tmp_path)
    drop = lambda state: [state.pop(n) for n in [*state] if "language_model" in n]  # noqa: E731
    change(tmp_path, drop)
    said = refused(lambda: load_chat(str(tmp_path), "mean"), " more")
    assert said.count(".weight") == 3


def test_buffers_that_transformers_ignores_are_no_fault(tmp_path):
    saved(tiny_host("llava"), tmp_path)
    old = "vision_tower.vision_model.embeddings.position_ids"
    change(tmp_path, lambda state: state.update({old: torch.arange(5)[None]}))
    model, _ = load_chat(str(tmp_path), "mean")
    saved_weight = tiny_host("llava").lm_head.weight
    assert torch.equal(model.lm_head.weight, saved_weight.to(model.dtype))


@pytest.mark.parametrize("kind", ["qwen2_vl", "siglip"])
def test_a_host_of_another_family_is_refused_before_it_is_built(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(chat.load, "read_whole", lambda *a, **o: pytest.fail("it is built"))
    config = dict(model_type=kind)
    if kind == "siglip":
        config = dict(model_type="llava", vision_config=dict(model_type="siglip_vision_model"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(lambda: load_chat(str(tmp_path), "mean"), kind)


@pytest.mark.parametrize("file", ["projector", "image_projector", "lora/adapter_model"])
@pytest.mark.parametrize("fault", ["less", "more", "none", "cut"])
def test_the_small_chat_model_is_read_whole(small_chat, file, fault):  # noqa: F811
    path = small_chat / f"{file}.safetensors"
    state = load_file(path)
    lora = [n for n in sorted(state) if "layers.1.self_attn.q_proj" in n] if "/" in file else []
    if fault == "less":
        for name in lora or ["linear_2.bias"]:
            del state[name]
    elif fault == "more":
        extra = {n.replace("layers.1", "layers.9"): state[n].clone() for n in lora}
        state |= extra or {"linear_3.bias": torch.ones(1)}
    save_file(state, path)
    if fault == "none":
        path.unlink()
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    words = dict(less="it lacks", more="has no use for", none="There is no file", cut="damaged")
    video = "mean" if "image" in file else None
    if (file, fault) == ("projector", "none"):
        words["none"] = "is no chat model"
    refused(lambda: chat.load_small_chat(small_chat, video), words[fault])


def test_half_a_tuned_projector_is_refused(tmp_path):
    model = tiny_host("llava")
    projector = {
        n: w.clone() for n, w in model.state_dict().items() if "multi_modal_projector" in n
    }
    adapter = adapter_for(model)
    adapter.save_pretrained(tmp_path / "adapter")
    some = dict(sorted(projector.items())[:2])
    save_file(some, tmp_path / "tuned.safetensors")
    refused(lambda: chat.tuned_adapter(model, tmp_path), "it lacks", "linear_2.bias")


def test_a_module_is_given_all_weights_or_none():
    layer = torch.nn.Linear(2, 3)
    before = layer.weight.clone()
    refused(lambda: give_weights(layer, {"weight": torch.zeros(3, 2)}, "x.bin"), "x.bin", "bias")
    assert torch.equal(layer.weight, before)


# --- LLaVA as its authors publish it ---


def authors_folder(tmp_path, layers=2, form="safetensors", name="llava", **config):
    """A folder with a LLaVA in its authors' format, its tower beside it, and its tensors."""
    state, _ = old_llava(layers)
    folder = tmp_path / "old"
    folder.mkdir()
    tower(tiny_host("llava")).save_pretrained(tmp_path / "clip-tiny")
    byte_tokenizer().save_pretrained(folder)
    known = tiny_llama().config.to_dict() | dict(
        model_type=name, mm_vision_tower="openai/clip-tiny"
    )
    (folder / "config.json").write_text(json.dumps(known | config))
    write_tensors(folder, state, form)
    return folder, state


def write_tensors(folder, state, form):
    file = "model.safetensors" if form == "safetensors" else "pytorch_model.bin"
    names = sorted(state)
    parts = [names[:9], names[9:]] if form == "sharded" else [names]
    write = save_file if form == "safetensors" else torch.save
    index = {}
    for number, part in enumerate(parts):
        own = f"pytorch_model-{number}.bin" if form == "sharded" else file
        write({n: state[n].contiguous() for n in part}, folder / own)
        index |= dict.fromkeys(part, own)
    if form == "sharded":
        (folder / f"{file}.index.json").write_text(json.dumps(dict(weight_map=index)))


@pytest.mark.parametrize("name", ["llava", "llava_llama"])
@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded"])
def test_a_llava_in_its_authors_format_answers_with_its_own_weights(
    name, form, tmp_path, monkeypatch
):
    import transformers as hf

    folder, state = authors_folder(tmp_path, form=form, name=name)
    failing = lambda *a, **o: pytest.fail("transformers builds its default LLaVA")  # noqa: E731
    monkeypatch.setattr(hf.AutoModelForImageTextToText, "from_pretrained", failing)
    model, tokenizer = load_chat(str(folder), "mean", dtype=torch.float32)
    found = model.model.language_model.state_dict()
    words = {n.removeprefix("model."): w for n, w in state.items() if n.startswith("model.layers")}
    words = {n: w for n, w in words.items() if "inv_freq" not in n}
    assert words and all(torch.equal(found[n], w) for n, w in words.items())
    projector = model.model.multi_modal_projector
    assert torch.equal(projector.linear_1.weight, state["model.mm_projector.0.weight"])
    assert isinstance(VideoChat(model, tokenizer, video(), PLAIN, max_tokens=3).ask("What?"), str)
    assert load_chat(str(folder), "mean", dtype=torch.float16)[0].lm_head.weight.dtype == torch.half


def test_what_a_file_in_the_authors_format_may_lack(tmp_path):
    folder, state = authors_folder(tmp_path)
    loading = lambda: load_chat(str(folder), "mean")  # noqa: E731
    config = json.loads((folder / "config.json").read_text())
    told = lambda **new: (folder / "config.json").write_text(json.dumps(config | new))  # noqa: E731
    write_tensors(
        folder, {n: w for n, w in state.items() if "layers.1.mlp" not in n}, "safetensors"
    )
    refused(loading, "it lacks model.layers.1.mlp.down_proj.weight")
    write_tensors(folder, {n: w for n, w in state.items() if "vision" not in n}, "safetensors")
    told(mm_vision_tower="openai/clip-other")
    refused(loading, "openai/clip-other", "hf download")
    told(unfreeze_mm_vision_tower=True)
    refused(loading, "image tower was tuned")
    told(mm_vision_tower=None)
    refused(loading, "mm_vision_tower")
    told(mm_projector_type="resampler")
    refused(loading, "resampler")
    told(model_type="llava_mpt")
    refused(loading, "llava_mpt", "no Llama")
    told()
    (folder / "model.safetensors").unlink()
    refused(loading, "holds no weights")
    write_tensors(folder, state, "sharded")
    (folder / "pytorch_model-1.bin").unlink()
    refused(loading, "There is no file", "pytorch_model-1.bin")


def test_files_that_only_look_like_a_llava_are_told_apart():
    clip = chat.clip_of_host(tiny_host("llava"))
    state, _ = old_llava(2)
    tried = lambda state, **config: lambda: chat.convert_llava(state, config, clip, 0)  # noqa: E731
    tiles = state | {"model.image_newline": torch.ones(32)}
    refused(tried(tiles), "v1.6")
    refused(tried(state, image_aspect_ratio="anyres_max_9"), "v1.6")
    delta = {n: 1e-2 * w for n, w in state.items()}
    refused(tried(delta), "This is a delta", "apply_delta")
    other = dict(state)
    name = next(n for n in state if n.endswith("layers.0.mlp.fc1.weight") and "vision" in n)
    other[name] = other[name] + 1e-3
    refused(tried(other), "image tower of their own", "layers.0.mlp.fc1.weight")
    refused(tried(state | {f"{name}s": torch.ones(1)}), "has no use for")
    more = state | {"model.mm_projector.4.weight": torch.ones(2)}
    refused(tried(more), "has no use for 4.weight")


def test_a_tower_in_the_files_is_enough(monkeypatch):
    """As in LLaVA-1.5; of OpenAI's widths, so that the heads are known."""
    state, _ = old_llava(2)
    monkeypatch.setitem(authors.released.loading.HEAD_WIDTHS, 24, 8)
    monkeypatch.setattr(authors, "tower_folder", lambda *a: None)
    clip = authors.clip_beside(None, "openai/x", state)
    assert same_clip(tower(tiny_host("llava")), clip) is None
    less = {n: w for n, w in state.items() if "layers.2.mlp.fc1.weight" not in n}
    refused(lambda: authors.clip_beside(None, "openai/x", less), "layers.2.mlp.fc1.weight")


def test_a_tower_may_lie_in_the_folder_of_a_whole_clip(tmp_path):
    import transformers as hf

    text = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    parts = hf.CLIPConfig(vision_config=VISION, text_config=text | dict(vocab_size=20))
    whole = hf.CLIPModel(parts)
    whole.save_pretrained(tmp_path / "clip")
    clip = authors.clip_beside(tmp_path, "openai/clip", {})
    assert same_clip(whole.vision_model, clip) is None


def test_a_hub_name_in_the_authors_format_is_told_what_to_do():
    config = dict(model_type="llava", mm_vision_tower="openai/x")
    refused(lambda: authors.authors_llava(authors.Path("owner/none"), config), "hf download")


# --- MiniGPT-4 ---


def projection(words, width):
    layer = torch.nn.Linear(width, words)
    return {"model": {f"llama_proj.{n}": w for n, w in layer.state_dict().items()}}


def test_minigpt4_with_llama_2_is_refused_before_it_is_built(monkeypatch):
    import transformers as hf

    parts = qformer(), tiny_llama()
    built = lambda *a: pytest.fail("it is built")  # noqa: E731
    monkeypatch.setattr(hf, "Blip2ForConditionalGeneration", built)
    refused(lambda: chat.minigpt4(*parts, projection(32, 4 * 24)), "Llama 2", "no Q-Former")
    refused(lambda: chat.minigpt4(*parts, projection(48, 24)), "llama_proj leads from 24 to 48")
    refused(lambda: chat.minigpt4(*parts, projection(32, 20)), "this Q-Former gives 24")


def test_minigpt4_is_asked_in_its_own_words():
    model = tiny_host("minigpt4")
    plug(model, "mean")
    model.config.text_config.max_position_embeddings = 900
    assert VideoChat(model, byte_tokenizer(), video()).prompt.template is chat.TEMPLATES["minigpt4"]


# --- InstructBLIP ---


def test_instructblip_finds_its_own_tokenizer(tmp_path):
    from typer.testing import CliRunner

    from bt_adapter.cli import chat as command
    from bt_adapter.video import write_clip

    saved(tiny_host("instructblip"), tmp_path / "host")
    write_clip(tmp_path / "clip.mp4", video(8)[:, :16])
    given = [str(tmp_path / "clip.mp4"), "--model", str(tmp_path / "host"), "--video", "mean"]
    asked = [*given, "--ask", "What?", "--max-tokens", "3"]
    run = CliRunner().invoke(command.app, asked)
    assert "qformer_tokenizer" in str(run.exception)
    byte_tokenizer().save_pretrained(tmp_path / "host/qformer_tokenizer")
    run = CliRunner().invoke(command.app, asked)
    assert run.exit_code == 0, run.exception
    model, tokenizer = load_chat(str(tmp_path / "host"), "mean")
    own = VideoChat(model, tokenizer, video(), max_tokens=4)
    told = VideoChat(model, tokenizer, video(), max_tokens=4, qformer_tokenizer=byte_tokenizer())
    assert torch.equal(own.prompt.video("What?"), told.prompt.video("What?"))


# --- packed, offloaded, half ---


def pack(layer, bits):
    """As bitsandbytes keeps the weight of a linear layer."""
    n = layer.weight.numel()
    shape, kind = ((n // 2, 1), torch.uint8) if bits == 4 else (layer.weight.shape, torch.int8)
    layer.weight = torch.nn.Parameter(torch.zeros(shape, dtype=kind), requires_grad=False)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("host", ["llava", "blip-2"])
def test_a_quantized_tower_is_not_called_another_clip(host, bits):
    model = tiny_host(host)
    adapter = adapter_for(model)
    pack(tower(model).encoder.layers[0].mlp.fc1, bits)
    path = chat.tower_path(model)
    for call in (lambda: plug(model, adapter), lambda: chat.clip_of_host(model)):
        said = refused(call, "quantized", "llm_int8_skip_modules", f"'{path}'")
        assert "another CLIP" not in said
    plug(model, "mean")  # a pooling compares nothing


def test_a_quantized_language_model_beside_a_plain_tower_is_plugged():
    model = tiny_host("llava")
    adapter = adapter_for(model)
    pack(model.model.language_model.layers[0].mlp.up_proj, 4)
    plug(model, adapter)


def test_a_quantized_projector_cannot_be_tuned(tmp_path):
    model = tiny_host("llava")
    adapter_for(model).save_pretrained(tmp_path / "adapter")
    weights = {n: w.clone() for n, w in model.state_dict().items() if "projector" in n}
    save_file(weights, tmp_path / "tuned.safetensors")
    pack(model.model.multi_modal_projector.linear_1, 4)
    refused(lambda: chat.tuned_adapter(model, tmp_path), "projector of this model is quantized")


@pytest.mark.parametrize("video", ["mean", None])
@pytest.mark.parametrize("part", ["model.vision_tower", "model.language_model.layers.1"])
def test_an_offloaded_part_is_told(part, video):
    model = tiny_host("llava")
    video = video or adapter_for(model)
    model.get_submodule(part).to("meta")
    refused(lambda: plug(model, video), "not in memory", "device_map", part)
    assert not isinstance(tower(model), chat.VideoTower)


def test_the_grid_is_made_in_half_precision_on_a_processor():
    model = tiny_host("llava").half()
    plug(model, "grid")
    assert tower(model).encode(clips().half()).dtype == torch.half
    frames = clips(5)
    torch.testing.assert_close(
        chat.image_grid(frames.half()).float(), chat.image_grid(frames), atol=1e-2, rtol=1e-2
    )


# --- the same CLIP, rounded ---


@pytest.mark.parametrize("host", ["llava", "blip-2"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_host_whose_numbers_were_rounded_holds_the_same_clip(host, kind):
    """Rounded to fp16 or bf16, and kept in fp32 or in bf16."""
    for kept in (torch.float32, torch.bfloat16):
        model = tiny_host(host)
        adapter = adapter_for(model)
        model = model.to(kind).to(kept)
        found = same_clip(tower(model), adapter.clip)
        if found is None:
            assert kept == kind
            plug(model, adapter)
            continue
        assert found.rounding and 0 < found.most < 2**-6
        with pytest.warns(UserWarning, match=rf"rounded.*{found.most:.1e}"):
            plug(model, adapter)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_a_tower_that_was_trained_further_is_another_clip(kind):
    """One step of Adam of 2e-5 moves every weight by as much; near zero, that is a great deal."""
    model = tiny_host("llava")
    adapter = adapter_for(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in tower(model).parameters():
            signs = torch.randint(2, weight.shape, generator=generator) * 2 - 1
            weight += 2e-5 * signs
    refused(lambda: plug(model.to(kind), adapter), "another CLIP", "more than rounding explains")


def test_the_allowance_follows_from_the_numbers_not_from_how_they_are_kept():
    generator = torch.Generator().manual_seed(0)
    true = dict(a=0.02 * torch.randn(4000, generator=generator), b=torch.ones(5))
    assert rounded_to([*true.values()]) == torch.float32
    half = {n: w.half() for n, w in true.items()}
    assert difference(true, half) is None and difference(half, true) is None
    stored = {n: w.float() for n, w in half.items()}
    assert rounded_to([*stored.values()]) == torch.float16
    for one, other in ((true, stored), (stored, true)):
        found = difference(one, other)
        gaps = (true["a"] - stored["a"]).abs()
        assert found == ("a", gaps.max().item(), True)
    both = {n: w.bfloat16() for n, w in half.items()}  # rounded twice
    assert difference(true, both).rounding
    apart = {n: w.clone() for n, w in stored.items()}
    apart["a"][7] += 2.0**-9 * apart["a"][7].abs() + 2.0**-24
    assert difference(true, apart) == (
        "a",
        pytest.approx((true["a"] - apart["a"]).abs().max()),
        False,
    )
    apart["a"][7] = float("nan")
    assert not difference(true, apart).rounding
    small = {"a": torch.tensor([1e-9, 3.0, 1 / 3])}  # below what fp16 knows
    assert difference(small, {"a": small["a"].half().float()}).rounding


def test_a_checkpoint_is_compared_with_its_clip_by_the_same_rule():
    from test_released import weights

    from bt_adapter.released import load_released

    state = {n: t for n, t in weights("official").items() if not n.startswith("text_backbone")}
    clip = load_released(weights("official"), heads=4).clip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_released({n: t.half().float() for n, t in state.items()}, clip=clip)
        load_released({n: t.half().bfloat16() for n, t in state.items()}, clip=clip)
    moved = {n: t + 5e-4 if "backbone.layers" in n else t for n, t in state.items()}
    assert moved.keys() == state.keys() and any("backbone.layers" in n for n in state)
    refused(lambda: load_released(moved, clip=clip), "is not that of")


def test_a_tower_gives_the_clip_that_it_is():
    model = tiny_host("llava")
    assert same_clip(tower(model), clip_of_tower(tower(model))) is None
    assert convert.own_tower({"model.layers.0.mlp.up_proj.weight": torch.ones(1)}) == {}
