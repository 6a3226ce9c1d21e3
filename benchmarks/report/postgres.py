"""Corpora in PostgreSQL: what they cost beside a folder, and what survives kills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.report.formatting import (
    Plots,
    Result,
    holds_or_not,
    milliseconds,
    table,
    titled_table,
)

_NAMES = {"folder": "SQLite and FAISS in a folder", "postgres": "PostgreSQL, FAISS in memory"}
# By part of the result: what was killed, and what must not happen.
_KILLS = {
    "kills": ("processes that add, delete and ingest", ("lost", "twice", "back")),
    "database_kills": ("the database", ("wrong_answers", "hung")),
    "requests_under_kills": (
        "the database, under a server's requests",
        ("wrong", "late", "hung", "left"),
    ),
    "nodes": ("a node of two", ("lost", "twice", "hung")),
}


def postgres(results: Mapping[str, Result], _: Plots) -> list[str]:
    """Everything that was measured, beside shards of a corpus in a folder."""
    result = results.get("postgres", {})
    lines: list[str] = []
    if stores := result.get("stores"):
        same = result["same_picks"]
        lines += [
            "One selection at a time, on the same machine as the database."
            + ("" if same is None else f" The same picks on {same:.1%} of the prompts."),
            "",
            *table(
                ["corpora", "sequences", "select p50, ms", "p99, ms", "added a second", "MB"],
                [
                    _costs(_NAMES[name], size, row)
                    for name, rows in stores.items()
                    for size, row in rows.items()
                ],
            ),
        ]
    if shards := results.get("shards"):
        lines += titled_table(
            "In shards",
            f"A search of {shards['sequences']:,} sequences of a corpus in a folder, without the "
            "choice among those found, divided among processes.",
            ["processes", "search p50, ms", "MB of memory of one", "recall"],
            [
                [
                    count,
                    f"{row['search_milliseconds']:.1f}",
                    f"{row['resident_bytes'] / 1e6:,.0f}",
                    f"{row['recall']:.3f}",
                ]
                for count, row in shards["shards"].items()
            ],
        )
    if inside := result.get("inside"):
        lines += titled_table(
            "Searched in the database",
            "FAISS in the memory of the selector, as Mayfly searches, beside an HNSW index of "
            "pgvector in the database.",
            [
                "sequences",
                "FAISS p50, ms",
                "HNSW p50, ms",
                "recall",
                "with HNSW",
                "added a second",
                "with HNSW",
            ],
            [
                [
                    f"{int(size):,}",
                    *(milliseconds(row[each]["p50"]) for each in ("faiss", "hnsw")),
                    *(f"{row[each]['recall']:.3f}" for each in ("faiss", "hnsw")),
                    f"{row['ingest_rows_per_second']:,.0f}",
                    f"{row['ingest_rows_per_second_with_hnsw']:,.0f}",
                ]
                for size, row in inside.items()
            ],
        )
    if rows := [_killed(result[part], *words) for part, words in _KILLS.items() if part in result]:
        lines += titled_table(
            "Kills", "At random moments, under load.", ["killed", "measured", "verdict"], rows
        )
    if runs := result.get("runs"):
        lines += titled_table(
            "Runs",
            "The parts may be of different runs.",
            ["part", "command", "commit"],
            [[part, f"`{run['command']}`", str(run["commit"])[:10]] for part, run in runs.items()],
        )
    return lines


def _costs(name: str, size: str, row: Mapping[str, Any]) -> list[str]:
    return [
        name,
        f"{int(size):,}",
        *(milliseconds(row["select_seconds"][part]) for part in ("p50", "p99")),
        f"{row['ingest_rows_per_second']:,.0f}",
        f"{row['disk_bytes'] / 1e6:,.0f}",
    ]


def _killed(counts: Mapping[str, Any], what: str, broken: tuple[str, ...]) -> list[str]:
    measured = [f"{counts[each]:,} {each.replace('_', ' ')}" for each in broken]
    if "injected" in counts:
        measured.insert(0, f"recovered {counts['recovered']} of {counts['injected']} times")
    if "acknowledged" in counts:
        measured.insert(0, f"{counts['acknowledged']:,} acknowledged changes")
    holds = not any(counts[each] for each in broken) and (
        counts.get("recovered") == counts.get("injected")
    )
    return [what, ", ".join(measured), holds_or_not(holds)]
