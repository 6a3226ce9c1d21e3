"""What the sections of the report share: tables, numbers in words, plots, and where numbers are
from.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STYLE = {
    "svg.hashsalt": "mayfly",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
_ACROSS = 3  # panels beside each other
Result = Mapping[str, Any]


class Plots:
    """Drawings of a section, in a folder beside the report, and those that benchmarks left beside
    their results.
    """

    def __init__(self, folder: Path, name: str, results: str) -> None:
        """Of a section of this name, in a report in this folder; results as seen from there."""
        self._folder, self._name, self._results = folder, name, results

    def draw(self, what: str, alt: str, paint: Callable[..., None], panels: int = 1) -> str:
        """Draw, save as SVG, and return the Markdown that shows it; `paint` gets the axes of each
        panel.
        """
        import matplotlib as mpl
        from matplotlib import pyplot as plt

        across, down = min(panels, _ACROSS), -(-panels // _ACROSS)
        with mpl.rc_context(_STYLE):
            size = (6.4, 3.6) if panels == 1 else (3.2 * across + 1, 2.6 * down)
            figure, grid = plt.subplots(down, across, squeeze=False, figsize=size)
            for spare in grid.flat[panels:]:
                spare.remove()
            paint(*grid.flat[:panels])
            path = Path("plots") / f"{self._name}-{what}.svg"
            (self._folder / path.parent).mkdir(parents=True, exist_ok=True)
            figure.savefig(self._folder / path, metadata={"Date": None})
            plt.close(figure)
        return f"![{alt}]({path})"

    def drawn(self, file: str, alt: str) -> list[str]:
        """The Markdown that shows what a benchmark has drawn itself, if it has."""
        path = f"{self._results}/{file}"
        return [f"![{alt}]({path})", ""] if (self._folder / path).exists() else []


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        name: of its plots.
        title: its heading.
        sources: the results that it may tell, without their ending, and the command that makes
            each.
        write: makes lines of those that are there, one at least.
    """

    name: str
    title: str
    sources: Mapping[str, str]
    write: Callable[[Mapping[str, Result], Plots], list[str]]


def provenance_line(result: Result, name: str, results: str) -> str:
    """Where numbers are from: file, command, commit, machine, versions."""
    machine = result["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    return (
        f"<sub>[{name}.json]({results}/{name}.json); `{result['command']}`; commit {str(result['commit'])[:10]}; "
        f"{machine['processor']}, {machine['cores']} cores; {versions}.</sub>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """In Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return [*lines, ""]


def titled(title: str, words: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table with a heading and words before it; nothing where it has no rows."""
    return [f"### {title}", "", words, "", *table(head, rows)] if rows else []


def cell(triple: Sequence[float], digits: int = 1) -> str:
    """A value and its range: mean and interval, or median, least and most."""
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*triple, d=digits)


def middle(values: Sequence[float], digits: int = 2) -> str:
    """Median, least and most."""
    return cell((statistics.median(values), min(values), max(values)), digits)


def milliseconds(seconds: float) -> str:
    """With as many digits as can matter."""
    value = 1e3 * seconds
    return f"{value:,.{0 if abs(value) >= 100 else 1 if abs(value) >= 1 else 2}f}"


def whether(holds: bool) -> str:
    """What is wanted holds, or stands out."""
    return "holds" if holds else "**does not hold**"
