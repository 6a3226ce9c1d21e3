"""The sections of quality, training and selection."""

from __future__ import annotations

import json

from benchmarks.quality.tables import summary
from benchmarks.quality.variants import Variant
from benchmarks.report.latency import latency
from benchmarks.report.postgres import postgres
from benchmarks.report.quality import quality
from benchmarks.report.selection import selection
from benchmarks.report.training import training
from tests.benchmarks.quality.samples import measurements
from tests.benchmarks.report.samples import stored_results
from tests.benchmarks.sketches import sketches


def test_quality_shows_the_summary_of_measurements() -> None:
    all_measurements = [*measurements("SIFT", 80), *measurements("NN", 85)]
    size = {"axis_measured": 2, "domains": ["legal", "Rust"]}
    settings = {"rank": [Variant("rank 4", rank=4)]}
    result = {
        **summary([*all_measurements, *measurements("rank 4", 82)], ["SIFT", "NN"], settings),
        "corpus_sequences": 9,
        "model": "nano",
        "size": size,
    }

    lines = quality({"quality": json.loads(json.dumps(result))}, sketches("quality"))

    assert "SIFT minus nearest neighbours: **-5.0 (-5.0 to -5.0) points**." in lines
    assert any(line.startswith("| **all** | 4 |") for line in lines)
    assert "| 50 to 50 (50) | 2 | -5.0 (-5.0 to -5.0) |" in lines
    assert "| rank 4 | 82.0 (82.0 to 82.0) | 2.0 (2.0 to 2.0) | -3.0 (-3.0 to -3.0) |" in lines


def test_stored_training_results_are_shown_together() -> None:
    lines = training(
        stored_results("training", "training-float32", "training-two-threads"), sketches("training")
    )

    assert any(line.startswith("| training | 150M | bfloat16 |") for line in lines)
    assert any(line.startswith("| training | nano | (float32) |") for line in lines)
    assert any("(results/training.svg)" in line for line in lines)
    late = {
        line.split(" | ")[0]: line
        for line in lines[lines.index("### Deadlines") :]
        if line.count("|") == 7
    }
    assert late["| training"].endswith("| holds |")
    assert late["| training-two-threads"].endswith("| **does not hold** |")


def test_the_parts_of_a_step_are_shown() -> None:
    profile = {
        "precision": "bfloat16",
        "rank": 16,
        "sequence_tokens": 256,
        "step_seconds": [0.5, 0.4, 0.6],
        "part_seconds": {"attention": 0.07, "rest": 0.43},
    }
    run = {
        "threads": 1,
        "device": "cpu",
        "commit": "0" * 40,
        "profile": {"smollm2": profile},
    }

    lines = training({"training": run}, sketches("training"))

    assert "| training | smollm2 | bfloat16 | 16 | 256 | 500.0 | 70.0 | 430.0 |" in lines


def test_stored_selection_results_are_shown() -> None:
    lines = selection(stored_results("selection"), sketches("selection"))

    assert any(line.startswith("| 1,000,000 |") for line in lines)
    assert any("(results/overhead.svg)" in line for line in lines)


def test_stored_quality_and_latency_results_are_shown() -> None:
    quality_lines = quality(stored_results("quality"), sketches("quality"))
    latency_lines = latency(stored_results("latency"), sketches("latency"))

    assert any(line.startswith("SIFT minus nearest neighbours: **") for line in quality_lines)
    assert any(line.startswith("| NN, every sequence 5 times |") for line in quality_lines)
    assert any(line.startswith("| `auto` | 16 |") for line in latency_lines)
    assert any("times those of 1 x 1" in line for line in latency_lines)


def test_costs_and_kills_of_corpora_in_a_database_are_shown() -> None:
    row = {
        "select_seconds": {"p50": 0.0042, "p99": 0.02},
        "ingest_rows_per_second": 5100.4,
        "disk_bytes": 23_000_000,
    }
    result = {
        "stores": {"folder": {"10000": row}, "postgres": {"10000": row}},
        "same_picks": 1.0,
        "kills": {"acknowledged": 1119, "lost": 0, "twice": 0, "back": 0},
        "requests_under_kills": {
            "injected": 50,
            "recovered": 50,
            "requests": 4000,
            "wrong": 0,
            "late": 1,
            "hung": 0,
            "left": 0,
        },
        "nodes": {"injected": 5, "recovered": 4, "lost": 0, "twice": 0, "hung": 0},
        "runs": {"nodes": {"command": "python -m x", "commit": "0123456789abcdef"}},
    }

    search = {"p50": 0.0021, "recall": 1.0}
    result["inside"] = {
        "10000": {
            "faiss": search,
            "hnsw": {"p50": 0.015, "recall": 0.998},
            "ingest_rows_per_second": 5700.0,
            "ingest_rows_per_second_with_hnsw": 370.2,
        }
    }
    shard = {"search_milliseconds": 6.18, "resident_bytes": 919e6, "recall": 0.975}

    lines = postgres(
        {"postgres": result, "shards": {"sequences": 1_000_000, "shards": {"2": shard}}},
        sketches("postgres"),
    )

    assert "| 10,000 | 2.1 | 15.0 | 1.000 | 0.998 | 5,700 | 370 |" in lines
    assert "| 2 | 6.2 | 919 | 0.975 |" in lines
    assert "| PostgreSQL, FAISS in memory | 10,000 | 4.2 | 20.0 | 5,100 | 23 |" in lines
    assert (
        "| processes that add, delete and ingest | 1,119 acknowledged changes, 0 lost, 0 twice, "
        "0 back | holds |" in lines
    )
    assert (
        "| the database, under a server's requests | recovered 50 of 50 times, 0 wrong, 1 late, "
        "0 hung, 0 left | **does not hold** |" in lines
    )
    assert any("4 of 5 times" in line and line.endswith("| **does not hold** |") for line in lines)
    assert "| nodes | `python -m x` | 0123456789 |" in lines
