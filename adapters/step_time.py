"""StepTime: predicts the time of the next step from the steps taken so far.

A weighted linear regression, seconds = a + b * tokens, in which newer steps weigh more, and the
distribution of recent errors. `upper` adds a margin for those errors, so that hardly any step ends
after its deadline; `mean` does not, for a request that would otherwise get no step at all. Pure
numbers.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

# Factor on a step's weight with each later step.
_DECAY = 0.98
# Number of recent steps that the margin is taken from.
_RECENT = 32
# Quantile of recent errors that `upper` covers.
_QUANTILE = 0.9
# Bound on the margin: a ratio to a predicted time near zero can be arbitrarily large.
_MAX_MARGIN = 4.0
# Factor on `mean` with each doubt.
_DOUBT = 0.9


class StepTime:
    """Predicts the seconds of a step from the number of tokens it computes, padding included."""

    _sums: list[float]
    _ratios: deque[float]
    _doubts: int

    def __init__(self) -> None:
        self.forget()

    def observe(self, tokens: int, seconds: float) -> None:
        """Record that a step of `tokens` tokens took `seconds` seconds."""
        self._doubts = 0
        predicted = self._predict(tokens)
        if predicted > 0:
            self._ratios.append(min(seconds / predicted, _MAX_MARGIN))
            # A machine that paused once is not a slow machine.
            seconds = min(seconds, _MAX_MARGIN * predicted)
        terms = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        self._sums = [_DECAY * old + new for old, new in zip(self._sums, terms, strict=True)]

    def forget(self) -> None:
        """Drop all observations, for example those of a cold start."""
        # Weighted sums of 1, tokens, seconds, tokens squared, and tokens times seconds.
        self._sums = [0.0] * 5
        # Measured over predicted seconds of recent steps.
        self._ratios = deque(maxlen=_RECENT)
        # Doubts since the last observation.
        self._doubts = 0

    def doubt(self) -> None:
        """Predict less, because a request took no step on account of this prediction.

        Otherwise a prediction that is too high would never be corrected by a measurement.
        """
        self._ratios.append(1.0)
        self._doubts += 1

    def upper(self, tokens: int) -> float:
        """Seconds that a step of `tokens` tokens hardly ever exceeds; 0 before any observation."""
        ratios = sorted(self._ratios)
        margin = ratios[int(_QUANTILE * (len(ratios) - 1))] if ratios else 1.0
        return self._predict(tokens) * max(1.0, margin)

    def mean(self, tokens: int) -> float:
        """Mean seconds of such steps lately, less for each doubt; 0 before any observation."""
        return self._predict(tokens) * _DOUBT**self._doubts

    def _predict(self, tokens: int) -> float:
        weight, sum_tokens, sum_seconds, sum_squares, sum_products = self._sums
        if not weight:
            return 0.0
        mean_tokens, mean_seconds = sum_tokens / weight, sum_seconds / weight
        variance = sum_squares / weight - mean_tokens**2
        slope = proportion = mean_seconds / mean_tokens if mean_tokens else 0.0
        # Steps of only one size say nothing about the slope.
        if variance > (0.05 * mean_tokens) ** 2:
            slope = (sum_products / weight - mean_tokens * mean_seconds) / variance
            slope = min(max(slope, 0.0), proportion)
        # Rounding may make the intercept negative.
        return max(mean_seconds + slope * (tokens - mean_tokens), 0.0)


@dataclass(frozen=True)
class TrainingTimes:
    """Predicted times of a step, a probe evaluation and a final evaluation, by their tokens."""

    step: StepTime = field(default_factory=StepTime)
    probe: StepTime = field(default_factory=StepTime)
    final: StepTime = field(default_factory=StepTime)

    def forget(self) -> None:
        """Drop all observations."""
        for each in (self.step, self.probe, self.final):
            each.forget()

    def doubt(self) -> None:
        """Predict less, because a request took no step on account of these predictions."""
        for each in (self.step, self.probe, self.final):
            each.doubt()
