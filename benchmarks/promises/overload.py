"""Overload: ten times what the server can sustain; is the rest refused at once, and what is
accepted in time?

First each kind of request alone (unloaded), then a closed loop of as many clients as the trainer
has slots, whose rate is the sustainable one, then requests at random moments (Poisson) at ten times
that rate, whatever becomes of the earlier ones. Budgets are mixed. The clients share the machine
with the server: what they cost is in every time.

`wrong` are rejections other than a 429 with Retry-After and OpenAI's error object, answers that
never came, and an accepted p99 of more than twice the unloaded one. `server_errors` are 5xx.
`leaked` is what is held afterwards.

    python -m benchmarks.promises.overload [--seconds 120] [--json] [--out benchmarks/results/overload.json]
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.harness.server import Server, completion, fill, home, serving, sources
from benchmarks.harness.thresholds import MOST_SLOWER
from benchmarks.harness.violations import Verdict, arguments, finish
from benchmarks.promises.raw_http import fault
from benchmarks.quality.passages import progress

TIMES = 10  # the sustainable rate
CLIENTS = 8
HANG_SECONDS = 120.0
SETTLE_SECONDS = 60.0
_BUDGETS = ("none", "none", "steps=5", "steps=20")
_UNLOADED = 40  # requests of each budget
_SUSTAINED_SECONDS = 20.0
_CORPUS = "web"


@dataclass(frozen=True)
class Outcome:
    """What became of a request: 0 is the status of one that was never answered."""

    budget: str
    status: int
    seconds: float
    steps: int = 0


class Load:
    """One run against one server."""

    def __init__(self, server: Server, verdict: Verdict, draw: random.Random) -> None:
        self._server, self._verdict, self._draw = server, verdict, draw
        self._numbers = itertools.count()

    async def run(self, seconds: float, most: int) -> dict[str, Any]:
        """Unloaded, sustained, overloaded; the facts."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=self._server.url, timeout=HANG_SECONDS, limits=limits
        ) as client:
            for budget in _BUDGETS:  # warm
                await self._ask(client, budget)
            unloaded = [
                await self._ask(client, budget) for budget in [*dict.fromkeys(_BUDGETS)] * _UNLOADED
            ]
            rate = await self._sustained(client)
            begun = time.monotonic()
            outcomes = await self._overloaded(client, TIMES * rate, seconds, most)
            took = time.monotonic() - begun
        return self._judge(unloaded, outcomes, rate, took)

    async def _sustained(self, client: httpx.AsyncClient) -> float:
        """Requests a second that as many clients as the trainer has slots get answered, each asking
        again at once.
        """
        begun = time.monotonic()

        async def ask_on() -> int:
            answered = 0
            while time.monotonic() - begun < _SUSTAINED_SECONDS:
                answered += (await self._ask(client, self._draw.choice(_BUDGETS))).status == 200
            return answered

        progress("closed loop")
        answered = sum(await asyncio.gather(*(ask_on() for _ in range(CLIENTS))))
        return answered / (time.monotonic() - begun)

    async def _overloaded(
        self, client: httpx.AsyncClient, rate: float, seconds: float, most: int
    ) -> list[Outcome]:
        begun = time.monotonic()
        tasks = []
        for moment in _poisson(self._draw, rate, seconds, most):
            await asyncio.sleep(max(0.0, begun + moment - time.monotonic()))
            tasks.append(asyncio.create_task(self._ask(client, self._draw.choice(_BUDGETS))))
            progress(f"{len(tasks)} requests at {rate:.0f} a second")
        return list(await asyncio.gather(*tasks))

    async def _ask(self, client: httpx.AsyncClient, budget: str) -> Outcome:
        self._verdict.requests += 1
        body = completion(prompt=f"def step_{next(self._numbers)}(values):\n", max_tokens=16)
        begun = time.monotonic()
        try:
            reply = await client.post(
                "/v1/completions", json=body, headers={"Compute-Budget": budget}
            )
        except httpx.HTTPError as problem:
            self._verdict.blame(
                "wrong", "no answer", f"{problem!r} after {time.monotonic() - begun:.1f} s"
            )
            return Outcome(budget, 0, time.monotonic() - begun)
        took = time.monotonic() - begun
        if reply.status_code == 200:
            return Outcome(budget, 200, took, reply.json()["adaptation"]["spent"]["steps"])
        self._rejected(reply)
        return Outcome(budget, reply.status_code, took)

    def _rejected(self, reply: httpx.Response) -> None:
        said = f"{reply.status_code} {reply.text[:160]}"
        if reply.status_code >= 500:
            self._verdict.blame("server_errors", "answer", said)
            return
        self._verdict.check(reply.status_code == 429, "wrong", "rejection", said)
        again = reply.headers.get("retry-after", "")
        sound = again.isdigit() and int(again) > 0
        self._verdict.check(sound, "wrong", "Retry-After", f"{again!r} with {said}")
        why = fault(reply.content)
        self._verdict.check(why is None, "wrong", "rejection's shape", str(why))

    def _judge(
        self, unloaded: list[Outcome], loaded: list[Outcome], rate: float, took: float
    ) -> dict[str, Any]:
        accepted = [each for each in loaded if each.status == 200]
        rejected = [each.seconds for each in loaded if each.status == 429]
        shares = Counter(_BUDGETS)
        plain = [each.seconds for each in unloaded for _ in range(shares[each.budget])]
        alone, company = _p99(plain), _p99([each.seconds for each in accepted])
        why = f"{company:.2f} s under load, {alone:.2f} s unloaded"
        self._verdict.check(
            bool(accepted) and company <= MOST_SLOWER * alone, "wrong", "accepted p99", why
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
            "offered_per_second": round(len(loaded) / took, 2),
            "accepted_per_second": round(len(accepted) / took, 2),
            "seconds": round(took, 1),
            "statuses": dict(Counter(str(each.status) for each in loaded)),
            "unloaded_p99_seconds": alone,
            "accepted_p99_seconds": company,
            "rejected_p99_seconds": _p99(rejected),
            "by_budget": by_budget,
        }


def _poisson(draw: random.Random, rate: float, seconds: float, most: int) -> Iterator[float]:
    moment = 0.0
    for _ in range(most):
        moment += draw.expovariate(rate)
        if moment > seconds:
            return
        yield moment


def _steps(budget: str) -> int:
    return 0 if budget == "none" else int(budget.partition("=")[2])


def _p99(seconds: list[float]) -> float:
    return round(float(np.quantile(seconds, 0.99)), 3) if seconds else 0.0


def overload(folder: Path, options: Any, verdict: Verdict) -> dict[str, Any]:
    """The whole run on a server of its own."""
    fill(folder, {_CORPUS: sources()})
    with serving(folder, "--corpus", _CORPUS, "--max-model-len", "512") as server:
        workers, before = server.workers(), server.resident_bytes()
        load = Load(server, verdict, random.Random(options.seed))  # noqa: S311
        facts = asyncio.run(load.run(options.seconds, options.requests))
        verdict.check_quiet(server, SETTLE_SECONDS)
        verdict.check_workers(workers, server.workers())
        reply = httpx.post(
            f"{server.url}/v1/completions", json=completion(), headers={"Compute-Budget": "steps=2"}
        )
        verdict.check(
            reply.status_code == 200,
            "wrong",
            "sound",
            f"not answered afterwards: {reply.status_code}",
        )
        after = server.resident_bytes()
    verdict.check_end(server)
    return {**facts, "resident_bytes": {"before": before, "after": after}}


def main() -> None:
    """Load, print, write the JSON."""
    parser = arguments(__doc__ or "", 20_000)
    parser.add_argument("--seconds", type=float, default=120, help="of overload")
    options = parser.parse_args()
    verdict = Verdict()
    with home() as folder:
        facts = overload(folder, options, verdict)
    finish(verdict, facts, options)


if __name__ == "__main__":
    main()
