"""Cores: engine and trainer that take all while the other one is idle, beside a fixed half."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.report.formatting import Plots, Result, table

_COLUMNS = {"first": "first token, s", "token": "each token, s", "last": "whole answer, s"}


def cores(results: Mapping[str, Result], _: Plots) -> list[str]:
    """A table of all kinds of requests."""
    result = results["cores"]
    threads = result["threads"]
    return [
        "SmolLM2, with the defaults, beside a server with "
        f"`--threads {threads['half']}` on {threads['default']} cores. In each cell: the defaults, "
        "a fixed half, and the ratio of the two, the median of the rounds with least and most.",
        "",
        *table(
            ["requests", *_COLUMNS.values()],
            [
                [kind, *(_cell(measured[column]) for column in _COLUMNS)]
                for kind, measured in result["kinds"].items()
            ],
        ),
    ]


def _cell(measured: Mapping[str, Any]) -> str:
    middle, least, most = measured["ratio"]
    digits = 3 if measured["half"] < 0.1 else 2
    return (
        f"{measured['default']:.{digits}f}, {measured['half']:.{digits}f}: "
        f"{middle:.2f} ({least:.2f} to {most:.2f})"
    )
