"""What a corpus that grows by a hundredth costs to train, and what a training costs requests.

The first is a share of the seconds that the whole corpus took. The second is a ratio of one round:
requests arrive at random moments, alone or while a server trains the adapter of another corpus.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.corpus_adapters.canary_corpora import store_id
from benchmarks.corpus_adapters.learning import learn
from benchmarks.harness.command_line import progress
from benchmarks.harness.measures import TimeLimit, spread
from benchmarks.harness.provenance import ROOT
from benchmarks.harness.server import MODEL, create_corpora, mayfly_server
from benchmarks.latency.client import Load, send_load
from selection.ingest.ingest import Document

GROWING, ASKED = "growing", "asked"
BUDGETS = ("steps=5", "none")
ADDED_SHARE = 0.01
_PACKAGES = ("adapters", "selection")
# Requests of a round and budget, and how many a second: between most of them the training goes on.
_REQUESTS, _WARM_UP_REQUESTS, _RATE = 8, 2, 0.3
_START_SECONDS, _POLL_SECONDS = 120.0, 0.2
# Longer than a part of the benchmark takes.
_PASSES = 20


def measure_increment(home: Path, rounds: int, seed: int, limit: TimeLimit) -> dict[str, Any]:
    """Measure both.

    Args:
        home: an empty folder.
        rounds: number of rounds of requests beside a training.
        seed: chooses what is added, and the moments of the requests.
        limit: no round but the first begins after it.
    """
    before, added = _documents(random.Random(seed))  # noqa: S311
    create_corpora(home, {GROWING: before, ASKED: before[: len(before) // 4]})
    whole = learn(home, GROWING, MODEL)
    create_corpora(home, {GROWING: [*before, *added]})
    increment = learn(home, GROWING, MODEL)
    return {
        "increment_cost_share": increment["seconds"] / whole["seconds"],
        "whole": whole,
        "increment": increment,
        "beside_training": _beside_training(home, rounds, seed, limit),
    }


def _documents(rng: random.Random) -> tuple[list[Document], list[Document]]:
    """Sources of Mayfly, and a hundredth of them, by size, that is added later."""
    files = sorted(file for package in _PACKAGES for file in (ROOT / package).rglob("*.py"))
    documents = [
        Document(file.relative_to(ROOT).as_posix(), file.read_text())
        for file in files
        if file.stat().st_size
    ]
    left = ADDED_SHARE * sum(len(document.text) for document in documents)
    added = []
    for document in rng.sample(documents, len(documents)):
        if len(document.text) <= left:
            added.append(document)
            left -= len(document.text)
    return [document for document in documents if document not in added], added


def _beside_training(home: Path, rounds: int, seed: int, limit: TimeLimit) -> dict[str, Any]:
    """Seconds of whole requests by budget, alone and beside a training, and their ratio."""
    seconds: dict[str, dict[str, list[float]]] = {
        budget: {"alone": [], "beside": []} for budget in BUDGETS
    }
    # What the training took beside the requests of each round.
    steps: list[int] = []
    with (
        mayfly_server(home, "--corpus", ASKED) as server,
        httpx.Client(base_url=server.url, timeout=600) as client,
    ):
        for number in range(rounds + 1):
            if number > 1 and limit.is_over:
                break
            # The first round is a warm-up.
            requests = _REQUESTS if number else _WARM_UP_REQUESTS
            for kind in ("alone", "beside") if number % 2 else ("beside", "alone"):
                with _training(client, steps) if kind == "beside" else nullcontext():
                    for budget in BUDGETS:
                        progress(f"{budget} {kind} a training: round {number} of {rounds}")
                        load = Load(budget, requests, 128, 32, at_once=None, rate=_RATE)
                        found = _median_seconds(server.url, load, seed + number)
                        if number:
                            seconds[budget][kind].append(found)
    return {
        budget: {
            "rounds": len(each["alone"]),
            "ratio": spread(
                [
                    beside / alone
                    for beside, alone in zip(each["beside"], each["alone"], strict=True)
                ]
            ),
            "seconds": {kind: spread(values) for kind, values in each.items()},
            "training_steps": steps,
        }
        for budget, each in seconds.items()
    }


def _median_seconds(url: str, load: Load, seed: int) -> float:
    answers, _ = send_load(url, load, seed)
    if any(answer.is_short(load) for answer in answers):
        raise RuntimeError(f"not all requests with {load.budget} were answered with all steps")
    return median(answer.last for answer in answers)


@contextmanager
def _training(client: httpx.Client, steps: list[int]) -> Iterator[None]:
    """Train the other corpus within the `with` block, and append the number of its steps.

    Raises:
        RuntimeError: the training does not begin, or has ended before the block.
    """
    path = f"/v1/vector_stores/{store_id(client, GROWING)}/adapter"
    client.post(path, json={"fresh": True, "passes": _PASSES}).raise_for_status()
    started = time.monotonic()
    while (seen := client.get(path).raise_for_status().json())["status"] != "in_progress":
        if time.monotonic() - started > _START_SECONDS:
            raise RuntimeError(f"the training has not begun: {seen}")
        time.sleep(_POLL_SECONDS)
    yield
    training = client.get(path).raise_for_status().json()["training"]
    # Each training goes on from the checkpoint of the one before.
    steps.append(training["sequences"]["done"] - sum(steps))
    # It has ended if it cannot be cancelled.
    client.post(f"{path}/cancel").raise_for_status()
