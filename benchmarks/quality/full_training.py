"""Full fine-tuning: all weights of the base model learn, in the place of a LoRA adapter. An axis of
quality.

A plain loop, alone, in float32: transformers and Adam, a step a sequence, from the same base
weights each time.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class Trained:
    """Nats of the scored tokens by steps taken before, the loss before each step, seconds until
    each step's end.
    """

    nats: dict[int, float]
    losses: tuple[float, ...]
    seconds: tuple[float, ...]


class FullTraining:
    """A base model that learns and is set back."""

    def __init__(self, model: str) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._base = {name: each.detach().clone() for name, each in self._model.named_parameters()}

    def train(
        self,
        sequences: Sequence[Sequence[int]],
        learning_rate: float,
        scored: Sequence[int],
        start: int,
        at: Collection[int],
    ) -> Trained:
        """One step of Adam for each sequence; tokens[start:] of what is scored, after the steps in
        `at`.
        """
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(self._base[name])
        adam = torch.optim.Adam(self._model.parameters(), lr=learning_rate)
        nats: dict[int, float] = {}
        losses: list[float] = []
        seconds: list[float] = []
        spent = 0.0
        for step, sequence in enumerate(sequences, 1):
            begun = time.perf_counter()
            loss = self._loss(sequence, 1)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            losses.append(float(loss.detach()))
            spent += time.perf_counter() - begun
            seconds.append(spent)
            if step in at:
                with torch.no_grad():
                    nats[step] = float(self._loss(scored, start)) * (len(scored) - start)
        return Trained(nats, tuple(losses), tuple(seconds))

    def _loss(self, tokens: Sequence[int], start: int) -> torch.Tensor:
        ids = torch.tensor([list(tokens)])
        logits = self._model(ids).logits[0, start - 1 : -1]
        return functional.cross_entropy(logits, ids[0, start:])
