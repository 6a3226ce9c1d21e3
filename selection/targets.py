"""Targets: which windows of a request's prompts data is chosen for, where there are more than can
be embedded.

Up to MOST_TARGETS windows, all of them are targets. Of more, the last window of each prompt comes
first, since what is to be continued stands there, then the last but one of each, and so on; of a
round that does not fit, windows at equal distances. Of more prompts than MOST_TARGETS, as many at
equal distances are looked at: the others are not even tokenised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

# Windows embedded for one request: some 1.3 seconds of two cores with the default embedder.
MOST_TARGETS = 32

T = TypeVar("T")


@dataclass(frozen=True)
class LeftOut:
    """That not all of a request was looked at.

    Attributes:
        used: how many were.
        of: how many there are.
        unit: "prompts", each used one by its last windows, or "windows" of prompts that were all
            used.
    """

    used: int
    of: int
    unit: Literal["prompts", "windows"]

    def as_dict(self) -> dict[str, int | str]:
        """For a report."""
        return {"used": self.used, "of": self.of, "unit": self.unit}


def evenly(items: Sequence[T], most: int) -> list[T]:
    """Up to `most` of the items at equal distances, in order, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    if most < 2:
        return list(items[-1:]) if most else []
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]


def used_windows(windows: Sequence[int], most: int = MOST_TARGETS) -> list[int]:
    """How many of its last windows are used of each prompt, by how many each has; `most` in all."""
    used = [0] * len(windows)
    left = most
    for depth in range(1, max(windows, default=0) + 1):
        deep = evenly([prompt for prompt, count in enumerate(windows) if count >= depth], left)
        for prompt in deep:
            used[prompt] += 1
        left -= len(deep)
    return used
