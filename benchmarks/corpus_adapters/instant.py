"""`instant` through the server: its first token beside a resident adapter of plain vLLM, and its
answers per second beside a PEFT loop per request.

Plain `vllm serve` has the same adapter of the corpus resident, and the type, sizes, threads and
plugin of Mayfly's engine. Both servers are up, and only one at a time gets requests; a ratio is
that of one round, in which either begins in turn. The first round is a warm-up.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
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
from benchmarks.latency.servers import CORPUS, UNADAPTED_FLAGS, Servers
from selection.embedding import Prompt
from selection.request import SelectionRequest
from serving.adaptation.starts import corpus_adapter
from serving.models.catalogue import NANO

# Requests at once, and the share of the time that is left for them.
AT_ONCE = {1: 0.2, 8: 0.3}
BUDGET = "instant"
SERVERS = ("mayfly", "resident")


@dataclass(frozen=True)
class InstantSize:
    """The amount of work for a model.

    Attributes:
        documents: number of documents of the corpus; no measured time depends on it.
        requests: answers of each server in a round of first tokens, by requests at once.
        race_requests: answers of Mayfly in a round beside the PEFT loop.
        loop_requests: answers of the PEFT loop in such a round.
        loop_steps: steps of the PEFT loop for each answer.
        seconds: time limit; None for none. The rounds of first tokens take about half of what is
            left when the servers are ready, those beside the PEFT loop the rest; there is at least
            one of each.
    """

    documents: int
    requests: Mapping[int, int]
    race_requests: int
    loop_requests: int
    loop_steps: int = 10
    seconds: float | None = None


_NANO = InstantSize(20, {1: 10, 8: 32}, race_requests=16, loop_requests=16)
# With SmolLM2-135M the PEFT loop takes some ten seconds for an answer. The limit leaves a minute of
# ten for the last round and the end of the servers.
_REAL = InstantSize(6, {1: 5, 8: 16}, race_requests=16, loop_requests=4, seconds=540)
_QUICK = InstantSize(4, {1: 2, 8: 8}, race_requests=8, loop_requests=2, loop_steps=2)


def instant_size(base: str, quick: bool = False) -> InstantSize:
    """The amount of work for a model.

    Args:
        base: folder of the model.
        quick: as little as shows whether everything works.
    """
    if quick:
        return _QUICK
    return _NANO if Path(base).name == NANO else _REAL


def measure_instant(
    home: Path, base: str, size: InstantSize, rounds: int, seed: int
) -> dict[str, Any]:
    """Measure on servers of their own.

    Args:
        home: an empty folder.
        base: folder of the base model.
        size: amount of work.
        rounds: largest number of rounds, without the warm-up.
        seed: seed of the prompts.
    """
    limit = TimeLimit(size.seconds)
    create_corpora(home, {CORPUS: source_documents()[: size.documents]}, model=base)
    learnt = learn(home, CORPUS, base, "--passes", "1")
    _save_adapter(home, base, home / "resident")
    load = Load(
        BUDGET, size.race_requests, PROMPT, ANSWER, at_once=8, model=Path(base).name, base=base
    )
    with ExitStack() as stack:
        servers = Servers(home, stack, base, UNADAPTED_FLAGS)
        for name in SERVERS:
            servers.url(name)
        first = {
            str(count): _first_token(
                servers,
                replace(load, requests=size.requests[count], at_once=count),
                rounds,
                seed + 1000 * count,
                TimeLimit(share * limit.left),
            )
            for count, share in AT_ONCE.items()
        }
        raced = race(
            servers.mayfly,
            servers.resident,
            load,
            home,
            CORPUS,
            rounds,
            seed,
            steps=size.loop_steps,
            loop_requests=size.loop_requests,
            limit=limit,
        )
    return {
        "size": asdict(size),
        "first_token_ratio": {count: each["ratio"][0] for count, each in first.items()},
        "speedup_vs_naive": raced["speedup_vs_naive"],
        "speedup_vs_naive_pool": raced["speedup_vs_naive_pool"],
        "first_token": first,
        "race": raced,
        "learnt": learnt,
    }


def _save_adapter(home: Path, base: str, folder: Path) -> None:
    """Write the corpus's adapter as vLLM loads it."""
    selector = open_selector(home, base)
    found = selector.start(SelectionRequest([Prompt("")], CORPUS, steps=0))
    if found.start is None:
        raise RuntimeError(f"the corpus has no adapter: {found.reason}")
    weights = selector.start_weights(found.corpus, found.start)
    corpus_adapter(weights, base).save(folder)
    selector.corpora.close()


def _first_token(
    servers: Servers, load: Load, rounds: int, seed: int, limit: TimeLimit
) -> dict[str, Any]:
    """Medians of the seconds to the first token by server, and their ratio, over rounds."""
    loads = {"mayfly": load, "resident": replace(load, budget=None, model=RESIDENT[0])}
    seconds: dict[str, list[float]] = {name: [] for name in SERVERS}
    for number in range(rounds + 1):
        if number > 1 and limit.is_over:
            break
        for name in SERVERS[:: -1 if number % 2 else 1]:
            progress(f"first token, {load.at_once} at once: round {number} of {rounds}, {name}")
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
