"""Warm-up: a trainer takes steps on arbitrary tokens until they get no faster, so that it knows
what a step takes.

The first steps are slow: libraries choose their ways, memory is asked for. And what was measured
while the machine did something else, such as starting other processes, is not true later. So each
round forgets what the rounds before have measured, and only the last one counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from adapters.training import Probe, TrainingRequest

if TYPE_CHECKING:
    from adapters.model.base_model import BaseModel

_LEAST, _MOST, _SECONDS = 2, 6, 5.0  # rounds, and when no further one begins
# Of the time of the round before: a round that takes as much of it gains little by another.
_STEADY = 0.8
_TOKENS = 256


class Warms(Protocol):
    """A trainer, as far as it is needed here."""

    base: BaseModel

    def forget_times(self) -> None:
        """As `adapters.trainer.Trainer.forget_times`."""

    def train(self, request: TrainingRequest) -> object:
        """As `adapters.trainer.Trainer.train`."""


def warm_up(trainer: Warms, clock: Callable[[], float] = time.perf_counter) -> None:
    """Rounds of steps, looks and endings, of a long sequence and of a short one."""
    longest = min(_TOKENS, trainer.base.context)
    row = [(7 * i + 3) % trainer.base.vocabulary for i in range(longest)]
    short = row[: max(longest // 4, 2)]
    begun, before = clock(), math.inf
    for n in range(_MOST):
        trainer.forget_times()
        since = clock()
        trainer.train(TrainingRequest([short, row] * 2, probe=Probe(tuple(row))))
        trainer.train(TrainingRequest([short], probe=Probe(tuple(short))))
        now = clock()
        if n + 1 >= _LEAST and (now - since > _STEADY * before or now - begun > _SECONDS):
            return
        before = now - since
