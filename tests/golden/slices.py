"""Cut the slices in this folder out of the full recordings: python slices.py FOLDER.

The full recordings are 38 MB. Of each large tensor we keep 24 values at even distances, its
largest magnitude and its length; of inputs and weights everything, once.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
TRAINED = ("train_official_norm", "train_official_nonorm", "train_fixed_norm", "train_fixed_nonorm")
EVALUATED = ("eval_norm", "eval_nonorm", "eval_norm_T12", "eval_init_norm", "eva_eval")
CHAT = ("llava_nontrain_norm_T4", "llava_nontrain_norm_T8", "llava_train_norm_T4")
CHAT += ("llava_train_norm_T8", "llava_train_norm_T100")
INPUTS = ("video", "input", "text_features", "mask", "mask_lt", "mask_tl", "token_ids")


def sample(tensor: torch.Tensor) -> torch.Tensor:
    """24 values, the largest magnitude, the length; smaller tensors as they are."""
    flat = tensor.detach().float().flatten()
    if len(flat) <= 26:
        return flat
    places = torch.linspace(0, len(flat) - 1, 24).long()
    return torch.cat([flat[places], flat.abs().max()[None], flat.double().norm()[None].float()])


def slices(name: str, recording: dict) -> dict:
    """Whole inputs and sampled values of one file."""
    if name.startswith("llava_train"):  # the first clip is enough, and 100 frames of it are large
        recording = {k: v[: len(v) // 2] for k, v in recording.items()}
    return {
        f"{name}/{key}": value.clone() if key in INPUTS else sample(value)
        for key, value in recording.items()
    }


def main(folder: Path):
    names = (*EVALUATED, *TRAINED, "eva_train_official", *CHAT, "text")
    kept, seen = {}, {}
    for name in names:
        for key, value in slices(name, load_file(folder / f"{name}.safetensors")).items():
            same = next(
                (k for k, v in seen.items() if v.shape == value.shape and torch.equal(v, value)),
                None,
            )
            if same is None or value.numel() <= 26:
                kept[key] = value
                seen |= {key: value} if value.numel() > 26 else {}
            else:
                kept[f"{key}={same}"] = torch.zeros(0)  # the same as another
    start = load_file(folder / "official_init_state_dict.safetensors")
    kept["official_init/time"] = start["backbone.btadapter_time_embed.weight"]
    save_file(kept, HERE / "recorded.safetensors")
    official = load_file(folder / "official_state_dict.safetensors")
    save_file(official, HERE / "official.safetensors")
    save_file(load_file(folder / "eva_state_dict.safetensors"), HERE / "eva.safetensors")
    features = load_file(folder / "retrieval_features.safetensors")
    save_file(features, HERE / "retrieval.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
