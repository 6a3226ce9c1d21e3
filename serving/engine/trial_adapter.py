"""The adapter that shows at an engine's start that vLLM can load the trainer's adapters.

It has all projections that the trainer adapts, at rank 1, and is zero. vLLM rejects it if it has no
module for one of them (`serving.engine.plugins.strict_lora`), as it would reject the adapter of the
first request.
"""

from __future__ import annotations

from uuid import uuid4

import torch
from safetensors.torch import save

from adapters.adapter import Adapter
from adapters.model.projections import tensor_names
from adapters.model_defaults import projection_shapes
from serving.engine.config import EngineConfig


def trial_adapter(config: EngineConfig) -> Adapter:
    """An adapter without effect for every projection that adapters may change.

    Raises:
        BaseModelError: the model's configuration cannot be read, or it has none of the projections.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, outputs, inputs in projection_shapes(config.model, config.targets):
        down, up = tensor_names(name)
        tensors |= {down: torch.zeros(1, inputs), up: torch.zeros(outputs, 1)}
    return Adapter(
        name=f"trial-{uuid4().hex}",
        base_model=config.model,
        rank=1,
        scale_numerator=1.0,
        targets=config.targets,
        weights=save(tensors),
        losses=(),
    )
