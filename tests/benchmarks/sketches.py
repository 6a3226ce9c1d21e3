"""Plots without matplotlib, which is not installed where the tests run."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import MagicMock

from benchmarks.report.formatting import Plots
from benchmarks.report.main import BENCHMARKS


class Sketches(Plots):
    """Plots on stand-ins for matplotlib's axes."""

    def draw(self, what: str, alt: str, plot: Callable[..., None], panels: int = 1) -> str:
        """Call `plot`, and save nothing."""
        plot(*(MagicMock() for _ in range(panels)))
        return f"![{alt}](plots/{self._name}-{what}.svg)"


def sketches(name: str) -> Sketches:
    """Plots of a section, beside the repository's own report."""
    return Sketches(BENCHMARKS, name, "results")
