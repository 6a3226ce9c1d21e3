"""What a training is watched by, what it tells while it runs, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

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
        stop: "steps" (every sequence was used), "gain" (of what was watched), "seconds",
            "diverged", "out of memory" or "cancelled".
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
    stop: str
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


class Options(TypedDict, total=False):
    """What `Trainer.submit` may be told besides."""

    seed: int
    seconds: float
    plan: str
    start: bytes | None
    learning_rate: float | None
    watch: Probe | None
    on_step: Callable[[TrainingProgress], None] | None
