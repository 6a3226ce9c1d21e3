"""Counts of the faults of one kind and of their outcomes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class FaultCounts:
    """Counts of the faults of one kind and of their outcomes."""

    injected: int = 0
    recovered: int = 0
    wrong_answers: int = 0
    hung: int = 0
    leaked: int = 0
    recovery_seconds: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        """The counts, for the last line."""
        seconds = self.recovery_seconds
        quantiles = (
            dict(zip(("p50", "p99"), np.quantile(seconds, [0.5, 0.99]), strict=True))
            if seconds
            else {}
        )
        return {
            "injected": self.injected,
            "recovered": self.recovered,
            "wrong_answers": self.wrong_answers,
            "hung": self.hung,
            "leaked": self.leaked,
            "recovery_seconds": {name: round(float(value), 2) for name, value in quantiles.items()},
            "answers": dict(sorted(self.answers.items())),
        }
