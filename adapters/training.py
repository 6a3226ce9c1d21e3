"""What a training tells: its progress while it runs, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.adapter import Adapter


@dataclass(frozen=True)
class Progress:
    """A step was taken.

    Attributes:
        steps: how many so far.
        of: how many there will be, unless something ends it before.
        used: how many of the sequences, from the first on, they have learnt from.
        loss: mean nats a token of this step's sequences, before the step.
        seconds: since the request came.
        seconds_left: until the last step, as things stand.
        slot: of the adapter, for `Trainer.export`; it is this request's only while it is told.
    """

    steps: int
    of: int
    used: int
    loss: float
    seconds: float
    seconds_left: float
    slot: int


@dataclass(frozen=True)
class Training:
    """What became of one training.

    Attributes:
        adapter: None when not one step was taken, or when the adapter itself gives losses that are not finite.
        losses: mean nats a token of each step's sequences, before that step.
        used: how many of the sequences, from the first on, the steps have learnt from.
        stop: "steps" (every sequence was used), "seconds", "diverged", "out of memory" or "cancelled".
        seconds: wall-clock, waiting included.
        waited: of these, those before its first step began; all of them where none did.
    """

    adapter: Adapter | None
    losses: tuple[float, ...]
    used: int
    stop: str
    seconds: float
    waited: float
