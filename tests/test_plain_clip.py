"""The CLIP of a folder without open_clip: the same bits, the same numbers of words."""

import copy
import json
import random
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from tiny import shake

from bt_adapter.backbone import load_clip, record_outputs
from bt_adapter.plain_clip import PlainCLIP, Tokenizer, load_plain_clip, load_tokenizer
from bt_adapter.shipped import samples_folder

CONFIG = dict(
    model_cfg=dict(
        embed_dim=20,
        vision_cfg=dict(image_size=35, patch_size=7, width=24, layers=5, head_width=8),
        text_cfg=dict(context_length=9, vocab_size=50, width=16, heads=2, layers=3),
    ),
    preprocess_cfg=dict(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4]),
)


def write_folder(folder, config=CONFIG, rename=lambda name: name, seed=0):
    """A CLIP of open_clip's with random weights, as a folder; its model."""
    import open_clip

    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = open_clip.CLIP(**config["model_cfg"])
    shake(model, seed)
    weights = {rename(n): w.contiguous() for n, w in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def both(folder):
    import open_clip

    theirs = open_clip.create_model(f"local-dir:{folder}")
    return [model.eval() for model in (load_plain_clip(folder), theirs)]


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module", params=["shipped", "random"])
def models(request, random_folder):
    return both(samples_folder() / "clip" if request.param == "shipped" else random_folder)


def everything(model, images, ids):
    """The states of all layers of both towers and the features, plain and normalized."""
    states, blocks = [], [*model.visual.transformer.resblocks, *model.transformer.resblocks]
    handles = record_outputs(blocks, states)
    try:
        features = [model.encode_image(images), model.encode_text(ids)]
        features += [model.encode_image(images, normalize=True), *model(images, ids)]
    finally:
        for handle in handles:
            handle.remove()
    return states + features


@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp64", "autocast"])
def test_the_bits_are_open_clips(models, kind, grad):
    dtype = dict(bf16=torch.bfloat16, fp64=torch.float64).get(kind, torch.float32)
    context, (words, _) = (m := models[1]).context_length, m.token_embedding.weight.shape
    images = torch.randn(3, 3, *m.visual.image_size, dtype=dtype)
    ids = torch.randint(1, words, (4, context))
    found = []
    for model in models:
        model = copy.deepcopy(model).to(dtype)
        with (
            torch.set_grad_enabled(grad),
            torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"),
        ):
            found.append(everything(model, images, ids))
    assert len(found[0]) == len(found[1]) > 15
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_gradients_are_open_clips(random_folder):
    images, ids, found = torch.randn(2, 3, 35, 35), torch.randint(1, 50, (2, 9)), []
    for model in both(random_folder):
        image, text, scale = model(images, ids)
        (scale * image @ text.T).square().mean().backward()
        found.append([weight.grad for weight in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_the_weights_have_open_clips_names_in_its_order(models):
    names = [[n for n, _ in model.named_parameters()] for model in models]
    keys = [[*model.state_dict()] for model in models]
    assert names[0] == names[1] and keys[0] == keys[1]
    assert isinstance(models[0], PlainCLIP)


def test_reading_draws_no_random_numbers(random_folder):
    before = torch.get_rng_state()
    load_plain_clip(random_folder)
    assert torch.equal(torch.get_rng_state(), before)


OTHERS = {
    "quick gelu": ("model_cfg", "quick_gelu", True),
    "layer scale": ("vision_cfg", "ls_init_value", 0.1),
    "average": ("vision_cfg", "pool_type", "avg"),
    "rectangular": ("vision_cfg", "image_size", [35, 42]),
    "wide MLP": ("vision_cfg", "mlp_ratio", 3.0),
    "no mask": ("text_cfg", "no_causal_mask", True),
    "projection with bias": ("text_cfg", "proj_bias", True),
}


@pytest.mark.parametrize("where, name, value", OTHERS.values(), ids=OTHERS)
def test_every_other_setting_is_open_clips(tmp_path, where, name, value):
    config = copy.deepcopy(CONFIG)
    inside = config if where == "model_cfg" else config["model_cfg"]
    inside[where][name] = value
    assert load_plain_clip(write_folder(tmp_path / "other", config)) is None


def test_other_names_of_weights_are_open_clips(tmp_path):
    folder = write_folder(tmp_path / "module", rename=lambda name: f"module.{name}")
    assert load_plain_clip(folder) is None


def test_without_mean_and_deviation_the_folder_is_open_clips(tmp_path):
    folder = write_folder(tmp_path / "bare", {"model_cfg": CONFIG["model_cfg"]})
    assert load_plain_clip(folder) is None


def noise(rng):
    """Any characters that Unicode has, but for halves of surrogate pairs."""
    ranges = [(32, 127), (0, 0x500), (0x500, 0xD800), (0xE000, 0x110000)]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randint(1, 40)))


WORDS = [
    *("a red circle", "Don't", "we'll", "l\u2019été", "naÃ¯ve", "&amp;lt;b&gt;", "&#233;", "10:30"),
    *("<start_of_text>", "<END_OF_TEXT>", "²½", "日本語", "😀👍🏽", "Straße", "İstanbul", "\x00"),
    *("\ufeff", "\u200b", "\t\n", "...", "", " ", "x" * 99, "ﬁ", "aaa", "www.x-y_z.com/?q=1%20"),
]


@pytest.mark.parametrize("merges", ["shipped", "open_clip"])
def test_the_numbers_of_words_are_open_clips(merges):
    import open_clip

    path = samples_folder() / "clip" / "merges.txt.gz"
    path = path if merges == "shipped" else open_clip.tokenizer.default_bpe()
    ours, theirs = Tokenizer(path, 24), open_clip.SimpleTokenizer(str(path), context_length=24)
    rng = random.Random(0)
    texts = WORDS + [noise(rng) for _ in range(1500)]
    texts += [" ".join(rng.choices(WORDS, k=rng.randint(2, 30))) for _ in range(500)]
    assert torch.equal(ours(texts), theirs(texts))
    assert [ours.encode(text) for text in texts] == [theirs.encode(text) for text in texts]
    for numbers in map(theirs.encode, texts):
        assert ours.decode(numbers) == theirs.decode(numbers)
    assert ours.sot_token_id == theirs.sot_token_id and ours.eot_token_id == theirs.eot_token_id
    for length in (2, 3, 77):
        assert torch.equal(ours(texts[:50], length), theirs(texts[:50], length))
    assert torch.equal(ours("one text"), theirs("one text"))


def test_a_long_caption_keeps_its_end():
    tokenizer = load_tokenizer(samples_folder() / "clip")
    ids = tokenizer(["a red circle moves left " * 20])
    assert (
        ids.shape == (1, 24)
        and ids[0, 0] == tokenizer.sot_token_id
        and ids[0, -1] == tokenizer.eot_token_id
    )


HEAVY = {"open_clip", "torchvision", "timm", "transformers", "torch._dynamo", "sympy", "matplotlib"}
USE = f"""
import sys
from bt_adapter.branch import BTAdapter
from bt_adapter.shipped import samples_folder
from bt_adapter.video import read_clip

model = BTAdapter.from_pretrained("moving-shapes")
clip = model.clip.transform(read_clip(samples_folder() / "clips" / "right.mp4"))[None]
found = model.encode_video(clip).embedding, model.clip.encode_video(clip)
print(found[0].shape == found[1].shape == model.encode_text(["a red circle"]).shape)
print(sorted({HEAVY} & {{*sys.modules}}))
"""


def test_the_shipped_adapter_encodes_without_what_open_clip_imports():
    found = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:2] == ["True", "[]"]


def test_a_folder_of_another_kind_still_loads(tmp_path):
    import open_clip

    config = copy.deepcopy(CONFIG)
    config["model_cfg"]["quick_gelu"] = True
    folder = write_folder(tmp_path / "quick", config)
    shipped = samples_folder() / "clip" / "merges.txt.gz"
    (folder / "merges.txt.gz").write_bytes(shipped.read_bytes())
    clip = load_clip(str(folder))
    assert isinstance(clip.model, open_clip.CLIP)
    assert isinstance(load_clip("moving-shapes").model, PlainCLIP)
    frames = clip.transform(torch.randint(0, 256, (2, 40, 50, 3), dtype=torch.uint8))[None]
    assert clip.encode_video(frames).shape == (1, 20)
