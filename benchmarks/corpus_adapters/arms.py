"""The arms that are compared: what an adapter starts from, its steps, their rate, what is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

from serving.adaptation.starts import LEARNING_RATE_FACTOR

# A fresh adapter, that of the corpus in one part, or those of its parts that are nearest.
Start: TypeAlias = Literal["fresh", "corpus", "parts"]
# Rate at which the server trains on from a corpus's adapter.
SERVED_RATE = LEARNING_RATE_FACTOR
# Sequences in the prompt of an arm that shows what was chosen.
SHOWN = 8


@dataclass(frozen=True)
class Arm:
    """A way to answer.

    Attributes:
        start: what the adapter starts from.
        steps: SIFT steps from there.
        rate: multiple of the trainer's learning rate at which they are taken.
        shown: whether the prompt has the chosen sequences before it.
    """

    start: Start = "fresh"
    steps: int = 0
    rate: float = 1.0
    shown: bool = False

    @property
    def name(self) -> str:
        """Name in the results."""
        if self.start == "fresh":
            name = f"SIFT {self.steps}" if self.steps else "base"
        else:
            name = f"{self.start} + {self.steps}" if self.steps else self.start
        if self.rate != 1:
            name += f" at {Fraction(self.rate).limit_denominator(100)}"
        return name + ", shown" * self.shown


@dataclass(frozen=True)
class Training:
    """A training whose adapter is scored after several numbers of steps."""

    start: Start
    steps: tuple[int, ...]
    rate: float = 1.0

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arm of each number of steps."""
        return tuple(Arm(self.start, steps, self.rate) for steps in self.steps)


BASE, INSTANT = Arm(), Arm("corpus")
# Both together, as the server does it, and SIFT alone.
COMBINED, FRESH = Arm("corpus", 10, SERVED_RATE), Arm(steps=20)
_FURTHER = (2, 5, 10, 20)
_SERVED = Training("corpus", _FURTHER, SERVED_RATE)
# Trainings by the name of a choice: as the server trains, with fewer steps from scratch, and with
# parts and another rate.
TRAININGS: Mapping[str, tuple[Training, ...]] = {
    "served": (Training("fresh", (5, 10, 20, 50)), _SERVED),
    "short": (Training("fresh", (5, 20)), _SERVED),
    "all": (
        Training("fresh", (5, 10, 20, 50)),
        _SERVED,
        Training("corpus", _FURTHER),
        Training("parts", _FURTHER, SERVED_RATE),
        Training("parts", _FURTHER),
    ),
}


def arms_of(trainings: Sequence[Training]) -> tuple[Arm, ...]:
    """The arms that trainings make, with those without a step, and some that show text."""
    starts = dict.fromkeys(training.start for training in trainings)
    shown = (BASE, FRESH, INSTANT, COMBINED)
    return (
        *(Arm(start) for start in starts),
        *(arm for training in trainings for arm in training.arms),
        *(Arm(arm.start, arm.steps, arm.rate, shown=True) for arm in shown),
    )
