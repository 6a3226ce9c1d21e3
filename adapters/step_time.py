"""StepTime: how long the next step will take, from those taken so far.

seconds = a + b * rows * longest, a line through what was measured, with newer steps weighing more;
and how far recent steps were off it. It is asked before a step is begun: `expect` with a margin, so
that none ends after its deadline, and `typical` without one, for a request that would else get no
step at all. Pure numbers.
"""

from __future__ import annotations

from collections import deque

_MEMORY = 0.98  # the weight of a step falls by this with each later one
_RECENT = 32
_MOST = 0.9  # this share of recent steps took no longer than `expect` says
_MARGIN = 4.0  # at most; where the line says next to nothing, a step is any number of times longer
_DOUBT = 0.9  # what is expected falls to this share with each doubt


class StepTime:
    """Learns the time of a step by how many tokens it computes, padding included."""

    def __init__(self) -> None:
        self._weight = self._tokens = self._seconds = self._tokens_squared = self._products = 0.0
        self._off: deque[float] = deque(maxlen=_RECENT)
        self._doubts = 0  # since the last step

    def observe(self, tokens: int, seconds: float) -> None:
        """A step of that many tokens took that long."""
        self._doubts = 0
        expected = self._line(tokens)
        if expected > 0:
            self._off.append(min(seconds / expected, _MARGIN))
            seconds = min(seconds, _MARGIN * expected)  # a machine that paused is not a slow one
        sums = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        before = (self._weight, self._tokens, self._seconds, self._tokens_squared, self._products)
        self._weight, self._tokens, self._seconds, self._tokens_squared, self._products = (
            _MEMORY * old + new for old, new in zip(before, sums, strict=True)
        )

    def forget(self) -> None:
        """Drop what was observed: it was measured under other conditions, such as while everything
        was cold.
        """
        self._weight = self._tokens = self._seconds = self._tokens_squared = self._products = 0.0
        self._off.clear()
        self._doubts = 0

    def doubt(self) -> None:
        """A request took no step because of what is expected here: expect less, or it is never
        measured again.
        """
        self._off.append(1.0)
        self._doubts += 1

    def expect(self, tokens: int) -> float:
        """Seconds that a step of that many tokens takes at most, nearly always; 0 before anything
        was observed.
        """
        off = sorted(self._off)
        return self._line(tokens) * max(1.0, off[int(_MOST * (len(off) - 1))] if off else 1.0)

    def typical(self, tokens: int) -> float:
        """Seconds that such steps have taken lately, on average; 0 before anything was observed."""
        return self._line(tokens) * _DOUBT**self._doubts

    def _line(self, tokens: int) -> float:
        if not self._weight:
            return 0.0
        mean_tokens, mean_seconds = self._tokens / self._weight, self._seconds / self._weight
        spread = self._tokens_squared / self._weight - mean_tokens**2
        slope = proportion = mean_seconds / mean_tokens if mean_tokens else 0.0
        if spread > (0.05 * mean_tokens) ** 2:  # else there is only one size to learn from
            slope = (self._products / self._weight - mean_tokens * mean_seconds) / spread
            slope = min(max(slope, 0.0), proportion)
        return max(mean_seconds + slope * (tokens - mean_tokens), 0.0)  # of rounding at no tokens
