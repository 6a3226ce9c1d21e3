"""Percentiles of stages, and means between two readings of a server's histograms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Histogram, start_http_server

from benchmarks.latency.stages import by_stage, histograms, mean_between, percentiles


def test_percentiles_include_the_number_of_values() -> None:
    result = percentiles([float(n) for n in range(1, 101)])

    assert result == {
        "n": 100,
        "p50": 50.5,
        "p95": pytest.approx(95.05),
        "p99": pytest.approx(99.01),
    }


def test_a_stage_counts_only_the_requests_that_have_it() -> None:
    result = by_stage([{"train": 1.0, "load": 0.1}, {"load": 0.3}])

    assert {stage: (each["n"], each["p50"]) for stage, each in result.items()} == {
        "train": (1, 1.0),
        "load": (2, 0.2),
    }


@pytest.fixture
def metrics_server() -> Iterator[tuple[str, Histogram, Histogram]]:
    registry = CollectorRegistry()
    stages = Histogram("mayfly_stage_seconds", "Seconds.", ["stage"], registry=registry)
    prefill = Histogram(
        "vllm:request_prefill_time_seconds", "Seconds.", ["model_name"], registry=registry
    )
    Histogram("mayfly_steps", "Steps.", registry=registry).observe(5)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    yield f"http://127.0.0.1:{server.server_port}", stages, prefill
    server.shutdown()
    thread.join()


def test_means_cover_the_requests_between_two_scrapes(
    metrics_server: tuple[str, Histogram, Histogram],
) -> None:
    url, stages, prefill = metrics_server
    stages.labels("train").observe(100.0)
    before = histograms(url)
    for seconds in (1.0, 3.0):
        stages.labels("train").observe(seconds)
    prefill.labels("nano").observe(0.25)

    result = mean_between(before, histograms(url))

    assert before["steps"] == (1.0, 5.0)
    assert result == {"train": {"n": 2.0, "mean": 2.0}, "prefill": {"n": 1.0, "mean": 0.25}}
