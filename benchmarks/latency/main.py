"""Latency: what each stage of a request costs, by budget and load, beside plain vLLM.

A cell is a server, a budget, and a load: a closed loop of concurrent clients, or an open one
(Poisson) at OPEN_SHARE of the rate of the fastest closed one. Each cell is measured by `vllm bench
serve` (`benchmarks/latency/vllm_cli.py`), as a cross-check, and by our own client
(`benchmarks/latency/client.py`). The command takes nine seconds to start, so the small run uses it
only for cells with one request at once. Stages are those of an answer's report (embed, search,
select, queue, train, load) and those that a client sees (first token, per token, whole). `load` is
staging and loading together. vLLM reports its queue and prefill only as totals over all requests of
a cell, so they have a mean and no percentiles. The time of unloading, which follows the answer, is
not reported. A p99 of fewer than MIN_P99_REQUESTS requests is marked.

The same run measures plain `vllm serve`, one with a resident adapter
(`benchmarks/latency/hot_load.py`), and a PEFT loop per request
(`benchmarks/latency/per_request_peft.py`). All three servers are up, and only one at a time gets
requests. `benchmarks/latency/growth.py` measures how the cost grows. Mayfly has its defaults, but
accepts all adaptations, with all their steps.

An interrupted run continues when the same command is given at the same commit.

    make bench-latency [BUDGET=small]
    python -m benchmarks.latency.main [--budget small] [--json]
    [--out benchmarks/results/latency.json]
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.harness.command_line import argument_parser, progress, write_result
from benchmarks.harness.provenance import CACHE, provenance
from benchmarks.harness.server import create_corpora, source_documents
from benchmarks.harness.thresholds import MAX_HOT_LOAD_RATIO, MIN_SPEEDUP
from benchmarks.latency.client import Load, send_load
from benchmarks.latency.growth import (
    ANSWER,
    PROMPT,
    RESIDENT,
    STEADY,
    Once,
    Point,
    create_synthetic_corpora,
    fitted,
    grow,
)
from benchmarks.latency.hot_load import hot_load
from benchmarks.latency.journal import Journal
from benchmarks.latency.per_request_peft import race
from benchmarks.latency.plan import PLANS, Cell, Plan, cells
from benchmarks.latency.servers import CORPUS, Servers
from benchmarks.latency.stages import by_stage, histograms, mean_between
from benchmarks.latency.tables import show
from benchmarks.latency.vllm_cli import bench_load

OPEN_SHARE = 0.7
PEFT_CONCURRENCY, PEFT_BUDGET = 8, "steps=10"
# Field of a cell: steps, seconds of training and seconds in all of each adapted request.
_REQUESTS = "steps_train_whole"


def bench_cell(url: str, load: Load, folder: Path, seed: int) -> dict[str, Any]:
    """Measure a load by `vllm bench serve`, with the server's histograms and missing steps."""
    before = histograms(url)
    result = bench_load(url, load, folder, seed)
    counted = mean_between(before, histograms(url))
    steps = counted.get("steps", {"n": 0.0, "mean": 0.0})
    missing = (
        None
        if load.steps is None
        else load.steps * load.requests - round(steps["n"] * steps["mean"])
    )
    return {**result, "steps_missing": missing, "counted": counted}


def measure_cell(servers: Servers, cell: Cell, folder: Path, seed: int) -> dict[str, Any]:
    """Measure a cell: stages, the server's histograms, short answers, and the cross-check."""
    load, url = cell.load, servers.url(cell.server)
    check = bench_cell(url, load, folder, seed) if cell.checked else None
    before = histograms(url)
    answers, seconds = send_load(url, load, seed + 1)
    after = histograms(url)
    valid = [answer for answer in answers if not answer.is_short(load)]
    stages = by_stage([answer.stages() for answer in valid])
    return {
        "server": cell.server,
        **asdict(load),
        "short": len(answers) - len(valid),
        "per_second": len(answers) / seconds,
        "prompt_tokens": float(np.median([answer.prompt for answer in valid])) if valid else None,
        "stages": stages,
        "counted": mean_between(before, after),
        _REQUESTS: [
            (answer.report["spent"]["steps"], answer.report["seconds"]["train"], answer.last)
            for answer in valid
            if answer.report.get("adapted")
        ],
        "vllm_bench_serve": check,
        "agreement": {
            stage: stages[stage]["p50"] / expected["p50"]
            for stage, expected in (check["stages"] if check else {}).items()
            if stage in stages and expected["p50"]
        },
    }


def run(plan: Plan, folder: Path, seed: int, once: Once) -> dict[str, Any]:
    """Measure all parts that the journal does not have, on servers that start when needed."""
    once("corpora", partial(_create_corpora, folder, plan))
    measured: dict[str, Any] = {}
    with ExitStack() as stack:
        servers = Servers(folder, stack)
        for number, cell in enumerate(cells(plan)):
            if cell.load.at_once is None:
                closed = [
                    each["per_second"]
                    for each in _default_length_cells(measured)
                    if each["budget"] == cell.load.budget
                ]
                rate = OPEN_SHARE * max(closed)
                cell = replace(cell, load=replace(cell.load, rate=round(rate, 3)))
            measured[cell.name] = once(
                cell.name, partial(measure_cell, servers, cell, folder, seed + 10 * number)
            )
        hot_loads = {}
        for prompt in dict.fromkeys([PROMPT, *(prompt for prompt, _ in plan.lengths)]):
            load = Load("steps=1", plan.pairs, prompt, 8)
            hot_loads[str(prompt)] = once(
                f"hot-loading, {prompt} tokens",
                partial(_hot_load, servers, load, seed + 10_000 + prompt),
            )
        load = Load(PEFT_BUDGET, plan.round_requests, PROMPT, ANSWER, PEFT_CONCURRENCY)
        peft = once(
            "naive", partial(_compare_peft, servers, load, folder, plan.rounds, seed + 20_000)
        )
        points = _points_of(measured) | grow(plan.growth, servers.url, folder, once, seed + 30_000)
    return {
        "hot_load_ratio": hot_loads[str(PROMPT)]["hot_load_ratio"],
        "speedup_vs_naive": peft["speedup_vs_naive"],
        "speedup_vs_naive_pool": peft["speedup_vs_naive_pool"],
        "holds": {
            "hot_load": hot_loads[str(PROMPT)]["hot_load_ratio"] <= MAX_HOT_LOAD_RATIO,
            "naive": peft["speedup_vs_naive"] >= MIN_SPEEDUP,
        },
        "short": sum(each["short"] for each in measured.values())
        + sum(
            each["vllm_bench_serve"]["failed"]
            for each in measured.values()
            if each["vllm_bench_serve"]
        )
        + sum(each["short"] for each in hot_loads.values())
        + sum(peft["short"].values()),
        "cells": measured,
        "hot_load": hot_loads,
        "naive": peft,
        "growth": fitted(points),
    }


def _create_corpora(folder: Path, plan: Plan) -> None:
    create_corpora(folder, {CORPUS: source_documents()})
    create_synthetic_corpora(folder, plan.growth)


def _hot_load(servers: Servers, load: Load, seed: int) -> dict[str, Any]:
    return hot_load(servers.mayfly, servers.resident, RESIDENT[0], load, seed)


def _compare_peft(
    servers: Servers, load: Load, folder: Path, rounds: int, seed: int
) -> dict[str, Any]:
    return race(servers.mayfly, servers.resident, load, folder, CORPUS, rounds, seed)


def _default_length_cells(measured: Mapping[str, Any]) -> list[Any]:
    """The closed loops of prompts and answers of the default lengths."""
    return [
        each
        for each in measured.values()
        if each["rate"] is None and (each["prompt"], each["answer"]) == (PROMPT, ANSWER)
    ]


def _points_of(measured: Mapping[str, Any]) -> dict[str, list[Point]]:
    """Seconds of training by steps, one request at once; seconds in all by concurrency."""
    default_cells = _default_length_cells(measured)
    return {
        "steps": [
            (steps, train)
            for cell in default_cells
            if cell["at_once"] == 1
            for steps, train, _ in cell[_REQUESTS]
        ],
        "concurrency": [
            (cell["at_once"], whole)
            for cell in default_cells
            if cell["budget"] == STEADY
            for _, _, whole in cell[_REQUESTS]
        ],
    }


def main() -> None:
    """Measure, print tables, write the JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--budget", choices=PLANS, default="full", help="small: ten minutes; full: hours"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    options = parser.parse_args()
    facts, plan = provenance(), PLANS[options.budget]
    key = hashlib.sha256(f"{facts['commit']} {plan} {options.seed}".encode()).hexdigest()[:12]
    folder = CACHE / f"latency-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    measured = run(plan, folder, options.seed, Journal(folder / "measured.json").once)
    progress("")
    result = {
        **facts,
        "budget": options.budget,
        "seed": options.seed,
        "plan": asdict(plan),
        **measured,
    }
    show(result, Console(stderr=options.json))
    keys = ("hot_load_ratio", "speedup_vs_naive", "speedup_vs_naive_pool", "holds", "short")
    stages = {name: cell["stages"] for name, cell in measured["cells"].items()}
    write_result(options, result, {**{key: measured[key] for key in keys}, "stages": stages})
    # A complete run is not resumed.
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
