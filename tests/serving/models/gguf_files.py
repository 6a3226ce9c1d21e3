"""Writes small random models as GGUF files, in llama.cpp's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES, TokenType
from gguf.quants import dequantize, quantize

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
)


def random_model(architecture: str, tokenizer_folder: str) -> Any:
    """A random causal language model with as many tokens as the tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    vocabulary = json.loads((Path(tokenizer_folder) / "tokenizer.json").read_text())["model"]
    shape = {**SHAPE, "head_dim": 16, "vocab_size": len(vocabulary["vocab"])}
    kind = {"llama": "llama", "qwen2": "qwen2", "gemma3": "gemma3_text"}[architecture]
    torch.manual_seed(11)
    model_class: Any = AutoModelForCausalLM
    model = model_class.from_config(AutoConfig.for_model(kind, **shape))
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight") or name.endswith(".bias"):
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    return model.eval()


def write_gguf(
    file: Path,
    model: Any,
    architecture: str,
    tokenizer_folder: str,
    kind: GGMLQuantizationType = GGMLQuantizationType.F16,
    leave_out: tuple[str, ...] = (),
    **strings: str,
) -> None:
    """Write a model, and round its weights in place to what the file contains.

    Args:
        file: where to write it.
        model: a model of `random_model`.
        architecture: llama.cpp's name of its architecture.
        tokenizer_folder: a folder with a byte-level BPE tokenizer.
        kind: type of the matrices; vectors are in float32.
        leave_out: names of tensors that are not written.
        strings: further metadata; dots are written as two underscores.
    """
    config = model.config
    writer = GGUFWriter(file, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer_folder)
    for key, value in strings.items():
        writer.add_string(key.replace("__", "."), value)

    number = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(number, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            base, ending = name.rsplit(".", 1)
            if tied and base == "lm_head":
                continue
            written = f"{names.get_name(base)}.{ending}"
            values = parameter.float().numpy()
            rounded = kind if values.ndim == 2 else GGMLQuantizationType.F32
            laid_out = _laid_out(written, values, architecture, config)
            data = quantize(laid_out, rounded)
            back = dequantize(data, rounded).reshape(laid_out.shape)
            original = _laid_out(written, back, architecture, config, inverse=True)
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(original)).bfloat16())
            if written not in leave_out:
                writer.add_tensor(written, data, raw_dtype=rounded)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _laid_out(name: str, values: Any, architecture: str, config: Any, inverse: bool = False) -> Any:
    """The weights as llama.cpp stores them; or, inversely, as transformers does.

    Llama's rotary halves are interleaved there, and Gemma's norms are stored plus one.
    """
    if architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
        key = name.endswith("attn_k.weight")
        heads = config.num_key_value_heads if key else config.num_attention_heads
        half = values.shape[0] // heads // 2
        split = (heads, half, 2) if inverse else (heads, 2, half)
        return values.reshape(*split, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
    if architecture.startswith("gemma") and "norm" in name:
        return values + np.float32(-1 if inverse else 1)
    return values


def _add_tokenizer(writer: Any, folder: str) -> None:
    saved = json.loads((Path(folder) / "tokenizer.json").read_text())
    tokens = sorted(saved["model"]["vocab"], key=saved["model"]["vocab"].get)
    special = {each["content"] for each in saved["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.CONTROL if each in special else TokenType.NORMAL for each in tokens]
    )
    writer.add_token_merges([" ".join(pair) for pair in saved["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template(TEMPLATE)
