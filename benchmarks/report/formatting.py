"""What the sections of the report share: tables, numbers, plots and provenance."""

from __future__ import annotations

import re
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
_PANELS_PER_ROW = 3
_ROOT = Path(__file__).resolve().parent.parent.parent
Result = Mapping[str, Any]


class Plots:
    """Plots of a section: those of the report, and those that benchmarks wrote beside results."""

    def __init__(self, folder: Path, name: str, results: str) -> None:
        """Plots of the section `name`.

        Args:
            folder: folder of the report.
            name: name of the section.
            results: path of the results, from the report's folder.
        """
        self._folder, self._name, self._results = folder, name, results

    def draw(self, what: str, alt: str, plot: Callable[..., None], panels: int = 1) -> str:
        """Draw a plot, save it as SVG, and return the Markdown that shows it.

        Args:
            what: name of the plot.
            alt: description of the plot.
            plot: draws on the axes of each panel, which are its arguments.
            panels: number of panels.
        """
        import matplotlib as mpl
        from matplotlib import pyplot as plt

        columns, rows = min(panels, _PANELS_PER_ROW), -(-panels // _PANELS_PER_ROW)
        with mpl.rc_context(_STYLE):
            size = (6.4, 3.6) if panels == 1 else (3.2 * columns + 1, 2.6 * rows)
            figure, grid = plt.subplots(rows, columns, squeeze=False, figsize=size)
            for unused in grid.flat[panels:]:
                unused.remove()
            plot(*grid.flat[:panels])
            path = Path("plots") / f"{self._name}-{what}.svg"
            (self._folder / path.parent).mkdir(parents=True, exist_ok=True)
            figure.savefig(self._folder / path, metadata={"Date": None})
            plt.close(figure)
        return f"![{alt}]({path})"

    def drawn_by_benchmark(self, file: str, alt: str) -> list[str]:
        """The Markdown that shows a plot of the benchmark itself, if it exists."""
        path = f"{self._results}/{file}"
        return [f"![{alt}]({path})", ""] if (self._folder / path).exists() else []


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Attributes:
        name: name of its plots.
        title: heading.
        sources: names of the results that it may show, and the command that makes each.
        write: makes lines of the results that exist, at least one.
        only_if_measured: whether the section is left out where none exists.
    """

    name: str
    title: str
    sources: Mapping[str, str]
    write: Callable[[Mapping[str, Result], Plots], list[str]]
    only_if_measured: bool = False


def provenance_line(result: Result, name: str, results: str, command: str) -> str:
    """Where numbers are from: file, command, commit, machine, versions.

    Args:
        result: the result.
        name: name of its file, without the ending.
        results: path of the results, from the report's folder.
        command: present command, which is added if the recorded one names a script that is gone.
    """
    machine = result["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    script = re.match(r"python (benchmarks/\S+\.py)", result["command"])
    moved = script is not None and not (_ROOT / script[1]).exists()
    now = f" (now `{command}`)" if moved else ""
    return (
        f"<sub>[{name}.json]({results}/{name}.json); `{result['command']}`{now}; "
        f"commit {str(result['commit'])[:10]}; "
        f"{machine['processor']}, {machine['cores']} cores; {versions}.</sub>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return [*lines, ""]


def titled_table(
    title: str, words: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> list[str]:
    """A table with a heading and a text before it; nothing if it has no rows."""
    return [f"### {title}", "", words, "", *table(header, rows)] if rows else []


def seconds_cell(value: float | None) -> str:
    """Seconds that may be unknown."""
    return "not measured" if value is None else f"{value:.2f}"


def share_cell(value: float | None) -> str:
    """A share in per cent that may be unknown."""
    return "unknown" if value is None else f"{value:.0%}"


def interval_cell(interval: Sequence[float], digits: int = 1) -> str:
    """A value and its range: mean and interval, or median, least and most."""
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*interval, d=digits)


def median_cell(values: Sequence[float], digits: int = 2) -> str:
    """Median, least and most."""
    return interval_cell((statistics.median(values), min(values), max(values)), digits)


def milliseconds(seconds: float) -> str:
    """Milliseconds, with about three significant digits."""
    value = 1e3 * seconds
    return f"{value:,.{0 if abs(value) >= 100 else 1 if abs(value) >= 1 else 2}f}"


def holds_or_not(holds: bool) -> str:
    """Whether a threshold is met; a failure is in bold."""
    return "holds" if holds else "**does not hold**"


def start_rate_note(part: Mapping[str, Any]) -> str:
    """A sentence on the rate of steps from a corpus's adapter, and a space; nothing if a part does
    not say it.
    """
    rate = part.get("start_rate")
    return (
        ""
        if rate is None
        else "Steps from the adapter of a corpus are at the rate that the server took there, "
        f"{rate:.2g} of the learning rate; `at 3x` is three times that. "
    )


def runs_of(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The runs that measured a part, each with its command, its commit and its number of rows."""
    runs: list[Mapping[str, Any]] = part.get("runs") or [
        {**part, "rows": len(part.get("rows", ()))}
    ]
    return runs
