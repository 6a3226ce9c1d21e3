"""How adapters of a base model are trained where nobody says otherwise: by its size and its parts."""

from __future__ import annotations

import torch
from safetensors import SafetensorError

from adapters.trainer import LLAMA_TARGETS, SMALL_MODEL, TrainerConfig

GPT2_TARGETS = ("c_attn", "c_proj", "c_fc")


def rank_of(parameters: float) -> int:
    """Below 50 M parameters 16, as was chosen on the bundled model (benchmarks/README.md); above it 64, the paper's for
    3.8 B (section D)."""
    return 16 if parameters < SMALL_MODEL else 64


def for_model(model: str) -> TrainerConfig:
    """Rank and adapted projections for a base model, without loading its weights.

    Raises:
        ValueError: there is no such model, or it has none of the projections that are known.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model)
        with torch.device("meta"):
            blank = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, SafetensorError) as problem:
        raise ValueError(f"cannot load the model {model!r}: {str(problem).splitlines()[0]}") from problem
    names = {name.rpartition(".")[2] for name, _ in blank.named_modules()}
    for known in (LLAMA_TARGETS, GPT2_TARGETS):
        targets = tuple(target for target in known if target in names)
        if targets:
            break
    else:
        raise ValueError(f"the model {model!r} has no projections that Mayfly knows how to adapt: {sorted(names)}")
    rank = rank_of(sum(parameter.numel() for parameter in blank.parameters()))
    return TrainerConfig(model, rank=rank, targets=targets)
