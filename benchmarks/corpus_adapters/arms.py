"""The arms that are compared: what an adapter starts from, its steps, their rate, what is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

# A fresh adapter, that of the corpus in one part, or those of its parts that are nearest.
Start: TypeAlias = Literal["fresh", "corpus", "parts"]
# What chooses the sequences that are trained on and shown: SIFT, or the nearest of them.
Strategy: TypeAlias = Literal["sift", "nn"]
# Sequences in the prompt of an arm that shows what was chosen.
SHOWN = 8


@dataclass(frozen=True)
class Arm:
    """A way to answer.

    Attributes:
        start: what the adapter starts from.
        steps: steps from there.
        rate: multiple of the learning rate at which a server takes them from that start.
        shown: whether the prompt has the chosen sequences before it.
        strategy: what chooses the sequences.
        compared: whether it starts afresh where its start does not lower the loss of the prompt, as
            the server's requests do.
    """

    start: Start = "fresh"
    steps: int = 0
    rate: float = 1.0
    shown: bool = False
    strategy: Strategy = "sift"
    compared: bool = False

    @property
    def name(self) -> str:
        """Name in the results."""
        is_nearest = self.strategy == "nn"
        if self.start == "fresh":
            name = f"{'NN' if is_nearest else 'SIFT'} {self.steps}" if self.steps else "base"
        else:
            start = self.start + " if better" * self.compared
            name = f"{start} + {self.steps}" if self.steps else start
            name += " NN" * bool(is_nearest and self.steps)
        if self.rate != 1:
            name += f" at {self.rate:g}x"
        if self.shown:
            name += ", NN shown" if is_nearest and not self.steps else ", shown"
        return name


@dataclass(frozen=True)
class Training:
    """A training whose adapter is scored after several numbers of steps."""

    start: Start
    steps: tuple[int, ...]
    rate: float = 1.0
    strategy: Strategy = "sift"

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arm of each number of steps."""
        return tuple(
            Arm(self.start, steps, self.rate, strategy=self.strategy) for steps in self.steps
        )


BASE, INSTANT = Arm(), Arm("corpus")
# Both together, as the server does it, and SIFT alone.
COMBINED, FRESH = Arm("corpus", 10, compared=True), Arm(steps=20)
_FURTHER = (2, 5, 10, 20)
_SERVED = Training("corpus", _FURTHER)
_LONG = (Training("fresh", (5, 10, 20, 50)), _SERVED)
_HIGHER = 3.0
_RATES = (*_LONG, Training("corpus", _FURTHER, _HIGHER))
# Trainings by the name of a choice: as the server trains, with fewer steps from scratch, also at a
# higher rate, and also with parts.
TRAININGS: Mapping[str, tuple[Training, ...]] = {
    "served": _LONG,
    "short": (Training("fresh", (5, 10, 20)), _SERVED),
    "rates": _RATES,
    "all": (
        *_RATES,
        Training("parts", _FURTHER),
        Training("parts", _FURTHER, _HIGHER),
    ),
}


def fresh_of(arm: Arm) -> Arm | None:
    """What an arm that trains as the server does becomes where its start does not lower the loss of
    the prompt; None for others.
    """
    if arm.start == "fresh" or arm.rate != 1:
        return None
    return replace(arm, start="fresh", compared=False)


# Those that are also measured with the chosen sequences in the prompt.
SHOWN_TOO = (BASE, FRESH, INSTANT, COMBINED)


def arms_of(trainings: Sequence[Training], shown_too: Sequence[Arm] = SHOWN_TOO) -> tuple[Arm, ...]:
    """The arms that trainings make, with those without a step, and some that show text."""
    starts = dict.fromkeys(training.start for training in trainings)
    plain = [
        *(Arm(start) for start in starts),
        *(arm for training in trainings for arm in training.arms),
    ]
    return (
        *plain,
        *(replace(arm, compared=True) for arm in plain if fresh_of(arm) in plain),
        *(replace(arm, shown=True) for arm in shown_too),
    )
