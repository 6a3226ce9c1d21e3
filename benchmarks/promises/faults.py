"""Faults: a server under load is hit again and again; does it recover by itself, every time?

Killed by SIGKILL are vLLM's engine core, the engine replica, the trainer, the selector, and as
"node" Ray's raylet, with which all processes of the machine end; "hung" stops a trainer for good.
The other faults are `injections`. Meanwhile clients keep sending requests. A fault counts as
recovered once a completion with a `required` adapter succeeds again. What a client may get in
between: its answer; an answer of the base model whose report gives the reason; or OpenAI's error
with status 429, 500, 502 or 503, within PROMPT_SECONDS of the kill if its request was in progress
then; without the node, also no connection.

`wrong` counts any other response, a base-model answer that differs from those before, a fault
without recovery, and an adaptation that fails by a fault of another request; `hung` requests
without a response within TIMEOUT_SECONDS; `leaked` a process, a staged adapter, or a file in shared
memory that remains.

    python -m benchmarks.promises.faults [--times 50] [--kinds trainer nan] [--json]
    [--out benchmarks/results/faults.json]

"memory" needs root, for a shared memory of the server's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.harness.command_line import progress
from benchmarks.harness.process_ends import is_alive, wait_for_end
from benchmarks.harness.process_names import processes_named
from benchmarks.harness.server import (
    NO_KEEP_ALIVE,
    ROOMY_FLAGS,
    Server,
    completion_body,
    create_corpora,
    mayfly_server,
    shared_memory_files,
    source_documents,
)
from benchmarks.harness.violations import Violations, argument_parser, run_and_finish
from benchmarks.promises.fault_counts import FaultCounts
from benchmarks.promises.injections import (
    DamagedCorpus,
    Diverging,
    FullSharedMemory,
    Hanging,
    Injection,
    OutOfMemory,
    create_diverging_corpus,
)

# Processes by their names in `Server.workers`; the stopped one by its kind.
KILLED = ("trainer", "selector", "engine", "EngineCore", "node")
STOPPED = {"hung": "trainer"}
INJECTED = ("nan", "oom", "hang", "memory", "corpus")
KINDS = (*KILLED, *STOPPED, *INJECTED)
TARGETED_REQUESTS = 3  # concurrent requests that an injection targets
CLIENTS = 4
TIMEOUT_SECONDS = 60.0  # of a request
PROMPT_SECONDS = 5.0  # from a kill to the error of a request in progress
RECOVERY_SECONDS = 180.0
_MEMORY_BYTES = 1 << 30
IDLE_WAIT_SECONDS = 30.0
_ALLOWED_STATUSES = {429, 500, 502, 503}
_BUDGETS = ("none", "steps=2", "steps=10", "seconds=1")
_PROMPTS = (
    "def moving_average(values, window):\n",
    "class Index:\n",
    "import numpy as np\n",
    "# The selector\n",
)
_CORPUS = "code"


class FaultRun:
    """One run against one server: clients that send requests, and faults."""

    def __init__(
        self,
        server: Server,
        violations: Violations,
        rng: random.Random,
        injections: Mapping[str, Injection],
        before: set[str],
    ) -> None:
        self._server, self._violations, self._rng = server, violations, rng
        self._injections, self._before = injections, before
        self._known_answers: dict[str, set[str]] = {prompt: set() for prompt in _PROMPTS}
        self._killed_at, self._kind = -np.inf, ""
        self._counts = FaultCounts()
        self.by_kind: dict[str, FaultCounts] = {}

    async def run(self, kinds: tuple[str, ...], times: int) -> None:
        """Record what the base model answers, then inject faults under load."""
        async with httpx.AsyncClient(
            base_url=self._server.url, timeout=TIMEOUT_SECONDS, limits=NO_KEEP_ALIVE
        ) as client:
            await self._record_base_answers(client)
            for kind in kinds:
                self._kind, self._counts = kind, self.by_kind.setdefault(kind, FaultCounts())
                stop = asyncio.Event()
                clients = [
                    asyncio.create_task(self._send_requests(client, stop)) for _ in range(CLIENTS)
                ]
                for number in range(times):
                    progress(f"{kind}: {number + 1} of {times}")
                    await asyncio.sleep(self._rng.uniform(0.2, 3.0))
                    if kind in self._injections:
                        await self._inject(self._injections[kind], client)
                    else:
                        await self._kill(kind, client)
                stop.set()
                await asyncio.gather(*clients)
                await asyncio.to_thread(self._check_leaks)

    async def _record_base_answers(self, client: httpx.AsyncClient) -> None:
        """Alone and concurrently, since rounding, and with it a word, may differ between both."""
        for _ in range(3):
            for prompt in _PROMPTS:
                self._known_answers[prompt].add(await self._base_answer(client, prompt))
        for _ in range(5):
            for prompt, text in zip(
                _PROMPTS,
                await asyncio.gather(*(self._base_answer(client, prompt) for prompt in _PROMPTS)),
                strict=True,
            ):
                self._known_answers[prompt].add(text)

    async def _base_answer(self, client: httpx.AsyncClient, prompt: str) -> str:
        reply = await _complete(client, "none", prompt=prompt)
        text: str = reply.raise_for_status().json()["choices"][0]["text"]
        return text

    async def _send_requests(self, client: httpx.AsyncClient, stop: asyncio.Event) -> None:
        while not stop.is_set():
            prompt, budget = self._rng.choice(_PROMPTS), self._rng.choice(_BUDGETS)
            started = time.monotonic()
            self._violations.requests += 1
            try:
                reply = await _complete(client, budget, prompt=prompt)
            except httpx.TimeoutException:
                self._counts.hung += 1
                self._violations.record(
                    "wrong", "hung", f"{budget}: no answer after {TIMEOUT_SECONDS:.0f} s"
                )
                continue
            except httpx.HTTPError as error:
                delay = time.monotonic() - self._killed_at
                if self._kind != "node":
                    self._record_wrong("connection", f"{budget}: {error!r}")
                elif started < self._killed_at and delay > PROMPT_SECONDS:
                    self._record_wrong(
                        "late error", f"{budget}: {error!r} {delay:.1f} s after the kill"
                    )
                self._counts.answers["no connection"] += 1
                await asyncio.sleep(0.2)
                continue
            self._check_response(reply, budget, prompt, started)
            if reply.status_code != 200:
                await asyncio.sleep(0.2)

    def _check_response(
        self, reply: httpx.Response, budget: str, prompt: str, started: float
    ) -> None:
        status, body = reply.status_code, _json(reply)
        if status == 200:
            report, text = body.get("adaptation") or {}, body["choices"][0]["text"]
            adapted = report.get("adapted")
            self._counts.answers[
                "adapted" if adapted else "base model" if budget == "none" else "not adapted"
            ] += 1
            if not adapted and text not in self._known_answers[prompt]:
                self._record_wrong(
                    "different answer",
                    f"{budget}: {text!r}, not one of {self._known_answers[prompt]}",
                )
            if budget != "none" and not adapted and not report.get("reason"):
                self._record_wrong("no reason", f"{budget}: {report}")
            targeted_only = (
                self._kind in self._injections and not self._injections[self._kind].affects_all
            )
            if targeted_only and budget.startswith("steps") and not adapted:
                self._record_wrong("fault of another request", f"{budget}: {report.get('reason')}")
            return
        self._counts.answers[str(status)] += 1
        if status not in _ALLOWED_STATUSES or "message" not in body.get("error", {}):
            self._record_wrong("not allowed", f"{budget}: {status} {reply.text[:200]}")
        delay = time.monotonic() - self._killed_at
        if started < self._killed_at and delay > PROMPT_SECONDS:
            self._record_wrong("late error", f"{budget}: {status} {delay:.1f} s after the kill")

    async def _kill(self, kind: str, client: httpx.AsyncClient) -> None:
        name = STOPPED.get(kind, kind)
        target, processes = self._server.workers().get(name), self._server.processes()
        if target is None:
            self._record_wrong("missing", f"no process of the {name}")
            return
        self._counts.injected += 1
        self._killed_at = time.monotonic() if kind in KILLED else -np.inf
        with contextlib.suppress(psutil.NoSuchProcess):
            target.send_signal(signal.SIGKILL if kind in KILLED else signal.SIGSTOP)
        if await self._wait_until_recovered(client, name, target):
            ending = processes[1:] if kind == "node" else [target]
            # Before Ray kills a stage that failed its health checks, it lets it end by itself.
            await asyncio.to_thread(wait_for_end, ending, IDLE_WAIT_SECONDS)
            for process in filter(is_alive, ending):
                self._record_leak("processes", f"{process.pid} outlived its {kind}")

    async def _inject(self, injection: Injection, client: httpx.AsyncClient) -> None:
        self._counts.injected += 1
        with injection.inject(self._server) as fields:
            requests = [
                _complete(client, injection.budget, prompt=self._rng.choice(_PROMPTS), **fields)
                for _ in range(TARGETED_REQUESTS)
            ]
            self._violations.requests += TARGETED_REQUESTS
            for reply in await asyncio.gather(*requests, return_exceptions=True):
                if isinstance(reply, BaseException):
                    self._record_wrong("no answer", f"{injection.name}: {reply!r}")
                    continue
                body = _json(reply)
                outcome = (body.get("adaptation") or {}).get("stop") or f"{reply.status_code}"
                self._counts.answers[f"targeted: {outcome}"] += 1
                if not injection.is_allowed(reply.status_code, body):
                    self._record_wrong(
                        "not allowed", f"{injection.name}: {reply.status_code} {reply.text[:300]}"
                    )
        await self._wait_until_recovered(client)

    async def _wait_until_recovered(
        self, client: httpx.AsyncClient, name: str = "trainer", target: psutil.Process | None = None
    ) -> bool:
        started = time.monotonic()
        while time.monotonic() - started < RECOVERY_SECONDS:
            if await self._has_recovered(name, target, client):
                self._counts.recovered += 1
                self._counts.recovery_seconds.append(time.monotonic() - started)
                return True
            await asyncio.sleep(0.1)
        self._record_wrong("not recovered", f"{self._kind}: {RECOVERY_SECONDS:.0f} s after a fault")
        return False

    async def _has_recovered(
        self, name: str, target: psutil.Process | None, client: httpx.AsyncClient
    ) -> bool:
        if self._server.workers().get(name) in (None, target):
            return False
        try:
            reply = await _complete(
                client, "steps=1", prompt=_PROMPTS[0], adaptation={"required": True}
            )
        except httpx.HTTPError:
            return False
        return reply.status_code == 200 and _json(reply)["adaptation"]["adapted"] is True

    def _check_leaks(self) -> None:
        if self._server.seconds_until_idle(IDLE_WAIT_SECONDS) is None:
            self._record_leak(
                "not idle", f"not idle {IDLE_WAIT_SECONDS:.0f} s after the last answer"
            )
        for name in self._server.unclaimed_shared_memory() - self._before:
            self._record_leak("shared memory", name)
        cores = processes_named("engine core", self._server.processes())
        if len(cores) != 1:
            self._record_leak("processes", f"{len(cores)} engine cores")

    def _record_wrong(self, category: str, reason: str) -> None:
        self._counts.wrong_answers += 1
        self._violations.record("wrong", category, reason)

    def _record_leak(self, category: str, reason: str) -> None:
        self._counts.leaked += 1
        self._violations.record("leaked", category, reason)


async def _complete(client: httpx.AsyncClient, budget: str, **fields: Any) -> httpx.Response:
    return await client.post(
        "/v1/completions", json=completion_body(**fields), headers={"Compute-Budget": budget}
    )


def _json(reply: httpx.Response) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        body = reply.json()
        if isinstance(body, dict):
            return body
    return {}


def run(folder: Path, options: Namespace, violations: Violations) -> dict[str, Any]:
    """The whole run, on a server of its own."""
    kinds = tuple(options.kinds)
    create_corpora(folder, {_CORPUS: source_documents()})
    create_diverging_corpus(folder, _CORPUS)
    rng = random.Random(options.seed)  # noqa: S311
    all_injections = (
        Diverging(),
        OutOfMemory(),
        Hanging(),
        FullSharedMemory(),
        DamagedCorpus(folder, _CORPUS, rng),
    )
    injections = {each.name: each for each in all_injections}
    memory_bytes = _MEMORY_BYTES if FullSharedMemory.name in kinds else None
    # Without these, a targeted request may be refused.
    flags = ROOMY_FLAGS if injections.keys() & set(kinds) else ()
    before = shared_memory_files()
    with mayfly_server(
        folder, "--corpus", _CORPUS, "--max-model-len", "512", *flags, memory_bytes=memory_bytes
    ) as server:
        trial = FaultRun(server, violations, rng, injections, before)
        try:
            asyncio.run(trial.run(kinds, options.times))
        except KeyboardInterrupt:
            violations.record("wrong", "interrupted", "not all faults were injected")
    violations.check_end(server)
    for name in shared_memory_files() - before if memory_bytes is None else ():
        violations.record("leaked", "after the end", name)
    return {"faults": {kind: counts.summary() for kind, counts in trial.by_kind.items()}}


def main() -> None:
    """Run, print, write the JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--times", type=int, default=50, help="faults of each kind (default: %(default)s)"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="kinds of faults")
    options = parser.parse_args()
    if FullSharedMemory.name in options.kinds and os.geteuid() != 0:
        parser.error(
            f"{FullSharedMemory.name!r} needs root, to mount a shared memory: choose other --kinds"
        )
    run_and_finish(run, options)


if __name__ == "__main__":
    main()
