"""Overload: ten times the sustainable rate; is the excess refused at once, and the rest in time?

First each kind of request alone (unloaded), then a closed loop of as many clients as the trainer
has slots, whose rate is the sustainable one, then requests at random moments (Poisson) at ten times
that rate. Budgets are mixed. The clients share the machine with the server, so every time includes
what they cost.

`wrong` counts rejections other than a 429 with Retry-After and OpenAI's error object, requests
without a response, and an accepted p99 of more than twice the unloaded one. `server_errors` counts
5xx; `leaked` what the server still holds afterwards.

    python -m benchmarks.promises.overload [--seconds 120] [--json]
    [--out benchmarks/results/overload.json]
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.harness.command_line import progress
from benchmarks.harness.server import (
    Server,
    completion_body,
    create_corpora,
    mayfly_server,
    source_documents,
)
from benchmarks.harness.thresholds import MAX_OVERLOAD_RATIO
from benchmarks.harness.violations import Violations, argument_parser, run_and_finish
from benchmarks.promises.raw_http import error_defect

OVERLOAD_FACTOR = 10  # times the sustainable rate
CLIENTS = 8
REQUEST_TIMEOUT_SECONDS = 120.0
SETTLE_SECONDS = 60.0
_BUDGETS = ("none", "none", "steps=5", "steps=20")
_UNLOADED = 40  # requests of each budget
_SUSTAINED_SECONDS = 20.0
_CORPUS = "web"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a request; its status is 0 if no response came."""

    budget: str
    status: int
    seconds: float
    steps: int = 0


class OverloadRun:
    """One run against one server."""

    def __init__(self, server: Server, violations: Violations, rng: random.Random) -> None:
        self._server, self._violations, self._rng = server, violations, rng
        self._numbers = itertools.count()

    async def run(self, seconds: float, limit: int) -> dict[str, Any]:
        """Run unloaded, sustained and overloaded; return the summary."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=self._server.url, timeout=REQUEST_TIMEOUT_SECONDS, limits=limits
        ) as client:
            for budget in _BUDGETS:  # warm-up
                await self._complete(client, budget)
            unloaded = [
                await self._complete(client, budget)
                for budget in [*dict.fromkeys(_BUDGETS)] * _UNLOADED
            ]
            rate = await self._measure_sustainable(client)
            started = time.monotonic()
            outcomes = await self._send_overload(client, OVERLOAD_FACTOR * rate, seconds, limit)
            seconds_taken = time.monotonic() - started
        return self._summarise(unloaded, outcomes, rate, seconds_taken)

    async def _measure_sustainable(self, client: httpx.AsyncClient) -> float:
        """Requests per second of a closed loop with as many clients as the trainer has slots."""
        started = time.monotonic()

        async def send_in_turn() -> int:
            answered = 0
            while time.monotonic() - started < _SUSTAINED_SECONDS:
                answered += (await self._complete(client, self._rng.choice(_BUDGETS))).status == 200
            return answered

        progress("closed loop")
        answered = sum(await asyncio.gather(*(send_in_turn() for _ in range(CLIENTS))))
        return answered / (time.monotonic() - started)

    async def _send_overload(
        self, client: httpx.AsyncClient, rate: float, seconds: float, limit: int
    ) -> list[Outcome]:
        started = time.monotonic()
        tasks = []
        for moment in _poisson(self._rng, rate, seconds, limit):
            await asyncio.sleep(max(0.0, started + moment - time.monotonic()))
            tasks.append(asyncio.create_task(self._complete(client, self._rng.choice(_BUDGETS))))
            progress(f"{len(tasks)} requests at {rate:.0f} per second")
        return list(await asyncio.gather(*tasks))

    async def _complete(self, client: httpx.AsyncClient, budget: str) -> Outcome:
        self._violations.requests += 1
        body = completion_body(prompt=f"def step_{next(self._numbers)}(values):\n", max_tokens=16)
        started = time.monotonic()
        try:
            reply = await client.post(
                "/v1/completions", json=body, headers={"Compute-Budget": budget}
            )
        except httpx.HTTPError as error:
            self._violations.record(
                "wrong", "no answer", f"{error!r} after {time.monotonic() - started:.1f} s"
            )
            return Outcome(budget, 0, time.monotonic() - started)
        seconds_taken = time.monotonic() - started
        if reply.status_code == 200:
            return Outcome(budget, 200, seconds_taken, reply.json()["adaptation"]["spent"]["steps"])
        self._check_rejection(reply)
        return Outcome(budget, reply.status_code, seconds_taken)

    def _check_rejection(self, reply: httpx.Response) -> None:
        description = f"{reply.status_code} {reply.text[:160]}"
        if reply.status_code >= 500:
            self._violations.record("server_errors", "answer", description)
            return
        self._violations.check(reply.status_code == 429, "wrong", "rejection", description)
        retry_after = reply.headers.get("retry-after", "")
        valid = retry_after.isdigit() and int(retry_after) > 0
        self._violations.check(valid, "wrong", "Retry-After", f"{retry_after!r} with {description}")
        reason = error_defect(reply.content)
        self._violations.check(reason is None, "wrong", "rejection's shape", str(reason))

    def _summarise(
        self, unloaded: list[Outcome], loaded: list[Outcome], rate: float, seconds_taken: float
    ) -> dict[str, Any]:
        accepted = [each for each in loaded if each.status == 200]
        rejected = [each.seconds for each in loaded if each.status == 429]
        shares = Counter(_BUDGETS)
        unloaded_seconds = [each.seconds for each in unloaded for _ in range(shares[each.budget])]
        unloaded_p99, accepted_p99 = (
            _p99(unloaded_seconds),
            _p99([each.seconds for each in accepted]),
        )
        reason = f"{accepted_p99:.2f} s under load, {unloaded_p99:.2f} s unloaded"
        self._violations.check(
            bool(accepted) and accepted_p99 <= MAX_OVERLOAD_RATIO * unloaded_p99,
            "wrong",
            "accepted p99",
            reason,
        )
        by_budget = {
            budget: {
                "unloaded_p99": _p99([each.seconds for each in unloaded if each.budget == budget]),
                "accepted_p99": _p99([each.seconds for each in accepted if each.budget == budget]),
                "accepted": sum(each.budget == budget for each in accepted),
                "asked": sum(each.budget == budget for each in loaded),
                "fewer_steps": sum(
                    each.budget == budget and each.steps < _steps(budget) for each in accepted
                ),
            }
            for budget in dict.fromkeys(_BUDGETS)
        }
        return {
            "sustainable_per_second": round(rate, 2),
            "offered_per_second": round(len(loaded) / seconds_taken, 2),
            "accepted_per_second": round(len(accepted) / seconds_taken, 2),
            "seconds": round(seconds_taken, 1),
            "statuses": dict(Counter(str(each.status) for each in loaded)),
            "unloaded_p99_seconds": unloaded_p99,
            "accepted_p99_seconds": accepted_p99,
            "rejected_p99_seconds": _p99(rejected),
            "by_budget": by_budget,
        }


def _poisson(rng: random.Random, rate: float, seconds: float, limit: int) -> Iterator[float]:
    moment = 0.0
    for _ in range(limit):
        moment += rng.expovariate(rate)
        if moment > seconds:
            return
        yield moment


def _steps(budget: str) -> int:
    return 0 if budget == "none" else int(budget.partition("=")[2])


def _p99(seconds: list[float]) -> float:
    return round(float(np.quantile(seconds, 0.99)), 3) if seconds else 0.0


def run(folder: Path, options: Namespace, violations: Violations) -> dict[str, Any]:
    """The whole run, on a server of its own."""
    create_corpora(folder, {_CORPUS: source_documents()})
    with mayfly_server(folder, "--corpus", _CORPUS, "--max-model-len", "512") as server:
        workers, before = server.workers(), server.resident_bytes()
        trial = OverloadRun(server, violations, random.Random(options.seed))  # noqa: S311
        facts = asyncio.run(trial.run(options.seconds, options.requests))
        violations.check_idle(server, SETTLE_SECONDS)
        violations.check_workers(workers, server.workers())
        reply = httpx.post(
            f"{server.url}/v1/completions",
            json=completion_body(),
            headers={"Compute-Budget": "steps=2"},
        )
        violations.check(
            reply.status_code == 200,
            "wrong",
            "sound",
            f"not answered afterwards: {reply.status_code}",
        )
        after = server.resident_bytes()
    violations.check_end(server)
    return {**facts, "resident_bytes": {"before": before, "after": after}}


def main() -> None:
    """Run, print, write the JSON."""
    parser = argument_parser(__doc__, 20_000)
    parser.add_argument(
        "--seconds", type=float, default=120, help="duration of the overload (default: %(default)s)"
    )
    run_and_finish(run, parser.parse_args())


if __name__ == "__main__":
    main()
