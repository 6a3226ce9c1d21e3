"""How the cost of a request grows: a line through the points of each variable, and a panel each."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.report.formatting import Plots, milliseconds, table

_SECONDS_OF = {
    "steps": "training",
    "concurrency": "a whole answer",
    "sequence tokens": "a step",
    "corpus sequences": "search and selection",
    "adapters in a batch": "a token",
    "million parameters, a step": "a step",
    "million parameters, a token": "a token",
}


def growth(curves: Mapping[str, Any], plots: Plots) -> list[str]:
    """The range, line and bend of each variable."""
    measured = {what: curve for what, curve in curves.items() if curve["points"]}
    if not measured:
        return []
    lines = {what: curve for what, curve in measured.items() if curve["fit"] is not None}
    drawn_by_benchmark = (
        plots.draw("growth", "Seconds by variable, with lines", _Panels(lines), len(lines))
        if lines
        else ""
    )
    return [
        "### How the cost grows",
        "",
        "A line through requests, in milliseconds; it bends where two connected lines fit clearly "
        "better. Two values of a variable give a line and no more; three or four can only hint at "
        "a "
        "bend.",
        "",
        *table(
            [
                "variable",
                "time of",
                "from",
                "to",
                "values",
                "points",
                "at 0",
                "per unit",
                "explained",
                "bends at",
                "then per unit",
            ],
            [
                [what, _SECONDS_OF.get(what, ""), *_fit_cells(curve)]
                for what, curve in measured.items()
            ],
        ),
        drawn_by_benchmark,
        "",
    ]


def line_at(curve: Mapping[str, Any], x: float) -> float:
    """Seconds at x by the line, which passes through the mean of its points."""
    fit = curve["fit"]

    def rise(x: float) -> float:
        beyond = 0.0 if fit["bend"] is None else max(0.0, x - fit["bend"])
        return float(fit["slope_before"] * x + (fit["slope_after"] - fit["slope_before"]) * beyond)

    return rise(x) + statistics.fmean(y - rise(at) for at, y in curve["points"])


def _fit_cells(curve: Mapping[str, Any]) -> list[str]:
    fit = curve["fit"]
    if fit is None:
        x = _count(curve["points"][0][0])
        return [x, x, "1", str(len(curve["points"])), "", "no line", "", "", ""]
    bend_cells = (
        ["", ""] if fit["bend"] is None else [_count(fit["bend"]), _slope(fit["slope_after"])]
    )
    ends = [_count(fit[end]) for end in ("least", "most")]
    line = [
        milliseconds(line_at(curve, 0.0)),
        _slope(fit["slope_before"]),
        f"{fit['explained']:.2f}",
    ]
    return [*ends, str(fit["values"]), str(fit["requests"]), *line, *bend_cells]


def _count(x: float) -> str:
    return f"{x:,.1f}".removesuffix(".0")


def _slope(slope: float) -> str:
    return f"{1e3 * slope:.3g}"


class _Panels:
    """Points and their line, a panel for each variable."""

    def __init__(self, curves: Mapping[str, Any]) -> None:
        self._grown = curves

    def __call__(self, *panels: Any) -> None:
        for axes, (what, curve) in zip(panels, self._grown.items(), strict=True):
            x, y = zip(*curve["points"], strict=True)
            axes.plot(x, y, ".", color="#2471a3", alpha=0.5, markersize=4)
            at = sorted(set(x))
            axes.plot(at, [line_at(curve, value) for value in at], color="#c0392b")
            axes.set(
                xlabel=what,
                ylabel=f"seconds of {_SECONDS_OF.get(what, 'it')}",
                xlim=(0, None),
                ylim=(0, None),
            )
