"""Disconnects: clients that close their connection at random moments; does all work for them end?

Clients come in waves of one to sixteen and disconnect while their request is queued, selects,
trains, waits for its first token or streams: after a random time, or after a random number of
chunks. After each wave the server must become idle by itself. A wave of one measures what was
still computed after the disconnect: the trainer's processor time, in steps of that time, and, for a
stream, the tokens that vLLM counts beyond those that were read. A disconnect reaches the trainer
through Ray; meanwhile `NOTICE_SECONDS` of work are allowed, beyond the step or token in progress.

`wrong` counts waves after which the server did not become idle, computation beyond that bound, and
a valid request at the end that fails; `leaked` counts what the server still holds then.

    python -m benchmarks.promises.disconnects [--requests 500] [--json]
    [--out benchmarks/results/leavers.json]
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from argparse import Namespace
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from adapters.model.activation_memory import IDLE_SECONDS
from benchmarks.harness.command_line import progress
from benchmarks.harness.server import (
    NO_KEEP_ALIVE,
    ROOMY_FLAGS,
    Server,
    completion_body,
    create_corpora,
    mayfly_server,
    source_documents,
)
from benchmarks.harness.violations import Violations, argument_parser, run_and_finish

MAX_WAVE = 16
SINGLE_SHARE = 0.5  # share of the waves that have one client
IDLE_WAIT_SECONDS = 10.0
NOTICE_SECONDS = 0.5
# After this time without work, the trainer has released its spare memory.
TRIM_SECONDS = 2 * IDLE_SECONDS
_TOKENS = 200
# Least and most seconds until a disconnect, drawn log-uniformly.
_DELAY_SECONDS = (0.005, 6.0)
_CORPUS = "web"


@dataclass(frozen=True)
class Disconnect:
    """What a client requests, and when it disconnects: after `seconds` or `chunks`.

    Attributes:
        seconds: time limit since the request was sent.
        chunks: limit of the chunks read.
        budget: Compute-Budget of the request.
        stream: whether it asks for a stream.
    """

    seconds: float
    chunks: float
    budget: str
    stream: bool


def draw_disconnect(rng: random.Random) -> Disconnect:
    """Draw a disconnect: some after a few chunks of a stream, the others after a time."""
    low, high = map(math.log, _DELAY_SECONDS)
    seconds = math.exp(rng.uniform(low, high))
    budget = rng.choice(("none", "steps=10", "steps=50", "steps=50"))
    if rng.random() < 0.4:
        return Disconnect(
            30.0, rng.randint(1, 30), rng.choice(("none", "steps=3", "steps=10")), stream=True
        )
    return Disconnect(seconds, math.inf, budget, rng.random() < 0.7)


class DisconnectRun:
    """One run against one server."""

    def __init__(self, server: Server, violations: Violations, rng: random.Random) -> None:
        self._server, self._violations, self._rng = server, violations, rng
        self._trainer = server.workers().get("trainer")
        self.moments: Counter[str] = Counter()
        self.idle_seconds: list[float] = []
        self.steps_after: list[float] = []
        self.tokens_after: list[float] = []
        self.step_cpu = self.token_seconds = self.step_seconds = math.nan
        self.resident_bytes = 0  # measured after warm-up

    async def run(self, clients: int) -> None:
        """Time a step and a token, run waves of `clients` disconnects, then a valid request."""
        async with httpx.AsyncClient(
            base_url=self._server.url, timeout=120, limits=NO_KEEP_ALIVE
        ) as client:
            for _ in range(2):  # the first is a warm-up
                await self._calibrate(client)
            # The largest waves come first, since their first use of memory is no leak.
            for _ in range(2):
                await self._wave(client, [draw_disconnect(self._rng) for _ in range(MAX_WAVE)])
            self._violations.requests += 2 * MAX_WAVE
            await asyncio.sleep(TRIM_SECONDS)
            self.resident_bytes = self._server.resident_bytes()
            disconnected = 0
            while disconnected < clients:
                alone = self._rng.random() < SINGLE_SHARE
                size = 1 if alone else min(self._rng.randint(2, MAX_WAVE), clients - disconnected)
                disconnects = [draw_disconnect(self._rng) for _ in range(size)]
                await (
                    self._disconnect_alone(client, disconnects[0])
                    if alone
                    else self._wave(client, disconnects)
                )
                disconnected += size
                self._violations.requests += size
                progress(f"{disconnected} of {clients} clients have disconnected")
            reply = await self._complete(client, "steps=2", max_tokens=4)
            valid = reply.status_code == 200 and reply.json()["adaptation"]["adapted"] is True
            self._violations.check(
                valid, "wrong", "sound", f"not answered afterwards: {reply.status_code}"
            )

    async def _calibrate(self, client: httpx.AsyncClient) -> None:
        started = time.monotonic()
        await self._complete(client, "none", max_tokens=_TOKENS, ignore_eos=True)
        self.token_seconds = (time.monotonic() - started) / _TOKENS
        before = self._trainer_cpu()
        reply = await self._complete(client, "steps=50", max_tokens=1)
        report = reply.json()["adaptation"]
        self.step_cpu = (self._trainer_cpu() - before) / report["spent"]["steps"]
        self.step_seconds = report["seconds"]["train"] / report["spent"]["steps"]

    async def _disconnect_alone(self, client: httpx.AsyncClient, disconnect: Disconnect) -> None:
        tokens = await self._generated()
        read = await self._request(client, disconnect)
        cpu = self._trainer_cpu()
        await self._wait_until_idle(1)
        steps = (self._trainer_cpu() - cpu) / self.step_cpu
        self.steps_after.append(steps)
        self._check_excess("steps", steps, self.step_seconds, disconnect)
        if read:
            unread = await self._generated() - tokens - read
            self.tokens_after.append(unread)
            self._check_excess("tokens", unread, self.token_seconds, disconnect)

    def _check_excess(
        self, unit: str, count: float, unit_seconds: float, disconnect: Disconnect
    ) -> None:
        allowed = 1 + NOTICE_SECONDS / unit_seconds
        self._violations.check(
            count <= allowed,
            "wrong",
            f"late {unit}",
            f"{count:.1f} {unit} after a disconnect, {disconnect}",
        )

    async def _wave(self, client: httpx.AsyncClient, disconnects: list[Disconnect]) -> None:
        await asyncio.gather(*(self._request(client, disconnect) for disconnect in disconnects))
        await self._wait_until_idle(len(disconnects))

    async def _wait_until_idle(self, clients: int) -> None:
        seconds = await asyncio.to_thread(self._server.seconds_until_idle, IDLE_WAIT_SECONDS)
        if seconds is None:
            self._violations.record(
                "wrong", "not idle", f"{IDLE_WAIT_SECONDS:.0f} s after {clients} disconnects"
            )
        else:
            self.idle_seconds.append(seconds)

    async def _request(self, client: httpx.AsyncClient, disconnect: Disconnect) -> int:
        """Send a request and close the connection; return how many chunks were read."""
        moment, chunks = "before the headers", 0
        body = completion_body(
            max_tokens=_TOKENS,
            ignore_eos=True,
            stream=disconnect.stream,
            seed=self._rng.randrange(1 << 30),
        )
        try:
            async with (
                asyncio.timeout(disconnect.seconds),
                client.stream(
                    "POST", "/v1/completions", json=body, headers=_headers(disconnect.budget)
                ) as reply,
            ):
                moment = "before the first chunk"
                if reply.status_code != 200:
                    await reply.aread()
                    kind: Any = "server_errors" if reply.status_code >= 500 else "wrong"
                    if reply.status_code != 429:
                        self._violations.record(
                            kind, "answer", f"{reply.status_code} {reply.text[:160]}"
                        )
                    moment = str(reply.status_code)
                    return 0
                async for line in reply.aiter_lines():
                    chunks += line.startswith("data: {")
                    moment = "while it streamed" if chunks else "during progress comments"
                    if chunks >= disconnect.chunks:
                        break
                else:
                    moment = "after the end"
        except TimeoutError:
            pass
        except httpx.HTTPError as error:
            self._violations.record("wrong", "answer", f"{error!r} {moment}")
        finally:
            self.moments[f"{moment}, budget {disconnect.budget}"] += 1
        return chunks

    async def _complete(
        self, client: httpx.AsyncClient, budget: str, **fields: Any
    ) -> httpx.Response:
        return await client.post(
            "/v1/completions", json=completion_body(**fields), headers=_headers(budget)
        )

    async def _generated(self) -> float:
        totals = await asyncio.to_thread(self._server.metrics)
        return totals["vllm:generation_tokens_total"]

    def _trainer_cpu(self) -> float:
        if self._trainer is None:
            return math.nan
        times = self._trainer.cpu_times()
        return float(times.user + times.system)


def _headers(budget: str) -> dict[str, str]:
    return {"Compute-Budget": budget}


def run(folder: Path, options: Namespace, violations: Violations) -> dict[str, Any]:
    """The whole run, on a server of its own."""
    create_corpora(folder, {_CORPUS: source_documents()})
    with mayfly_server(
        folder, *ROOMY_FLAGS, "--corpus", _CORPUS, "--max-model-len", "512"
    ) as server:
        workers = server.workers()
        trial = DisconnectRun(server, violations, random.Random(options.seed))  # noqa: S311
        asyncio.run(trial.run(options.requests))
        violations.check_idle(server, IDLE_WAIT_SECONDS)
        violations.check_workers(workers, server.workers())
        time.sleep(TRIM_SECONDS)
        after, live, running = server.resident_bytes(), server.live_adapters(), server.metrics()
        violations.check_memory(trial.resident_bytes, after)
    violations.check_end(server)
    return {
        "live_adapters": live,
        "num_requests_running": running["vllm:num_requests_running"],
        "step_seconds": round(trial.step_seconds, 4),
        "token_seconds": round(trial.token_seconds, 4),
        "quiet_seconds": _quantiles(trial.idle_seconds),
        "steps_after_a_leave": _quantiles(trial.steps_after),
        "tokens_after_a_leave": _quantiles(trial.tokens_after),
        "left": dict(sorted(trial.moments.items())),
        "resident_bytes": {"before": trial.resident_bytes, "after": after},
    }


def _quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    p50, p99 = np.quantile(values, [0.5, 0.99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "most": round(max(values), 3)}


def main() -> None:
    """Run, print, write the JSON."""
    run_and_finish(run, argument_parser(__doc__, 500).parse_args())


if __name__ == "__main__":
    main()
