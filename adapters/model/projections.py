"""Finds what LoRA adapts: the linear projections of a model's decoder layers.

It looks at modules, not at names, so it finds the projections of every architecture, also of one
without weights on torch's device "meta". A decoder layer with a matrix that is not such a
projection is an error: an adapter without it would be smaller than the user expects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from adapters.errors import BaseModelError

# Largest number of module names in a message.
_MAX_NAMES = 8


def is_projection(module: nn.Module) -> bool:
    """Whether a module is a linear layer, or GPT-2's transposed one, that LoRA can be added to.

    A subclass that computes something else, such as a quantised layer, is not one.
    """
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def shape_of(projection: nn.Module) -> tuple[int, int]:
    """Numbers of outputs and inputs of a projection."""
    weight: Any = projection.weight
    first, second = weight.shape
    return (first, second) if isinstance(projection, nn.Linear) else (second, first)


def decoder_projections(model: Any, *, all_weights: bool = True) -> dict[str, nn.Module]:
    """All projections of the decoder layers of one of transformers' causal language models.

    Args:
        model: the model, which may be on the device "meta".
        all_weights: whether matrices that are not projections are an error.

    Returns:
        The modules by their full names, such as "model.layers.0.self_attn.q_proj".

    Raises:
        BaseModelError: the model is a mixture of experts or part of a multimodal model, its decoder
            layers are not found, or they have matrices that are not projections.
    """
    check_text_only(model.config)
    start, layers = _decoder_layers(model)
    found: dict[str, nn.Module] = {}
    experts, others = [], []
    for name, module in layers.named_modules(prefix=start):
        if "expert" in f"{name.rpartition('.')[2]} {type(module).__name__}".lower():
            experts.append(name)
        elif is_projection(module):
            found[name] = module
        elif not _is_depthwise(module):
            others += [
                f"{name}.{own}"
                for own, parameter in module.named_parameters(recurse=False)
                if parameter.dim() > 1
            ]
    if experts:
        raise BaseModelError(
            f"mixture-of-experts models are not supported: {list_names(experts)}; use a dense model"
        )
    if (others and all_weights) or not found:
        raise BaseModelError(
            "its decoder layers have weights that Mayfly cannot adapt: "
            f"{list_names(others) or 'no linear projections'}; use another model, or name the "
            "LoRA targets"
        )
    return found


def tensor_names(name: str) -> tuple[str, str]:
    """PEFT's names of the tensors A and B of a projection."""
    return f"base_model.model.{name}.lora_A.weight", f"base_model.model.{name}.lora_B.weight"


def check_text_only(config: Any) -> None:
    """Check that a configuration is of a language model alone.

    Raises:
        BaseModelError: it is of a multimodal model.
    """
    text = config.get_text_config(decoder=True)
    if text is not config:
        raise BaseModelError(
            f"multimodal models are not supported: {config.model_type}; use a model of text alone"
        )


def list_names(names: Iterable[str]) -> str:
    """Module names for a message, those of all layers as one."""
    distinct = list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names))
    more = f" and {len(distinct) - _MAX_NAMES} more" if len(distinct) > _MAX_NAMES else ""
    return ", ".join(distinct[:_MAX_NAMES]) + more


def _decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The list of a model's decoder layers, and its name."""
    count = model.config.num_hidden_layers
    inside = set(model.get_decoder().modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and module in inside:
            return name, module
    raise BaseModelError(
        f"Mayfly does not find its {count} decoder layers: {type(model).__name__} has no list of "
        "that length; use another model"
    )


def _is_depthwise(module: nn.Module) -> bool:
    """Whether it is a convolution of each channel by itself, which is not a projection."""
    return isinstance(module, nn.Conv1d) and module.groups == module.in_channels
