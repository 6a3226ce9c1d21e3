"""The LoRA products of one of vLLM's layers on a CPU, planned once for each batch.

vLLM computes the products of each slice of a layer (q, k and v of a fused projection) by itself and
looks up the slot of each token again. Here a batch is divided once into runs of tokens with the
same slot. A long run, as of a prompt, is a pair of matrix products with the A and B of its slot;
all other tokens, as those that are decoded, are one call of the kernel in
`serving.engine.plugins.cpu_lora_kernel` for the whole layer. Tokens without a slot are not touched.
This module does not import vLLM.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

# Tokens from which matrix products are faster than the kernel, which reads A and B for each token.
_LONG_RUN = 16


@dataclass(frozen=True)
class BatchPlan:
    """Which tokens of a batch have which slot.

    Attributes:
        tokens: number of tokens.
        runs: (slot, first token, last token + 1) of each long run.
        slots: slot of each other token, -1 for none; None where there is no such token.
    """

    tokens: int
    runs: tuple[tuple[int, int, int], ...]
    slots: npt.NDArray[np.int64] | None

    @classmethod
    def of(cls, slots: Sequence[int]) -> BatchPlan:
        """The plan for the slot of each token, -1 for none."""
        slots_N, runs, start = np.array(slots, np.int64), [], 0
        for slot, group in itertools.groupby(slots):
            end = start + sum(1 for _ in group)
            if slot >= 0 and end - start >= _LONG_RUN:
                runs.append((slot, start, end))
                slots_N[start:end] = -1
            start = end
        return cls(len(slots), tuple(runs), slots_N if (slots_N >= 0).any() else None)

    @property
    def is_idle(self) -> bool:
        """Whether no token has a slot."""
        return not self.runs and self.slots is None


class LayerProducts:
    """Adds the LoRA products of one layer to its output."""

    def __init__(
        self, a_stacked: Sequence[torch.Tensor], b_stacked: Sequence[torch.Tensor]
    ) -> None:
        """Create the products with vLLM's weights of all slots.

        Args:
            a_stacked: A of each slice, (slots, 1, rank, input width).
            b_stacked: B of each slice, (slots, 1, slice width, rank), laid out by `transposed`.
        """
        # Not with the plugin: when vLLM's worker begins, `vllm.triton_utils.dispatcher` looks at
        # all loaded modules, and fails at one of llvmlite, which numba imports.
        from serving.engine.plugins.cpu_lora_kernel import MARKERS, compiled

        self._a, self._b = tuple(a_stacked), tuple(b_stacked)
        self._dtype = self._a[0].dtype
        self._rank, self._in_width = self._a[0].shape[2:]
        self._widths = [b.shape[2] for b in self._b]
        self._out_width = sum(self._widths)
        self._kernel, self._marker = compiled(self._dtype.itemsize), MARKERS[self._dtype.itemsize]
        # The kernel gets addresses: `self` keeps the tensors that they belong to.
        self._slices_S3 = np.array(
            [
                (a.data_ptr(), b.data_ptr(), width)
                for a, b, width in zip(self._a, self._b, self._widths, strict=True)
            ],
            np.int64,
        )

    @staticmethod
    def supports(
        a_stacked: Any, b_stacked: Any, output_slices: Sequence[int], out_width: int
    ) -> bool:
        """Whether a layer's weights have the form that `__init__` describes.

        Args:
            a_stacked, b_stacked: as of `__init__`, before `transposed`.
            output_slices: width of each slice of the layer's output.
            out_width: width of the layer's output.
        """
        if not (isinstance(a_stacked, tuple) and isinstance(b_stacked, tuple)):
            return False
        a_shapes, b_shapes = ([each.shape for each in stack] for stack in (a_stacked, b_stacked))
        dtypes = {each.dtype for each in (*a_stacked, *b_stacked)}
        return (
            len(a_shapes) == len(b_shapes) == len(output_slices) > 0
            and dtypes in ({torch.float32}, {torch.bfloat16})
            and all(len(shape) == 4 and shape == a_shapes[0] for shape in a_shapes)
            and all(each.is_contiguous() for each in a_stacked)
            and all(
                shape == (a_shapes[0][0], 1, width, a_shapes[0][2])
                for shape, width in zip(b_shapes, output_slices, strict=True)
            )
            and sum(output_slices) == out_width
        )

    @staticmethod
    def transposed(b: torch.Tensor) -> torch.Tensor:
        """A copy of B of all slots, of the same shape, with the numbers of a column side by side.

        So the product with one token adds whole rows of memory.
        """
        return b.transpose(2, 3).contiguous().transpose(2, 3)

    def fits(self, x: torch.Tensor, output: torch.Tensor, plan: BatchPlan) -> bool:
        """Whether `add` can be called with these arguments."""
        return (
            x.dtype is self._dtype
            and output.dtype is self._dtype
            and x.shape == (plan.tokens, self._in_width)
            and output.shape == (plan.tokens, self._out_width)
            and x.stride(1) == output.stride(1) == 1
        )

    def add(self, x: torch.Tensor, output: torch.Tensor, plan: BatchPlan) -> None:
        """output += x A^T B^T, in place, with the A and B of each token's slot.

        Args:
            x: (tokens, input width).
            output: (tokens, widths of all slices together).
            plan: the plan of the batch.
        """
        for slot, start, end in plan.runs:
            rows, columns = x[start:end], torch.split(output[start:end], self._widths, dim=1)
            for a, b, part in zip(self._a, self._b, columns, strict=True):
                part.addmm_(rows @ a[slot, 0].T, b[slot, 0].T)
        if plan.slots is not None:
            self._kernel(
                x.data_ptr(),
                x.stride(0),
                output.data_ptr(),
                output.stride(0),
                self._in_width,
                self._rank,
                plan.slots,
                self._slices_S3,
                self._marker,
            )
