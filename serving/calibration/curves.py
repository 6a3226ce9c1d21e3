"""Curves: losses on held-out sequences by number of steps, and what early stopping makes of them.

Pure numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapters.early_stopping import simulate
from serving.budget import AUTO

# Share of the gain of all steps that the recommended gain retains.
GAIN_SHARE = 0.9
GAINS = tuple(round(float(gain), 3) for gain in np.geomspace(0.02, 5, 50))


@dataclass(frozen=True)
class Curve:
    """The losses on one held-out sequence after 0, 1, ... steps, in per cent of the base model's.

    Attributes:
        percent: Loss on the scored part.
        prompt: Loss on the prompt.
        exact: Whether greedy decoding generates an example's answer, by the base model and after
            all steps; None for a part of a text.
    """

    percent: tuple[float, ...]
    prompt: tuple[float, ...]
    exact: tuple[bool, bool] | None = None

    def stopped(self, gain: float) -> tuple[int, int]:
        """Steps after which training would stop, and steps of the best adapter until then."""
        return simulate(self.prompt, gain)


def mean_percent(curves: Sequence[Curve]) -> tuple[float, ...]:
    """Mean loss after 0, 1, ... steps, in per cent of the base model's."""
    mean: list[float] = np.mean([curve.percent for curve in curves], axis=0).tolist()
    return tuple(mean)


def final_percent(curves: Sequence[Curve]) -> float:
    """Mean loss after all steps, in per cent of the base model's."""
    return mean_percent(curves)[-1]


def exact_match(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """Share of exact answers by the base model and after all steps; None without examples."""
    exact = [curve.exact for curve in curves if curve.exact is not None]
    if not exact:
        return None
    before, after = zip(*exact, strict=True)
    return sum(before) / len(exact), sum(after) / len(exact)


def choose_gain(curves: Sequence[Curve], share: float = GAIN_SHARE) -> float:
    """The largest of GAINS that retains `share` of the gain of all steps, else the smallest.

    The built-in gain if all steps gain nothing.
    """
    if final_percent(curves) >= 100 and AUTO.gain is not None:
        return AUTO.gain
    return max((gain for gain in GAINS if stopping(curves, gain)[1] >= share), default=GAINS[0])


def stopping(curves: Sequence[Curve], gain: float) -> tuple[float, float]:
    """The effect of a gain.

    Returns:
        The mean number of steps, and the share of the gain of all steps that they retain; 0 if all
        steps gain nothing.
    """
    stopped = [curve.stopped(gain) for curve in curves]
    whole = sum(100 - curve.percent[-1] for curve in curves)
    retained = sum(
        100 - curve.percent[best] for curve, (_, best) in zip(curves, stopped, strict=True)
    )
    mean_steps = sum(steps for steps, _ in stopped) / len(stopped)
    return mean_steps, retained / whole if whole > 0 else 0.0
