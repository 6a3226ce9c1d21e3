"""What the latency benchmark computes by itself: percentiles, means between scrapes, fits,
resuming, shortfalls.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Histogram, start_http_server
from rich.console import Console

from benchmarks.latency.bench_serve import Answer, Load, ask, pieces
from benchmarks.latency.growth import fit, growth_table
from benchmarks.latency.hot_load import ready_to_first
from benchmarks.latency.main import Journal, by_stage, counted, means, percentiles, run, show
from benchmarks.latency.plan import PLANS, Cell, cells

LOAD = Load("steps=5", 1, 64, 3)
REPORT = {
    "adapted": True,
    "spent": {"steps": 5, "seconds": 0.7},
    "seconds": {"embed": 0.03, "train": 0.6, "load": 0.05},
}


def test_percentiles_say_of_how_many() -> None:
    found = percentiles([float(n) for n in range(1, 101)])

    assert found == {
        "n": 100,
        "p50": 50.5,
        "p95": pytest.approx(95.05),
        "p99": pytest.approx(99.01),
    }


def test_a_stage_counts_the_requests_that_had_it() -> None:
    found = by_stage([{"train": 1.0, "load": 0.1}, {"load": 0.3}])

    assert {stage: (each["n"], each["p50"]) for stage, each in found.items()} == {
        "train": (1, 1.0),
        "load": (2, 0.2),
    }


@pytest.fixture
def scraped() -> Iterator[tuple[str, Histogram, Histogram]]:
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


def test_means_are_of_the_requests_between_two_scrapes(
    scraped: tuple[str, Histogram, Histogram],
) -> None:
    url, stages, prefill = scraped
    stages.labels("train").observe(100.0)
    before = counted(url)
    for seconds in (1.0, 3.0):
        stages.labels("train").observe(seconds)
    prefill.labels("nano").observe(0.25)

    found = means(before, counted(url))

    assert before["steps"] == (1.0, 5.0)
    assert found == {"train": {"n": 2.0, "mean": 2.0}, "prefill": {"n": 1.0, "mean": 0.25}}


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "measured.json"

    def broken() -> Any:
        raise RuntimeError("the server died")

    journal = Journal(file)
    first = journal.once("a", lambda: {"at": (1, 2)})
    with pytest.raises(RuntimeError, match="died"):
        journal.once("b", broken)

    resumed = Journal(file)
    assert first == resumed.once("a", broken) == {"at": [1, 2]}  # the same, measured or read
    assert resumed.once("b", lambda: 3) == 3
    assert json.loads(file.read_text()) == {"a": {"at": [1, 2]}, "b": 3}


def test_a_run_is_put_together_from_what_was_measured(tmp_path: Path) -> None:
    """In small: some cells are not cross-checked, and no model but one is there to fit a line
    through.
    """
    plan = PLANS["small"]
    journal: dict[str, Any] = {
        "corpora": None,
        "growth, nano": {"step": [(5.6, 0.1), (5.6, 0.2)], "token": [(5.6, 0.01)]},
    }
    journal |= {
        f"growth, {what}": [(1, 0.1), (8, 0.2)] for what in ("tokens", "corpus", "adapters")
    }
    journal |= {"hot-loading, 128 tokens": {"hot_load_ratio": 1.1, "short": 2}}
    journal |= {
        "naive": {
            "speedup_vs_naive": 4.0,
            "speedup_vs_naive_pool": 6.0,
            "short": {"mayfly": 0, "naive": 1},
        }
    }
    for cell in cells(plan):
        steps = cell.load.steps or 0
        journal[cell.name] = {
            **asdict(cell.load), "rate": 0.5 if cell.load.at_once is None else None, "short": 0, "per_second": 1.0,
            "vllm_bench_serve": {"failed": 1} if cell.checked else None, "steps_train_whole": [(steps, 0.1 * steps, 1)],
        }  # fmt: skip

    found = run(plan, tmp_path, 0, lambda name, measure: journal[name])

    assert found["short"] == len(plan.budgets) + 2 + 2 + 1  # each failed once where it was checked
    assert found["holds"] == {"hot_load": True, "naive": False}
    assert found["growth"]["million parameters, a step"]["fit"] is None
    assert found["growth"]["steps"]["fit"]["slope"] == pytest.approx(0.1)
    assert found["growth"]["concurrency"]["fit"]["values"] == 2
    assert growth_table(found["growth"]).row_count == len(found["growth"])


@pytest.mark.parametrize("budget", PLANS)
def test_every_cell_of_a_plan_has_a_name_of_its_own(budget: str) -> None:
    planned = cells(PLANS[budget])
    names = [cell.name for cell in planned]

    assert len(set(names)) == len(names)
    assert [cell.load.at_once for cell in planned].index(None) == len(names) - len(
        PLANS[budget].opened
    )
    assert all(cell.load.requests >= (cell.load.at_once or 1) for cell in planned)


def test_in_small_every_server_and_budget_is_cross_checked_once() -> None:
    planned = cells(PLANS["small"])
    checked = [(cell.server, cell.load.budget) for cell in planned if cell.checked]

    assert len(set(checked)) == len(checked)
    assert set(checked) == {(cell.server, cell.load.budget) for cell in planned}


def test_in_full_one_and_eight_at_once_are_cross_checked_and_every_open_loop() -> None:
    for cell in cells(PLANS["full"]):
        assert cell.checked == (cell.load.at_once in (1, 8, None))


def test_a_name_says_what_is_asked() -> None:
    assert (
        Cell("mayfly", Load("auto", 9, 128, 32, 4)).name == "mayfly, auto, 4 at once, 128/32 tokens"
    )
    assert Cell("vllm", Load(None, 9, 128, 32, None)).name == "vllm, open loop, 128/32 tokens"


@pytest.mark.parametrize(
    ("budget", "steps"),
    [("steps=20", 20), ("none", 0), (None, 0), ("auto", None), ("seconds=1", None)],
)
def test_a_budget_of_steps_says_how_many(budget: str | None, steps: int | None) -> None:
    assert Load(budget, 1, 64, 3).steps == steps


@pytest.mark.parametrize(
    ("budget", "steps", "short"),
    [
        ("steps=5", 5, False),
        ("steps=5", 4, True),
        ("auto", 41, False),
        ("seconds=1", 0, True),
        ("none", 0, False),
    ],
)
def test_an_answer_with_other_steps_than_asked_falls_short(
    budget: str, steps: int, short: bool
) -> None:
    answer = Answer(
        200, 0.1, 0.2, 3, 64, {"adapted": steps > 0, "spent": {"steps": steps, "seconds": 1.0}}
    )

    assert answer.falls_short(Load(budget, 1, 64, 3)) == short


def test_an_error_or_a_cut_answer_falls_short() -> None:
    assert Answer(429).falls_short(LOAD)
    assert Answer(200, 0.1, 0.2, 2, 64).falls_short(Load(None, 1, 64, 3))
    assert not Answer(200, 0.1, 0.2, 3, 64).falls_short(Load(None, 1, 64, 3))


def test_stages_are_the_reports_and_the_clients() -> None:
    answer = Answer(200, 0.8, 1.2, 3, 64, REPORT)

    assert answer.stages() == pytest.approx(
        {
            "embed": 0.03,
            "train": 0.6,
            "load": 0.05,
            "first token": 0.8,
            "per token": 0.2,
            "whole": 1.2,
            "loaded to first token": 0.1,
        }
    )
    assert ready_to_first(answer) == pytest.approx(0.15)


async def test_a_stream_is_read_for_its_times_counts_and_report() -> None:
    events = [
        {"choices": [{"text": "a"}], "adaptation": REPORT},
        {"choices": [{"text": "b"}]},
        {"choices": [], "usage": {"completion_tokens": 3, "prompt_tokens": 64}},
    ]
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n: adapting\n\n"
        )
        for event in events:
            await asyncio.sleep(0.05)
            writer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await writer.drain()
        writer.write(b"data: [DONE]\n\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with httpx.AsyncClient(base_url=address) as client:
            answer = await ask(client, LOAD, "def f(")

    assert b"compute-budget: steps=5" in heard[0].lower()
    assert (answer.status, answer.tokens, answer.prompt, answer.report) == (200, 3, 64, REPORT)
    assert 0.05 <= answer.first < answer.last - 0.02


async def test_a_server_that_is_not_there_is_no_answer() -> None:
    async with httpx.AsyncClient(base_url="http://127.0.0.1:9") as client:
        assert (await ask(client, LOAD, "def f(")).status == 0


def test_prompts_are_of_the_length_asked_and_others_for_another_seed(tokenizer: Any) -> None:
    drawn = pieces(Load("none", 20, 64, 3), 1)

    assert drawn == pieces(Load("none", 20, 64, 3), 1)
    assert not set(drawn) & set(pieces(Load("none", 20, 64, 3), 2))
    assert all(abs(len(tokenizer(text)["input_ids"]) - 64) <= 4 for text in drawn)


def test_a_line_is_found_and_does_not_bend() -> None:
    found = fit(
        [(x, 0.5 + 0.1 * x + wobble) for x in (1, 2, 4, 8, 16) for wobble in (-0.01, 0.0, 0.01)]
    )

    assert found is not None
    assert (found.intercept, found.slope) == pytest.approx((0.5, 0.1), abs=1e-3)
    assert (found.bend, found.slope_before, found.slope_after) == (None, found.slope, found.slope)
    assert (found.least, found.most, found.values, found.requests) == (1, 16, 5, 15)


def test_a_bend_is_found_where_it_is() -> None:
    points = [
        (x, max(1.0, 0.25 * x) + wobble) for x in (1, 2, 4, 8, 16) for wobble in (-0.01, 0.0, 0.01)
    ]

    found = fit(points)

    assert found is not None
    assert found.bend == 4
    assert (found.intercept, found.slope_before, found.slope_after) == pytest.approx(
        (1.0, 0.0, 0.25), abs=0.02
    )


def test_two_values_never_bend_and_one_is_no_line() -> None:
    two = fit([(1, 1.0), (4, 2.0), (4, 2.2)])

    assert two is not None
    assert two.bend is None
    assert fit([(4, 1.0), (4, 2.0)]) is None
    assert fit([]) is None


def test_the_tables_mark_a_p99_of_few_and_tell_that_a_line_is_missing() -> None:
    stages = by_stage([Answer(200, 0.8, 1.2, 3, 64, REPORT).stages()])
    harness = {"per_second": 1.0, "failed": 0, "steps_missing": 0}
    cell = {
        "requests": 1, "stages": stages, "counted": {"prefill": {"n": 1, "mean": 0.0123}}, "short": 0,
        "per_second": 1.0, "vllm_bench_serve": harness, "agreement": {"whole": 1.07},
    }  # fmt: skip
    unchecked = {**cell, "vllm_bench_serve": None, "agreement": {}}
    hot = {
        "hot_load_ratio": 1.4,
        "ratios": (1.4, 1.2, 1.6),
        "pairs": 3,
        "short": 0,
        "prompt_tokens": 128,
    }
    raced = {
        "ratios": {"naive": [1.9, 2.1]}, "short": {"mayfly": 0}, "seconds": {"naive": {"train": 1.0}},
        "load": {"budget": "steps=10", "at_once": 8}, "processes_and_threads": {"naive": (1, 2)},
    }  # fmt: skip
    said = io.StringIO()

    show(
        {
            "cells": {"one": cell, "two": unchecked},
            "growth": {"steps": {"fit": None}},
            "hot_load": {"128": hot},
            "naive": raced,
        },
        Console(file=said, width=300),
    )

    for words in (
        "1200*",
        "1.00",
        "1.07",
        "no line",
        "1.40 times",
        "2.00 times",
        "of fewer than 20",
    ):
        assert words in said.getvalue()
    assert growth_table({"steps": {"fit": None}}).row_count == 1
