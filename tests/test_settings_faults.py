"""Settings of adapters, CLIP folders and released weights: kinds and ranges, before all else."""

import gzip
import json
import resource
import shutil
from pathlib import Path

import pytest
import torch

from bt_adapter.backbone import load_clip
from bt_adapter.branch import BranchConfig, BTAdapter
from bt_adapter.plain_clip import CONFIG, WEIGHTS
from bt_adapter.released.layout import check_dimensions
from bt_adapter.shipped import samples_folder

FAULTS = Path(__file__).with_name("faults")


@pytest.fixture
def adapter(tmp_path):
    return Path(shutil.copytree(samples_folder() / "adapter", tmp_path / "adapter"))


@pytest.fixture
def folder(tmp_path):
    """A CLIP folder, that of Moving Shapes."""
    (where,) = samples_folder().glob("*/open_clip_config.json")
    return Path(shutil.copytree(where.parent, tmp_path / "clip"))


def changed(path, place, value):
    """Write JSON with one value changed; place is a list of keys."""
    content = inner = json.loads(path.read_text())
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["adapter-name-null.json", "adapter-max-frames.json", "deep.json"])
def test_the_settings_of_an_adapter_that_were_believed(name, adapter):
    shutil.copy(FAULTS / name, adapter / "adapter.json")
    with pytest.raises(ValueError, match=str(adapter)) as caught:
        BTAdapter.from_pretrained(adapter)
    assert "\n" not in str(caught.value)


SETTINGS = [(["backbone", "name"], value) for value in (None, 5, [], {})] + [
    (["backbone", "pretrained"], value) for value in (["x"], 3)
]
SETTINGS += [(["backbone", "fingerprint"], 5), (["backbone", "activation"], []), (["backbone"], [])]
SETTINGS += [
    (["branch", "max_frames"], value) for value in (10**9, 10**30, 0, "x", 64.0, True, 65536)
]
SETTINGS += [(["branch", "layers"], value) for value in (10**9, -1, None)]
SETTINGS += [(["branch", "align"], value) for value in ("no", 1, None)]
SETTINGS += [(["branch", "projection"], []), (["branch", "convention"], {}), (["branch"], 5)]


@pytest.mark.parametrize("place, value", SETTINGS)
def test_settings_of_an_adapter_have_kinds_and_ranges(place, value, adapter):
    changed(adapter / "adapter.json", place, value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=str(adapter)) as caught:
        BTAdapter.from_pretrained(adapter)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 300_000  # KB


def test_settings_of_a_branch_in_code():
    for wrong in (dict(align="no"), dict(max_frames=10**9), dict(layers=10**6)):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BranchConfig(**wrong)


CLAIMS = [
    (["preprocess_cfg", name], v) for name in ("mean", "std") for v in ("x", [1], 5, [0, "x", 1])
]
CLAIMS += [(["preprocess_cfg", "std"], [0, 1, 1]), (["preprocess_cfg", "std"], [float("nan")] * 3)]
CLAIMS += [(["preprocess_cfg", "size"], 10**6), (["preprocess_cfg"], 5), (["model_cfg"], [])]
CLAIMS += [(["model_cfg", "vision_cfg", "layers"], v) for v in (10**6, 0, "x", True, 1.5)]
CLAIMS += [(["model_cfg", "vision_cfg", "width"], v) for v in (10**6, 2**15, "x")]
CLAIMS += [(["model_cfg", "text_cfg", name], 10**9) for name in ("width", "vocab_size", "layers")]
CLAIMS += [(["model_cfg", "text_cfg", "context_length"], v) for v in (10**9, None, "x")]
CLAIMS += [
    (["model_cfg", "vision_cfg", "norm_kwargs"], {"eps": "x"}),
    (["model_cfg", "embed_dim"], []),
]
CLAIMS += [(["model_cfg", "vision_cfg"], None), (["model_cfg", "vision_cfg", "image_size"], 10**6)]


@pytest.mark.parametrize("place, value", CLAIMS)
def test_claims_of_a_clip_folder_are_refused_before_anything_is_built(place, value, folder):
    changed(folder / CONFIG, place, value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=str(folder)) as caught:
        load_clip(str(folder))
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 300_000  # KB


def test_merges_that_unpack_to_more_than_a_vocabulary(folder):
    shutil.copy(FAULTS / "merges-bomb.txt.gz", folder / "merges.txt.gz")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="unpacks to more than"):
        load_clip(str(folder))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100_000  # KB
    for data in (b"", b"text", gzip.compress(b"\xff\xfe"), gzip.compress(b"a b\n" * 9)[:20]):
        (folder / "merges.txt.gz").write_bytes(data)
        with pytest.raises(ValueError, match=str(folder)) as caught:
            load_clip(str(folder))
        assert "\n" not in str(caught.value)


def test_deep_json_in_a_clip_folder(folder):
    shutil.copy(FAULTS / "deep.json", folder / CONFIG)
    with pytest.raises(ValueError, match="nested too deeply"):
        load_clip(str(folder))
    assert (folder / WEIGHTS).is_file()


def test_names_of_released_tensors_say_how_many_dimensions_they_have():
    for name, shape in {
        "layers.0.self_attn.q_proj.weight": (),
        "layers.0.self_attn.q_proj.bias": (4, 4),
        "layers.0.layer_norm1.weight": (4, 4),
        "patch_embedding.weight": (4, 4),
        "pos_embed": (4,),
        "text_backbone.text_model.embeddings.token_embedding.weight": (4,),
    }.items():
        with pytest.raises(ValueError, match="dimensions"):
            check_dimensions({name: torch.zeros(shape)})


@pytest.mark.parametrize("name", ["clip_norm", "tau", "weight_decay", "mask_ratio"])
def test_settings_of_a_run_that_turn_or_stop_learning(name):
    from bt_adapter.trainer import PretrainConfig

    for value in (-1, float("nan"), *([0] if name == "clip_norm" else [])):
        with pytest.raises(ValueError, match=name):
            PretrainConfig(**{name: value})
    assert PretrainConfig(clip_norm=float("inf")).clip_norm == float("inf")  # cut nothing


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, -1e30])
def test_pixels_that_no_transform_makes(value):
    model = BTAdapter.from_pretrained("moving-shapes")
    frames = torch.zeros(2, 8, 3, 64, 64)
    frames[1, 3, 2, 5, 5] = value
    for encode in (model, model.encode_video, model.clip, model.clip.encode_video):
        with pytest.raises(ValueError, match="no pixel that transform makes"):
            encode(frames)
    for texts in ([5], [None], "", [""], []):
        with pytest.raises(ValueError, match="list of at least one caption"):
            model.encode_text(texts)
