"""Trainers of tiny models, and how tests hold, watch and trouble them."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from safetensors.torch import load as from_safetensors

from adapters.scheduler import Job
from adapters.trainer import Trainer, TrainerConfig
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
from tests.adapters.plain import NUMERATOR, RANK, assert_close

SEQUENCES = [[(11 * i + 5 * j) % 97 for j in range(12 + i)] for i in range(6)]
POISON = 99  # in no sequence above
SOON = 20.0  # seconds that nothing here takes, even on a busy machine


def trainer_of(folder: str, **options: Any) -> Trainer:
    """A trainer of a tiny model, exact; quick to learn unless it is told how to."""
    options = {"learning_rate": 3e-3} | options
    return Trainer(
        TrainerConfig(folder, rank=RANK, scale=NUMERATOR / RANK, precision="float32", **options)
    )


@contextmanager
def held(trainer: Trainer) -> Iterator[None]:
    """Within it the trainer's thread is kept from its next step, so that all who come meanwhile
    begin together.
    """
    begun, go = threading.Event(), threading.Event()

    def wait(_: TrainingProgress) -> None:
        begun.set()
        assert go.wait(SOON)

    gate = trainer.submit(TrainingRequest([SEQUENCES[0]]), on_step=wait)
    assert begun.wait(SOON)
    try:
        yield
    finally:
        go.set()
        gate.result(SOON)


@contextmanager
def rows_of_steps(trainer: Trainer) -> Iterator[list[int]]:
    """How many rows each step within it computed."""
    rows: list[int] = []

    def note(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            rows.append(len(arguments[0]))

    hook = trainer.base.model.base_model.register_forward_pre_hook(note)
    try:
        yield rows
    finally:
        hook.remove()


@contextmanager
def trouble(trainer: Trainer, problem: Any) -> Iterator[None]:
    """Within it, whatever computes something with the poisonous token meets this problem, called
    with a tensor.
    """

    def meet(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...], output: Any) -> None:
        if (arguments[0] == POISON).any():
            problem(output.last_hidden_state)

    hook = trainer.base.model.base_model.register_forward_hook(meet)
    try:
        yield
    finally:
        hook.remove()


def others(count: int, steps: int = 6) -> list[list[list[int]]]:
    """Other requests' sequences, of lengths that go well together."""
    return [
        [[(3 * k + 7 * i + j * j) % 97 for j in range(12 + i + k % 4)] for i in range(steps)]
        for k in range(count)
    ]


def weights_of(training: TrainingResult) -> dict[str, torch.Tensor]:
    assert training.adapter is not None
    weights: dict[str, torch.Tensor] = from_safetensors(training.adapter.weights)
    return weights


def assert_same(one: TrainingResult, other: TrainingResult) -> None:
    """They are one training, but for rounding."""
    assert (one.stop, one.used) == (other.stop, other.used)
    assert one.losses == pytest.approx(other.losses, rel=1e-5)
    assert_close(weights_of(one), weights_of(other))


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mayfly-trainer"]


def count_jobs() -> int:
    """How many requests something still holds."""
    gc.collect()
    return sum(type(thing) is Job for thing in gc.get_objects())


def assert_all_is_left(trainer: Trainer) -> None:
    """Nobody trains any more, and every slot can be had."""
    for thread in threads():
        thread.join(SOON)
    assert not threads()
    with rows_of_steps(trainer) as rows:
        with held(trainer):
            last = [
                trainer.submit(TrainingRequest([SEQUENCES[0]] * 2))
                for _ in range(trainer.config.slots)
            ]
        for future in last:
            assert future.result(SOON).stop == "steps"
    assert max(rows) == trainer.config.slots
