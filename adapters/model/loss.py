"""Cross-entropy of hidden states through a frozen output layer, without materialising all logits.

Works on a block of tokens at a time: logits, loss, and at once the gradient with respect to the
hidden states, which is all that backward needs while the output layer is frozen. Memory grows with
the block, not with the batch, also for a vocabulary of 128,000.

Shapes: N tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.nn import functional

# Bytes of logits in memory at once. The output layer is read once per block of tokens.
_BLOCK_BYTES = 1 << 25
# Logits that element-wise operations pass over at once, which stay in a processor's cache.
_CACHED_LOGITS = 1 << 18
# Entries of the vocabulary that one float32 matrix product sums over.
_BLOCK_VOCABULARY = 1 << 14


def cross_entropy(
    hidden_NH: torch.Tensor,
    output_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    tokens_N: torch.Tensor,
    counts: Sequence[int] | None = None,
) -> torch.Tensor:
    """Negative log-likelihood of each token, in nats [N], float32.

    Args:
        hidden_NH: hidden states that predict the tokens.
        output_VH: weight of the output layer.
        bias_V: bias of the output layer, if any.
        tokens_N: tokens to score.
        counts: number of tokens of each row of a batch, in order; None for one row. No block spans
            two rows: rounding depends on a block's size, and must not depend on the batch's other
            rows.
    """
    block = max(_BLOCK_BYTES // (len(output_VH) * output_VH.element_size()), 16)
    sizes = [
        min(block, count - done)
        for count in counts or [len(tokens_N)]
        for done in range(0, count, block)
    ]
    losses_N: torch.Tensor = _CrossEntropy.apply(hidden_NH, output_VH, bias_V, tokens_N, sizes)  # type: ignore[no-untyped-call]
    return losses_N


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        output_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        tokens_N: torch.Tensor,
        sizes: Sequence[int],
    ) -> torch.Tensor:
        learning = hidden_NH.requires_grad
        gradients_NH = torch.empty_like(hidden_NH) if learning else None
        losses_N = torch.empty(len(hidden_NH), device=hidden_NH.device)
        for end, size in zip(accumulate(sizes), sizes, strict=True):
            block = slice(end - size, end)
            logits_NV = functional.linear(hidden_NH[block], output_VH, bias_V)
            losses_N[block] = _losses(logits_NV, tokens_N[block], learning)
            if gradients_NH is not None:
                _product(logits_NV, output_VH, out=gradients_NH[block])
        ctx.gradients_NH = gradients_NH
        return losses_N

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (
            ctx.gradients_NH * gradients[0][:, None].to(ctx.gradients_NH.dtype),
            None,
            None,
            None,
            None,
        )


def _losses(logits_NV: torch.Tensor, tokens_N: torch.Tensor, learning: bool) -> torch.Tensor:
    """Losses [N], and in place of the logits, if `learning`, the losses' gradients."""
    losses_N = torch.empty(len(tokens_N), device=tokens_N.device)
    rows = max(len(tokens_N), 1)
    if logits_NV.device.type == "cpu":
        rows = max(_CACHED_LOGITS // logits_NV.shape[1], 1)
    wholes = (logits_NV, tokens_N, losses_N)
    for part_NV, part_N, found_N in zip(*(torch.split(t, rows) for t in wholes), strict=True):
        expected_N1 = part_N[:, None]
        shares_NV = part_NV.float()
        largest_N1 = shares_NV.amax(1, keepdim=True)
        chosen_N1 = shares_NV.gather(1, expected_N1) - largest_N1
        # In place also where `float` has made no copy.
        total_N1 = shares_NV.sub_(largest_N1).exp_().sum(1, keepdim=True)
        found_N.copy_((total_N1.log() - chosen_N1)[:, 0])
        if learning:
            shares_NV.div_(total_N1).scatter_add_(1, expected_N1, torch.full_like(total_N1, -1.0))
            part_NV.copy_(shares_NV)
    return losses_N


def _product(shares_NV: torch.Tensor, output_VH: torch.Tensor, out: torch.Tensor) -> None:
    """Write shares @ output into `out`, precise for a vocabulary of any size.

    Some CPU matrix libraries add terms one after the other: over hundreds of thousands of tokens a
    float32 sum would lose three digits. Partial sums avoid that. Sums of bfloat16 terms are float32
    inside the product, and lose more where partial sums are rounded.
    """
    if shares_NV.dtype != torch.float32:
        torch.mm(shares_NV, output_VH, out=out)
        return
    torch.mm(shares_NV[:, :_BLOCK_VOCABULARY], output_VH[:_BLOCK_VOCABULARY], out=out)
    for first in range(_BLOCK_VOCABULARY, len(output_VH), _BLOCK_VOCABULARY):
        part = slice(first, first + _BLOCK_VOCABULARY)
        out += torch.mm(shares_NV[:, part], output_VH[part])
