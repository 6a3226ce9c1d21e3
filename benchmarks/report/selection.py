"""Selection: SIFT against activeft and nearest neighbours, and the cost of corpora by size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.report.formatting import Plots, Result, table


def selection(results: Mapping[str, Result], plots: Plots) -> list[str]:
    """Everything that the selection benchmark measured."""
    result = results["selection"]
    return [
        f"The same picks as activeft on {result['identical_picks']:.1%} of {result['problems']:,} "
        f"problems ({result['identical_picks_strictly']:.1%} if ties count as different). Speed "
        "over that "
        "of its greedy loop and of its `Retriever`, by candidates K:",
        "",
        *table(
            [
                "K",
                "pairs",
                "Mayfly, ms",
                "greedy, ms",
                "`Retriever`, ms",
                "over greedy",
                "over `Retriever`",
            ],
            [
                [
                    f"{int(k):,}",
                    format_number(row.get("pairs"), 0),
                    *(
                        format_number(row.get(f"{method}_milliseconds"))
                        for method in ("mayfly", "greedy", "retriever")
                    ),
                    *(
                        format_number(without_bounds(row.get(f"{method}_ratio")), 0)
                        for method in ("greedy", "retriever")
                    ),
                ]
                for k, row in result["races"].items()
            ],
        ),
        "Time of embedding, search and SIFT over embedding and search alone (paper, figure 4), "
        "and with "
        "sigma_infinity:",
        "",
        *table(
            ["K", "nearest neighbours, ms", "with SIFT, ms", "ratio", "ratio with sigma_infinity"],
            [
                [
                    f"{int(k):,}",
                    *(
                        format_number(row[name])
                        for name in ("nn_milliseconds", "sift_milliseconds")
                    ),
                    *(format_number(row[name], 3) for name in ("ratio", "ratio_with_irreducible")),
                ]
                for k, row in result["overhead"].items()
            ],
        ),
        *plots.drawn_by_benchmark(
            "overhead.svg", "Time with SIFT over nearest neighbours alone, by K"
        ),
        "By size of the corpus:",
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
            growth_rows(result["growth"]),
        ),
    ]


def growth_rows(growth: Mapping[str, Result]) -> list[list[str]]:
    """The cells of each size of the corpus: times, bytes and recall."""
    return [
        [
            f"{int(size):,}",
            format_number(row["build_seconds"]),
            format_number(row["open_seconds"], 2),
            format_number(row["bytes"] / 1e6, 0),
            format_number(row["resident_bytes"] / 1e6, 0),
            format_number(row["select_milliseconds"]),
            format_number(row["select_with_embedding_milliseconds"]),
            format_number(row["recall"], 3),
        ]
        for size, row in growth.items()
    ]


def without_bounds(interval: Sequence[float] | None) -> float | None:
    """The value itself, of a value and its bounds."""
    return None if interval is None else interval[0]


def format_number(value: float | None, digits: int = 1) -> str:
    """A number, or a dash where nothing was measured."""
    return "-" if value is None else f"{value:,.{digits}f}"
