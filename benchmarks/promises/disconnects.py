"""Leavers: clients that go away at random moments; does all work for them end, and how soon?

Clients come in waves of one to sixteen and leave while their request is queued, selects, trains,
waits for its first token or streams: after a random time, or after a random number of chunks. After
each wave the server must become quiet by itself. A wave of one measures what was still computed
after the leave: the trainer's CPU time, in steps of that time, and, of a stream, the tokens that
vLLM counts beyond those that were read. The news of a leave travels through Ray; what may be
computed meanwhile is `NEWS_SECONDS` of work beyond the step, and the token, that had begun.

`wrong` are waves that did not become quiet, computation beyond that bound, and a sound request at
the end that is not answered; `leaked` is what is held then.

    python -m benchmarks.promises.disconnects [--requests 500] [--json] [--out benchmarks/results/leavers.json]
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from adapters.trainer import IDLE_SECONDS
from benchmarks.harness.server import (
    NO_KEEPING,
    ROOMY,
    Server,
    completion,
    fill,
    home,
    serving,
    sources,
)
from benchmarks.harness.violations import Verdict, arguments, finish
from benchmarks.quality.passages import progress

LONGEST_WAVE = 16
ALONE_SHARE = 0.5  # of the waves
QUIET_SECONDS = 10.0
NEWS_SECONDS = 0.5
# Of rest, then the trainer has given back what it does not need.
GIVEN_BACK_SECONDS = 2 * IDLE_SECONDS
_TOKENS = 200
_MOMENT_SECONDS = (0.005, 6.0)  # of a leave: least and most, drawn evenly on a logarithmic scale
_CORPUS = "web"


@dataclass(frozen=True)
class Leaver:
    """When a client leaves: after seconds, or once it has read so many chunks, whichever is first."""

    seconds: float
    chunks: float
    budget: str
    stream: bool


def draw_leaver(draw: random.Random) -> Leaver:
    """Some stream and leave after a few chunks, the rest by the clock."""
    low, high = map(math.log, _MOMENT_SECONDS)
    seconds = math.exp(draw.uniform(low, high))
    budget = draw.choice(("none", "steps=10", "steps=50", "steps=50"))
    if draw.random() < 0.4:
        return Leaver(
            30.0, draw.randint(1, 30), draw.choice(("none", "steps=3", "steps=10")), stream=True
        )
    return Leaver(seconds, math.inf, budget, draw.random() < 0.7)


class Leaving:
    """One run against one server."""

    def __init__(self, server: Server, verdict: Verdict, draw: random.Random) -> None:
        self._server, self._verdict, self._draw = server, verdict, draw
        self._trainer = server.workers().get("trainer")
        self.left: Counter[str] = Counter()
        self.quiet: list[float] = []
        self.steps_after: list[float] = []
        self.tokens_after: list[float] = []
        self.step_cpu = self.token_seconds = self.step_seconds = math.nan
        self.resident_bytes = 0  # once it is warm

    async def run(self, clients: int) -> None:
        """Measure a step and a token, then waves until so many clients have left, then ask once
        more.
        """
        async with httpx.AsyncClient(
            base_url=self._server.url, timeout=120, limits=NO_KEEPING
        ) as client:
            for _ in range(2):  # the first is warm-up
                await self._calibrate(client)
            # As many at once as ever: what that takes for the first time is no leak.
            for _ in range(2):
                await self._wave(client, [draw_leaver(self._draw) for _ in range(LONGEST_WAVE)])
            self._verdict.requests += 2 * LONGEST_WAVE
            await asyncio.sleep(GIVEN_BACK_SECONDS)
            self.resident_bytes = self._server.resident_bytes()
            gone = 0
            while gone < clients:
                alone = self._draw.random() < ALONE_SHARE
                size = 1 if alone else min(self._draw.randint(2, LONGEST_WAVE), clients - gone)
                leavers = [draw_leaver(self._draw) for _ in range(size)]
                await (
                    self._leave_alone(client, leavers[0]) if alone else self._wave(client, leavers)
                )
                gone += size
                self._verdict.requests += size
                progress(f"{gone} of {clients} clients have left")
            reply = await self._ask(client, "steps=2", max_tokens=4)
            sound = reply.status_code == 200 and reply.json()["adaptation"]["adapted"] is True
            self._verdict.check(
                sound, "wrong", "sound", f"not answered afterwards: {reply.status_code}"
            )

    async def _calibrate(self, client: httpx.AsyncClient) -> None:
        begun = time.monotonic()
        await self._ask(client, "none", max_tokens=_TOKENS, ignore_eos=True)
        self.token_seconds = (time.monotonic() - begun) / _TOKENS
        before = self._cpu()
        reply = await self._ask(client, "steps=50", max_tokens=1)
        report = reply.json()["adaptation"]
        self.step_cpu = (self._cpu() - before) / report["spent"]["steps"]
        self.step_seconds = report["seconds"]["train"] / report["spent"]["steps"]

    async def _leave_alone(self, client: httpx.AsyncClient, leaver: Leaver) -> None:
        tokens = await self._generated()
        read = await self._visit(client, leaver)
        cpu = self._cpu()
        await self._until_quiet(1)
        steps = (self._cpu() - cpu) / self.step_cpu
        self.steps_after.append(steps)
        self._check_late("steps", steps, self.step_seconds, leaver)
        if read:
            unread = await self._generated() - tokens - read
            self.tokens_after.append(unread)
            self._check_late("tokens", unread, self.token_seconds, leaver)

    def _check_late(self, what: str, count: float, each_seconds: float, leaver: Leaver) -> None:
        most = 1 + NEWS_SECONDS / each_seconds
        self._verdict.check(
            count <= most, "wrong", f"late {what}", f"{count:.1f} {what} after a leave, {leaver}"
        )

    async def _wave(self, client: httpx.AsyncClient, leavers: list[Leaver]) -> None:
        await asyncio.gather(*(self._visit(client, leaver) for leaver in leavers))
        await self._until_quiet(len(leavers))

    async def _until_quiet(self, clients: int) -> None:
        took = await asyncio.to_thread(self._server.quiet_within, QUIET_SECONDS)
        if took is None:
            self._verdict.blame(
                "wrong", "not quiet", f"{QUIET_SECONDS:.0f} s after {clients} clients had left"
            )
        else:
            self.quiet.append(took)

    async def _visit(self, client: httpx.AsyncClient, leaver: Leaver) -> int:
        """Ask, and leave: closing the connection is what leaving is; how many chunks of the answer
        were read.
        """
        moment, chunks = "before the headers", 0
        body = completion(
            max_tokens=_TOKENS,
            ignore_eos=True,
            stream=leaver.stream,
            seed=self._draw.randrange(1 << 30),
        )
        try:
            async with (
                asyncio.timeout(leaver.seconds),
                client.stream(
                    "POST", "/v1/completions", json=body, headers=_headers(leaver.budget)
                ) as reply,
            ):
                moment = "before the first chunk"
                if reply.status_code != 200:
                    await reply.aread()
                    kind: Any = "server_errors" if reply.status_code >= 500 else "wrong"
                    if reply.status_code != 429:
                        self._verdict.blame(
                            kind, "answer", f"{reply.status_code} {reply.text[:160]}"
                        )
                    moment = str(reply.status_code)
                    return 0
                async for line in reply.aiter_lines():
                    chunks += line.startswith("data: {")
                    moment = "while it streamed" if chunks else "while it was told how far it is"
                    if chunks >= leaver.chunks:
                        break
                else:
                    moment = "after the end"
        except TimeoutError:
            pass
        except httpx.HTTPError as problem:
            self._verdict.blame("wrong", "answer", f"{problem!r} {moment}")
        finally:
            self.left[f"{moment}, budget {leaver.budget}"] += 1
        return chunks

    async def _ask(self, client: httpx.AsyncClient, budget: str, **fields: Any) -> httpx.Response:
        return await client.post(
            "/v1/completions", json=completion(**fields), headers=_headers(budget)
        )

    async def _generated(self) -> float:
        totals = await asyncio.to_thread(self._server.metrics)
        return totals["vllm:generation_tokens_total"]

    def _cpu(self) -> float:
        if self._trainer is None:
            return math.nan
        times = self._trainer.cpu_times()
        return float(times.user + times.system)


def _headers(budget: str) -> dict[str, str]:
    return {"Compute-Budget": budget}


def leavers(folder: Path, clients: int, seed: int, verdict: Verdict) -> dict[str, Any]:
    """The whole run on a server of its own."""
    fill(folder, {_CORPUS: sources()})
    with serving(folder, *ROOMY, "--corpus", _CORPUS, "--max-model-len", "512") as server:
        workers = server.workers()
        run = Leaving(server, verdict, random.Random(seed))  # noqa: S311
        asyncio.run(run.run(clients))
        verdict.check_quiet(server, QUIET_SECONDS)
        verdict.check_workers(workers, server.workers())
        time.sleep(GIVEN_BACK_SECONDS)
        after, live, running = server.resident_bytes(), server.live_adapters(), server.metrics()
        verdict.check_memory(run.resident_bytes, after)
    verdict.check_end(server)
    return {
        "live_adapters": live,
        "num_requests_running": running["vllm:num_requests_running"],
        "step_seconds": round(run.step_seconds, 4),
        "token_seconds": round(run.token_seconds, 4),
        "quiet_seconds": _spread(run.quiet),
        "steps_after_a_leave": _spread(run.steps_after),
        "tokens_after_a_leave": _spread(run.tokens_after),
        "left": dict(sorted(run.left.items())),
        "resident_bytes": {"before": run.resident_bytes, "after": after},
    }


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    p50, p99 = np.quantile(values, [0.5, 0.99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "most": round(max(values), 3)}


def main() -> None:
    """Leave, print, write the JSON."""
    options = arguments(__doc__ or "", 500).parse_args()
    verdict = Verdict()
    with home() as folder:
        facts = leavers(folder, options.requests, options.seed, verdict)
    finish(verdict, facts, options)


if __name__ == "__main__":
    main()
