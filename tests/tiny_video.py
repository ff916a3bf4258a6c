"""Five video models of transformers with a few thousand random weights; one of them has words."""

import re
from string import punctuation

import torch

from bt_adapter import moving_shapes as world
from bt_adapter.timecheck.encoders import of_transformers
from bt_adapter.timecheck.rendered import turning_scenes, two_things

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
FRAMES, PIXELS, VOCABULARY = 4, 32, 99


def tiny_models():
    """Each kind, and a configuration of it."""
    import transformers as t

    sizes = SIZES | dict(intermediate_size=64, image_size=PIXELS, num_frames=FRAMES)
    yield t.TimesformerModel, t.TimesformerConfig(patch_size=8, **sizes)
    yield t.VivitModel, t.VivitConfig(tubelet_size=[2, 8, 8], **sizes)
    yield t.VideoMAEModel, t.VideoMAEConfig(patch_size=8, **sizes)
    sizes |= dict(crop_size=PIXELS, patch_size=8, frames_per_clip=FRAMES, pred_hidden_size=16)
    sizes |= dict(pred_num_hidden_layers=1, pred_num_attention_heads=2)
    yield t.VJEPA2Model, t.VJEPA2Config(**sizes)
    vision = SIZES | dict(image_size=PIXELS, intermediate_size=64, num_frames=FRAMES, patch_size=8)
    vision |= dict(mit_hidden_size=16, mit_intermediate_size=32, mit_num_hidden_layers=1)
    vision |= dict(mit_num_attention_heads=2)
    text = SIZES | dict(num_hidden_layers=1, intermediate_size=64, vocab_size=VOCABULARY)
    text |= dict(bos_token_id=0, eos_token_id=VOCABULARY - 1)
    yield t.XCLIPModel, t.XCLIPConfig(text_config=text, vision_config=vision, projection_dim=16)


def tokenizer():
    """A number for each word of Moving Shapes, between the tokens that begin and end a text."""
    import tokenizers as tk
    from transformers import PreTrainedTokenizerFast

    scenes = [*turning_scenes(48), *two_things()]
    captions = [world.caption(scene) for scene in scenes]
    captions += world.motion_candidates(scenes[0])
    words = sorted(set(re.findall(rf"\w+|[{re.escape(punctuation)}]", " ".join(captions))))
    assert len(words) < VOCABULARY - 3
    numbers = dict(zip(words, range(2, VOCABULARY)))
    made = tk.Tokenizer(tk.models.WordLevel({"<s>": 0, "?": 1, "</s>": VOCABULARY - 1} | numbers))
    made.pre_tokenizer = tk.pre_tokenizers.Whitespace()
    ends = [("<s>", 0), ("</s>", VOCABULARY - 1)]
    made.post_processor = tk.processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?", pad_token="</s>")


def tiny_encoders(seed: int = 0):
    """The five as encoders of the time check, with weights that the seed draws."""
    torch.manual_seed(seed)
    for kind, config in tiny_models():
        model = kind(config).eval()
        yield of_transformers(model, tokenizer() if hasattr(model, "text_model") else None)
