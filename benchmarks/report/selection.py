"""Selection: SIFT against its authors' library and against nearest neighbours, and what corpora
cost as they grow.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.report.formatting import Plots, Result, table


def selection(results: Mapping[str, Result], plots: Plots) -> list[str]:
    """All three."""
    result = results["selection"]
    return [
        f"The same picks as activeft on {result['identical_picks']:.1%} of {result['problems']:,} problems "
        f"({result['identical_picks_strictly']:.1%} without counting ties). Times as fast as its greedy loop, and as "
        "its `Retriever`, by candidates K:",
        "",
        *table(
            [
                "K",
                "pairs",
                "Mayfly, ms",
                "greedy, ms",
                "`Retriever`, ms",
                "times the greedy",
                "times the `Retriever`",
            ],
            [
                [
                    f"{int(k):,}",
                    _number(row.get("pairs"), 0),
                    *(
                        _number(row.get(f"{way}_milliseconds"))
                        for way in ("mayfly", "greedy", "retriever")
                    ),
                    *(
                        _number(_first(row.get(f"{way}_ratio")), 0)
                        for way in ("greedy", "retriever")
                    ),
                ]
                for k, row in result["races"].items()
            ],
        ),
        "Embedding, search and SIFT over embedding and search alone (paper, figure 4), and with sigma_infinity:",
        "",
        *table(
            ["K", "nearest neighbours, ms", "with SIFT, ms", "ratio", "ratio with sigma_infinity"],
            [
                [
                    f"{int(k):,}",
                    *(_number(row[name]) for name in ("nn_milliseconds", "sift_milliseconds")),
                    *(_number(row[name], 3) for name in ("ratio", "ratio_with_irreducible")),
                ]
                for k, row in result["overhead"].items()
            ],
        ),
        *plots.drawn("overhead.svg", "Time with SIFT over nearest neighbours alone, by K"),
        "By sequences of the corpus:",
        "",
        *table(
            [
                "sequences",
                "build, s",
                "open, s",
                "disk, MB",
                "memory, MB",
                "search and SIFT, ms",
                "+ embedding",
                "recall",
            ],
            [
                [
                    f"{int(size):,}",
                    _number(row["build_seconds"]),
                    _number(row["open_seconds"], 2),
                    _number(row["bytes"] / 1e6, 0),
                    _number(row["resident_bytes"] / 1e6, 0),
                    _number(row["select_milliseconds"]),
                    _number(row["select_with_embedding_milliseconds"]),
                    _number(row["recall"], 3),
                ]
                for size, row in result["growth"].items()
            ],
        ),
    ]


def _first(triple: list[float] | None) -> float | None:
    return None if triple is None else triple[0]


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
