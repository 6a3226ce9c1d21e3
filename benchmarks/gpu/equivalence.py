"""Equivalence: adapters of the trainer against those of a PEFT loop on the same device.

Both start from the same weights and take the same steps of Adam. In float32 they differ by rounding
alone. In bfloat16 the trainer computes the adapter in bfloat16, PEFT in float32: there both are
compared with the float32 loop, and the trainer may be at most MAX_RATIO as far from it as PEFT is.
A request that trains beside others is compared with the same request alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load as from_safetensors

from adapters import Trainer, TrainerConfig, TrainingRequest
from adapters.model.lora import LoraBank
from benchmarks.gpu.main import Measured
from benchmarks.training.peft_loop import (
    SMOLLM2,
    SUBJECTS,
    Sequences,
    device,
    draw_sequences,
    folder_of,
    load_base,
    lora_config,
    train_plainly,
)

MAX_RATIO = 2.0
# Relative differences in float32, of losses and of what was learnt. Where a gradient is next to
# nothing, Adam makes a whole step of its rounding.
MAX_LOSS_DIFFERENCE, MAX_LEARNT_DIFFERENCE = 1e-4, 0.1
# Relative difference of losses in bfloat16.
MAX_LOSS_DIFFERENCE_BFLOAT16 = 2e-2
_LEARNING_RATE, _COMPANY = 1e-3, 4

# Weights by name, and the loss of each step.
Learnt = tuple[dict[str, torch.Tensor], list[float]]


def measure(budget: str) -> Measured:
    """Differences by model and precision."""
    small = budget == "small"
    for subject in SUBJECTS[:1] if small else (SUBJECTS[0], SMOLLM2):
        steps, tokens = (3, 48) if small else (10, subject.tokens)
        with folder_of(subject) as folder:
            yield from _compare(subject.name, folder, steps, tokens)


def _compare(name: str, folder: str, steps: int, tokens: int) -> Measured:
    config = TrainerConfig(folder, scale=1.0, learning_rate=_LEARNING_RATE, slots=_COMPANY)
    base = load_base(folder, torch.float32)
    vocabulary = int(base.config.vocab_size)
    bank = LoraBank(base, config.rank, 1.0, config.targets)
    bank.reset(0, 0)
    first = bank.export(0)
    del base, bank
    sequences = draw_sequences(steps, tokens, vocabulary)
    loops = {
        precision: _plainly(folder, config, first, sequences, precision)
        for precision in (torch.float32, torch.bfloat16)
    }
    exact, rounded = loops[torch.float32], loops[torch.bfloat16]
    start = from_safetensors(first)
    for precision, loop in (("float32", exact), ("bfloat16", rounded)):
        trainer = Trainer(
            TrainerConfig(
                folder,
                scale=1.0,
                learning_rate=_LEARNING_RATE,
                device=device(),
                precision=precision,
                slots=_COMPANY,
            )
        )
        alone = _train(trainer, sequences, 1)
        beside = _train(trainer, sequences, _COMPANY)
        found: dict[str, Any] = {
            "steps": steps,
            "tokens": tokens,
            "loss_difference": _loss_difference(alone[1], loop[1]),
            "learnt_difference": _difference(alone[0], loop[0], start),
            "learnt_difference_beside_others": _difference(beside[0], alone[0], start),
        }
        if precision == "float32":
            holds = (
                found["loss_difference"] <= MAX_LOSS_DIFFERENCE
                and found["learnt_difference"] <= MAX_LEARNT_DIFFERENCE
            )
        else:
            found["from_float32"] = _difference(alone[0], exact[0], start)
            found["peft_from_float32"] = _difference(rounded[0], exact[0], start)
            holds = (
                found["loss_difference"] <= MAX_LOSS_DIFFERENCE_BFLOAT16
                and found["from_float32"] <= MAX_RATIO * found["peft_from_float32"]
            )
        yield f"{name}, {precision}", {**found, "holds": holds}
        del trainer


def _plainly(
    folder: str, config: TrainerConfig, first: bytes, sequences: Sequences, dtype: torch.dtype
) -> Learnt:
    """Train with PEFT, from given first weights."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    model: Any = get_peft_model(load_base(folder, dtype), lora_config(config))
    set_peft_model_state_dict(model, from_safetensors(first))
    losses = train_plainly(model, sequences, _LEARNING_RATE)
    weights = get_peft_model_state_dict(model)
    return {name: value.detach().float().cpu() for name, value in weights.items()}, [
        float(loss) for loss in losses
    ]


def _train(trainer: Trainer, sequences: Sequences, requests: int) -> Learnt:
    """The adapter of the first of several requests that train at once, and its losses."""
    pending = [trainer.submit(TrainingRequest(sequences, seed=seed)) for seed in range(requests)]
    results = [training.result() for training in pending]
    adapter = results[0].adapter
    assert adapter is not None, results[0].stop
    return from_safetensors(adapter.weights), list(results[0].losses)


def _loss_difference(losses: Sequence[float], expected: Sequence[float]) -> float:
    """Largest relative difference."""
    return max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))


def _difference(
    weights: dict[str, torch.Tensor],
    expected: dict[str, torch.Tensor],
    start: dict[str, torch.Tensor],
) -> float:
    """Norm of the difference of two adapters, relative to what the second has learnt."""
    apart, learnt = (
        torch.cat([(one[name] - other[name]).flatten() for name in sorted(start)]).norm()
        for one, other in ((weights, expected), (expected, start))
    )
    return float(apart / learnt)
