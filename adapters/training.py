"""The values of a training: the request, the probe, the progress and the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from adapters.adapter import Adapter
from adapters.errors import TrainingOptionError


@dataclass(frozen=True)
class Probe:
    """Text that is not trained on, which tells whether training has helped, and with a gain whether
    it still does.

    It is looked at before the first step and after the last. With a gain also on the way, after
    every other sequence at first, then more rarely; training ends where the last looks have brought
    less than `gain` per cent of the first loss for each sequence learnt, and the adapter of the
    best look is handed over (`adapters.early_stopping`). A look costs a forward pass of the text's
    tokens.

    Attributes:
        tokens: of the text, two at least; of many the last that go into the model's context.
        gain: per cent a sequence; None to train to the end.

    Raises:
        ValueError: a gain that is not positive and finite.
    """

    tokens: tuple[int, ...]
    gain: float | None = None

    def __post_init__(self) -> None:
        if self.gain is not None and not 0 < self.gain < math.inf:
            raise TrainingOptionError(f"the gain is {self.gain}; it needs to be above 0")


@dataclass(frozen=True)
class TrainingRequest:
    """What one adapter is trained on, and how; the same in this process and across processes.

    Attributes:
        sequences: token ids in the order of their steps, at least two each and no more than the
            model's context.
        seed: seed of a fresh adapter's first weights, below 2**64.
        seconds: time limit from the submission; no step is started that would end later, by the
            step times measured so far. None for no limit.
        plan: one of `adapters.step_plan.PLANS`.
        start: weights of an earlier adapter of the same trainer, to train further; None for a fresh
            adapter. Adam's moments start at zero either way, since each training is an adaptation
            of its own (paper section 2).
        learning_rate: Adam learning rate; None for the trainer's.
        probe: text whose loss is measured, and with a gain ends the training; None for none.

    Raises:
        TrainingOptionError: a seed of more than 64 bits, or a learning rate that is not positive
            and finite.
    """

    sequences: Sequence[Sequence[int]]
    seed: int = 0
    seconds: float | None = None
    plan: str = "sequential"
    start: bytes | None = None
    learning_rate: float | None = None
    probe: Probe | None = None

    def __post_init__(self) -> None:
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise TrainingOptionError(
                f"the learning rate is {self.learning_rate}; it needs to be above 0"
            )
        if not 0 <= self.seed < 1 << 64:
            raise TrainingOptionError(
                f"the seed is {self.seed}; it needs to be a whole number of 64 bits, 0 or more"
            )


class TrainingStop(StrEnum):
    """What ended a training."""

    STEPS = "steps"  # every sequence was used
    GAIN = "gain"  # the loss of the probe no longer fell by enough
    SECONDS = "seconds"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out-of-memory"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class TrainingProgress:
    """A step was taken.

    Attributes:
        steps: how many so far.
        of: how many there will be, unless something ends it before.
        used: how many of the sequences, from the first on, they have learnt from.
        loss: mean nats a token of this step's sequences, before the step.
        seconds: since the request came.
        seconds_left: until the last step, as things stand.
        slot: of the adapter, for `Trainer.export`; it is this request's only while it is told.
        watched: mean nats a token that what is watched had at the last look; None where nothing is.
    """

    steps: int
    of: int
    used: int
    loss: float
    seconds: float
    seconds_left: float
    slot: int
    watched: float | None = None


@dataclass(frozen=True)
class TrainingResult:
    """What became of one training.

    Attributes:
        adapter: None when not one step was taken, or when the adapter itself gives losses that are
            not finite.
        losses: mean nats a token of each step's sequences, before that step, of all steps taken.
        used: how many of the sequences, from the first on, these steps have learnt from.
        stop: what ended it.
        seconds: wall-clock, waiting included.
        waited: of these, those before its first step began; all of them where none did.
        watched: how many sequences had been learnt from, and the mean nats a token that what is
            watched had then.
        kept: how many sequences the adapter has learnt from: fewer than `used` where an earlier one
            was the best.
    """

    adapter: Adapter | None
    losses: tuple[float, ...]
    used: int
    stop: TrainingStop
    seconds: float
    waited: float
    watched: tuple[tuple[int, float], ...] = ()
    kept: int = 0

    @property
    def before_and_after(self) -> tuple[float, float] | None:
        """The loss of what is watched before any step, and that of the adapter; None where either
        is not known.
        """
        looks = dict(self.watched)
        if self.kept == 0 or not {0, self.kept} <= looks.keys():
            return None
        return looks[0], looks[self.kept]
