"""Trainers of tiny models, and helpers that pause them, record their steps and make them fail."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from safetensors.torch import load as from_safetensors

from adapters.loop.job import Job
from adapters.trainer import Trainer, TrainerConfig
from adapters.training import TrainingProgress, TrainingRequest, TrainingResult
from tests.adapters.peft_reference import NUMERATOR, RANK, assert_close

SEQUENCES = [[(11 * i + 5 * j) % 97 for j in range(12 + i)] for i in range(6)]
# A token in none of the sequences above.
POISON = 99
# Seconds that nothing here takes, even on a busy machine.
TIMEOUT = 20.0


def trainer_of(folder: str, **options: Any) -> Trainer:
    """A float32 trainer of a tiny model, with a high learning rate by default."""
    return Trainer(_config_of(folder, options))


def _config_of(folder: str, options: dict[str, Any]) -> TrainerConfig:
    options = {"learning_rate": 3e-3} | options
    return TrainerConfig(folder, rank=RANK, scale=NUMERATOR / RANK, precision="float32", **options)


class SimulatedClock:
    """A clock that only advances with the forward passes of a trainer, by a linear model.

    Attributes:
        now: Seconds.
    """

    FIXED, PER_TOKEN = 0.01, 1e-4

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, _: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        self.now += self.FIXED + self.PER_TOKEN * arguments[0].numel()


def simulated_trainer_of(folder: str, **options: Any) -> tuple[Trainer, SimulatedClock]:
    """As `trainer_of`, on a simulated clock whose step times are already learnt."""
    clock = SimulatedClock()
    trainer = Trainer(_config_of(folder, options), clock)
    trainer.base.model.base_model.register_forward_pre_hook(clock.advance)
    trainer.warm_up()
    return trainer, clock


@contextmanager
def paused(trainer: Trainer) -> Iterator[None]:
    """Within the `with` block no step is taken; requests submitted in it start together."""
    started, go = threading.Event(), threading.Event()

    def wait(_: TrainingProgress) -> None:
        started.set()
        assert go.wait(TIMEOUT)

    gate = trainer.submit(TrainingRequest([SEQUENCES[0]]), on_step=wait)
    assert started.wait(TIMEOUT)
    try:
        yield
    finally:
        go.set()
        gate.result(TIMEOUT)


@contextmanager
def recorded_rows(trainer: Trainer) -> Iterator[list[int]]:
    """The number of rows of each step within the `with` block."""
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
def failing_on_poison(trainer: Trainer, problem: Any) -> Iterator[None]:
    """Within the `with` block, each forward pass with POISON calls `problem` with its output."""

    def fail(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...], output: Any) -> None:
        if (arguments[0] == POISON).any():
            problem(output.last_hidden_state)

    hook = trainer.base.model.base_model.register_forward_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait until something holds that another thread brings about."""
    end = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def other_requests(count: int, steps: int = 6) -> list[list[list[int]]]:
    """The sequences of `count` requests, of lengths that share batches."""
    return [
        [[(3 * k + 7 * i + j * j) % 97 for j in range(12 + i + k % 4)] for i in range(steps)]
        for k in range(count)
    ]


def weights_of(training: TrainingResult) -> dict[str, torch.Tensor]:
    assert training.adapter is not None
    weights: dict[str, torch.Tensor] = from_safetensors(training.adapter.weights)
    return weights


def assert_same(one: TrainingResult, other: TrainingResult) -> None:
    """Check that two results are equal but for rounding."""
    assert (one.stop, one.sequences_used) == (other.stop, other.sequences_used)
    assert one.losses == pytest.approx(other.losses, rel=1e-5)
    assert_close(weights_of(one), weights_of(other))


def trainer_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mayfly-trainer"]


def count_jobs() -> int:
    """The number of jobs that are not garbage-collected."""
    gc.collect()
    return sum(type(thing) is Job for thing in gc.get_objects())


def assert_idle(trainer: Trainer) -> None:
    """Check that no thread trains any more, and that all slots are free."""
    for thread in trainer_threads():
        thread.join(TIMEOUT)
    assert not trainer_threads()
    with recorded_rows(trainer) as rows:
        with paused(trainer):
            last = [
                trainer.submit(TrainingRequest([SEQUENCES[0]] * 2))
                for _ in range(trainer.config.slots)
            ]
        for future in last:
            assert future.result(TIMEOUT).stop == "steps"
    assert max(rows) == trainer.config.slots
