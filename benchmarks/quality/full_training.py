"""Full fine-tuning: all weights of the base model are trained, instead of a LoRA adapter.

A setting of the quality benchmark. A plain loop of transformers and Adam, one sequence per step, in
float32, from the same base weights each time.
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
    """The result of a training.

    Attributes:
        nats: nats of the scored tokens, by steps taken before.
        losses: loss before each step.
        seconds: seconds until the end of each step.
    """

    nats: dict[int, float]
    losses: tuple[float, ...]
    seconds: tuple[float, ...]


class FullTraining:
    """A base model that is trained, and reset before each training."""

    def __init__(self, model: str) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._base = {
            name: parameter.detach().clone() for name, parameter in self._model.named_parameters()
        }

    def train(
        self,
        sequences: Sequence[Sequence[int]],
        learning_rate: float,
        tokens: Sequence[int],
        start: int,
        scored_steps: Collection[int],
    ) -> Trained:
        """Take one Adam step on each sequence.

        Args:
            sequences: training data.
            learning_rate: Adam learning rate.
            tokens: passage to score.
            start: index of the first scored token.
            scored_steps: numbers of steps after which the passage is scored.
        """
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(self._base[name])
        adam = torch.optim.Adam(self._model.parameters(), lr=learning_rate)
        nats: dict[int, float] = {}
        losses: list[float] = []
        seconds: list[float] = []
        elapsed = 0.0
        for step, sequence in enumerate(sequences, 1):
            started = time.perf_counter()
            loss = self._loss(sequence, 1)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            losses.append(float(loss.detach()))
            elapsed += time.perf_counter() - started
            seconds.append(elapsed)
            if step in scored_steps:
                with torch.no_grad():
                    nats[step] = float(self._loss(tokens, start)) * (len(tokens) - start)
        return Trained(nats, tuple(losses), tuple(seconds))

    def _loss(self, tokens: Sequence[int], start: int) -> torch.Tensor:
        ids = torch.tensor([list(tokens)])
        logits = self._model(ids).logits[0, start - 1 : -1]
        return functional.cross_entropy(logits, ids[0, start:])
