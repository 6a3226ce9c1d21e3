"""Rotary positions on a CPU, for models that give vLLM the heads as a dimension of their own.

vLLM 0.32's kernel for CPUs computes the number of heads from the last dimension. It takes a tensor
of (tokens, heads, head size), as LFM2 passes, for one with a single head, and the model's tokens
are wrong, with and without an adapter.
"""

from __future__ import annotations

from typing import Any

import torch


def flatten_heads(rotary: Any) -> None:
    """Make a class pass its kernel tensors of (tokens, heads * head size).

    Args:
        rotary: vLLM's `RotaryEmbedding`.
    """
    if hasattr(rotary, "flattens_heads"):
        return
    vllm_forward = rotary.forward_cpu

    def forward_cpu(
        self: Any, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        flat_query, flat_key = vllm_forward(
            self, positions, _flat(query), None if key is None else _flat(key)
        )
        return flat_query.view(query.shape), None if key is None else flat_key.view(key.shape)

    rotary.flattens_heads, rotary.forward_cpu = True, forward_cpu


def _flat(heads: torch.Tensor) -> torch.Tensor:
    return heads.flatten(1) if heads.dim() == 3 else heads
