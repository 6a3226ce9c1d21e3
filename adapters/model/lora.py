"""LoRA slots on a resident base model: many adapters side by side, each reset in place and exported
as bytes.

A slot holds one adapter. All its A and B matrices lie in one row of one buffer, in the order of the
exported safetensors file, so that resetting, a step of Adam and exporting are each one pass over
one row. Every row of a batch is bound to a slot; A and B of the bound slots are applied by batched
matrix products, and backward writes each row's gradients into a buffer of the same layout instead
of through autograd. Initialisation, scaling and names are PEFT's (tested against it). Supports
linear projections and GPT-2's transposed ones. It does not depend on losses or requests.

Shapes: C slots, P parameters of an adapter, M rows of a batch, S tokens of a row, R rank, I inputs
and O outputs of a projection.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import nn
from torch.nn import functional
from torch.optim.adam import adam

from adapters.errors import BaseModelError, TrainingOptionError
from adapters.model.projections import is_projection, shape_of, tensor_names


class LoraProjection(nn.Module):
    """A frozen projection plus, for each row of a batch, the low-rank update of its adapter."""

    def __init__(self, base: nn.Module, rank: int, scale: float, start: int, middle: int) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        weight: Any = base.weight
        self.weight_OI = weight if isinstance(base, nn.Linear) else weight.T
        outputs, inputs = self.weight_OI.shape
        self.shapes = ((start, rank, inputs), (middle, outputs, rank))
        # A, B, their gradients, and the anchor that makes autograd run backward here.
        self.bound: tuple[torch.Tensor, ...] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """W x + bias of x [M, S, I], plus scale * B A x of each row's adapter if rows are bound."""
        if self.bound is None:
            projected: torch.Tensor = self.base(x)
            return projected
        rows = self.bound[0].shape[0]
        bias: Any = self.base.bias
        y_MSO: torch.Tensor = _Projection.apply(  # type: ignore[no-untyped-call]
            x.reshape(rows, -1, x.shape[-1]), self.weight_OI, bias, self.scale, *self.bound
        )
        return y_MSO.view(*x.shape[:-1], -1)


class _Projection(torch.autograd.Function):
    """y = W x + bias + scale * B A x.

    Backward writes the gradients of A and B into the buffers given to `forward`, not to autograd.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_MSI: torch.Tensor,
        weight_OI: torch.Tensor,
        bias: torch.Tensor | None,
        scale: float,
        a_MRI: torch.Tensor,
        b_MOR: torch.Tensor,
        da_MRI: torch.Tensor,
        db_MOR: torch.Tensor,
        anchor: torch.Tensor,
    ) -> torch.Tensor:
        y_MSO = functional.linear(x_MSI, weight_OI, bias)
        inner_MSR = torch.bmm(x_MSI, a_MRI.mT)
        ctx.save_for_backward(x_MSI, inner_MSR)
        ctx.frozen = weight_OI, scale, a_MRI, b_MOR, da_MRI, db_MOR
        return torch.baddbmm(y_MSO, inner_MSR, b_MOR.mT, alpha=scale, out=y_MSO)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (dy_MSO,) = gradients
        x_MSI, inner_MSR = ctx.saved_tensors
        weight_OI, scale, a_MRI, b_MOR, da_MRI, db_MOR = ctx.frozen
        dinner_MSR = torch.bmm(dy_MSO, b_MOR).mul_(scale)
        torch.mul(torch.bmm(dy_MSO.mT, inner_MSR), scale, out=db_MOR)
        da_MRI.copy_(torch.bmm(dinner_MSR.mT, x_MSI))
        dx_MSI = None
        if ctx.needs_input_grad[0]:
            dx_MSI = torch.matmul(dy_MSO, weight_OI)
            torch.baddbmm(dx_MSI, dinner_MSR, a_MRI, out=dx_MSI)
        return dx_MSI, *(None,) * 8


class LoraBank:
    """The LoRA slots of one model: weights, a snapshot of weights, Adam moments and step counts.

    Args:
        model: the model; its target projections are replaced in place.
        rank: LoRA rank.
        scale: factor of B A (LoRA alpha / rank).
        targets: names of the adapted projections, such as "q_proj".
        slots: number of slots.

    Raises:
        BaseModelError: no module of the model has one of these names, or one that has it is not a
            linear projection.
    """

    def __init__(
        self, model: nn.Module, rank: int, scale: float, targets: Sequence[str], slots: int = 1
    ) -> None:
        model.requires_grad_(False)
        found = {
            name: module
            for name, module in model.named_modules()
            if name.rpartition(".")[2] in targets
        }
        names = {name.rpartition(".")[2] for name in found}
        others = {
            name.rpartition(".")[2] for name, each in found.items() if not is_projection(each)
        }
        unusable = sorted({*targets} - names | others)
        if unusable or not found:
            raise BaseModelError(
                f"the model has no linear projections named {', '.join(unusable)}: set the "
                "LoRA targets"
            )
        self._header, offsets = _layout(found, rank)
        self.layers: dict[str, LoraProjection] = {}
        for name, module in found.items():
            layer = LoraProjection(
                module, rank, scale, *(offsets[key] for key in tensor_names(name))
            )
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer)
            self.layers[name] = layer
        first = next(iter(found.values())).weight
        # Adapters are computed in the base model's type; their weights and moments are float32.
        self.dtype, device = first.dtype, first.device
        self.size = sum(a * b for layer in self.layers.values() for _, a, b in layer.shapes)
        self._steps_C = torch.zeros(slots, device=device)
        self.release()
        # An input that needs a gradient, so that autograd runs backward through a projection.
        self._anchor = torch.zeros((), device=device, requires_grad=True)

    def release(self) -> None:
        """Return the memory of all slots to the system; what they hold is lost.

        A slot takes memory again when it is written to.
        """
        # A buffer that is not filled occupies no memory on a CPU until it is written to.
        buffers = [
            torch.empty(len(self._steps_C), self.size, device=self._steps_C.device)
            for _ in range(4)
        ]
        self.weights_CP, self._first_CP, self._second_CP, self._snapshot_CP = buffers
        self._gradients_MP = self.weights_CP.new_zeros(0, self.size)

    @torch.no_grad()
    def reset(self, slot: int, seed: int) -> None:
        """Put a fresh adapter into a slot, initialised as in PEFT.

        A is uniform (Kaiming, a = sqrt 5), B is zero. The same seed gives the same adapter.
        """
        generator = torch.Generator().manual_seed(seed)
        fresh_P = torch.zeros(self.size)
        for layer in self.layers.values():
            (start, rank, inputs), _ = layer.shapes
            bound = math.sqrt(1.0 / inputs)
            fresh_P[start : start + rank * inputs].uniform_(-bound, bound, generator=generator)
        self.weights_CP[slot].copy_(fresh_P)
        for state in (self._first_CP, self._second_CP, self._steps_C):
            state[slot].zero_()

    @contextmanager
    def bind(self, slots: Sequence[int]) -> Iterator[torch.Tensor]:
        """Within the `with` block, row m of every batch has the adapter of slots[m].

        Yields:
            The buffer of gradients [M, P] that backward fills.
        """
        rows = len(slots)
        if len(self._gradients_MP) < rows:
            self._gradients_MP = self.weights_CP.new_zeros(rows, self.size)
        gradients_MP = self._gradients_MP[:rows]
        # Consecutive slots need no copy.
        is_consecutive = list(slots) == list(range(slots[0], slots[0] + rows))
        weights_MP = (
            self.weights_CP[slots[0] : slots[0] + rows]
            if is_consecutive
            else self.weights_CP[list(slots)]
        )
        weights_MP = weights_MP.to(self.dtype)
        for layer in self.layers.values():
            parts = [
                buffer[:, start : start + a * b].view(rows, a, b)
                for buffer in (weights_MP, gradients_MP)
                for start, a, b in layer.shapes
            ]
            layer.bound = (*parts, self._anchor)
        try:
            yield gradients_MP
        finally:
            for layer in self.layers.values():
                layer.bound = None

    def step(self, slot: int, gradient_P: torch.Tensor, learning_rate: float) -> None:
        """Take one step of Adam (eps 1e-8, no weight decay) with the slot's own moments."""
        adam(
            [self.weights_CP[slot]],
            [gradient_P],
            [self._first_CP[slot]],
            [self._second_CP[slot]],
            [],
            [self._steps_C[slot]],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def snapshot(self, slot: int) -> None:
        """Copy the slot's weights, in place of the slot's earlier snapshot."""
        self._snapshot_CP[slot].copy_(self.weights_CP[slot])

    def restore(self, slot: int) -> None:
        """Put the snapshot of the slot's weights back; its moments stay as they are."""
        self.weights_CP[slot].copy_(self._snapshot_CP[slot])

    def average(self, slot: int, steps: int) -> None:
        """Move the slot's snapshot towards its weights, as the running average of `steps` steps;
        of fewer at the beginning.
        """
        taken = int(self._steps_C[slot])
        self._snapshot_CP[slot].lerp_(self.weights_CP[slot], 1 / min(steps, taken))

    def state(self, slot: int) -> tuple[torch.Tensor, ...]:
        """A copy of everything in a slot, for `set_state` on any slot."""
        return tuple(buffer[slot].clone() for buffer in self._buffers())

    def set_state(self, slot: int, state: tuple[torch.Tensor, ...]) -> None:
        """Overwrite a slot with the `state` of another."""
        for buffer, value in zip(self._buffers(), state, strict=True):
            buffer[slot] = value

    def _buffers(self) -> tuple[torch.Tensor, ...]:
        return self.weights_CP, self._first_CP, self._second_CP, self._snapshot_CP, self._steps_C

    def export(self, slot: int, *, averaged: bool = False) -> bytes:
        """The adapter, or its snapshot as an average, as a safetensors file with PEFT's keys,
        float32.
        """
        weights_CP = self._snapshot_CP if averaged else self.weights_CP
        return b"".join((self._header, weights_CP[slot].cpu().numpy().data))

    def export_moments(self, slot: int, *, averaged: bool = False) -> tuple[bytes, int]:
        """Adam's first and second moments and, beside an average, the last weights: [2 or 3, P],
        float32; and Adam's number of steps.
        """
        rows = [self._first_CP, self._second_CP, *([self.weights_CP] if averaged else [])]
        moments_RP = torch.stack([each[slot] for each in rows])
        return moments_RP.cpu().numpy().tobytes(), int(self._steps_C[slot])

    def check(self, weights: bytes, moments: bytes | None = None) -> None:
        """Validate weights for `load`, and moments for `load_moments`; cheap, and safe to call from
        any thread.

        Raises:
            TrainingOptionError: they were exported with another model, rank or targets.
        """
        length = len(self._header)
        if (
            weights[:length] != self._header
            or len(weights) != length + 4 * self.size
            or (moments is not None and len(moments) not in (8 * self.size, 12 * self.size))
        ):
            raise TrainingOptionError(
                "the adapter does not fit: it was trained with another model, rank or LoRA targets"
            )

    def load(self, slot: int, weights: bytes) -> None:
        """Put an exported adapter into a slot; its moments start at zero.

        Raises:
            TrainingOptionError: the weights were exported with another model, rank or targets.
        """
        self.check(weights)
        self.weights_CP[slot].copy_(_floats(weights[len(self._header) :]))
        for state in (self._first_CP, self._second_CP, self._steps_C):
            state[slot].zero_()

    def load_moments(self, slot: int, moments: bytes, steps: int) -> None:
        """Put exported moments, which `check` accepts, into a slot. With the last weights among
        them, those that are there become the snapshot.
        """
        first_P, second_P, *last = _floats(moments).view(-1, self.size)
        self._first_CP[slot].copy_(first_P)
        self._second_CP[slot].copy_(second_P)
        self._steps_C[slot] = steps
        for last_P in last:
            self.snapshot(slot)
            self.weights_CP[slot].copy_(last_P)


def _floats(numbers: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(numbers), dtype=torch.float32)


def _layout(found: dict[str, nn.Module], rank: int) -> tuple[bytes, dict[str, int]]:
    """The header of an adapter's safetensors file, and the offset of each tensor in float32s."""
    blank: dict[str, torch.Tensor] = {}
    for name, module in found.items():
        outputs, inputs = shape_of(module)
        blank |= dict(
            zip(
                tensor_names(name),
                (torch.zeros(rank, inputs), torch.zeros(outputs, rank)),
                strict=True,
            )
        )
    file = to_safetensors(blank, metadata={"format": "pt"})
    length = 8 + int.from_bytes(file[:8], "little")
    table = json.loads(file[8:length])
    return file[:length], {key: table[key]["data_offsets"][0] // 4 for key in blank}
