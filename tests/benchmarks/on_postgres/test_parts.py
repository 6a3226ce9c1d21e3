"""The parts of the benchmark of corpora in PostgreSQL, with few kills and small corpora."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.on_postgres.database_kills import Load, compare, kill_the_database
from benchmarks.on_postgres.ingest_kills import kill_ingest_workers
from benchmarks.on_postgres.inside_search import measure_inside
from benchmarks.on_postgres.server import running_server
from benchmarks.on_postgres.speed import measure
from benchmarks.postgres import is_broken, merged, summary
from benchmarks.promises.durability import TextEmbedder, kill_changers
from selection.corpus.corpus import Corpus
from selection.corpus.sequences import Chunk
from selection.location import DatabaseLocation

REQUESTS = {
    "injected": 2, "recovered": 2, "requests": 60, "answered": 50, "unavailable": 10, "wrong": 0,
    "late": 0, "hung": 0, "left": 0, "recovery_seconds": {"p50": 0.5, "max": 0.7},
}  # fmt: skip


def test_both_stores_give_the_same_picks(postgres: DatabaseLocation, tmp_path: Path) -> None:
    result = measure({"folder": tmp_path / "corpora", "postgres": postgres}, [500], 5)

    assert result["same_picks"] == 1.0
    for store in ("folder", "postgres"):
        row = result["stores"][store]["500"]
        assert row["recall"] == 1.0
        assert row["ingest_rows_per_second"] > 0
        assert row["disk_bytes"] > 500 * 384 * 4
        assert 0 < row["select_seconds"]["p50"] <= row["select_seconds"]["p99"]


def test_both_searches_find_the_nearest(postgres: DatabaseLocation) -> None:
    result = measure_inside(postgres, 500, 5)

    assert result["faiss"]["recall"] == 1.0
    assert result["hnsw"]["recall"] > 0.9
    assert result["hnsw_build_seconds"] > 0


def test_killed_processes_lose_nothing(postgres: DatabaseLocation) -> None:
    acknowledged, faults = kill_changers(postgres, 4, seed=1)

    assert acknowledged > 0
    assert not any(faults.values()), faults


def test_killed_ingest_workers_lose_nothing(postgres: DatabaseLocation) -> None:
    result = kill_ingest_workers(postgres, 3, seed=1)

    assert result == {"acknowledged": 9, "lost": 0, "twice": 0, "back": 0, "kills": 3}


def test_a_killed_database_is_used_again(tmp_path: Path) -> None:
    with running_server() as server:
        result = kill_the_database(server, DatabaseLocation(server.url, tmp_path), 2, seed=1)

    assert (result["injected"], result["recovered"]) == (2, 2)
    assert (result["wrong_answers"], result["hung"]) == (0, 0)
    assert result["answers"] > 0
    assert result["changes"] > 0


def test_documents_that_cannot_be_there_are_found(postgres: DatabaseLocation) -> None:
    embedder = TextEmbedder()
    corpus = Corpus.create(postgres, "changing", embedder, "none")
    for name in ("kept", "unsure", "back"):
        corpus.add(name, name, [Chunk(0, name, (1, 2))], embedder.embed([name]))
    corpus.close()
    load = Load(
        possible={
            "kept": {("kept",)},
            "unsure": {(), ("unsure",)},
            "back": {()},
            "lost": {("lost",)},
        }
    )

    assert compare(postgres, load) == 2


@pytest.mark.parametrize(
    ("result", "broken"),
    [
        ({}, False),
        ({"same_picks": 1.0}, False),
        ({"same_picks": 0.998}, True),
        ({"kills": {"lost": 0, "twice": 1, "back": 0}}, True),
        ({"database_kills": {"injected": 2, "recovered": 2, "wrong_answers": 0, "hung": 0}}, False),
        ({"database_kills": {"injected": 2, "recovered": 1, "wrong_answers": 0, "hung": 0}}, True),
        ({"database_kills": {"injected": 2, "recovered": 2, "wrong_answers": 0, "hung": 1}}, True),
        ({"requests_under_kills": REQUESTS}, False),
        ({"requests_under_kills": {**REQUESTS, "recovered": 1}}, True),
        ({"requests_under_kills": {**REQUESTS, "wrong": 1}}, True),
        ({"requests_under_kills": {**REQUESTS, "late": 1}}, True),
        ({"requests_under_kills": {**REQUESTS, "hung": 1}}, True),
        ({"requests_under_kills": {**REQUESTS, "left": 1}}, True),
        ({"nodes": {"injected": 2, "recovered": 2, "lost": 0, "twice": 0, "hung": 0}}, False),
        ({"nodes": {"injected": 2, "recovered": 1, "lost": 0, "twice": 0, "hung": 0}}, True),
        ({"nodes": {"injected": 2, "recovered": 2, "lost": 1, "twice": 0, "hung": 0}}, True),
    ],
)
def test_anything_lost_or_wrong_fails_the_benchmark(
    result: dict[str, object], broken: bool
) -> None:
    assert is_broken(result) is broken


def test_the_summary_has_what_was_measured() -> None:
    select = {"p50": 0.1, "p99": 0.2}
    row = {"select_seconds": select, "ingest_rows_per_second": 5.0, "recall": 1.0, "disk_bytes": 1}
    result = {
        "stores": {"folder": {"10": row}},
        "same_picks": 1.0,
        "kills": {"acknowledged": 3, "lost": 0, "twice": 0, "back": 0, "changes": {}},
        "requests_under_kills": {**REQUESTS, "examples": []},
    }

    assert summary(result) == {
        "kills": {"acknowledged": 3, "lost": 0, "twice": 0, "back": 0},
        "database_kills": None,
        "requests_under_kills": REQUESTS,
        "nodes": None,
        "select_seconds": {"folder": {"10": select}},
        "ingest_rows_per_second": {"folder": {"10": 5.0}},
        "same_picks": 1.0,
        "recall": {"folder": {"10": 1.0}},
    }


def test_a_part_that_is_measured_alone_leaves_the_others(tmp_path: Path) -> None:
    file, first = tmp_path / "result.json", {"command": "a", "commit": "1"}
    kills = {"lost": 0, "twice": 0, "back": 0}
    file.write_text(json.dumps({**first, "kills": kills, "nodes": {"lost": 1}, "seconds": 5.0}))
    second = {"command": "b", "commit": "2", "seconds": 1.0}

    found = merged(file, {"nodes": {"lost": 0}, "runs": {"nodes": second}})

    runs = {"kills": first, "nodes": second}
    assert found == {"kills": kills, "nodes": {"lost": 0}, "runs": runs}

    file.write_text(json.dumps({**second, **found}))
    third = {"command": "c", "commit": "3", "seconds": 2.0}

    again = merged(file, {"inside": {"sequences": 9}, "runs": {"inside": third}})

    assert again["runs"] == {**runs, "inside": third}
    assert (again["kills"], again["inside"]) == (kills, {"sequences": 9})
