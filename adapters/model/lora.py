"""LoRA slots on a resident base model: many adapters side by side, each reset in place and exported
as bytes.

A slot is one adapter: all its A and B lie in one row of one buffer, in the order of the safetensors
file that is exported, so that resetting, learning and exporting are each one pass over one row. The
rows of a batch name their slots; A and B of those slots are applied by batched matrix products, and
backward writes each row's gradients into a buffer of the same layout, past autograd's own
bookkeeping. Initialisation, scaling and names are PEFT's (tested against it). Linear projections,
and GPT-2's transposed ones; it knows no losses and no requests.

Shapes: C slots, P numbers of an adapter, M rows of a batch, S tokens of a row, R rank, I inputs and
O outputs of a projection.
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


class LoraProjection(nn.Module):
    """A frozen projection, plus the low-rank updates of the adapters that the rows of a batch are
    bound to.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, start: int, middle: int) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        weight: Any = base.weight
        self.weight_OI = weight if isinstance(base, nn.Linear) else weight.T
        outputs, inputs = self.weight_OI.shape
        self.shapes = ((start, rank, inputs), (middle, outputs, rank))
        # A, B, their gradients, and the anchor of backward.
        self.bound: tuple[torch.Tensor, ...] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base projection of x [M, S, I], plus scale * B A x of each row's own adapter where
        rows are bound.
        """
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
    """y = W x + bias + scale * B A x. Gradients of A and B go where `bind` says, not through
    autograd.
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
    """The LoRA slots of one model: weights, Adam's moments and step counts of each, and room to
    keep weights apart.

    Raises:
        ValueError: the model has no linear projection of any of these names.
    """

    def __init__(
        self, model: nn.Module, rank: int, scale: float, targets: Sequence[str], slots: int = 1
    ) -> None:
        model.requires_grad_(False)
        found = {
            name: module
            for name, module in model.named_modules()
            if name.rpartition(".")[2] in targets
            and (isinstance(module, nn.Linear) or _is_transposed(module))
        }
        if not found:
            raise BaseModelError(
                f"the model has no linear projections named {', '.join(targets)}: set the LoRA targets"
            )
        self._header, offsets = _layout(found, rank)
        self.layers: dict[str, LoraProjection] = {}
        for name, module in found.items():
            layer = LoraProjection(module, rank, scale, *(offsets[key] for key in _keys(name)))
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer)
            self.layers[name] = layer
        first = next(iter(found.values())).weight
        # Of what is computed; what is learnt is float32.
        self.dtype, device = first.dtype, first.device
        self.size = sum(a * b for layer in self.layers.values() for _, a, b in layer.shapes)
        self.weights_CP = torch.zeros(slots, self.size, device=device)
        self._first_CP, self._second_CP = (
            torch.zeros_like(self.weights_CP),
            torch.zeros_like(self.weights_CP),
        )
        self._kept_CP = torch.zeros_like(self.weights_CP)
        self._steps_C = torch.zeros(slots, device=device)
        self._gradients_MP = torch.zeros(0, self.size, device=device)
        # What makes autograd come to a projection.
        self._anchor = torch.zeros((), device=device, requires_grad=True)

    @torch.no_grad()
    def reset(self, slot: int, seed: int) -> None:
        """A fresh adapter, as PEFT starts one: A uniform (Kaiming, a = sqrt 5), B zero; the same
        for the same seed.
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
        """Within it, row m of every batch has the adapter of slots[m]; gives the rows' gradients
        [M, P] of backward.
        """
        rows = len(slots)
        if len(self._gradients_MP) < rows:
            self._gradients_MP = self.weights_CP.new_zeros(rows, self.size)
        gradients_MP = self._gradients_MP[:rows]
        in_a_row = list(slots) == list(range(slots[0], slots[0] + rows))  # then a view will do
        weights_MP = (
            self.weights_CP[slots[0] : slots[0] + rows]
            if in_a_row
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

    def learn(self, slot: int, gradient_P: torch.Tensor, learning_rate: float) -> None:
        """One step of Adam: the slot's own moments, eps 1e-8, no weight decay."""
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

    def keep(self, slot: int) -> None:
        """Set the slot's weights apart as they are now, in the place of what was kept before."""
        self._kept_CP[slot].copy_(self.weights_CP[slot])

    def restore(self, slot: int) -> None:
        """Put the weights that were kept back into the slot; its moments stay those of the later
        steps.
        """
        self.weights_CP[slot].copy_(self._kept_CP[slot])

    def take(self, slot: int) -> tuple[torch.Tensor, ...]:
        """All that a slot holds, to `put` it back into any slot later."""
        return tuple(state[slot].clone() for state in self._states())

    def put(self, slot: int, taken: tuple[torch.Tensor, ...]) -> None:
        """Go on in this slot with what was taken from another."""
        for state, part in zip(self._states(), taken, strict=True):
            state[slot] = part

    def _states(self) -> tuple[torch.Tensor, ...]:
        return self.weights_CP, self._first_CP, self._second_CP, self._kept_CP, self._steps_C

    def export(self, slot: int) -> bytes:
        """The adapter as a safetensors file with PEFT's keys, float32."""
        return b"".join((self._header, self.weights_CP[slot].cpu().numpy().data))

    def check(self, weights: bytes) -> None:
        """Refuse what `load` cannot take; cheap, from any thread.

        Raises:
            ValueError: it was not exported from such a bank.
        """
        length = len(self._header)
        if weights[:length] != self._header or len(weights) != length + 4 * self.size:
            raise TrainingOptionError("the adapter is of another model, rank or choice of targets")

    def load(self, slot: int, weights: bytes) -> None:
        """Put an exported adapter into a slot; its moments start at zero.

        Raises:
            ValueError: it was not exported from such a bank.
        """
        self.check(weights)
        self.reset(slot, 0)
        numbers = bytearray(weights[len(self._header) :])
        self.weights_CP[slot].copy_(torch.frombuffer(numbers, dtype=torch.float32))


def _is_transposed(module: nn.Module) -> bool:
    """GPT-2's Conv1D, a linear projection that keeps its weight as [inputs, outputs]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _keys(name: str) -> tuple[str, str]:
    return f"base_model.model.{name}.lora_A.weight", f"base_model.model.{name}.lora_B.weight"


def _layout(found: dict[str, nn.Module], rank: int) -> tuple[bytes, dict[str, int]]:
    """The header of the safetensors file of an adapter, and where each tensor starts behind it, in
    numbers.
    """
    blank: dict[str, torch.Tensor] = {}
    for name, module in found.items():
        weight: Any = module.weight
        outputs, inputs = weight.shape if isinstance(module, nn.Linear) else weight.T.shape
        blank |= dict(
            zip(_keys(name), (torch.zeros(rank, inputs), torch.zeros(outputs, rank)), strict=True)
        )
    file = to_safetensors(blank, metadata={"format": "pt"})
    length = 8 + int.from_bytes(file[:8], "little")
    table = json.loads(file[8:length])
    return file[:length], {key: table[key]["data_offsets"][0] // 4 for key in blank}
