"""How adapters of a base model are trained where nobody says otherwise: by its size and its parts."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from adapters.config import LLAMA_TARGETS, SMALL_MODEL, TrainerConfig
from adapters.errors import BaseModelError, first_line

GPT2_TARGETS = ("c_attn", "c_proj", "c_fc")


def rank_of(parameters: float) -> int:
    """Below 50 M parameters 16, as was chosen on the bundled model (benchmarks/README.md); above it
    64, the paper's for 3.8 B (section D).
    """
    return 16 if parameters < SMALL_MODEL else 64


def parameters_of(folder: Path) -> int | None:
    """How many parameters a folder's weights have, by the headers of its *.safetensors, without
    torch.

    None where those cannot tell: there are none, they are damaged, or several numbers are packed
    into one.
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
    """The rank of `for_model`, without torch where the model's files are in a folder here."""
    parameters = None if folder is None else parameters_of(folder)
    return for_model(model).rank if parameters is None else rank_of(parameters)


def for_model(model: str) -> TrainerConfig:
    """Rank and adapted projections for a base model, without loading its weights.

    Raises:
        BaseModelError: there is no such model, or it has none of the projections that are known.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model)
        with torch.device("meta"):
            blank = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    # Whatever a library makes of somebody's files: the cause is in the traceback that `--debug`
    # shows.
    except Exception as problem:
        raise BaseModelError(f"cannot load the model {model!r}: {first_line(problem)}") from problem
    names = {name.rpartition(".")[2] for name, _ in blank.named_modules()}
    for known in (LLAMA_TARGETS, GPT2_TARGETS):
        targets = tuple(target for target in known if target in names)
        if targets:
            break
    else:
        raise BaseModelError(
            f"the model {model!r} has no projections that Mayfly knows how to adapt: {sorted(names)}"
        )
    rank = rank_of(sum(parameter.numel() for parameter in blank.parameters()))
    return TrainerConfig(model, rank=rank, targets=targets)
