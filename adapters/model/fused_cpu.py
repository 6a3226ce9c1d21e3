"""Fused CPU modules for Llama-like models: attention, gated MLP and norm.

On a CPU a small model's training spends more time moving data between operations than in matrix
products. These modules need fewer passes over memory, each with a backward of its own: rotary
positions and scaling are applied while heads are laid out, masks are added in place, grouped
queries share keys without copies, and later tokens are skipped block by block. The caller of `fuse`
compares losses and gradients before and after, and calls `restore` if they differ
(`adapters.model.base_model` does). Not for a GPU: `scaled_dot_product_attention` is faster there.

Shapes: M rows of a batch, S tokens, H hidden size, D head size, A attention heads, K heads of keys
and values.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# Bytes of a column of scores in a block of attention: 64 queries in float32, 128 in bfloat16. In
# smaller blocks the products get slow.
_BLOCK_BYTES = 256
_ATTENTIONS = ("LlamaAttention", "MistralAttention", "Qwen2Attention")
_silu_backward = torch.ops.aten.silu_backward
_softmax_backward = torch.ops.aten._softmax_backward_data


def fuse(model: nn.Module) -> int:
    """Replace the forward of the model's attentions, MLPs and norms.

    Returns:
        The number of replaced modules.
    """
    modules = {
        module: fused for module in model.modules() if (fused := _fused_forward(module)) is not None
    }
    for module, fused in modules.items():
        module.forward = types.MethodType(fused, module)
    return len(modules)


def restore(model: nn.Module) -> None:
    """Undo `fuse`: modules have their class's own forward again."""
    for module in model.modules():
        if _fused_forward(module) is not None:
            module.__dict__.pop("forward", None)


def _fused_forward(module: nn.Module) -> Callable[..., Any] | None:
    name = type(module).__name__
    if name in _ATTENTIONS:
        return _attention
    if name.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        return _norm
    if all(hasattr(module, part) for part in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return _mlp if "silu" in type(module.act_fn).__name__.lower() else None
    return None


def _norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    normed: torch.Tensor = _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
    return normed


def _mlp(self: Any, x: torch.Tensor) -> torch.Tensor:
    down: torch.Tensor = self.down_proj(_GatedSilu.apply(self.gate_proj(x), self.up_proj(x)))  # type: ignore[no-untyped-call]
    return down


def _attention(
    self: Any,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    window = getattr(
        self if hasattr(self, "sliding_window") else self.config, "sliding_window", None
    )
    if window is not None and hidden_states.shape[1] > window:
        original: tuple[torch.Tensor, torch.Tensor | None] = type(self).forward(
            self, hidden_states, position_embeddings=position_embeddings, **others
        )
        return original
    cos, sin = position_embeddings
    projected = (
        projection(hidden_states) for projection in (self.q_proj, self.k_proj, self.v_proj)
    )
    mixed = _CausalAttention.apply(*projected, cos[:1], sin[:1], self.head_dim, self.scaling)  # type: ignore[no-untyped-call]
    output: torch.Tensor = self.o_proj(mixed)
    return output, None


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_MSH: torch.Tensor, weight_H: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        size = x_MSH.shape[-1]
        length_MS1 = torch.linalg.vector_norm(x_MSH, dim=-1, keepdim=True, dtype=torch.float32)
        scale_MS1 = length_MS1.square_().div_(size).add_(epsilon).rsqrt_().to(x_MSH.dtype)
        ctx.save_for_backward(x_MSH, scale_MS1, weight_H)
        normed_MSH: torch.Tensor = (x_MSH * scale_MS1).mul_(weight_H)
        return normed_MSH

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_MSH, scale_MS1, weight_H = ctx.saved_tensors
        inner_MSH = gradients[0] * weight_H
        along_MS1 = torch.linalg.vecdot(inner_MSH, x_MSH)[..., None]
        along_MS1.mul_(scale_MS1.square()).div_(-x_MSH.shape[-1])
        return inner_MSH.addcmul_(x_MSH, along_MS1).mul_(scale_MS1), None, None


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_MSI: torch.Tensor, up_MSI: torch.Tensor) -> torch.Tensor:
        active_MSI = nn.functional.silu(gate_MSI)
        ctx.save_for_backward(gate_MSI, up_MSI, active_MSI)
        return active_MSI * up_MSI

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate_MSI, up_MSI, active_MSI = ctx.saved_tensors
        return _silu_backward(gradients[0] * up_MSI, gate_MSI), gradients[0] * active_MSI


class _CausalAttention(torch.autograd.Function):
    """The model's own rotary positions and causal attention over all heads, without dropout.

    Queries are taken in blocks, each with the keys up to its last token: scores that the mask would
    remove are neither computed nor saved.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_MSQ: torch.Tensor,
        key_MSE: torch.Tensor,
        value_MSE: torch.Tensor,
        cos_1SD: torch.Tensor,
        sin_1SD: torch.Tensor,
        size: int,
        scaling: float,
    ) -> torch.Tensor:
        rows, length, _ = query_MSQ.shape
        heads, shared = query_MSQ.shape[-1] // size, key_MSE.shape[-1] // size
        query = _rotate(
            query_MSQ.view(rows, length, heads, size), cos_1SD * scaling, sin_1SD * scaling
        )
        key = _rotate(key_MSE.view(rows, length, shared, size), cos_1SD, sin_1SD).flatten(0, 1)
        value = value_MSE.view(rows, length, shared, size).transpose(1, 2).contiguous()
        value = value.flatten(0, 1)
        mixed = query_MSQ.new_empty(rows, length, heads, size)
        saved = []
        for start, end in _blocks(length, query.dtype):
            # Query heads that share a key head are concatenated along tokens: [M K, A / K S, D].
            part = query[:, :, start:end].reshape(rows * shared, -1, size)
            scores = torch.bmm(part, key[:, :end].mT)
            own = scores.view(-1, end - start, end)[..., start:]
            own.add_(_mask(end - start, scores.dtype))
            weights = torch.softmax(scores, -1)
            out = torch.bmm(weights, value[:, :end]).view(rows, heads, -1, size)
            mixed[:, start:end] = out.transpose(1, 2)
            saved += [part, weights]
        ctx.save_for_backward(key, value, cos_1SD, sin_1SD, *saved)
        ctx.shape, ctx.scaling = (rows, length, heads, shared, size), scaling
        return mixed.flatten(2)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        key, value, cos_1SD, sin_1SD, *saved = ctx.saved_tensors
        rows, length, heads, shared, size = ctx.shape
        dmixed = gradients[0].view(rows, length, heads, size).transpose(1, 2)
        dquery = dmixed.new_empty(rows, heads, length, size)
        dkey, dvalue = torch.empty_like(key), torch.empty_like(value)
        parts = list(zip(_blocks(length, key.dtype), saved[::2], saved[1::2], strict=True))
        # The last block comes first: it is the only one that has all keys.
        for (start, end), query, weights in reversed(parts):
            dpart = dmixed[:, :, start:end].reshape(rows * shared, -1, size)
            dweights = torch.bmm(dpart, value[:, :end].mT)
            dscores = _softmax_backward(dweights, weights, -1, weights.dtype)
            dquery[:, :, start:end] = torch.bmm(dscores, key[:, :end]).view(rows, heads, -1, size)
            for total, product in (
                (dkey[:, :end], torch.bmm(dscores.mT, query)),
                (dvalue[:, :end], torch.bmm(weights.mT, dpart)),
            ):
                if end == length:
                    total.copy_(product)
                else:
                    total.add_(product)
        dkey, dvalue = (total.view(rows, shared, length, size) for total in (dkey, dvalue))
        return (
            _rotate_backward(dquery, cos_1SD * ctx.scaling, sin_1SD * ctx.scaling).flatten(2),
            _rotate_backward(dkey, cos_1SD, sin_1SD).flatten(2),
            dvalue.transpose(1, 2).flatten(2),
            *(None,) * 4,
        )


def _blocks(length: int, dtype: torch.dtype) -> list[tuple[int, int]]:
    """Start and end of each block of queries."""
    size = _BLOCK_BYTES // dtype.itemsize
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _rotate(x_MSAD: torch.Tensor, cos_1SD: torch.Tensor, sin_1SD: torch.Tensor) -> torch.Tensor:
    """Apply rotary positions and put heads before tokens: [M, S, A, D] -> [M, A, S, D]."""
    rows, length, heads, size = x_MSAD.shape
    rotated = x_MSAD.new_empty(rows, heads, length, size)
    (first, second), (new_first, new_second) = (
        x_MSAD.transpose(1, 2).chunk(2, -1),
        rotated.chunk(2, -1),
    )
    (cos_first, cos_second), (sin_first, sin_second) = (
        cos_1SD[:, None].chunk(2, -1),
        sin_1SD[:, None].chunk(2, -1),
    )
    torch.mul(first, cos_first, out=new_first).addcmul_(second, sin_first, value=-1)
    torch.mul(second, cos_second, out=new_second).addcmul_(first, sin_second)
    return rotated


def _rotate_backward(
    d_MASD: torch.Tensor, cos_1SD: torch.Tensor, sin_1SD: torch.Tensor
) -> torch.Tensor:
    """Gradient of `_rotate`: [M, A, S, D] -> [M, S, A, D]."""
    rows, heads, length, size = d_MASD.shape
    gradient = d_MASD.new_empty(rows, length, heads, size)
    (first, second), (new_first, new_second) = (
        d_MASD.chunk(2, -1),
        gradient.transpose(1, 2).chunk(2, -1),
    )
    (cos_first, cos_second), (sin_first, sin_second) = (
        cos_1SD[:, None].chunk(2, -1),
        sin_1SD[:, None].chunk(2, -1),
    )
    torch.mul(first, cos_first, out=new_first).addcmul_(second, sin_second)
    torch.mul(second, cos_second, out=new_second).addcmul_(first, sin_first, value=-1)
    return gradient


@functools.lru_cache(maxsize=8)
def _mask(length: int, dtype: torch.dtype) -> torch.Tensor:
    """Causal mask [S, S] to add to scores: 0 up to a token's own position, -inf beyond."""
    return torch.full((length, length), -torch.inf, dtype=dtype).triu_(1)
