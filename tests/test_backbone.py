"""Frozen CLIPs of every kind: open_clip's own, timm's, those in Hugging Face's names, bad ones."""

import copy
import logging
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from tiny import TEXT, VISION, Tower, shake, tiny_clip, tiny_eva

from bt_adapter import backbone, frozen_tower, hub
from bt_adapter.backbone import FrozenCLIP, load_clip
from bt_adapter.frozen_tower import frames_at_once
from bt_adapter.released import load_released
from bt_adapter.shipped import samples_folder

GOLDEN = Path(__file__).parent / "golden"
CLOSE = dict(atol=1e-6, rtol=1e-6)


def random_frames(clip, batch=2, frames=3):
    return torch.randn(batch, frames, 3, *clip.image_size)


def last_state_is_encode_image(clip, frames):
    states = clip.layer_outputs(frames, 2)
    ours = clip.project(clip.norm(states[-1][:, :, 0]))
    theirs = clip.model.encode_image(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    torch.testing.assert_close(ours, theirs, **CLOSE)
    return states


# --- states are the model's own ---


@pytest.mark.parametrize("layers", [2, 5])
@pytest.mark.parametrize("make", [tiny_clip, tiny_eva])
def test_the_last_state_through_norm_and_projection_is_encode_image(make, layers):
    clip = make(**{"layers" if make is tiny_clip else "depth": layers})
    states = last_state_is_encode_image(clip, random_frames(clip))
    assert [s.shape for s in states] == [(2, 3, 1 + 4, 24)] * 2
    assert (clip.width, clip.joint_width, clip.grid) == (24, 20, (2, 2))


@pytest.mark.parametrize("make", [tiny_clip, tiny_eva])
def test_each_state_is_what_the_next_layer_reads(make):
    clip = make()
    states = clip.layer_outputs(random_frames(clip), 5)
    for block, before, after in zip(clip.blocks[1:], states, states[1:]):
        computed = block(before.flatten(0, 1)).unflatten(0, (2, 3))
        torch.testing.assert_close(computed, after, atol=1e-5, rtol=1e-5)


def test_a_frame_is_an_image_by_itself():
    clip = tiny_clip()
    frames = random_frames(clip)
    together = clip.layer_outputs(frames, 1)[0]
    for b in range(2):
        for t in range(3):
            alone = clip.layer_outputs(frames[b : b + 1, t : t + 1], 1)[0][0, 0]
            torch.testing.assert_close(together[b, t], alone, atol=1e-5, rtol=1e-5)


def test_hooks_are_gone_afterwards_even_after_an_error():
    clip = tiny_clip()
    clip.layer_outputs(random_frames(clip), 3)
    clip.model.visual.transformer.resblocks[4].forward = None
    with pytest.raises(TypeError):
        clip.layer_outputs(random_frames(clip), 3)
    assert not any(block._forward_hooks for block in clip.blocks)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-quickgelu", "EVA02-B-16"])
def test_named_models(name):
    clip = load_clip(name, pretrained="random")
    frames = random_frames(clip, 1, 2)
    last_state_is_encode_image(clip, frames)
    assert clip.encode_text(["a red circle"]).shape == (1, clip.joint_width)
    torch.testing.assert_close(clip.encode_video(frames).norm(dim=-1), torch.ones(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-L-14-quickgelu", "ViT-L-14-336-quickgelu", "EVA01-g-14"])
def test_large_named_models(name, few_numbers):
    """In full size, once: up to a billion parameters."""
    clip = load_clip(name, pretrained="random")
    states = last_state_is_encode_image(clip, random_frames(clip, 1, 1))
    assert states[0].shape[3] == clip.width and len(clip.blocks) in (24, 40)


@pytest.mark.parametrize("name", ["ViT-L-14", "ViT-L-14-336", "EVA01-g-14", "EVA02-L-14"])
def test_the_names_of_the_paper_are_known(name):
    import open_clip

    assert name in open_clip.list_models() and open_clip.list_pretrained_tags_by_model(name)


# --- towers: those that read their CLS token, and others ---


def open_clip_tower(**vision):
    """A CLIP of open_clip with settings of its image tower."""
    return tiny_clip(**vision)


def timm_tower(kind="VisionTransformer", **settings):
    """A small timm trunk as open_clip holds it."""
    import timm

    torch.manual_seed(0)
    sizes = dict(img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=20)
    trunk = getattr(timm.models, kind)(**(sizes | settings))
    shake(trunk)
    return of_tower(Tower(trunk, 16))


def of_tower(tower):
    model = torch.nn.Module()
    model.visual, model.encode_image = tower, tower.forward
    return FrozenCLIP(model, None, "tiny")


def coca(**vision):
    import open_clip

    torch.manual_seed(0)
    words = dict(context_length=8, vocab_size=50, width=16, heads=2, layers=2)
    model = open_clip.CoCa(20, words, TEXT, VISION | dict(output_tokens=True) | vision)
    shake(model)
    return FrozenCLIP(model, None, "tiny")


ACCEPTED = {
    "as OpenAI's": lambda: open_clip_tower(quick_gelu=True),
    "norm after pooling": lambda: open_clip_tower(final_ln_after_pool=True),
    "no norm before": lambda: open_clip_tower(no_ln_pre=True),
    "fixed positions": lambda: open_clip_tower(pos_embed_type="sin_cos_2d"),
    "layer scale": lambda: open_clip_tower(ls_init_value=0.1),
    "patch dropout": lambda: open_clip_tower(patch_dropout=0.5),
    "CoCa without a pooler": coca,
    "EVA-01": tiny_eva,
    "EVA-02": lambda: tiny_eva(use_rot_pos_emb=True, swiglu_mlp=True),
    "EVA, norm after pooling": lambda: tiny_eva(use_fc_norm=True),
    "timm's ViT": lambda: timm_tower(global_pool="token"),
}
REFUSED = {
    "CLIPA": lambda: open_clip_tower(pool_type="avg", final_ln_after_pool=True),
    "average": lambda: open_clip_tower(pool_type="avg"),
    "CoCa": lambda: coca(attentional_pool=True, attn_pooler_heads=4),
    "CoCa, parallel": lambda: coca(attentional_pool="parallel", attn_pooler_heads=4),
    "attention": lambda: open_clip_tower(attentional_pool=True, attn_pooler_heads=4),
    "PE-Core": lambda: tiny_eva(global_pool="map"),
    "EVA, average": lambda: tiny_eva(global_pool="avg"),
    "SigLIP": lambda: timm_tower(global_pool="map", class_token=False),
    "average in timm": lambda: timm_tower(global_pool="avg"),
    "registers": lambda: timm_tower(global_pool="token", reg_tokens=2),
    "CLS without a position": lambda: timm_tower(global_pool="token", no_embed_class=True),
    "no positions": lambda: tiny_eva(use_abs_pos_emb=False, use_rot_pos_emb=True),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_encode_video_is_the_mean_of_encode_image(kind):
    clip = ACCEPTED[kind]()
    frames = random_frames(clip, 2, 3)
    with torch.no_grad():
        images = clip.model.encode_image(frames.flatten(0, 1))
    images = torch.nn.functional.normalize(images, dim=-1).unflatten(0, (2, 3))
    expected = torch.nn.functional.normalize(images.mean(1), dim=-1)
    torch.testing.assert_close(clip.encode_video(frames), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", REFUSED)
def test_towers_that_do_not_read_their_cls_token_are_refused(kind):
    with pytest.raises(ValueError, match="reads an image off its CLS token") as caught:
        REFUSED[kind]()
    assert "\n" not in str(caught.value) and "tiny" in str(caught.value)


@pytest.mark.parametrize("name", ["RN50", "convnext_base"])
def test_named_towers_of_another_kind_are_refused(name):
    with pytest.raises(ValueError, match=f"that of {name} does not"):
        load_clip(name, pretrained="random")


# --- a module like others ---


def test_calling_it_is_encode_video_and_hooks_hear_it():
    clip, heard = tiny_clip(), []
    assert not clip.training and not any(module.training for module in clip.modules())
    frames = random_frames(clip)
    clip.register_forward_hook(lambda _m, given, out: heard.append(out))
    assert torch.equal(clip(frames), clip.encode_video(frames))
    assert torch.equal(heard[0], clip.encode_video(frames))
    assert torch.equal(torch.compile(clip, backend="eager")(frames), heard[0])


def test_its_methods_are_in_its_source():
    import inspect

    shown = inspect.getsource(FrozenCLIP)
    for name in ("forward", "layer_outputs", "encode_text", "encode_video"):
        assert f"def {name}(" in shown
    assert "def transform(" in inspect.getsource(FrozenCLIP.__mro__[1])  # FrozenTower
    left = [name for name in backbone.__all__ if getattr(backbone, name) is None]
    assert not left and not hasattr(backbone, "encode_video")


def test_a_fingerprint_is_taken_only_when_it_is_asked_for(monkeypatch):
    taken, take = [], frozen_tower.fingerprint
    monkeypatch.setattr(frozen_tower, "fingerprint", lambda v: taken.append(1) or take(v))
    clip = load_clip("moving-shapes")
    clip.to("cpu")
    assert not taken
    assert clip.fingerprint == clip.fingerprint and len(taken) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_fingerprint_is_that_of_the_weights_as_they_were_loaded(dtype):
    wanted = tiny_clip().fingerprint
    assert tiny_clip().to(dtype).fingerprint == wanted
    assert torch.nn.Sequential(tiny_clip()).to(dtype)[0].fingerprint == wanted
    assert copy.deepcopy(tiny_clip()).to(dtype).float().fingerprint == wanted
    assert pickle.loads(pickle.dumps(tiny_clip().to(dtype))).fingerprint == wanted


# --- chunks on CPUs ---


def test_chunks_are_as_large_as_they_may_be():
    wide = 257 * 4096  # ViT-L/14
    assert frames_at_once(7, wide, torch.float32) == 7
    assert frames_at_once(8, wide, torch.float32) == 4
    assert frames_at_once(8, wide, torch.bfloat16) == 8
    assert frames_at_once(192, 65 * 384, torch.float32) == 192  # the shipped CLIP
    assert frames_at_once(400, 65 * 384, torch.float32) == 16
    assert frames_at_once(3, 2**24, torch.float32) == 1


@pytest.mark.parametrize("make", [tiny_clip, tiny_eva])
@pytest.mark.parametrize("mapped", [1, 6_000, 20_000])
def test_chunks_change_nothing(make, mapped, monkeypatch):
    from bt_adapter.in_place import entry_of
    from bt_adapter.released.differences import input_of

    clip = make().double()  # in which rounding is far below what is asked
    frames = random_frames(clip, 3, 5)

    def all_of():
        entry = input_of(clip, frames, clip.blocks[3]), entry_of(clip, frames, 2)
        return [*clip.layer_outputs(frames, 3), *entry, clip.encode_video(frames)]

    whole, runs = all_of(), []
    monkeypatch.setattr(frozen_tower, "MAPPED", mapped)
    clip.model.visual.register_forward_pre_hook(lambda _m, args: runs.append(len(args[0])))
    for ours, wanted in zip(all_of(), whole, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=1e-6)
    assert max(runs) < 15 and sum(runs) == 4 * 15


# --- what is told ---


def told(record):
    return [str(warning.message) for warning in record]


def test_random_weights_are_told_once_and_asked_for_in_silence(caplog):
    with pytest.warns(UserWarning, match="ViT-S-32-alt has random weights") as record:
        clip = load_clip("ViT-S-32-alt")
    assert len(told(record)) == 1 and "\n" not in told(record)[0] and not caplog.records
    assert clip.pretrained == "random"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_clip("ViT-S-32-alt", "random").pretrained == "random"
        assert load_clip("moving-shapes").pretrained is None


def test_others_are_heard_while_open_clip_loads(monkeypatch, caplog):
    import open_clip

    make, root = open_clip.create_model, logging.getLogger()

    def with_noise(*args, **more):
        root.warning("somebody else")
        return make(*args, **more)

    monkeypatch.setattr(open_clip, "create_model", with_noise)
    before = root.level, list(root.filters)
    load_clip("ViT-S-32-alt", "random")
    assert [record.message for record in caplog.records] == ["somebody else"]
    assert before == (root.level, list(root.filters))


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mine.pt"
    torch.save(load_clip("ViT-S-32-alt", "random").model.state_dict(), path)
    return path


@pytest.mark.parametrize("activation", ["gelu", "quickgelu"])
def test_a_file_runs_with_the_activation_that_is_asked_for(weights_file, activation):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = load_clip("ViT-S-32-alt", weights_file, activation=activation)
    assert clip.activation == clip.card["activation"] == activation
    kinds = {type(block.mlp.gelu).__name__.lower() for block in clip.blocks}
    assert kinds == {activation} and clip.card["pretrained"] == str(weights_file)


def test_a_file_whose_activation_nobody_chose_is_told(weights_file):
    with pytest.warns(UserWarning, match="runs with GELU.*activation='quickgelu'") as record:
        clip = load_clip("ViT-S-32-alt", weights_file)
    assert len(told(record)) == 1 and clip.activation == "gelu"


def test_an_activation_that_a_clip_cannot_have_is_refused():
    with pytest.raises(ValueError, match="activation must be one of gelu, quickgelu, not 'relu'"):
        load_clip("ViT-B-32", "random", activation="relu")
    own = load_clip("moving-shapes").activation
    other = {"gelu": "quickgelu", "quickgelu": "gelu"}[own]
    assert load_clip("moving-shapes", activation=own).activation == own
    with pytest.raises(ValueError, match=f"moving-shapes runs with {own}, not {other}"):
        load_clip("moving-shapes", activation=other)
    assert tiny_eva().activation is None


def test_weights_beside_a_name_that_has_its_own_are_refused():
    with pytest.raises(ValueError, match="moving-shapes has weights of its own"):
        load_clip("moving-shapes", "random")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_told_with_file_and_tensor(tmp_path, weights_file, value):
    state = torch.load(weights_file)
    state["visual.ln_pre.weight"][3] = value
    torch.save(state, tmp_path / "bad.pt")
    sentence = r"bad\.pt holds NaN or infinity, first in visual\.ln_pre\.weight"
    with pytest.raises(ValueError, match=sentence):
        load_clip("ViT-S-32-alt", tmp_path / "bad.pt", activation="gelu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", ["__call__", "encode_video", "layer_outputs"])
def test_pixels_that_are_no_numbers_are_told(method, value):
    clip = tiny_clip()
    frames = random_frames(clip)
    frames[1, 2, 0, 3, 4] = value
    with pytest.raises(ValueError, match="frames hold NaN or infinity"):
        getattr(clip, method)(frames, *[1] * (method == "layer_outputs"))


def test_large_numbers_are_numbers_up_to_what_a_pixel_can_be():
    clip = tiny_clip()
    with pytest.raises(ValueError, match=r"numbers from 3e\+38 to 3e\+38: no pixel"):
        clip.layer_outputs(torch.full((1, 1, 3, 16, 16), 3e38), 1)
    clip.layer_outputs(torch.full((1, 1, 3, 16, 16), 1e9), 1)
    clip.half().layer_outputs(torch.full((1, 1, 3, 16, 16), 6e4, dtype=torch.float16), 1)


def test_pixels_as_read_are_no_frames():
    with pytest.raises(ValueError, match=r"not pixels in torch\.uint8"):
        tiny_clip().encode_video(torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8))


# --- Hugging Face's names ---


def hugging_face_model():
    """transformers' CLIPModel with the recorded weights."""
    import transformers

    sizes = dict(hidden_size=64, num_attention_heads=4, intermediate_size=256)
    vision = dict(num_hidden_layers=6, image_size=32, patch_size=8, **sizes)
    text = dict(num_hidden_layers=4, vocab_size=1000, eos_token_id=999, **sizes)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
    model, state = transformers.CLIPModel(config).eval(), {}
    for name, tensor in load_file(GOLDEN / "official.safetensors").items():
        name = name.replace("text_backbone.", "")
        if name.startswith("backbone.") and not ("btadapter" in name or "balance" in name):
            name = name.removeprefix("backbone.")
            inner = name.replace("layers.", "encoder.layers.", 1)
            if name.startswith(("class_emb", "patch_emb", "position_emb")):
                inner = f"embeddings.{name}"
            name = name if name.startswith("visual_projection") else f"vision_model.{inner}"
        if not name.startswith(("backbone", "extra_proj")):
            state[name] = tensor
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert {*missing} <= {"logit_scale"} and not unexpected
    return model


@torch.no_grad()
def test_states_are_those_of_transformers():
    theirs, clip = (
        hugging_face_model(),
        load_released(GOLDEN / "official.safetensors", heads=4).clip,
    )
    frames = random_frames(clip)
    expected = theirs.vision_model(pixel_values=frames.flatten(0, 1), output_hidden_states=True)
    states = clip.layer_outputs(frames, 6)
    for ours, hidden in zip(states, expected.hidden_states[1:], strict=True):
        torch.testing.assert_close(ours.flatten(0, 1), hidden, atol=1e-5, rtol=1e-5)
    features = theirs.visual_projection(expected.pooler_output)
    ours = clip.project(clip.norm(states[-1][:, :, 0])).flatten(0, 1)
    torch.testing.assert_close(ours, features, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_text_features_are_those_of_transformers():
    theirs, clip = (
        hugging_face_model(),
        load_released(GOLDEN / "official.safetensors", heads=4).clip,
    )
    ids = torch.randint(1, 998, (3, 77))
    ids[torch.arange(3), torch.tensor([5, 20, 76])] = 999  # the end token
    pooled = theirs.text_model(input_ids=ids).pooler_output
    expected = theirs.text_projection(pooled)
    torch.testing.assert_close(clip.model.encode_text(ids), expected, atol=1e-5, rtol=1e-5)


# --- precision, device, freezing ---


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_points_the_same_way(precision):
    expected = tiny_clip()
    frames = random_frames(expected)
    wanted = expected.encode_video(frames)
    dtype = dict(bf16=torch.bfloat16, fp16=torch.float16)[precision]
    lower = tiny_clip().to(dtype=dtype)
    found = lower.encode_video(frames)
    assert lower.dtype == dtype and found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(found)), atol=1e-6, rtol=0)
    assert (found * wanted).sum(-1).min() > 0.99
    assert lower.fingerprint == expected.fingerprint


def test_it_stays_frozen_and_in_evaluation_mode():
    clip = tiny_clip()
    holder = torch.nn.Sequential(clip).train()
    assert holder.training and not any(module.training for module in clip.modules())
    assert not any(p.requires_grad for p in clip.parameters())
    frames = random_frames(clip).requires_grad_()
    assert not clip.layer_outputs(frames, 1)[0].requires_grad


def test_fingerprints_tell_clips_of_one_size_apart():
    prints = {tiny_clip(seed=seed).fingerprint for seed in range(3)}
    assert len(prints) == 3 and tiny_clip().fingerprint in prints


def test_every_weight_of_the_image_tower_is_in_its_fingerprint():
    clip = tiny_clip()
    names = [name for name, _ in clip.model.visual.named_parameters()]
    assert len(names) > 20
    for name in names:
        changed = tiny_clip()
        changed.model.visual.get_parameter(name).data.view(-1)[-1] += 1e-3
        assert FrozenCLIP(changed.model, None, "x").fingerprint != clip.fingerprint, name


# --- frames and words ---


@pytest.mark.parametrize(("height", "width"), [(16, 16), (90, 40), (17, 300), (8, 8), (33, 16)])
def test_transform_crops_the_centre_of_any_size(height, width):
    clip = tiny_clip()
    clip.preprocess |= dict(mean=[0.5] * 3, std=[0.25] * 3)
    video = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8)
    frames = clip.transform(video)
    assert frames.shape == (2, 3, 16, 16) and frames.dtype == torch.float32
    assert frames.abs().max() <= 2.0
    mirrored = clip.transform(video.flip(2))
    torch.testing.assert_close(mirrored, frames.flip(3), atol=0.04, rtol=0)  # one grey level: .016


def test_transform_is_open_clips_own():
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    clip = load_named_small()
    video = torch.randint(0, 256, (1, 40, 60, 3), dtype=torch.uint8)
    smooth = torch.nn.functional.interpolate(
        video.permute(0, 3, 1, 2).float(), size=(300, 400), mode="bicubic"
    )
    video = smooth.clamp(0, 255).byte().permute(0, 2, 3, 1)
    theirs = image_transform_v2(
        PreprocessCfg(**{**clip.preprocess, "size": clip.image_size}), is_train=False
    )(Image.fromarray(video[0].numpy()))
    assert (clip.transform(video)[0] - theirs).abs().mean() < 0.02


def load_named_small():
    """open_clip's sizes and normalisation around few weights."""
    import open_clip

    clip = tiny_clip(image_size=64, patch_size=16)
    clip.preprocess |= dict(
        mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD, mode="RGB"
    )
    clip.preprocess |= dict(interpolation="bicubic", resize_mode="shortest")
    return clip


def test_a_long_caption_keeps_its_end_token():
    import open_clip

    tokenizer = open_clip.SimpleTokenizer(context_length=8)
    ids = tokenizer(["word " * 50, "word"])
    assert (ids[0] == tokenizer.eot_token_id).sum() == 1 and ids[0, -1] == tokenizer.eot_token_id


# --- refusals ---


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("ViT-L14", {}, r"No CLIP is called 'ViT-L14' and no such folder exists: try .*ViT-L-14"),
        ("nothing like it", {}, r"try open_clip\.list_models\(\)"),
        ("ViT-B-32", dict(pretrained="mine.pt"), "neither a file nor weights of ViT-B-32"),
        ("ViT-B-32", dict(precision="int8"), "precision must be one of fp32, bf16, fp16"),
    ],
)
def test_unknown_names_and_settings_are_one_sentence(name, settings, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        load_clip(name, **settings)
    assert "\n" not in str(caught.value)


def small_folder(tmp_path):
    """The shipped small CLIP, copied so that it can be spoilt."""
    shutil.copytree(samples_folder() / "clip", tmp_path / "clip")
    return tmp_path / "clip"


@pytest.mark.parametrize(
    ("name", "weights", "quick"),
    [
        ("ViT-L-14", "openai", True),
        ("ViT-L-14", "laion2b_s32b_b82k", False),
        ("ViT-L-14", None, False),
    ],
)
def test_weights_decide_the_activation(name, weights, quick, monkeypatch):
    import open_clip

    asked = {}
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **more: asked.update(more) or 1 / 0)
    with pytest.raises(ValueError, match="cannot be had"):
        load_clip(name, weights)
    assert bool(asked["force_quick_gelu"]) == quick


def test_weights_that_cannot_be_fetched_are_one_sentence(monkeypatch):
    import open_clip

    offline = []

    def fail(*_, **__):
        offline.append(huggingface_hub.is_offline_mode())
        raise RuntimeError("the disk is full\nand a long story")

    monkeypatch.setattr(open_clip, "create_model", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for found, reason in ((True, "the disk is full$"), (False, hub.OUT_OF_REACH)):
        monkeypatch.setattr(hub, "has_address", lambda host, found=found: found)
        with pytest.raises(
            ValueError, match=f"ViT-B-32 with weights 'openai' cannot be had: {reason}"
        ):
            load_clip("ViT-B-32", "openai")
    assert offline == [False, True] and not huggingface_hub.is_offline_mode()


def test_without_network_the_hub_is_not_asked_and_nothing_else_is_told(monkeypatch, caplog):
    monkeypatch.setattr(hub, "has_address", lambda host: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/nowhere")
    with pytest.raises(ValueError, match=hub.OUT_OF_REACH) as caught:
        load_clip("ViT-B-32-quickgelu", "openai")
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert not [record.name for record in caplog.records if record.levelname != "INFO"]


def test_a_folder_without_a_clip_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"open_clip_config\.json and open_clip_model"):
        load_clip(tmp_path)


@pytest.mark.parametrize("name", ["open_clip_config.json", "open_clip_model.safetensors"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_damaged_folder_is_one_sentence(tmp_path, name, share):
    path = small_folder(tmp_path) / name
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="is damaged and cannot be read") as caught:
        load_clip(tmp_path / "clip")
    assert "\n" not in str(caught.value)


def test_a_folder_loads_as_the_shipped_clip_does(tmp_path):
    shipped, copied = load_clip("moving-shapes"), load_clip(str(small_folder(tmp_path)))
    assert shipped.fingerprint == copied.fingerprint
    texts = ["a red circle moves left"]
    assert torch.equal(shipped.encode_text(texts), copied.encode_text(texts))


@pytest.mark.parametrize(
    "texts",
    ["one string", [], [""], ["good", "  "], None, 5, [3], ["good", None], b"bytes", [["a"]]],
    ids=repr,
)
def test_captions_must_be_a_list_of_words(texts):
    with pytest.raises(ValueError, match="a list of at least one caption, none of them empty"):
        tiny_clip().encode_text(texts)


@pytest.mark.parametrize(
    "shape", [(3, 16, 16), (2, 3, 16, 16), (1, 2, 3, 15, 16), (1, 2, 1, 16, 16), (0, 2, 3, 16, 16)]
)
def test_frames_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"^frames must be \(b, t, 3, 16, 16\)"):
        tiny_clip().layer_outputs(torch.zeros(shape), 1)


@pytest.mark.parametrize("last", [0, 7, -1])
def test_layers_that_do_not_exist_are_refused(last):
    clip = tiny_clip()
    with pytest.raises(
        ValueError, match=rf"last must lie in 1\.\.6, this CLIP's layers and .* {last}"
    ):
        clip.layer_outputs(random_frames(clip), last)


@pytest.mark.parametrize(
    "video",
    [torch.zeros(2, 8, 8, 3), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)],
    ids=["float", "t c"],
)
def test_a_clip_that_is_none_is_refused(video):
    with pytest.raises(ValueError, match=r"A clip is uint8 \(t, h, w, 3\), not"):
        tiny_clip().transform(video)


def test_importing_takes_neither_open_clip_nor_torchvision():
    heavy = "{'open_clip', 'torchvision'}"
    code = f"import bt_adapter.backbone, sys; print(sorted({heavy} & {{*sys.modules}}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
