"""How the cost of a request grows: the line through the points of each thing that grows, and a
panel for each.
"""

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


def growth(grown: Mapping[str, Any], plots: Plots) -> list[str]:
    """Of each thing that grows: from where to where, the line, and where it bends."""
    shown = {what: found for what, found in grown.items() if found["points"]}
    if not shown:
        return []
    lines = {what: found for what, found in shown.items() if found["fit"] is not None}
    drawn = (
        plots.draw("growth", "Seconds against what grows, with lines", _Panels(lines), len(lines))
        if lines
        else ""
    )
    return [
        "### How the cost grows",
        "",
        "A line through requests, in milliseconds; where two that meet do clearly better, it bends there. Two values "
        "of what grows give a line and no more, three or four can only hint at a bend.",
        "",
        *table(
            [
                "against",
                "of",
                "from",
                "to",
                "values",
                "points",
                "at 0",
                "each more",
                "explained",
                "bends at",
                "then each",
            ],
            [[what, _SECONDS_OF.get(what, ""), *_told(found)] for what, found in shown.items()],
        ),
        drawn,
        "",
    ]


def line_at(found: Mapping[str, Any], x: float) -> float:
    """Seconds at x by the line, which goes through the mean of its points, bent or not."""
    fit = found["fit"]

    def risen(x: float) -> float:
        beyond = 0.0 if fit["bend"] is None else max(0.0, x - fit["bend"])
        return float(fit["slope_before"] * x + (fit["slope_after"] - fit["slope_before"]) * beyond)

    return risen(x) + statistics.fmean(y - risen(at) for at, y in found["points"])


def _told(found: Mapping[str, Any]) -> list[str]:
    fit = found["fit"]
    if fit is None:
        x = _count(found["points"][0][0])
        return [x, x, "1", str(len(found["points"])), "", "no line", "", "", ""]
    bent = ["", ""] if fit["bend"] is None else [_count(fit["bend"]), _each(fit["slope_after"])]
    ends = [_count(fit[end]) for end in ("least", "most")]
    line = [
        milliseconds(line_at(found, 0.0)),
        _each(fit["slope_before"]),
        f"{fit['explained']:.2f}",
    ]
    return [*ends, str(fit["values"]), str(fit["requests"]), *line, *bent]


def _count(x: float) -> str:
    return f"{x:,.1f}".removesuffix(".0")


def _each(slope: float) -> str:
    return f"{1e3 * slope:.3g}"


class _Panels:
    """Points and their line, a panel for each thing that grows."""

    def __init__(self, grown: Mapping[str, Any]) -> None:
        self._grown = grown

    def __call__(self, *panels: Any) -> None:
        for axes, (what, found) in zip(panels, self._grown.items(), strict=True):
            x, y = zip(*found["points"], strict=True)
            axes.plot(x, y, ".", color="#2471a3", alpha=0.5, markersize=4)
            at = sorted(set(x))
            axes.plot(at, [line_at(found, each) for each in at], color="#c0392b")
            axes.set(
                xlabel=what,
                ylabel=f"seconds of {_SECONDS_OF.get(what, 'it')}",
                xlim=(0, None),
                ylim=(0, None),
            )
