"""Tiny random models and tokenizers, made in memory in milliseconds."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
import transformers as hf
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

DEVICE = os.environ.get("EDITCL_TEST_DEVICE", "cpu")  # where the models of the tests are
VOCABULARY = 512
N_LAYERS = 3
D_MODEL = 32
D_MLP = 64
POSITIONS = 96

TEXT = (
    "The Eiffel Tower is located in the city of Paris, and the Colosseum in the city of Rome. "
    "Beats Music is owned by Apple; München liegt in Bayern; Straße und Brücke. "
    "埃菲尔铁塔位于巴黎市。 東京タワーは東京にあります。 برج إيفل يقع في مدينة باريس. "
)

_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_NEOX = {name: value for name, value in _LLAMA.items() if name != "num_key_value_heads"}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": D_MODEL,
    "n_layer": N_LAYERS,
    "n_head": 4,
    "n_positions": POSITIONS,
    "n_inner": D_MLP,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

# name: (model class, config class, config). No key-value heads of their own for the older ones.
_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": D_MODEL,
            "intermediate_size": D_MLP,
            "num_layers": N_LAYERS,
            "attention_types": [[["global", "local", "global"], 1]],
            "num_heads": 4,
            "max_position_embeddings": POSITIONS,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _NEOX),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", _GPT2 | {"rotary_dim": 4}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _LLAMA),
    "mistral": ("MistralForCausalLM", "MistralConfig", _LLAMA),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _LLAMA),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _LLAMA | {"head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _LLAMA | {"head_dim": 8}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _LLAMA | {"head_dim": 8}),
    "phi": ("PhiForCausalLM", "PhiConfig", _LLAMA),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _LLAMA),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        _NEOX | {"ffn_dim": D_MLP, "word_embed_proj_dim": D_MODEL},
    ),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", _LLAMA),
    "falcon": ("FalconForCausalLM", "FalconConfig", _NEOX | {"ffn_hidden_size": D_MLP}),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": 4}
        | {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0},
    ),
}
ARCHITECTURES = tuple(_MODELS)


def build(architecture: str = "gpt2", seed: int = 0, **changes: Any) -> hf.PreTrainedModel:
    """A random model whose activations and logits are spread enough to tell errors from noise."""
    kind, config, values = _MODELS[architecture]
    model = getattr(hf, kind)(getattr(hf, config)(**(values | changes)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(0.3 * noise)
    return model.eval().to(DEVICE)


def mixture() -> hf.PreTrainedModel:
    """A tiny mixture of experts, which has no one down-projection in a layer."""
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return hf.MixtralForCausalLM(hf.MixtralConfig(**(_LLAMA | sizes))).eval()


def byte_tokenizer(*, bos: bool = False, **options: Any) -> hf.PreTrainedTokenizerFast:
    """Byte-level BPE; token 0 ends texts and pads, token 1 starts them if asked to."""
    end, start = "<|endoftext|>", "<|begin|>"
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [TEXT] * 4,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[end, start],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    options = {"model_input_names": ["input_ids", "attention_mask"]} | options
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, backend.token_to_id(start))]
        )
        options["bos_token"] = start
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, pad_token=end, **options
    )


def word_tokenizer() -> hf.PreTrainedTokenizerFast:
    """Whole words of a few sentences; the rest is unknown."""
    words = [
        "[UNK]",
        "[PAD]",
        *["The", "Eiffel", "Tower", "is", "in", "the", "city", "of", "Paris", "Rome"],
    ]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]"
    )


def sentencepiece_tokenizer() -> hf.PreTrainedTokenizerFast:
    """Like Llama 2's: "▁" for spaces, one in front, single bytes where it knows no piece."""
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    words = [f"▁{word}" for word in TEXT.split() if word.isascii()]
    pieces.train_from_iterator(
        words * 4, trainers.BpeTrainer(vocab_size=200, show_progress=False, initial_alphabet=["▁"])
    )
    trained = json.loads(pieces.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *trained["vocab"]]
    backend = Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=[tuple(merge) for merge in trained["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
