"""Stages of requests: percentiles by stage, and means of a server's histograms."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.harness.server import metric_samples
from benchmarks.latency.vllm_cli import PERCENTILES

Counts = Mapping[str, tuple[float, float]]
_HISTOGRAMS = {
    "vllm:request_queue_time_seconds": "engine queue",
    "vllm:request_prefill_time_seconds": "prefill",
    "mayfly_steps": "steps",
}
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Number of values, and their p50, p95 and p99."""
    quantiles = np.quantile(values, [p / 100 for p in PERCENTILES])
    return {
        "n": len(values),
        **{f"p{p}": float(value) for p, value in zip(PERCENTILES, quantiles, strict=True)},
    }


def by_stage(requests: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Percentiles of each stage over the requests that have it."""
    seconds = defaultdict(list)
    for request in requests:
        for stage, value in request.items():
            seconds[stage].append(value)
    return {stage: percentiles(values) for stage, values in seconds.items()}


def histograms(url: str) -> dict[str, tuple[float, float]]:
    """A server's histograms by stage: number of requests and their seconds (steps for "steps")."""
    totals: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for name, labels, value in metric_samples(url, timeout=60.0):
        family, _, part = name.rpartition("_")
        stage = _HISTOGRAMS.get(family)
        if family == "mayfly_stage_seconds":
            stage = dict(_LABEL.findall(labels))["stage"]
        if stage:
            totals[stage][part] = value
    return {stage: (found["count"], found["sum"]) for stage, found in totals.items()}


def mean_between(before: Counts, after: Counts) -> dict[str, dict[str, float]]:
    """Number of requests between two readings, and their mean, by stage."""
    found = {}
    for stage, (count, total) in after.items():
        earlier, spent = before.get(stage, (0.0, 0.0))
        if count > earlier:
            found[stage] = {"n": count - earlier, "mean": (total - spent) / (count - earlier)}
    return found
