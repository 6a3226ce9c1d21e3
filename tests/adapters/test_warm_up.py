"""Warming up: slow first steps, and steps measured beside other work, are forgotten."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from adapters.loop.job import Job
from adapters.loop.scheduler import Scheduler
from adapters.step_time import TrainingTimes
from adapters.trainer import Trainer
from adapters.training import Probe, TrainingRequest
from adapters.warm_up import warm_up
from tests.adapters.trainers import SEQUENCES

# Seconds per token of a warm step.
_EACH = 1e-4


class Scripted:
    """A trainer on its own clock; its n-th step takes `slowdown(n)` times as long as a warm one."""

    def __init__(self, slowdown: Callable[[int], float]) -> None:
        self.base: Any = SimpleNamespace(context=1024, vocabulary=100)
        self.now, self.steps, self.times = 0.0, 0, TrainingTimes()
        self._slowdown = slowdown

    def clock(self) -> float:
        return self.now

    def forget_times(self) -> None:
        self.times.forget()

    def train(self, request: TrainingRequest) -> object:
        for sequence in request.sequences:
            seconds = _EACH * len(sequence) * self._slowdown(self.steps)
            for each, share in (
                (self.times.step, 1.0),
                (self.times.probe, 0.3),
                (self.times.final, 0.3),
            ):
                each.observe(len(sequence), share * seconds)
                self.now += share * seconds
            self.steps += 1
        return None


def stops_at_once(times: TrainingTimes, seconds: float) -> bool:
    """Whether a request with this time limit and steps of 256 tokens would get no step."""
    sequences = [list(range(256))] * 20
    job = Job(TrainingRequest(sequences, seconds=seconds), 0.0)
    schedule = Scheduler(8, 2048, times)
    schedule.add(job)
    return schedule.finished(0.0) == [(job, "seconds")]


@pytest.mark.parametrize("slow", [1, 3, 6, 8])
def test_slow_first_steps_are_forgotten(slow: int) -> None:
    trainer = Scripted(lambda n: 10.0 if n < slow else 1.0)

    warm_up(trainer, trainer.clock)

    assert trainer.times.step.mean(256) == pytest.approx(256 * _EACH)
    assert not stops_at_once(trainer.times, seconds=2 * 256 * _EACH)


def test_rounds_continue_while_steps_get_faster_up_to_a_limit() -> None:
    trainer = Scripted(lambda n: 0.9**n)

    warm_up(trainer, trainer.clock)

    assert 10 < trainer.steps <= 30


def test_a_slow_model_gets_one_round() -> None:
    trainer = Scripted(lambda n: 1e3 * 0.9**n)

    warm_up(trainer, trainer.clock)

    assert trainer.steps == 5


def test_times_measured_under_load_are_replaced(trainer: Trainer) -> None:
    length = len(SEQUENCES[0])
    with trainer._loop.model_lock:
        for _ in range(40):
            for each in (
                trainer._loop.times.step,
                trainer._loop.times.probe,
                trainer._loop.times.final,
            ):
                each.observe(length, 60.0)

    trainer.warm_up()

    training = trainer.train(
        TrainingRequest([SEQUENCES[0]] * 3, seconds=30.0, probe=Probe(tuple(SEQUENCES[1])))
    )
    assert (training.stop, len(training.losses), len(training.probe_losses)) == ("steps", 3, 2)


def test_a_new_trainer_expects_realistic_step_times(
    trainer: Trainer,
) -> None:
    trainer.warm_up()
    times = trainer._loop.times
    needed = times.step.mean(64) + times.probe.mean(64) + 2 * times.final.mean(64)

    sequences = [list(range(64))] * 20
    job = Job(TrainingRequest(sequences, seconds=2 * needed), 0.0)
    schedule = Scheduler(8, 2048, times)
    schedule.add(job)

    assert 0 < needed < 5
    assert schedule.finished(0.0) == []
