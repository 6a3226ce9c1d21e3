"""Default LoRA settings and target projections of a base model, by its size and architecture."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.config import TrainerConfig
from adapters.errors import BaseModelError, first_line


@dataclass(frozen=True)
class SizeDefaults:
    """The settings that depend on a model's size.

    Attributes:
        rank, scale, learning_rate: of `TrainerConfig`.
        corpus_rates: multiples of the learning rate that are tried on a corpus, the highest first.
        start_rate: multiple of the learning rate at which requests train on from the adapter of a
            corpus.
    """

    rank: int
    scale: float
    learning_rate: float
    corpus_rates: tuple[float, float]
    start_rate: float


# With the number of parameters from which each no longer applies.
_BY_SIZE = (
    # Chosen on the bundled model (benchmarks/README.md).
    (50e6, SizeDefaults(16, 16.0, 6e-4, (1.0, 0.5), start_rate=1 / 3)),
    # Compared on SmolLM2-135M with the settings above and below
    # (benchmarks/results/real-model-settings.json).
    (1e9, SizeDefaults(16, 4.0, 6e-4, (0.5, 0.25), start_rate=1 / 10)),
    # The paper's, for 3.8 B parameters (section D); what is of a corpus is not measured.
    (math.inf, SizeDefaults(64, 1.0, 5e-4, (0.5, 0.25), start_rate=1 / 10)),
)

# Factor on what the adapter of a corpus adds to the base model: the best of seven on the bundled
# model and on SmolLM2-135M (benchmarks/results/corpus-scaling.json).
CORPUS_SCALING = 0.7

# The largest header of a safetensors file that its library reads, in bytes.
_MAX_HEADER = 100_000_000


def defaults_of(parameters: float) -> SizeDefaults:
    """The default settings for a model size."""
    return next(defaults for below, defaults in _BY_SIZE if parameters < below)


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
    tensors = json.loads(weights_header(file))
    return sum(math.prod(entry["shape"]) for key, entry in tensors.items() if key != "__metadata__")


def weights_header(file: Path) -> bytes:
    """The table of tensors in a safetensors file, as JSON, read without torch.

    Raises:
        OSError, ValueError, struct.error: it cannot be read.
    """
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > _MAX_HEADER:
            raise ValueError(f"the header of {file.name} is damaged")
        return stream.read(length)


def rank_here(model: str, folder: Path | None) -> int:
    """The rank of `for_model`, without loading torch if the model's files are in `folder`."""
    parameters = None if folder is None else parameters_of(folder)
    return for_model(model).rank if parameters is None else defaults_of(parameters).rank


def for_model(model: str, targets: Sequence[str] | None = None) -> TrainerConfig:
    """The default configuration for a base model, without loading its weights.

    Args:
        model: hub id or folder of the base model.
        targets: names of the projections to adapt; None for all those of the decoder layers.

    Raises:
        BaseModelError: the model cannot be found or read, has weights in its decoder layers that
            cannot be adapted, or has no projection with one of the names.
    """
    from adapters.model.projections import decoder_projections

    blank = _without_weights(model)
    try:
        found = decoder_projections(blank, all_weights=targets is None)
    except BaseModelError as problem:
        raise BaseModelError(f"cannot adapt the model {model!r}: {problem}") from problem
    names = list(dict.fromkeys(name.rpartition(".")[2] for name in found))
    if unknown := [target for target in targets or () if target not in names]:
        raise BaseModelError(
            f"the model {model!r} has no projections named {', '.join(unknown)}: its projections "
            f"are {', '.join(names)}"
        )
    size = defaults_of(sum(parameter.numel() for parameter in blank.parameters()))
    return TrainerConfig(model, rank=size.rank, targets=tuple(targets or names))


def projection_shapes(model: str, targets: Sequence[str]) -> list[tuple[str, int, int]]:
    """Full name, outputs and inputs of each projection that a trainer with these targets adapts.

    Raises:
        BaseModelError: the model cannot be found or read.
    """
    from adapters.model.projections import is_projection, shape_of

    return [
        (name, *shape_of(module))
        for name, module in _without_weights(model).named_modules()
        if name.rpartition(".")[2] in targets and is_projection(module)
    ]


def _without_weights(model: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    # A library may raise anything on damaged files; `--debug` shows the cause in its traceback.
    except Exception as problem:
        raise BaseModelError(f"cannot load the model {model!r}: {first_line(problem)}") from problem
