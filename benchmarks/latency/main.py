"""Latency: what each stage of a request costs, by budget and by how many ask, beside plain vLLM and
the naive way.

A cell is a server, a budget, and a load: a closed loop of so many clients, or an open one (Poisson)
at OPEN_SHARE of what the quickest closed one reached. It is asked by `vllm bench serve`, then by
our own client, which is also the cross-check (`benchmarks/latency/bench_serve.py`). The command takes nine
seconds to start: in small it asks only where one client asks at a time, which is once for each
server and budget. Stages are those that an answer's report tells (embed, search, select, queue,
train, load) and those that a client sees (first token, per token, whole). `load` is staging and
loading together. vLLM counts its queue and prefill over all requests of a cell: of these there is a
mean and no percentile. What unloading takes is told nowhere; it comes after the answer. A p99 of
fewer than ENOUGH requests is marked.

Beside Mayfly, in the same run: plain `vllm serve`, one with a resident adapter
(`benchmarks/latency/hot_load.py`), and the naive way (`benchmarks/latency/per_request_peft.py`). All three servers are up, one
is asked at a time. How the cost grows is `benchmarks/latency/growth.py`. Mayfly has its defaults,
but takes on all adaptations that come, with all their steps.

A run that was broken off goes on where it was, when the same command is given at the same commit.

    make bench-latency [BUDGET=small]
    python -m benchmarks.latency.main [--budget small] [--json] [--out benchmarks/results/latency.json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.harness.command_line import progress
from benchmarks.harness.provenance import CACHE, provenance
from benchmarks.harness.server import (
    create_corpora,
    free_port,
    mayfly_server,
    metric_samples,
    running_server,
    source_documents,
)
from benchmarks.harness.thresholds import MAX_HOT_LOAD_RATIO, MIN_P99_REQUESTS, MIN_SPEEDUP
from benchmarks.latency.bench_serve import (
    PERCENTILES,
    Load,
    ask_all,
    bench,
    environment,
    pieces,
    vllm_serve,
)
from benchmarks.latency.growth import (
    ANSWER,
    PROMPT,
    RESIDENT,
    STEADY,
    Once,
    Point,
    fitted,
    grow,
    growth_table,
    synthetic,
)
from benchmarks.latency.hot_load import hot_load, in_words, with_adapters
from benchmarks.latency.per_request_peft import chosen, race
from benchmarks.latency.per_request_peft import in_words as naive_in_words
from benchmarks.latency.plan import PLANS, Cell, Plan, cells

CORPUS, CONTEXT = "code", 1024  # tokens
OPEN_SHARE = 0.7
NAIVE_AT_ONCE, NAIVE_BUDGET = 8, "steps=10"
# A client of a closed loop may come again before the place of its last request is free; an open one
# has no bound.
_ROOM = (
    "--max-requests",
    "256",
    "--max-adaptations",
    "256",
    "--undegraded",
    "256",
    "--max-model-len",
    str(CONTEXT),
)
_COUNTED = {
    "vllm:request_queue_time_seconds": "engine queue",
    "vllm:request_prefill_time_seconds": "prefill",
    "mayfly_steps": "steps",
}
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_SHOWN = {
    "queue": ("queue",),
    "pick": ("embed", "search", "select"),
    "train": ("train",),
    "load": ("load",),
    "first": ("first token",),
    "token": ("per token",),
}

_REQUESTS = "steps_train_whole"  # of each request that was adapted
Counts = Mapping[str, tuple[float, float]]


class Journal:
    """What has been measured, by name, in a file that is whole at every moment."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.done: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """What this measures, or has measured before the run was broken off."""
        if name not in self.done:
            progress(name)
            # The same, whether it is read again or not.
            self.done[name] = json.loads(json.dumps(measure()))
            new = self._file.with_suffix(".new")
            new.write_text(json.dumps(self.done))
            new.replace(self._file)
        return self.done[name]


class Servers:
    """The three of a run, each started when it is first asked, and ended with the stack."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        self._home, self._stack = home, stack

    def url(self, name: str) -> str:
        """Of "mayfly", "vllm" or "resident"."""
        address: str = getattr(self, name)
        return address

    @cached_property
    def mayfly(self) -> str:
        """`mayfly serve`."""
        return _warm(
            self._stack.enter_context(mayfly_server(self._home, "--corpus", CORPUS, *_ROOM)).url,
            STEADY,
        )

    @cached_property
    def vllm(self) -> str:
        """Plain `vllm serve`: no LoRA, no plugin."""
        return self._start("vllm", environment())

    @cached_property
    def resident(self) -> str:
        """`vllm serve` with all of RESIDENT, as many slots as Mayfly's engine has, and doors for
        other adapters.
        """
        example = chosen(self._home, CORPUS, pieces(Load(None, 1, PROMPT, ANSWER), 0), 5)[0]
        settings = environment(plugin=True) | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
        return self._start(
            "lora", settings, *with_adapters(RESIDENT, self._home / "resident", example)
        )

    def _start(self, name: str, settings: Mapping[str, str], *more: str) -> str:
        port = free_port()
        command = vllm_serve(port, CONTEXT, *more)
        self._stack.enter_context(
            running_server(command, port, self._home / f"{name}.log", settings)
        )
        return _warm(f"http://127.0.0.1:{port}", None)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """How many, and their p50, p95 and p99."""
    quantiles = np.quantile(values, [p / 100 for p in PERCENTILES])
    return {
        "n": len(values),
        **{f"p{p}": float(value) for p, value in zip(PERCENTILES, quantiles, strict=True)},
    }


def by_stage(requests: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The percentiles of each stage over the requests that had it."""
    seconds = defaultdict(list)
    for request in requests:
        for stage, value in request.items():
            seconds[stage].append(value)
    return {stage: percentiles(values) for stage, values in seconds.items()}


def counted(url: str) -> dict[str, tuple[float, float]]:
    """What a server's histograms hold so far, by stage: how many requests, and their seconds; of
    "steps", steps.
    """
    totals: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for name, labels, value in metric_samples(url, timeout=60.0):
        family, _, part = name.rpartition("_")
        stage = _COUNTED.get(family)
        if family == "mayfly_stage_seconds":
            stage = dict(_LABEL.findall(labels))["stage"]
        if stage:
            totals[stage][part] = value
    return {stage: (found["count"], found["sum"]) for stage, found in totals.items()}


def means(before: Counts, after: Counts) -> dict[str, dict[str, float]]:
    """Of the requests between two readings: how many, and the mean of each stage."""
    found = {}
    for stage, (count, total) in after.items():
        earlier, spent = before.get(stage, (0.0, 0.0))
        if count > earlier:
            found[stage] = {"n": count - earlier, "mean": (total - spent) / (count - earlier)}
    return found


def benched(url: str, load: Load, folder: Path, seed: int) -> dict[str, Any]:
    """A load by `vllm bench serve`: what it found, what the server counted meanwhile, and steps
    that were not taken.
    """
    before = counted(url)
    found = bench(url, load, folder, seed)
    seen = means(before, counted(url))
    steps = seen.get("steps", {"n": 0.0, "mean": 0.0})
    missing = (
        None
        if load.steps is None
        else load.steps * load.requests - round(steps["n"] * steps["mean"])
    )
    return {**found, "steps_missing": missing, "counted": seen}


def measure(servers: Servers, cell: Cell, folder: Path, seed: int) -> dict[str, Any]:
    """One cell: stages, what the server counted meanwhile, what was not answered as asked, and the
    cross-check.
    """
    load, url = cell.load, servers.url(cell.server)
    check = benched(url, load, folder, seed) if cell.checked else None
    before = counted(url)
    answers, seconds = ask_all(url, load, seed + 1)
    after = counted(url)
    sound = [answer for answer in answers if not answer.falls_short(load)]
    stages = by_stage([answer.stages() for answer in sound])
    return {
        "server": cell.server,
        **asdict(load),
        "short": len(answers) - len(sound),
        "per_second": len(answers) / seconds,
        "prompt_tokens": float(np.median([answer.prompt for answer in sound])) if sound else None,
        "stages": stages,
        "counted": means(before, after),
        _REQUESTS: [
            (answer.report["spent"]["steps"], answer.report["seconds"]["train"], answer.last)
            for answer in sound
            if answer.report.get("adapted")
        ],
        "vllm_bench_serve": check,
        "agreement": {
            stage: stages[stage]["p50"] / told["p50"]
            for stage, told in (check["stages"] if check else {}).items()
            if stage in stages and told["p50"]
        },
    }


def run(plan: Plan, folder: Path, seed: int, once: Once) -> dict[str, Any]:
    """Every part that has not been measured yet, on servers that are started when they are needed."""
    once("corpora", partial(_fill, folder, plan))
    measured: dict[str, Any] = {}
    with ExitStack() as stack:
        servers = Servers(folder, stack)
        for number, cell in enumerate(cells(plan)):
            if cell.load.at_once is None:
                alike = [
                    each["per_second"]
                    for each in _usual(measured)
                    if each["budget"] == cell.load.budget
                ]
                rate = OPEN_SHARE * max(alike)
                cell = replace(cell, load=replace(cell.load, rate=round(rate, 3)))
            measured[cell.name] = once(
                cell.name, partial(measure, servers, cell, folder, seed + 10 * number)
            )
        hot = {}
        for prompt in dict.fromkeys([PROMPT, *(prompt for prompt, _ in plan.lengths)]):
            load = Load("steps=1", plan.pairs, prompt, 8)
            hot[str(prompt)] = once(
                f"hot-loading, {prompt} tokens",
                partial(_hot_load, servers, load, seed + 10_000 + prompt),
            )
        load = Load(NAIVE_BUDGET, plan.round_requests, PROMPT, ANSWER, NAIVE_AT_ONCE)
        raced = once("naive", partial(_race, servers, load, folder, plan.rounds, seed + 20_000))
        points = _points_of(measured) | grow(plan.growth, servers.url, folder, once, seed + 30_000)
    return {
        "hot_load_ratio": hot[str(PROMPT)]["hot_load_ratio"],
        "speedup_vs_naive": raced["speedup_vs_naive"],
        "speedup_vs_naive_pool": raced["speedup_vs_naive_pool"],
        "holds": {
            "hot_load": hot[str(PROMPT)]["hot_load_ratio"] <= MAX_HOT_LOAD_RATIO,
            "naive": raced["speedup_vs_naive"] >= MIN_SPEEDUP,
        },
        "short": sum(each["short"] for each in measured.values())
        + sum(
            each["vllm_bench_serve"]["failed"]
            for each in measured.values()
            if each["vllm_bench_serve"]
        )
        + sum(each["short"] for each in hot.values())
        + sum(raced["short"].values()),
        "cells": measured,
        "hot_load": hot,
        "naive": raced,
        "growth": fitted(points),
    }


def _fill(folder: Path, plan: Plan) -> None:
    create_corpora(folder, {CORPUS: source_documents()})
    synthetic(folder, plan.growth)


def _hot_load(servers: Servers, load: Load, seed: int) -> dict[str, Any]:
    return hot_load(servers.mayfly, servers.resident, RESIDENT[0], load, seed)


def _race(servers: Servers, load: Load, folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    return race(servers.mayfly, servers.resident, load, folder, CORPUS, rounds, seed)


def _warm(url: str, budget: str | None) -> str:
    load = Load(budget, 2, PROMPT, ANSWER)
    answers, _ = ask_all(url, load, -1)
    if any(answer.falls_short(load) for answer in answers):
        raise RuntimeError(f"{url} did not answer what it was asked first: {answers}")
    return url


def _usual(measured: Mapping[str, Any]) -> list[Any]:
    """The closed loops of the usual lengths."""
    return [
        each
        for each in measured.values()
        if each["rate"] is None and (each["prompt"], each["answer"]) == (PROMPT, ANSWER)
    ]


def _points_of(measured: Mapping[str, Any]) -> dict[str, list[Point]]:
    """Seconds of training by steps, where one asks at once; whole seconds by how many ask, at
    budget STEADY.
    """
    usual = _usual(measured)
    return {
        "steps": [
            (steps, train)
            for cell in usual
            if cell["at_once"] == 1
            for steps, train, _ in cell[_REQUESTS]
        ],
        "concurrency": [
            (cell["at_once"], whole)
            for cell in usual
            if cell["budget"] == STEADY
            for _, _, whole in cell[_REQUESTS]
        ],
    }


def show(result: Mapping[str, Any], console: Console) -> None:
    """The tables for people, in milliseconds, of a stage its median; the report has every
    percentile.
    """
    stages = Table("ms, p50 of a stage", *_SHOWN, "whole", "p95", "p99", box=None, pad_edge=False)
    harnesses = Table(
        "harnesses", "a second", "short", "bench serve", "failed", "steps short", "first", "token", "whole",
        box=None, pad_edge=False,
    )  # fmt: skip
    for column in (*stages.columns, harnesses.columns[0]):
        column.no_wrap = True
    for name, cell in result["cells"].items():
        found, short = (
            cell["stages"],
            name.removeprefix("mayfly, ").removesuffix(f", {PROMPT}/{ANSWER} tokens"),
        )
        medians = [
            f"{1e3 * sum(each['p50'] for each in seen):.0f}" if seen else ""
            for seen in (
                [found[stage] for stage in parts if stage in found] for parts in _SHOWN.values()
            )
        ]
        whole = (
            [f"{1e3 * found['whole'][f'p{p}']:.0f}" for p in PERCENTILES]
            if found
            else [""] * len(PERCENTILES)
        )
        few = "*" * bool(found and found["whole"]["n"] < MIN_P99_REQUESTS)
        stages.add_row(short, *medians, *whole[:-1], whole[-1] + few)
        other, agree = cell["vllm_bench_serve"], cell["agreement"]
        ratios = (
            f"{agree[stage]:.2f}" if stage in agree else ""
            for stage in ("first token", "per token", "whole")
        )
        told = ("", "", "")
        if other is not None:
            told = (f"{other['per_second']:.2f}", str(other["failed"]), str(other["steps_missing"]))
        harnesses.add_row(short, f"{cell['per_second']:.2f}", str(cell["short"]), *told, *ratios)
    for table in (stages, harnesses, growth_table(result["growth"])):
        console.print(table, "")
    console.print(
        "harnesses: requests a second, and how many were not answered as asked, by our client; the same by `vllm bench "
        "serve`, and steps that were not taken; our median over its",
        highlight=False,
    )
    console.print(
        f"* a p99 of fewer than {MIN_P99_REQUESTS} requests: little more than the largest",
        highlight=False,
    )
    for hot in result["hot_load"].values():
        console.print(in_words(hot), highlight=False)
    console.print(naive_in_words(result["naive"]), highlight=False)


def main() -> None:
    """Measure, print tables, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--budget", choices=PLANS, default="full", help="how much is asked: minutes or hours"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--out", type=Path, help="write the full result here")
    options = parser.parse_args()
    facts, plan = provenance(), PLANS[options.budget]
    key = hashlib.sha256(f"{facts['commit']} {plan} {options.seed}".encode()).hexdigest()[:12]
    folder = CACHE / f"latency-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    found = run(plan, folder, options.seed, Journal(folder / "measured.json").once)
    progress("")
    result = {
        **facts,
        "budget": options.budget,
        "seed": options.seed,
        "plan": asdict(plan),
        **found,
    }
    show(result, Console(stderr=options.json))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    shutil.rmtree(folder)  # what is complete is not gone on with
    if options.json:
        keys = ("hot_load_ratio", "speedup_vs_naive", "speedup_vs_naive_pool", "holds", "short")
        stages = {name: cell["stages"] for name, cell in found["cells"].items()}
        print(json.dumps({**{key: found[key] for key in keys}, "stages": stages}))


if __name__ == "__main__":
    main()
