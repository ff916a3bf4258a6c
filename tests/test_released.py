"""The authors' numbers, recorded from their own modules (golden/README.md), and bad checkpoints."""

import itertools
import logging
import math
import re
import warnings
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch
from einops import rearrange
from golden.slices import sample
from safetensors.torch import load_file, save_file
from tiny import shake, tiny_clip

from bt_adapter import released
from bt_adapter.backbone import load_clip
from bt_adapter.branch import BranchConfig, BTAdapter
from bt_adapter.released import (
    LOSS_WEIGHTS,
    as_released,
    chat_groups,
    combined,
    first_difference,
    load_released,
    load_released_chat,
    released_losses,
    released_tensors,
    save_released,
    trace_states,
)

GOLDEN = Path(__file__).parent / "golden"
FORWARD, GRADIENT, KEY_BIAS = 1e-5, 1e-4, 1e-6
THREADS = (1, 2)


@cache
def weights(name):
    return load_file(GOLDEN / f"{name}.safetensors")


@cache
def recording(name):
    """The slices of one recorded file, shared ones included."""
    everything, found = weights("recorded"), {}
    for key, value in everything.items():
        key, _, same = key.partition("=")
        file, _, tensor = key.partition("/")
        if file == name:
            found[tensor] = everything[same] if same else value
    assert found, name
    return found


@pytest.fixture(params=THREADS, ids=lambda n: f"{n} threads")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def error(found, recorded):
    """The largest difference of the recorded values, relative to the tensor's largest."""
    found = sample(found)
    assert found.shape == recorded.shape
    if len(recorded) <= 26:
        return ((found - recorded).abs().max() / recorded.abs().max()).item()
    values, largest, length = recorded[:-2], recorded[-2], recorded[-1]
    worst = (found[:-2] - values).abs().max() / largest
    return worst.maximum((found[-1] - length).abs() / length).item()  # what the values leave out


def told(name, errors):
    """Worst error of a recording, for `pytest -rP -k golden`."""
    worst = max(errors, key=errors.get)
    print(f"{name}: {len(errors)} values, worst {errors[worst]:.1e} ({worst})")
    return errors[worst]


def clips_first(video):
    return rearrange(video, "b c t h w -> b t c h w")


def tokens(cls, patches):
    """The authors' order: CLS, then patch by patch."""
    return torch.cat([cls[:, None], rearrange(patches, "b t l d -> b (l t) d")], 1)


def forward_errors(model, recorded, keep=None):
    """Of every state and of the feature, under the recorded names."""
    found = trace_states(model, clips_first(recorded["video"]), keep)
    depth, branch, errors = len(model.clip.blocks), model.config.layers, {}
    for i in range(depth + 1):
        clip = found["CLIP's first input" if i == 0 else f"CLIP layer {i}"].flatten(0, 1)
        n, key = i - depth + branch, f"encoder_states.{i}"
        errors[key] = error(clip, recorded[key if n < 1 else f"{key}.clip"])
        if n > 0:
            ours = found[f"branch layer {n}, CLS"], found[f"branch layer {n}, patches"]
            errors[f"{key}.branch"] = error(tokens(*ours), recorded[f"{key}.branch"])
    errors["x_cls"] = error(found["the video feature"], recorded["x_cls"])
    return errors


# --- golden: forward pass ---


@pytest.mark.parametrize(
    ("name", "gated"), [("eval_norm", True), ("eval_norm_T12", True), ("eval_nonorm", False)]
)
def test_golden_forward_pass(name, gated, threads):
    model = load_released(weights("official"), heads=4, gated=gated)
    assert told(name, forward_errors(model, recording(name))) <= FORWARD


def test_golden_forward_pass_of_a_fresh_branch(threads):
    """As the authors initialise it, and as a new adapter of the released convention is."""
    clip = load_released(weights("official"), heads=4).clip
    model = BTAdapter(clip, BranchConfig(convention="released"))
    model.branch.time.data = recording("official_init")["time"]
    errors = forward_errors(model, recording("eval_init_norm"))
    assert told("eval_init_norm", errors) <= FORWARD


def test_golden_forward_pass_of_eva(threads):
    model = load_released(weights("eva"), heads=4)
    assert told("eva_eval", forward_errors(model, recording("eva_eval"))) <= FORWARD


def test_golden_frame_features_and_final_norm():
    model, recorded = load_released(weights("official"), heads=4), recording("eval_norm")
    found = trace_states(model, clips_first(recorded["video"]))
    backbone = found["CLIP layer 6"][:, :, 0]
    cls = found["branch layer 4, CLS"][:, None].expand_as(backbone)
    normed = model.clip.norm(model.branch.gates[-1](cls, backbone))
    assert error(normed.flatten(0, 1), recorded["cls_token_post_ln"]) <= FORWARD
    assert error(model.clip.project(normed), recorded["x_cls_per_frame"]) <= FORWARD


def test_golden_text_features():
    ids, recorded = recording("text")["token_ids"], recording("text")
    model = load_released(weights("official"), heads=4).clip.model
    found = model.encode_text(torch.nn.functional.pad(ids, (0, 77 - ids.shape[1])))
    torch.testing.assert_close(found, recorded["text_features"], atol=FORWARD, rtol=0)


# --- golden: training step ---


def golden_masks(recorded, official):
    """What branch and teacher see, from the recorded masks (True: hidden)."""
    mask = recorded["mask" if "mask" in recorded else "mask_tl"]
    frames = mask.unflatten(1, (4, 16))
    assert (frames == frames[:, :1]).all()  # made as a tube
    keep = torch.stack([(~clip[0]).nonzero()[:, 0] for clip in frames])
    branch, teacher = as_released(keep, 4, 16)
    seen = torch.ones(len(mask), 4 * 16, dtype=torch.bool).scatter(1, branch.flatten(1), False)
    read = rearrange(mask, "b (l t) -> b (t l)", t=4)  # the list applied to (l t) tokens
    assert torch.equal(seen, read)
    return (branch, teacher) if official else (keep, keep)


def gradients(model, loss):
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad))
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return released_tensors(model, dict(zip(names, found, strict=True)))


def gradient_errors(found, recorded, kind):
    """Relative errors, and absolute ones of key-projection biases, whose gradients are zero."""
    expected = {k[len(kind) + 1 :]: v for k, v in recorded.items() if k.startswith(f"{kind}.")}
    assert expected and {*expected} <= {*found}, {*expected} - {*found}
    assert all((found[name] == 0).all() for name in {*found} - {*expected})
    relative, absolute = {}, {}
    for name, value in expected.items():
        if name.endswith("k_proj.bias"):
            absolute[name] = found[name].abs().max().item()
            assert value.abs().max() < KEY_BIAS
        else:
            relative[name] = error(found[name], value)
    return relative, absolute


TRAINED = [
    ("train_official_norm", "official", True, True),
    ("train_official_nonorm", "official", False, True),
    ("train_fixed_norm", "official", True, False),
    ("train_fixed_nonorm", "official", False, False),
    ("eva_train_official", "eva", True, True),
]


@pytest.mark.parametrize(("name", "checkpoint", "gated", "official"), TRAINED)
def test_golden_training_step(name, checkpoint, gated, official, threads):
    recorded = recording(name)
    model = load_released(weights(checkpoint), heads=4, gated=gated)
    masks = golden_masks(recorded, official)
    assert told(f"{name}, states", forward_errors(model, recorded, masks[0])) <= FORWARD
    losses = released_losses(
        model, clips_first(recorded["video"]), recorded["text_features"], *masks
    )
    weighted = {key: LOSS_WEIGHTS[key] * loss for key, loss in losses.items()}
    sums = dict(grad_total=sum(weighted.values()), grad_total111=sum(losses.values()))
    names = dict(vtc="NCE_loss", mbta="clip_branch_mask_mse_loss", mbca="branch_text_nce_loss")
    expected = {"loss.total": sums["grad_total"]}
    expected |= {f"raw.{key}": loss for key, loss in losses.items()}
    expected |= {f"loss.{names[key]}": loss for key, loss in weighted.items()}
    scalars = [k for k in recorded if k.startswith(("loss.", "raw."))]
    scalars = [k for k in scalars if "plain_mse" not in k]  # no loss of the step
    errors = {key: error(expected[key].detach(), recorded[key]) for key in scalars}
    assert told(f"{name}, losses", errors) <= FORWARD
    sums |= {f"grad_{key}": loss for key, loss in losses.items()}
    kinds = {key.split(".")[0] for key in recorded if key.startswith("grad")}
    assert kinds <= {*sums} and "grad_total" in kinds
    for kind in sorted(kinds):
        relative, absolute = gradient_errors(gradients(model, sums[kind]), recorded, kind)
        assert told(f"{name}, {kind}", relative) <= GRADIENT
        assert max(absolute.values(), default=0) <= KEY_BIAS


# --- golden: chat ---


@pytest.mark.parametrize("frames", [4, 8])
def test_golden_chat_from_pixels(frames, threads):
    recorded = recording(f"llava_nontrain_norm_T{frames}")
    chat, video = load_released_chat(weights("official"), heads=4), recorded["input"][None]
    entering = chat.enter(video)
    layers = list(chat.layers(entering))
    errors = {
        "pooler_output": error(chat.pooled(entering)[0], recorded["pooler_output"]),
        "hidden_states.-1.clip": error(layers[-1][0][0], recorded["hidden_states.-1.clip"]),
        "hidden_states.-1.branch": error(
            tokens(*layers[-1][1:]), recorded["hidden_states.-1.branch"]
        ),
        "video_tokens": error(chat.tokens(video)[0], recorded["video_tokens"]),
    }
    for i in (-2, -3, -4):
        errors[f"hidden_states.{i}"] = error(combined(*layers[i]), recorded[f"hidden_states.{i}"])
    states = trace_states(load_released(weights("official"), heads=4), video)
    for i, name in ((-5, "CLIP layer 2"), (-6, "CLIP layer 1"), (-7, "CLIP's first input")):
        errors[f"hidden_states.{i}"] = error(states[name][0], recorded[f"hidden_states.{i}"])
    assert {*errors} == {*recorded} - {"input"}
    assert told(f"llava_nontrain_norm_T{frames}", errors) <= FORWARD


def tuned_checkpoint():
    """A checkpoint of tuning: of CLIP no more than the three layers beside the branch."""
    whole, cut = released.plain_names(weights("official")), {}
    for name, tensor in whole.items():
        match = re.match(r"layers\.([234])\.", name)
        if match:
            cut[name.replace(match[0], f"layers.{int(match[1]) - 2}.")] = tensor
        elif re.match("btadapter|balance|position", name) and "layers.3." not in name:
            cut[name] = tensor
    return cut


@pytest.mark.parametrize("frames", [4, 8, 100])
def test_golden_chat_in_tuning(frames, threads):
    recorded = recording(f"llava_train_norm_T{frames}")
    chat = load_released_chat(tuned_checkpoint(), heads=4)
    layers = list(chat.layers(recorded["input"]))
    errors = {
        "tokens": error(chat.tokens(entering=recorded["input"]), recorded["hidden_states.-1"])
    }
    for i in (-1, -2, -3):
        if f"hidden_states.{i}" in recorded:
            key = f"hidden_states.{i}"
            errors[key] = error(combined(*layers[i]), recorded[key])
    assert told(f"llava_train_norm_T{frames}", errors) <= FORWARD


@pytest.mark.parametrize("frames", [1, 7, 65, 67, 130])
def test_frames_on_which_the_chat_code_fails_are_refused(frames):
    with pytest.raises(
        ValueError, match=f"fails on {frames} frames: take an even number up to 128"
    ):
        chat_groups(frames, 16)


def test_five_frames_run_because_they_divide_the_tokens():
    groups = chat_groups(5, 16)
    assert groups.shape == (1, 2, 40) and sorted(groups.flatten().tolist()) == list(range(80))


def test_a_cut_checkpoint_takes_states_only():
    chat = load_released_chat(tuned_checkpoint(), heads=4)
    with pytest.raises(ValueError, match="holds only the last layers of CLIP: give it their input"):
        chat.tokens(torch.zeros(1, 4, 3, 32, 32))
    with pytest.raises(ValueError, match="for `load_released_chat`"):
        load_released(tuned_checkpoint(), heads=4)


def test_a_chat_backbone_is_a_clip_and_a_branch_of_some_layers():
    one = BTAdapter(tiny_clip(quick_gelu=True), BranchConfig(layers=1, convention="released"))
    with pytest.raises(ValueError, match="this branch has only one"):
        load_released_chat(released_tensors(one), heads=3)
    for state in (weights("eva"), branch_alone()):
        with pytest.raises(ValueError, match="A chat backbone is a CLIP of OpenAI's and a branch"):
            load_released_chat(state, heads=4)


# --- names, both ways ---


def equal(a, b):
    return {*a} == {*b} and all(torch.equal(a[k], b[k]) and a[k].shape == b[k].shape for k in a)


@pytest.mark.parametrize("checkpoint", ["official", "eva"])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "safetensors"])
def test_a_round_trip_is_bit_equal(checkpoint, gated, suffix, tmp_path):
    original, path = weights(checkpoint), tmp_path / f"saved.{suffix}"
    save_released(load_released(original, heads=4, gated=gated), path)
    again = load_file(path) if suffix == "safetensors" else torch.load(path, weights_only=True)
    assert equal(again, original)
    assert not list(tmp_path.glob("*.part"))
    assert equal(released_tensors(load_released(path, heads=4)), original)


def renamed(prefix, old_name, state=None):
    """The official checkpoint as other files name it."""
    out = {}
    for name, tensor in (state or weights("official")).items():
        name = name.replace("backbone.", prefix) if name.startswith("backbone.") else name
        out[name.replace("btadapter", "timesFPN") if old_name else name] = tensor
    return out


@pytest.mark.parametrize("old_name", [False, True])
@pytest.mark.parametrize("prefix", ["", "backbone.", "model.vision_tower."])
def test_all_prefixes_and_the_old_name(prefix, old_name):
    state = renamed(prefix, old_name)
    ids = torch.arange(17)[None]
    state |= {f"{prefix}position_ids": ids}
    state |= {"text_backbone.text_model.embeddings.position_ids": torch.arange(77)[None]}
    assert equal(released_tensors(load_released(state, heads=4)), weights("official"))


def test_the_state_dict_of_a_training_checkpoint(tmp_path):
    torch.save({"meta": {"epoch": 1}, "state_dict": weights("official")}, tmp_path / "epoch_1.pth")
    model = load_released(tmp_path / "epoch_1.pth", heads=4)
    assert equal(released_tensors(model), weights("official"))


def test_a_branch_alone_beside_its_clip(tmp_path):
    whole = load_released(weights("official"), heads=4)
    save_released(whole, tmp_path / "branch.bin", clip=False)
    alone = load_released(tmp_path / "branch.bin", clip=whole.clip)
    assert alone.clip is whole.clip
    video = clips_first(recording("eval_norm")["video"])
    assert torch.equal(alone.encode_video(video).embedding, whole.encode_video(video).embedding)
    assert len(torch.load(tmp_path / "branch.bin", weights_only=True)) == 120


def test_half_precision_checkpoints_load_in_fp32():
    half = {name: tensor.half() for name, tensor in weights("official").items()}
    model = load_released(half, heads=4)
    assert model.clip.dtype == model.branch.dtype == torch.float32
    assert all(torch.equal(t, half[n].float()) for n, t in released_tensors(model).items())


@pytest.mark.parametrize(
    "sizes",
    [
        dict(width=48, layers=3, head_width=8, image_size=24, patch_size=6),
        dict(width=32, layers=4, head_width=16, image_size=16, patch_size=4, mlp_ratio=3.3),
    ],
    ids=str,
)
@pytest.mark.parametrize("layers", [1, 3])
def test_other_sizes_are_read_off_the_tensors(sizes, layers):
    clip = tiny_clip(quick_gelu=True, **sizes)
    config = BranchConfig(layers=layers, max_frames=5, convention="released")
    model = BTAdapter(clip, config)
    shake(model.branch)
    again = load_released(released_tensors(model), heads=sizes["width"] // sizes["head_width"])
    frames = torch.randn(2, 3, 3, *clip.image_size)
    assert again.config == BranchConfig(
        layers=layers, max_frames=5, convention="released", combination="weighted", final="weighted"
    )
    assert first_difference(again, model, frames) is None


def test_a_checkpoint_of_a_known_size_bears_its_name():
    assert released.KNOWN[1024, 24, 14, 224] == "ViT-L-14-quickgelu"
    import open_clip

    for (width, layers, patch, image), name in released.KNOWN.items():
        sizes = open_clip.get_model_config(name)["vision_cfg"]
        assert (sizes["width"], sizes["layers"], sizes["patch_size"]) == (width, layers, patch)
        assert sizes["image_size"] == image and "openai" in open_clip.list_pretrained_tags_by_model(
            name
        )


@pytest.mark.slow
def test_vit_l_14_in_full_size(few_numbers):
    """Random weights, all sizes as published: 72.2 million trained parameters."""
    from bt_adapter.backbone import load_clip

    model = BTAdapter(load_clip("ViT-L-14-quickgelu"), BranchConfig(convention="released"))
    size = sum(p.numel() for p in model.branch.parameters())
    assert math.isclose(size, 72.2e6, rel_tol=0.01)
    again = load_released(released_tensors(model))
    assert again.clip.name == "ViT-L-14-quickgelu" and again.clip.pretrained == "openai"
    assert again.clip.fingerprint == model.clip.fingerprint
    frames = torch.randn(1, 2, 3, 224, 224)
    assert first_difference(again, model, frames) is None
    assert again.encode_text(["a red circle moves left"]).shape == (1, 768)


# --- gates ---


def test_gates_that_are_not_used_are_kept_and_told(caplog):
    with caplog.at_level(logging.INFO, logger="bt_adapter.released"):
        model = load_released(weights("official"), heads=4, gated=False)
    assert "gates.0.w_b, gates.1.w_b" in caplog.text and "kept" in caplog.text
    assert torch.equal(model.unused["gates.1.w_b"], weights("official")["backbone.balance1"])


def test_loading_prints_nothing(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_released(weights("official"), heads=4)
        load_released(weights("eva"), heads=4)
        load_released_chat(weights("official"), heads=4)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("gone", "fits"), [(("1", "2"), False), (("1",), "'middle'"), (("2",), "'output'")]
)
def test_gates_that_are_missed_are_named(gone, fits):
    names = [f"backbone.balance{number}" for number in gone]
    state = {k: v for k, v in weights("official").items() if k not in names}
    with pytest.raises(ValueError, match=f"has no gate .*: load it with gated={fits}"):
        load_released(state, heads=4)
    fitting = fits if fits is False else fits.strip("'")
    assert not load_released(state, heads=4, gated=fitting).unused


def test_one_gate_alone():
    video = clips_first(recording("eval_norm")["video"])
    traces = {
        gated: trace_states(load_released(weights("official"), heads=4, gated=gated), video)
        for gated in (True, False, "middle", "output")
    }
    same = {
        (a, b): torch.equal(traces[a]["branch layer 4, CLS"], traces[b]["branch layer 4, CLS"])
        for a, b in ((True, "middle"), (False, "output"), (True, False))
    }
    assert list(same.values()) == [True, True, False]
    features = [t["the video feature"] for t in traces.values()]
    assert not any(torch.allclose(a, b, atol=1e-4) for a, b in itertools.pairwise(features))


# --- the layer debugger ---


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("clip.model.visual.conv1.weight", "CLIP's first input"),
        ("clip.model.visual.transformer.resblocks.3.ln_1.weight", "CLIP layer 4"),
        ("branch.video_cls", "branch layer 1, CLS"),
        ("branch.temporal.2.qkv.weight", "branch layer 3, CLS"),
        ("branch.gates.1.w_b", "the video feature"),
    ],
)
def test_the_first_difference_is_named(parameter, layer):
    video = clips_first(recording("eval_norm")["video"])
    a, b = (load_released(weights("official"), heads=4) for _ in range(2))
    assert first_difference(a, b, video) is None
    b.get_parameter(parameter).data.flatten()[::5] += 0.1  # a layer norm forgets what is alike
    assert first_difference(a, b, video).layer == layer
    assert first_difference(trace_states(a, video), b, video).layer == layer


def test_a_layer_that_one_encoder_lacks_and_one_that_is_no_number_differ():
    video = clips_first(recording("eval_norm")["video"])
    whole = trace_states(load_released(weights("official"), heads=4), video)
    short = {name: state for name, state in whole.items() if "branch layer 4" not in name}
    for pair in ((whole, short), (short, whole)):
        assert first_difference(*pair, video).layer == "branch layer 4, CLS"
    spoilt = whole | {"CLIP layer 5": whole["CLIP layer 5"] * torch.nan}
    assert first_difference(whole, spoilt, video).layer == "CLIP layer 5"


# --- what is no checkpoint ---


def one_sentence(caught):
    text = str(caught.value)
    assert "\n" not in text and text.endswith("." if "damaged" not in text else ""), text


@pytest.mark.parametrize("suffix", ["pth", "bin", "safetensors"])
@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_cut_file_is_one_sentence(suffix, share, tmp_path):
    path = tmp_path / f"cut.{suffix}"
    save_released(load_released(weights("official"), heads=4), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(
        ValueError, match=r"cut\.\w+ is no checkpoint, or it is damaged: \S"
    ) as caught:
        load_released(path, heads=4)
    one_sentence(caught)


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors", "text.txt"])
def test_text_is_no_checkpoint(name, tmp_path):
    (tmp_path / name).write_text("no weights here")
    with pytest.raises(ValueError, match="is no checkpoint, or it is damaged") as caught:
        load_released(tmp_path / name)
    one_sentence(caught)


def test_code_in_a_file_is_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was run",))

    torch.save({"backbone.btadapter_cls_token": Code()}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="is no checkpoint, or it is damaged") as caught:
        load_released(tmp_path / "code.pth")
    one_sentence(caught)
    assert "weights_only" not in str(caught.value) and not (tmp_path / "was run").exists()


@pytest.mark.parametrize("source", ["nowhere.pth", Path("nowhere.safetensors"), "."], ids=str)
def test_a_missing_file_is_named(source):
    with pytest.raises(ValueError, match="There is no file"):
        load_released(source)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(3), None], ids=repr)
def test_what_is_no_dictionary_of_tensors_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    for source in (content, tmp_path / "x.pth"):
        with pytest.raises(ValueError, match="must be a dictionary of tensors"):
            load_released(source)


def changed(**changes):
    """The official checkpoint with tensors replaced, added, or (None) taken out."""
    state = weights("official") | changes
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (dict(conv1=torch.zeros(1)), "holds no branch of BT-Adapter; it begins with conv1"),
        ({}, "holds no branch of BT-Adapter; it begins with nothing"),
        (changed(**{"backbone.btadapter_gate": torch.zeros(2)}), "the unknown btadapter_gate"),
        (changed(**{"backbone.pre_layrnorm.bias": None}), r"misses pre_layrnorm\.bias"),
        (changed(**{"backbone.layers.2.mlp.fc1.bias": None}), r"misses layers\.2\.mlp\.fc1\.bias"),
        (changed(**{"extra_proj.1.bias": None}), r"misses extra_proj\.1\.bias"),
        (changed(**{"extra_proj.0.weight": None}), r"the unknown extra_proj\.0\.bias, extra_proj"),
        (
            changed(**{"text_backbone.text_projection.weight": None}),
            r"misses text_backbone\.text_projection\.weight",
        ),
        (
            changed(**{"btadapter_cls_token": torch.zeros(1, 1, 64)}),
            "holds btadapter_cls_token twice, once as",
        ),
        (changed(**{"backbone.balance1": torch.zeros(63)}), "do not fit together: size mismatch"),
        (
            changed(**{"backbone.position_embedding.weight": torch.zeros(20, 64)}),
            "do not fit together",
        ),
        (
            changed(**{"backbone.btadapter_S_layers.1.mlp.fc1.weight": torch.zeros(8, 64)}),
            "do not fit together",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_checkpoint_that_is_not_as_released_is_one_sentence(state, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        load_released(state, heads=4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("heads", [3, 5, 65, -4])
def test_heads_that_do_not_divide_the_width_are_refused(heads):
    with pytest.raises(ValueError, match=f"64 cannot be shared among {heads} heads: give `heads`"):
        load_released(weights("official"), heads=heads)


def test_heads_are_not_guessed():
    sentence = "A width of 64 is none of OpenAI's CLIPs, and no weight shows .* give `heads`"
    for kind in ("official", "eva"):
        with pytest.raises(ValueError, match=sentence):
            load_released(weights(kind))
    with pytest.raises(ValueError, match="cannot be shared among 0 heads: give `heads`"):
        load_released(weights("official"), heads=0)


def test_heads_of_known_widths_are_known():
    widths = 512, 768, 1024, 1408
    assert [released.head_count(width, None) for width in widths] == [8, 12, 16, 16]
    assert (
        released.text_head_count(768, 1408, None, None) == 12
    )  # EVA-01's: images 88 wide, words 64
    assert released.text_head_count(768, 1408, 16, None) == 12
    assert released.text_head_count(64, 64, 4, None) == 4  # as wide as those of the images
    assert released.text_head_count(64, 64, 4, 2) == 2
    with pytest.raises(ValueError, match=r"A width of 40 is none .* give `text_heads`"):
        released.text_head_count(40, 64, 4, None)


def test_heads_of_the_text_tower_can_be_told():
    clip = load_released(weights("official"), heads=4, text_heads=2).clip
    assert clip.blocks[0].attn.num_heads == 4
    assert clip.model.text.transformer.resblocks[0].attn.num_heads == 2
    with pytest.raises(ValueError, match="64 cannot be shared among 5 heads: give `text_heads`"):
        load_released(weights("official"), heads=4, text_heads=5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_released_weights_that_are_no_numbers_are_told(value, tmp_path):
    state = dict(weights("official"))
    name = next(name for name in state if name.endswith("btadapter_cls_token"))
    state[name] = torch.full_like(state[name], value)
    with pytest.raises(ValueError, match="This checkpoint holds NaN or infinity, first in btad"):
        load_released(state, heads=4)
    torch.save(state, tmp_path / "spoilt.pth")
    with pytest.raises(ValueError, match=r"spoilt\.pth holds NaN or infinity, first in btadapter"):
        load_released(tmp_path / "spoilt.pth", heads=4)


def test_what_is_loaded_is_in_evaluation_mode():
    model = load_released(weights("official"), heads=4)
    assert not any(module.training for module in model.modules())


def branch_alone():
    pattern = "btadapter|balance|extra_proj"
    return {n: t for n, t in weights("official").items() if re.search(pattern, n)}


def test_a_branch_alone_needs_its_own_clip():
    with pytest.raises(ValueError, match="holds the branch alone: give the CLIP"):
        load_released(branch_alone())
    with pytest.raises(ValueError, match="64 wide, and tiny 24"):
        load_released(branch_alone(), clip=tiny_clip(quick_gelu=True))
    with pytest.raises(ValueError, match=r"beside a CLIP with QuickGELU.*tiny is none"):
        load_released(branch_alone(), clip=tiny_clip(width=64, head_width=16, layers=6))
    wide = tiny_clip(quick_gelu=True, width=64, head_width=16, layers=6)
    with pytest.raises(ValueError, match="tiny has 4 heads, not 8"):
        load_released(branch_alone(), heads=8, clip=wide)
    with pytest.raises(ValueError, match="holds its own CLIP: leave out `clip`"):
        load_released(weights("official"), heads=4, clip=wide)
    eva = {n: t for n, t in weights("eva").items() if "btadapter" in n}
    with pytest.raises(ValueError, match="beside an EVA-01, and tiny is none"):
        load_released(eva, clip=wide)


@pytest.mark.parametrize("kind", ["official", "eva"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_checkpoint_without_text_may_have_its_clip_beside_it(kind, dtype):
    state = {n: t for n, t in weights(kind).items() if not n.startswith("text_backbone")}
    clip = load_released(weights(kind), heads=4).clip
    model = load_released({n: t.to(dtype) for n, t in state.items()}, clip=clip)
    assert model.clip is clip
    alone = {n: t for n, t in state.items() if re.search("btadapter|balance|extra_proj", n)}
    if dtype == torch.float32:
        assert equal(released_tensors(model), released_tensors(load_released(alone, clip=clip)))
    name, weight = next((n, p) for n, p in clip.named_parameters() if "fc1" in n or "c_fc" in n)
    clip.get_parameter(name).data = weight + 0.1 * torch.eye(*weight.shape)
    with pytest.raises(ValueError, match=r"is not that of .*: leave out `clip`, or give the CLIP"):
        load_released(state, clip=clip)


def test_an_unknown_way_of_gating_and_of_saving_is_refused(tmp_path):
    with pytest.raises(ValueError, match="gated must be True, False, 'middle' or 'output'"):
        load_released(weights("official"), heads=4, gated="both")
    with pytest.raises(ValueError, match=r"must end in \.pth"):
        save_released(load_released(weights("official"), heads=4), tmp_path / "x.json")
    with pytest.raises(ValueError, match="Only an adapter in the released convention"):
        save_released(BTAdapter(tiny_clip()), tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


def test_text_without_a_tokenizer_is_one_sentence():
    for checkpoint in (
        "official",
        "eva",
    ):  # 1,000 words that open_clip does not know; no text tower
        with pytest.raises(ValueError, match="cannot encode text"):
            load_released(weights(checkpoint), heads=4).encode_text(["a red circle"])


def test_a_saved_adapter_of_released_weights_loads_beside_its_clip(tmp_path):
    model = load_released(weights("official"), heads=4)
    model.save_pretrained(tmp_path)
    again = BTAdapter.from_pretrained(tmp_path, model.clip)
    video = clips_first(recording("eval_norm")["video"])
    assert first_difference(again, model, video) is None


def test_safetensors_of_another_model(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no branch of BT-Adapter; it begins with weight"):
        load_released(tmp_path / "other.safetensors")


STRANGE = {
    "repeated": torch.ones(1).expand(10**7, 10**7),  # 400 TB in four bytes
    "sparse": torch.ones(2, 2).to_sparse(),
    "unfilled": torch.empty(2, 2, device="meta"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_tensor_whose_numbers_are_not_in_its_file_is_refused_before_it_is_read(kind, tmp_path):
    torch.save(changed(**{"extra_proj.0.weight": STRANGE[kind]}), tmp_path / "x.pth")
    with warnings.catch_warnings(), pytest.raises(ValueError, match="is no ordinary tensor"):
        warnings.simplefilter("ignore")  # torch deprecates some of these kinds
        load_released(tmp_path / "x.pth", heads=4)


@pytest.mark.parametrize(
    ("name", "tensor", "sentence"),
    [
        ("backbone.btadapter_S_layers.99999999.layer_norm1.bias", torch.ones(64), "numbered high"),
        ("backbone.layers.99999999.layer_norm1.bias", torch.ones(64), "numbered higher than"),
        ("backbone.btadapter_cls_token", torch.ones(()), "not 3 dimensions"),
        ("backbone.position_embedding.weight", torch.ones(0, 64), "holds nothing"),
    ],
)
def test_what_a_checkpoint_claims_is_held_against_what_it_holds(name, tensor, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_released(changed(**{name: tensor}), heads=4)


def test_weights_that_are_packed_are_refused_before_they_are_unpacked(tmp_path):
    """A megabyte of zeros, packed, would fill a gigabyte."""
    plain, packed = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save(changed(**{"extra_proj.0.weight": torch.zeros(2000, 2000)}), plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ValueError, match=r"b\.pth is no checkpoint.* would unpack to"):
        load_released(packed, heads=4)
    with pytest.raises(ValueError, match="would unpack to"):
        load_clip("RN50", pretrained=packed)
