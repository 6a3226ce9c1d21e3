"""Default LoRA rank and target projections of a base model, by its size and architecture."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from adapters.config import LLAMA_TARGETS, SMALL_MODEL, TrainerConfig
from adapters.errors import BaseModelError, first_line

GPT2_TARGETS = ("c_attn", "c_proj", "c_fc")


def rank_of(parameters: float) -> int:
    """The default LoRA rank for a model size.

    16 below 50 M parameters, chosen on the bundled model (benchmarks/README.md); else 64, which the
    paper uses for 3.8 B parameters (section D).
    """
    return 16 if parameters < SMALL_MODEL else 64


def parameters_of(folder: Path) -> int | None:
    """The number of parameters in a folder's *.safetensors headers, read without torch.

    None if it cannot be known: no such files, damaged ones, or quantised weights that pack several
    parameters into one number.
    """
    try:
        if "quantization_config" in json.loads((folder / "config.json").read_bytes()):
            return None
        return sum(map(_numbers_in, folder.glob("model*.safetensors"))) or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None


def _numbers_in(file: Path) -> int:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return sum(math.prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")


def rank_here(model: str, folder: Path | None) -> int:
    """The rank of `for_model`, without loading torch if the model's files are in `folder`."""
    parameters = None if folder is None else parameters_of(folder)
    return for_model(model).rank if parameters is None else rank_of(parameters)


def for_model(model: str) -> TrainerConfig:
    """The default configuration for a base model, without loading its weights.

    Raises:
        BaseModelError: the model cannot be found or read, or has no known target projections.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model)
        with torch.device("meta"):
            blank = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    # A library may raise anything on damaged files; `--debug` shows the cause in its traceback.
    except Exception as problem:
        raise BaseModelError(f"cannot load the model {model!r}: {first_line(problem)}") from problem
    names = {name.rpartition(".")[2] for name, _ in blank.named_modules()}
    for known in (LLAMA_TARGETS, GPT2_TARGETS):
        targets = tuple(target for target in known if target in names)
        if targets:
            break
    else:
        raise BaseModelError(
            f"the model {model!r} has none of the projections that Mayfly can adapt "
            f"({', '.join(LLAMA_TARGETS + GPT2_TARGETS)}): its modules are {sorted(names)}"
        )
    rank = rank_of(sum(parameter.numel() for parameter in blank.parameters()))
    return TrainerConfig(model, rank=rank, targets=targets)
