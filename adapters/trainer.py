"""Trainer: token sequences in, a LoRA adapter out, never later than asked.

The base model is loaded once and stays; LoRA layers are reset in place for each adapter. One Adam step per
sequence, in the order given (paper section 2: a single gradient step on each selected sequence), constant
learning rate, no weight decay, moments that start at zero with the adapter. Seeded: the same sequences and
seed give the same adapter. One adapter at a time: the caller locks. The trainer knows nothing of prompts,
corpora or HTTP.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional

from adapters.adapter import Adapter
from adapters.lora import LoraLayers

LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SMALL_MODEL = 50_000_000  # parameters


@dataclass(frozen=True)
class TrainerConfig:
    """How adapters are trained.

    Attributes:
        model: hub id or folder of the base model; safetensors only.
        rank: of the LoRA.
        scale_numerator: LoRA's alpha.
        learning_rate: of Adam; None takes 3e-3 for models under 50 M parameters (chosen on the bundled one,
            benchmarks/README.md) and the paper's 5e-4 above.
        targets: names of the projections that are adapted.
        device: "cpu", "cuda", or "auto".
    """

    model: str
    rank: int = 16
    scale_numerator: float = 16.0
    learning_rate: float | None = None
    targets: tuple[str, ...] = LLAMA_TARGETS
    device: str = "auto"


@dataclass(frozen=True)
class Training:
    """What became of one training.

    Attributes:
        adapter: None when not one step was taken, or when the adapter itself gives losses that are not finite.
        losses: mean nats a token of each step taken, before that step.
        stop: "steps" (every sequence was used), "seconds", "diverged", "out of memory" or "cancelled".
        seconds: wall-clock.
    """

    adapter: Adapter | None
    losses: tuple[float, ...]
    stop: str
    seconds: float


class Trainer:
    """A resident base model that trains one adapter after another."""

    def __init__(self, config: TrainerConfig) -> None:
        from transformers import AutoModelForCausalLM

        self.config = config
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        on_gpu = device != "cpu"
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                config.model,
                use_safetensors=True,
                dtype=torch.bfloat16 if on_gpu else torch.float32,
                attn_implementation="sdpa" if on_gpu else "eager",
            )
        except (OSError, ValueError, SafetensorError) as problem:
            raise ValueError(f"cannot load the base model {config.model!r}: {problem}") from problem
        self.model = model.to(device).eval()
        self.device = device
        self._vocabulary = int(model.config.vocab_size)
        self.context = int(getattr(self.model.config, "max_position_embeddings", 2048))
        small = sum(p.numel() for p in self.model.parameters()) < SMALL_MODEL
        default_rate = 3e-3 if small else 5e-4
        self.learning_rate = default_rate if config.learning_rate is None else config.learning_rate
        self._layers = LoraLayers(self.model, config.rank, config.scale_numerator, config.targets)
        self._seconds_per_token = 0.0
        self._warm_up()

    def train(
        self,
        sequences: Sequence[Sequence[int]],
        *,
        seed: int = 0,
        seconds: float = math.inf,
        cancelled: threading.Event | None = None,
        on_step: Callable[[int, float], None] | None = None,
    ) -> Training:
        """One Adam step per sequence, in order, on a fresh adapter.

        Args:
            sequences: token ids, at least two each and no more than the model's context.
            seed: of the adapter's first weights.
            seconds: no step is begun that would end later than this, by the step time measured so far.
            cancelled: read before every step; what is trained until then is dropped.
            on_step: called after each step with the number of steps taken and that step's loss.

        Raises:
            ValueError: a sequence of fewer than two tokens, longer than the context, or with tokens the model lacks.
        """
        for sequence in sequences:
            if not 2 <= len(sequence) <= self.context:
                raise ValueError(f"a training sequence has {len(sequence)} tokens; it needs 2 to {self.context}")
            if not 0 <= min(sequence) <= max(sequence) < self._vocabulary:
                raise ValueError("a training sequence has tokens that the model does not know: another tokenizer's?")
        started = time.perf_counter()
        self._layers.reset(seed)
        parameters = self._layers.parameters()
        adam = torch.optim.Adam(parameters, lr=self.learning_rate, eps=1e-8, fused=True)
        losses: list[float] = []
        stop = "steps"
        try:
            for sequence in sequences:
                begun = time.perf_counter()
                if cancelled is not None and cancelled.is_set():
                    stop = "cancelled"
                    break
                if begun - started + self._seconds_per_token * len(sequence) > seconds:
                    stop = "seconds"
                    break
                loss = self._gradients(sequence)
                if loss is None:
                    stop = "diverged"
                    break
                adam.step()
                adam.zero_grad()
                losses.append(loss)
                self._seconds_per_token = (time.perf_counter() - begun) / len(sequence)
                if on_step is not None:
                    on_step(len(losses), loss)
        except torch.OutOfMemoryError:
            stop = "out of memory"
        finally:
            adam.zero_grad()  # whatever happened, the next adapter starts without this one's gradients
        # An adapter that makes no finite loss of what it has just learned would fail in its answer too.
        if losses and stop != "cancelled" and not math.isfinite(self.nats(sequences[len(losses) - 1], 1)):
            losses, stop = [], "diverged"
        adapter = self._adapter(tuple(losses)) if losses and stop != "cancelled" else None
        return Training(adapter, tuple(losses), stop, time.perf_counter() - started)

    @torch.no_grad()
    def nats(self, tokens: Sequence[int], start: int) -> float:
        """Negative log-likelihood, in nats, of tokens[start:] given those before, under the adapter last trained."""
        ids_1S = torch.tensor([list(tokens)], device=self.device)
        logits_SV = self.model(ids_1S).logits[0, start - 1 : -1].float()
        return float(functional.cross_entropy(logits_SV, ids_1S[0, start:], reduction="sum"))

    def reset(self) -> None:
        """Back to the base model: a fresh adapter changes nothing."""
        self._layers.reset(0)

    def _gradients(self, sequence: Sequence[int]) -> float | None:
        """Mean loss of a sequence, its gradients left in the parameters; None if either is not finite."""
        ids_1S = torch.tensor([list(sequence)], device=self.device)
        logits_SV = self.model(ids_1S, use_cache=False).logits[0, :-1].float()
        loss = functional.cross_entropy(logits_SV, ids_1S[0, 1:])
        value = loss.item()
        if not math.isfinite(value):
            return None
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self._layers.parameters() if p.grad is not None]
        return value if bool(torch.isfinite(nn.utils.get_total_norm(gradients))) else None

    def _adapter(self, losses: tuple[float, ...]) -> Adapter:
        return Adapter(
            name=f"mayfly-{uuid.uuid4().hex}",
            base_model=self.config.model,
            rank=self.config.rank,
            scale_numerator=self.config.scale_numerator,
            targets=self.config.targets,
            weights=self._layers.export(),
            losses=losses,
        )

    def _warm_up(self) -> None:
        """Take a few steps on arbitrary tokens, so that the first request finds a measured step time."""
        length = min(256, self.context)
        self.train([[(7 * i + 3) % self._vocabulary for i in range(length)]] * 3)
        self.reset()
