"""LoRA layers on a resident base model: attached once, reset in place for every adapter, exported as bytes.

PEFT's own `get_peft_model` and `save_pretrained` take about a second a request; resetting resident tensors
takes milliseconds. Initialisation, scaling and names are PEFT's (tested against it). Only `nn.Linear`
projections; one adapter at a time.

Shapes: R rank, I inputs and O outputs of a projection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from safetensors.torch import save as to_safetensors
from torch import nn
from torch.nn import functional


class LoraLinear(nn.Module):
    """A frozen projection plus the low-rank update of one adapter, in float32 as PEFT keeps it."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        device = base.weight.device
        self.a_RI = nn.Parameter(torch.zeros(rank, base.in_features, device=device))
        self.b_OR = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base projection of x plus scale * B A x."""
        update = functional.linear(functional.linear(x.to(self.a_RI.dtype), self.a_RI), self.b_OR)
        projected: torch.Tensor = self.base(x)
        return projected + (update * self.scale).to(x.dtype)


class LoraLayers:
    """All LoRA layers of one model.

    Raises:
        ValueError: the model has no linear projection of any of these names.
    """

    def __init__(self, model: nn.Module, rank: int, scale_numerator: float, targets: Sequence[str]) -> None:
        model.requires_grad_(False)
        self.layers: dict[str, LoraLinear] = {}
        for name, module in list(model.named_modules()):
            if name.rpartition(".")[2] in targets and isinstance(module, nn.Linear):
                layer = LoraLinear(module, rank, scale_numerator / rank)
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, layer)
                self.layers[name] = layer
        if not self.layers:
            raise ValueError(f"the model has no linear projections named {', '.join(targets)}: set the LoRA targets")

    def parameters(self) -> list[nn.Parameter]:
        """A and B of every layer, in a fixed order."""
        return [tensor for layer in self.layers.values() for tensor in (layer.a_RI, layer.b_OR)]

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """A fresh adapter, as PEFT starts one: A uniform (Kaiming, a = sqrt 5), B zero; the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers.values():
            bound = math.sqrt(1.0 / layer.a_RI.shape[1])
            fresh = torch.empty(layer.a_RI.shape).uniform_(-bound, bound, generator=generator)
            layer.a_RI.copy_(fresh)
            layer.b_OR.zero_()

    def export(self) -> bytes:
        """The adapter as a safetensors file with PEFT's keys, float32."""
        tensors = {}
        for name, layer in self.layers.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = layer.a_RI.detach().contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = layer.b_OR.detach().contiguous()
        return to_safetensors(tensors, metadata={"format": "pt"})
