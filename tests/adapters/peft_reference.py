"""The reference that Mayfly must equal: transformers, PEFT and torch.optim.Adam, one request at a
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as from_safetensors

from adapters.model.lora import LoraBank
from adapters.model.row import Row
from adapters.trainer import LLAMA_TARGETS

RANK, NUMERATOR = 4, 8.0
GPT2_TARGETS = ("c_attn", "c_proj", "c_fc")
TARGETS = {"llama": LLAMA_TARGETS, "qwen": LLAMA_TARGETS, "gpt2": GPT2_TARGETS}


@dataclass(frozen=True)
class Base:
    """A tiny base model and its LoRA targets."""

    kind: str
    folder: str

    @property
    def targets(self) -> tuple[str, ...]:
        return TARGETS[self.kind]


def load(folder: str) -> Any:
    """The base model, as transformers loads it."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def first_weights(base: Base, seed: int, targets: tuple[str, ...] = ()) -> bytes:
    """The initial weights of an adapter with this seed."""
    bank = LoraBank(load(base.folder), RANK, NUMERATOR / RANK, targets or base.targets)
    bank.reset(0, seed)
    return bank.export(0)


class PeftReference:
    """PEFT's LoRA on a model of its own, with given initial weights."""

    def __init__(
        self, base: Base, first: bytes, learning_rate: float = 5e-3, targets: tuple[str, ...] = ()
    ) -> None:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=RANK,
            lora_alpha=int(NUMERATOR),
            target_modules=list(targets or base.targets),
            task_type="CAUSAL_LM",
            fan_in_fan_out=base.kind == "gpt2",
        )
        self.model = get_peft_model(load(base.folder), config)
        self.learning: dict[str, Any] = {
            name.replace(".default.", "."): parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        weights = from_safetensors(first)
        assert weights.keys() == self.learning.keys()
        with torch.no_grad():
            for name, parameter in self.learning.items():
                parameter.copy_(weights[name])
        self._adam = torch.optim.Adam(self.learning.values(), lr=learning_rate)
        self.losses: list[float] = []

    def gradients(self, *rows: Sequence[int] | Row) -> tuple[list[torch.Tensor], float]:
        """Gradients of the mean loss of these sequences, and that loss."""
        self._adam.zero_grad()
        losses = [self._loss(row if isinstance(row, Row) else Row.of(row)) for row in rows]
        loss = torch.stack(losses).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return [parameter.grad.clone() for parameter in self.learning.values()], loss.item()

    def _loss(self, row: Row) -> torch.Tensor:
        """The mean loss of the scored tokens: transformers ignores labels of -100."""
        ids, labels = torch.tensor([row.tokens]), torch.full((1, len(row)), -100)
        for start, end in row.scored:
            labels[:, start:end] = ids[:, start:end]
        loss: torch.Tensor = self.model(ids, labels=labels).loss
        return loss

    def step(self, gradients: Sequence[torch.Tensor], loss: float) -> None:
        """One step of Adam with these gradients."""
        for parameter, gradient in zip(self.learning.values(), gradients, strict=True):
            parameter.grad = gradient.clone()
        self._adam.step()
        self.losses.append(loss)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The adapter's weights, by PEFT's keys."""
        return {name: parameter.detach() for name, parameter in self.learning.items()}


def assert_close(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], relative: float = 1e-4
) -> None:
    """Check that two adapters are equal but for rounding.

    Each tensor alone is held to ten times as much: where a gradient is next to nothing, Adam makes
    a whole step of what is mostly its rounding, and such a number weighs more in a small tensor.
    """
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (tensor - other[name]).norm() <= 10 * relative * other[name].norm(), name
    flat, expected = (
        torch.cat([weights[name].flatten() for name in sorted(one)]) for weights in (one, other)
    )
    assert (flat - expected).norm() <= relative * expected.norm()
