"""Warm-up: a trainer takes steps on arbitrary tokens until they get no faster, so that its step
times are realistic.

The first steps are slow: libraries choose their algorithms, memory is allocated. Times measured
while the machine was busy, such as with starting other processes, are misleading later. So each
round forgets the times of earlier rounds, and only the last round counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from adapters.training import Probe, TrainingRequest

if TYPE_CHECKING:
    from adapters.model.base_model import BaseModel

_MAX_ROUNDS = 6
# A round that would end later than this, in seconds, does not start.
_MAX_SECONDS = 5.0
# A round that takes at least this share of the time of the round before is the last one.
_STEADY = 0.8
# Tokens of the long sequence; a quarter of them make the short one.
_TOKENS = 256


class WarmableTrainer(Protocol):
    """The part of a trainer that the warm-up needs."""

    base: BaseModel

    def forget_times(self) -> None:
        """As `adapters.trainer.Trainer.forget_times`."""

    def train(self, request: TrainingRequest) -> object:
        """As `adapters.trainer.Trainer.train`."""


def warm_up(
    trainer: WarmableTrainer,
    clock: Callable[[], float] = time.perf_counter,
    max_rounds: int = _MAX_ROUNDS,
) -> None:
    """Take rounds of steps, probe evaluations and final evaluations on two sequence lengths.

    Args:
        trainer: the trainer.
        clock: gives the time in seconds.
        max_rounds: largest number of rounds.
    """
    longest = min(_TOKENS, trainer.base.context)
    row = [(7 * i + 3) % trainer.base.vocabulary for i in range(longest)]
    short = row[: max(longest // 4, 2)]
    started, seconds_before = clock(), math.inf
    for _ in range(max_rounds):
        trainer.forget_times()
        round_started = clock()
        trainer.train(TrainingRequest([short, row] * 2, probe=Probe(tuple(row))))
        trainer.train(TrainingRequest([short], probe=Probe(tuple(short))))
        now = clock()
        seconds = now - round_started
        if seconds > _STEADY * seconds_before or now + seconds - started > _MAX_SECONDS:
            return
        seconds_before = seconds
