"""`instant` through the server: its first token beside a resident adapter of plain vLLM, and its
answers per second beside a PEFT loop per request.

Plain `vllm serve` has the same adapter of the corpus resident, and the sizes, threads and plugin of
Mayfly's engine. Both servers are up, and only one at a time gets requests; a ratio is that of one
round, in which either begins in turn. The first round is a warm-up.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.corpus_adapters.learning import learn, open_selector
from benchmarks.harness.command_line import progress
from benchmarks.harness.measures import TimeLimit, spread
from benchmarks.harness.server import create_corpora, source_documents
from benchmarks.latency.client import Answer, Load, send_load
from benchmarks.latency.growth import ANSWER, PROMPT, RESIDENT
from benchmarks.latency.per_request_peft import race
from benchmarks.latency.servers import CORPUS, Servers
from selection.embedding import Prompt
from selection.request import SelectionRequest
from serving.adaptation.starts import corpus_adapter
from serving.config import bundled_model

# Requests at once, and the share of the time that is left for them.
AT_ONCE = {1: 0.2, 8: 0.3}
BUDGET = "instant"
# Steps of the PEFT loop for each request.
LOOP_STEPS = 10
# Of the corpus, on whose size no time depends.
_DOCUMENTS = 20
# Answers of each server in a round, by requests at once.
_REQUESTS = {1: 10, 8: 32}
SERVERS = ("mayfly", "resident")


def measure_instant(home: Path, rounds: int, seed: int, limit: TimeLimit) -> dict[str, Any]:
    """Measure on servers of their own.

    Args:
        home: an empty folder.
        rounds: number of rounds, without the warm-up.
        seed: seed of the prompts.
        limit: the rounds of first tokens take about half of the time until then, and there is at
            least one; those beside the PEFT loop are not limited.
    """
    create_corpora(home, {CORPUS: source_documents()[:_DOCUMENTS]})
    learnt = learn(home, CORPUS, bundled_model(), "--passes", "1")
    _save_adapter(home, home / "resident")
    with ExitStack() as stack:
        servers = Servers(home, stack)
        for name in SERVERS:
            servers.url(name)
        first = {
            str(count): _first_token(
                servers, count, rounds, seed + 1000 * count, TimeLimit(share * limit.left)
            )
            for count, share in AT_ONCE.items()
        }
        load = Load(BUDGET, 16, PROMPT, ANSWER, at_once=8)
        raced = race(
            servers.mayfly, servers.resident, load, home, CORPUS, rounds, seed, steps=LOOP_STEPS
        )
    return {
        "first_token_ratio": {count: each["ratio"][0] for count, each in first.items()},
        "speedup_vs_naive": raced["speedup_vs_naive"],
        "speedup_vs_naive_pool": raced["speedup_vs_naive_pool"],
        "first_token": first,
        "race": raced,
        "learnt": learnt,
    }


def _save_adapter(home: Path, folder: Path) -> None:
    """Write the corpus's adapter as vLLM loads it."""
    selector = open_selector(home, bundled_model())
    found = selector.start(SelectionRequest([Prompt("")], CORPUS, steps=0))
    if found.start is None:
        raise RuntimeError(f"the corpus has no adapter: {found.reason}")
    weights = selector.start_weights(found.corpus, found.start)
    corpus_adapter(weights, bundled_model()).save(folder)
    selector.corpora.close()


def _first_token(
    servers: Servers, at_once: int, rounds: int, seed: int, limit: TimeLimit
) -> dict[str, Any]:
    """Medians of the seconds to the first token by server, and their ratio, over rounds."""
    load = Load(BUDGET, _REQUESTS[at_once], PROMPT, ANSWER, at_once)
    loads = {"mayfly": load, "resident": replace(load, budget=None, model=RESIDENT[0])}
    seconds: dict[str, list[float]] = {name: [] for name in SERVERS}
    for number in range(rounds + 1):
        if number > 1 and limit.is_over:
            break
        for name in SERVERS[:: -1 if number % 2 else 1]:
            progress(f"first token, {at_once} at once: round {number} of {rounds}, {name}")
            answers, _ = send_load(servers.url(name), loads[name], seed + number)
            _check(name, answers, loads[name])
            if number:
                seconds[name].append(median(answer.first for answer in answers))
    pairs = zip(*(seconds[name] for name in SERVERS), strict=True)
    return {
        "rounds": len(seconds["mayfly"]),
        "ratio": spread([ours / theirs for ours, theirs in pairs]),
        "seconds": {name: spread(each) for name, each in seconds.items()},
    }


def _check(name: str, answers: list[Answer], load: Load) -> None:
    for answer in answers:
        if answer.is_short(load):
            raise RuntimeError(f"{name}: the answer is not from the corpus's adapter: {answer}")
