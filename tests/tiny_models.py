"""Tiny random base models of the architectures that Mayfly is tested with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

# Sizes that vLLM's CPU attention supports: heads of 32.
_SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
_BY_ARCHITECTURE: dict[str, dict[str, Any]] = {
    "llama": {},
    # A window shorter than the test's prompt.
    "mistral": {"sliding_window": 16},
    "qwen2": {},
    # Heads that together are wider than the hidden states.
    "qwen3": {"head_dim": 64},
    "gemma3_text": {
        "query_pre_attn_scalar": 32,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "tie_word_embeddings": True,
    },
    "olmo2": {},
    "granite": {
        "attention_multiplier": 0.1,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
    },
    "phi3": {"partial_rotary_factor": 0.5},
    "lfm2": {
        "layer_types": ["conv", "full_attention", "conv"],
        "tie_word_embeddings": True,
        "block_auto_adjust_ff_dim": False,
        # vLLM reads these, as the published models have them; transformers does not.
        "block_dim": 128,
        "conv_dim": 128,
    },
}
ARCHITECTURES = tuple(_BY_ARCHITECTURE)


def save_tiny(architecture: str, folder: Path, tokenizer_of: str, **changes: Any) -> str:
    """Save a random model of an architecture, as transformers names it, with a real tokenizer.

    Args:
        architecture: the `model_type` of its configuration.
        folder: where to save it.
        tokenizer_of: the folder whose tokenizer it gets.
        changes: values of its configuration in place of the usual ones.

    Returns:
        The folder.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config: Any = AutoConfig.for_model(
        architecture,
        **(_SIZES | _BY_ARCHITECTURE[architecture] | special | changes),
        vocab_size=len(tokenizer),
    )
    torch.manual_seed(7)
    automatic: Any = AutoModelForCausalLM
    model = automatic.from_config(config)
    for name, parameter in model.named_parameters():
        # Norms and biases that are one or zero would hide a mistake in their use.
        if parameter.dim() == 1:
            offset = 0.0 if name.endswith("bias") or "gemma" in architecture else 1.0
            torch.nn.init.normal_(parameter, mean=offset, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
