"""Image chat models of a few thousand random weights, one of each family, and byte words."""

import warnings

import pytest
import torch
from tiny import shake

SIZES = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=5, num_attention_heads=3)
VISION = SIZES | dict(image_size=16, patch_size=8)
WORDS, IMAGE = 300, 0


@pytest.fixture(autouse=True)
def one_thread():
    """One core for the tests of a module that imports this."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_llama(seed=0, **changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(vocab_size=WORDS, max_position_embeddings=160, **sizes, **changes)
    return LlamaForCausalLM(config).eval()


def tiny_lora(language, folder, **kind):
    """A LoRA of random weights for a language model, as peft saves it."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", **kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers for an old name
        lora = get_peft_model(language, config)
    generator = torch.Generator().manual_seed(7)
    for name, weight in lora.named_parameters():
        if "lora_" in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    lora.save_pretrained(folder, save_embedding_layers=False)


def llava(next=False, vision=None, **changes):
    import transformers as hf

    family = "LlavaNext" if next else "Llava"
    options = dict(image_grid_pinpoints=[[16, 32], [32, 16]]) if next else {}
    vision = hf.CLIPVisionConfig(**VISION) if vision is None else vision
    parts = dict(vision_config=vision, text_config=tiny_llama().config, image_token_id=IMAGE)
    config = getattr(hf, f"{family}Config")(**parts, **options, **changes)
    return getattr(hf, f"{family}ForConditionalGeneration")(config)


def qformer(family="Blip2", layers=5, text=None):
    import transformers as hf

    inner = SIZES | dict(num_hidden_layers=2, encoder_hidden_size=24, vocab_size=WORDS)
    config = getattr(hf, f"{family}Config")(
        vision_config=VISION | dict(num_hidden_layers=layers),
        qformer_config=inner,
        text_config=text or tiny_llama().config.to_dict(),
        num_query_tokens=3,
        image_token_index=IMAGE,
    )
    return getattr(hf, f"{family}ForConditionalGeneration")(config)


def minigpt4():
    from bt_adapter.chat import minigpt4

    torch.manual_seed(3)
    projection = torch.nn.Linear(24, 32).state_dict()
    names = {f"llama_proj.{name}": weight for name, weight in projection.items()}
    return minigpt4(qformer(), tiny_llama(), {"model": names})


MAKERS = {
    "llava": llava,
    "llava-next": lambda: llava(next=True),
    "blip-2": qformer,
    "instructblip": lambda: qformer("InstructBlip"),
    "minigpt4": minigpt4,
}


def tiny_host(name, seed=0):
    """A host with no weight that is zero or one by accident, ready for use."""
    torch.manual_seed(seed)
    model = MAKERS[name]()
    shake(model, seed, std=0.05)
    return model.eval()


def byte_tokenizer(*markers):
    """Bytes, four special tokens, and the markers of a template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<image>", "<s>", "</s>", "<pad>"]
    special += [marker for marker in markers if marker not in special]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: i for i, token in enumerate([*special, *letters])}
    raw = Tokenizer(models.BPE(vocab=words, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    names = dict(
        zip(("unk_token", "bos_token", "eos_token", "pad_token"), special[:4], strict=True)
    )
    more = dict(extra_special_tokens=special[4:]) if special[4:] else {}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names, **more)


def tiny_chat(folder):
    """What `bta-pretrain instruct` makes, around a tiny Llama in the place of SmolLM2: its folder
    of words, and the chat model's. No two of their parts are alike."""
    from safetensors.torch import save_file

    from bt_adapter.branch import BTAdapter
    from bt_adapter.chat import Projector

    words, made, llama = folder / "words", folder / "chat", tiny_llama()
    llama.config.max_position_embeddings = 1000  # letters are tokens
    shake(llama, std=0.3)
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>")
    tokenizer.eos_token = "<|im_end|>"  # as SmolLM2's
    tokenizer.save_pretrained(words)
    llama.config.eos_token_id = llama.generation_config.eos_token_id = tokenizer.eos_token_id
    llama.save_pretrained(words)
    tiny_lora(llama, made / "lora")
    BTAdapter.from_pretrained("moving-shapes").save_pretrained(made / "adapter")
    for seed, name in enumerate(("projector", "image_projector")):
        torch.manual_seed(seed)
        save_file(Projector(96, 32, 2).state_dict(), made / f"{name}.safetensors")
    (made / "training.json").write_text('{"level": 2}')
    return words, made
