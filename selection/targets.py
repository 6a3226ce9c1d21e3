"""Targets: the windows of a request's prompts that are embedded; data is chosen for these.

A window is a part of a prompt that fits the embedder (`selection.embedding.split_windows`), which
takes only the last ones of a long prompt.

Up to MAX_TARGETS windows, all of them are targets. Of more, the last window of each prompt comes
first, since the text to be continued is there, then the last but one of each, and so on; in a round
that does not fit, windows at equal distances are taken. Of more than MAX_TARGETS prompts,
MAX_TARGETS at equal distances are used, and the others are not even tokenised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

# Windows embedded for one request: some 1.3 seconds of two cores with the default embedder.
MAX_TARGETS = 32

T = TypeVar("T")


@dataclass(frozen=True)
class Truncation:
    """How much of a request's prompts was used, when not all of it was.

    Attributes:
        used: number of units used.
        of: number of units that could have been used.
        unit: "prompts", where each used prompt is used by its last windows, or "windows", where all
            prompts are used.
    """

    used: int
    of: int
    unit: Literal["prompts", "windows"]

    def as_dict(self) -> dict[str, int | str]:
        """The report's `targets`."""
        return {"used": self.used, "of": self.of, "unit": self.unit}


def evenly_spaced(items: Sequence[T], limit: int) -> list[T]:
    """Up to `limit` items at equal distances, in order, including the first and the last."""
    if len(items) <= limit:
        return list(items)
    if limit < 2:
        return list(items[-1:]) if limit else []
    return [items[i * (len(items) - 1) // (limit - 1)] for i in range(limit)]


def allocate_windows(windows: Sequence[int], limit: int = MAX_TARGETS) -> list[int]:
    """How many of its last windows each prompt may use.

    Args:
        windows: the number of windows of each prompt.
        limit: maximum number of windows of all prompts together.
    """
    used = [0] * len(windows)
    remaining = limit
    for depth in range(1, max(windows, default=0) + 1):
        deep_enough = [prompt for prompt, count in enumerate(windows) if count >= depth]
        prompts = evenly_spaced(deep_enough, remaining)
        for prompt in prompts:
            used[prompt] += 1
        remaining -= len(prompts)
    return used
