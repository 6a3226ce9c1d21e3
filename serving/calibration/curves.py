"""Curves: losses on held-out sequences by number of steps, and what early stopping makes of them;
arms: numbers of sequences shown and of steps, compared by these losses and by exact answers.

Pure numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from adapters.early_stopping import simulate
from serving.budget import AUTO

# Training steps of a curve.
STEPS = 50
# Numbers of steps after which a curve is measured: those at which training evaluates its probe.
MEASURED_STEPS = (0, 2, 4, 6, 8, 10, 12, 15, 18, 22, 27, 33, 41, STEPS)
# Share of the gain of all steps that the recommended gain retains.
GAIN_SHARE = 0.9
GAINS = tuple(round(float(gain), 3) for gain in np.geomspace(0.02, 5, 50))


@dataclass(frozen=True)
class Curve:
    """The losses on one held-out sequence after 0, 1, ... steps.

    Attributes:
        percent: Loss on the scored part, in per cent of the base model's loss with nothing shown.
        prompt: Loss on the prompt, in per cent of the base model's.
        exact: Whether greedy decoding generates an example's answer; None for a part of a text.
    """

    percent: tuple[float, ...]
    prompt: tuple[float, ...]
    exact: tuple[bool, ...] | None = None

    def until(self, steps: int) -> Curve:
        """The curve of a training of at most `steps` steps."""
        exact = None if self.exact is None else self.exact[: steps + 1]
        return Curve(self.percent[: steps + 1], self.prompt[: steps + 1], exact)

    def stopped(self, gain: float) -> tuple[int, int]:
        """Steps after which training would stop, and steps of the best adapter until then."""
        return simulate(self.prompt, gain)


@dataclass(frozen=True)
class Arm:
    """A number of sequences shown, and of steps, and how well answers are then predicted.

    Attributes:
        show: Maximum number of chosen sequences in the prompt.
        steps: Number of steps.
        percent_of_base: Mean loss in per cent of the base model's with nothing shown.
        exact_match: Share of the examples that are answered exactly; None without examples.
    """

    show: int
    steps: int
    percent_of_base: float
    exact_match: float | None

    def is_better_than(self, other: Arm) -> bool:
        """Whether it answers more examples exactly, or as many and the loss is lower."""
        return self._rank < other._rank

    @property
    def _rank(self) -> tuple[float, float]:
        return -(self.exact_match or 0.0), self.percent_of_base


def arm(curves: Mapping[int, Sequence[Curve]], show: int, steps: int) -> Arm:
    """One arm of curves that are given by the number of sequences shown."""
    measured = curves[show]
    return Arm(show, steps, mean_percent(measured)[steps], exact_match(measured, steps))


def best_arm(arms: Sequence[Arm]) -> Arm:
    """The best arm with a step; of equal ones the first."""
    best, *others = (each for each in arms if each.steps)
    for each in others:
        if each.is_better_than(best):
            best = each
    return best


def mean_percent(curves: Sequence[Curve]) -> tuple[float, ...]:
    """Mean loss after 0, 1, ... steps, in per cent of the base model's."""
    mean: list[float] = np.mean([curve.percent for curve in curves], axis=0).tolist()
    return tuple(mean)


def final_percent(curves: Sequence[Curve]) -> float:
    """Mean loss after all steps, in per cent of the base model's."""
    return mean_percent(curves)[-1]


def exact_match(curves: Sequence[Curve], steps: int) -> float | None:
    """Share of exact answers after a number of steps; None without examples."""
    exact = [curve.exact[steps] for curve in curves if curve.exact is not None]
    return sum(exact) / len(exact) if exact else None


def choose_gain(curves: Sequence[Curve], share: float = GAIN_SHARE) -> float:
    """The largest of GAINS that retains `share` of the gain of all steps, else the smallest.

    The built-in gain if all steps gain nothing.
    """
    first, *_, last = mean_percent(curves)
    if last >= first and AUTO.gain is not None:
        return AUTO.gain
    return max((gain for gain in GAINS if stopping(curves, gain)[1] >= share), default=GAINS[0])


def stopping(curves: Sequence[Curve], gain: float) -> tuple[float, float]:
    """The effect of a gain.

    Returns:
        The mean number of steps, and the share of the gain of all steps that they retain; 0 if all
        steps gain nothing.
    """
    stopped = [curve.stopped(gain) for curve in curves]
    whole = sum(curve.percent[0] - curve.percent[-1] for curve in curves)
    retained = sum(
        curve.percent[0] - curve.percent[best]
        for curve, (_, best) in zip(curves, stopped, strict=True)
    )
    mean_steps = sum(steps for steps, _ in stopped) / len(stopped)
    return mean_steps, retained / whole if whole > 0 else 0.0


def stopped_percent(curves: Sequence[Curve], gain: float) -> float:
    """The mean loss with the adapter that a gain keeps, in per cent of the base model's."""
    return fmean(curve.percent[curve.stopped(gain)[1]] for curve in curves)
