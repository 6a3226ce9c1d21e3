"""Faults: a server under load is struck, again and again; does it come back by itself, every time?

Killed, by SIGKILL: vLLM's engine core, the engine replica, the trainer, the selector, and as "node"
Ray's raylet, with which everything on the machine goes; "hung" is a trainer that is stopped for
good. Other faults are `injections`. All the while clients keep asking. A fault counts as recovered
once an adapted answer that is `required` comes again. What a client may get meanwhile: its answer;
an answer of the base model whose report says why; or an error in OpenAI's words, of 429, 500, 502
or 503, and if its request was under way when a process was killed, within PROMPT_SECONDS of that;
without the node, no connection, too. `wrong` is any other answer, a base-model answer in other
words than before, a fault that was not recovered, and an adaptation that fails by somebody else's
fault; `hung` what had no answer within TIMEOUT_SECONDS; `leaked` a process, a staged adapter, or a
file in shared memory that stays.

    python -m benchmarks.promises.faults [--times 50] [--kinds trainer nan] [--json] [--out
    benchmarks/results/faults.json]

"memory" needs root, for a shared memory of the server's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.harness.server import (
    NO_KEEPING,
    ROOMY,
    Server,
    completion,
    fill,
    home,
    serving,
    shared_memory,
    sources,
)
from benchmarks.harness.violations import Verdict, arguments, finish
from benchmarks.promises.injections import (
    Diverging,
    Full,
    Injection,
    Starved,
    Stopped,
    Unreadable,
    make_wild,
)
from benchmarks.quality.passages import progress

KILLED = {
    "trainer": "trainer",
    "selector": "selector",
    "engine": "engine",
    "EngineCore": "EngineCore",
    "node": "node",
}
STOPPED = {"hung": "trainer"}
INJECTED = ("nan", "oom", "hang", "memory", "corpus")
KINDS = (*KILLED, *STOPPED, *INJECTED)
STRUCK = 3  # requests at once that an injection is meant for
CLIENTS = 4
TIMEOUT_SECONDS = 60.0  # of a request
PROMPT_SECONDS = 5.0  # from a kill to the error of a request that it met
RECOVERY_SECONDS = 180.0
_MEMORY_BYTES = 1 << 30
QUIET_SECONDS = 30.0
_DECLARED = {429, 500, 502, 503}
_BUDGETS = ("none", "steps=2", "steps=10", "seconds=1")
_PROMPTS = (
    "def moving_average(values, window):\n",
    "class Index:\n",
    "import numpy as np\n",
    "# The selector\n",
)
_CORPUS = "code"


@dataclass
class Faults:
    """What became of the faults of one kind."""

    injected: int = 0
    recovered: int = 0
    wrong_answers: int = 0
    hung: int = 0
    leaked: int = 0
    recovery_seconds: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)

    def told(self) -> dict[str, Any]:
        """For the last line."""
        seconds = self.recovery_seconds
        quantiles = (
            dict(zip(("p50", "p99"), np.quantile(seconds, [0.5, 0.99]), strict=True))
            if seconds
            else {}
        )
        return {
            "injected": self.injected,
            "recovered": self.recovered,
            "wrong_answers": self.wrong_answers,
            "hung": self.hung,
            "leaked": self.leaked,
            "recovery_seconds": {name: round(float(value), 2) for name, value in quantiles.items()},
            "answers": dict(sorted(self.answers.items())),
        }


class Striking:
    """One run against one server: clients that keep asking, and faults."""

    def __init__(
        self,
        server: Server,
        verdict: Verdict,
        draw: random.Random,
        injections: Mapping[str, Injection],
        before: set[str],
    ) -> None:
        self._server, self._verdict, self._draw = server, verdict, draw
        self._injections, self._before = injections, before
        self._known: dict[str, set[str]] = {prompt: set() for prompt in _PROMPTS}
        self._killed, self._kind = -np.inf, ""
        self._now = Faults()
        self.by_kind: dict[str, Faults] = {}

    async def run(self, kinds: tuple[str, ...], times: int) -> None:
        """Learn what the base model answers, then strike under load."""
        async with httpx.AsyncClient(
            base_url=self._server.url, timeout=TIMEOUT_SECONDS, limits=NO_KEEPING
        ) as client:
            await self._learn(client)
            for kind in kinds:
                self._kind, self._now = kind, self.by_kind.setdefault(kind, Faults())
                stop = asyncio.Event()
                clients = [
                    asyncio.create_task(self._keep_asking(client, stop)) for _ in range(CLIENTS)
                ]
                for number in range(times):
                    progress(f"{kind}: {number + 1} of {times}")
                    await asyncio.sleep(self._draw.uniform(0.2, 3.0))
                    if kind in self._injections:
                        await self._inject(self._injections[kind], client)
                    else:
                        await self._kill(kind, client)
                stop.set()
                await asyncio.gather(*clients)
                await asyncio.to_thread(self._look_for_leaks)

    async def _learn(self, client: httpx.AsyncClient) -> None:
        """Alone and in company: rounding may differ there, and with it a word."""
        for _ in range(3):
            for prompt in _PROMPTS:
                self._known[prompt].add(await self._base(client, prompt))
        for _ in range(5):
            for prompt, text in zip(
                _PROMPTS,
                await asyncio.gather(*(self._base(client, prompt) for prompt in _PROMPTS)),
                strict=True,
            ):
                self._known[prompt].add(text)

    async def _base(self, client: httpx.AsyncClient, prompt: str) -> str:
        reply = await _ask(client, "none", prompt=prompt)
        text: str = reply.raise_for_status().json()["choices"][0]["text"]
        return text

    async def _keep_asking(self, client: httpx.AsyncClient, stop: asyncio.Event) -> None:
        while not stop.is_set():
            prompt, budget = self._draw.choice(_PROMPTS), self._draw.choice(_BUDGETS)
            begun = time.monotonic()
            self._verdict.requests += 1
            try:
                reply = await _ask(client, budget, prompt=prompt)
            except httpx.TimeoutException:
                self._now.hung += 1
                self._verdict.blame(
                    "wrong", "hung", f"{budget}: no answer after {TIMEOUT_SECONDS:.0f} s"
                )
                continue
            except httpx.HTTPError as problem:
                late = time.monotonic() - self._killed
                if self._kind != "node":
                    self._wrong("connection", f"{budget}: {problem!r}")
                elif begun < self._killed and late > PROMPT_SECONDS:
                    self._wrong("late error", f"{budget}: {problem!r} {late:.1f} s after the kill")
                self._now.answers["no connection"] += 1
                await asyncio.sleep(0.2)
                continue
            self._judge(reply, budget, prompt, begun)
            if reply.status_code != 200:
                await asyncio.sleep(0.2)

    def _judge(self, reply: httpx.Response, budget: str, prompt: str, begun: float) -> None:
        status, told = reply.status_code, _json(reply)
        if status == 200:
            report, text = told.get("adaptation") or {}, told["choices"][0]["text"]
            adapted = report.get("adapted")
            self._now.answers[
                "adapted" if adapted else "base model" if budget == "none" else "not adapted"
            ] += 1
            if not adapted and text not in self._known[prompt]:
                self._wrong("other words", f"{budget}: {text!r}, not one of {self._known[prompt]}")
            if budget != "none" and not adapted and not report.get("reason"):
                self._wrong("no reason", f"{budget}: {report}")
            alone = self._kind in self._injections and not self._injections[self._kind].for_all
            if alone and budget.startswith("steps") and not adapted:
                self._wrong("somebody else's fault", f"{budget}: {report.get('reason')}")
            return
        self._now.answers[str(status)] += 1
        if status not in _DECLARED or "message" not in told.get("error", {}):
            self._wrong("undeclared", f"{budget}: {status} {reply.text[:200]}")
        late = time.monotonic() - self._killed
        if begun < self._killed and late > PROMPT_SECONDS:
            self._wrong("late error", f"{budget}: {status} {late:.1f} s after the kill")

    async def _kill(self, kind: str, client: httpx.AsyncClient) -> None:
        name = {**KILLED, **STOPPED}[kind]
        victim, family = self._server.workers().get(name), self._server.family()
        if victim is None:
            self._wrong("missing", f"there is no {name}")
            return
        self._now.injected += 1
        self._killed = time.monotonic() if kind in KILLED else -np.inf
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGKILL if kind in KILLED else signal.SIGSTOP)
        if await self._recovered(client, name, victim):
            for process in family[1:] if kind == "node" else [victim]:
                if _lives(process):
                    self._leak("processes", f"{process.pid} outlived its {kind}")

    async def _inject(self, injection: Injection, client: httpx.AsyncClient) -> None:
        self._now.injected += 1
        with injection.inject(self._server) as fields:
            wishes = [
                _ask(client, injection.budget, prompt=self._draw.choice(_PROMPTS), **fields)
                for _ in range(STRUCK)
            ]
            self._verdict.requests += STRUCK
            for reply in await asyncio.gather(*wishes, return_exceptions=True):
                if isinstance(reply, BaseException):
                    self._wrong("no answer", f"{injection.name}: {reply!r}")
                    continue
                told = _json(reply)
                outcome = (told.get("adaptation") or {}).get("stop") or f"{reply.status_code}"
                self._now.answers[f"struck: {outcome}"] += 1
                if not injection.declared(reply.status_code, told):
                    self._wrong(
                        "undeclared", f"{injection.name}: {reply.status_code} {reply.text[:300]}"
                    )
        await self._recovered(client)

    async def _recovered(
        self, client: httpx.AsyncClient, name: str = "trainer", victim: psutil.Process | None = None
    ) -> bool:
        begun = time.monotonic()
        while time.monotonic() - begun < RECOVERY_SECONDS:
            if await self._is_back(name, victim, client):
                self._now.recovered += 1
                self._now.recovery_seconds.append(time.monotonic() - begun)
                return True
            await asyncio.sleep(0.1)
        self._wrong("not recovered", f"{self._kind}: {RECOVERY_SECONDS:.0f} s after a fault")
        return False

    async def _is_back(
        self, name: str, victim: psutil.Process | None, client: httpx.AsyncClient
    ) -> bool:
        if self._server.workers().get(name) in (None, victim):
            return False
        try:
            reply = await _ask(client, "steps=1", prompt=_PROMPTS[0], adaptation={"required": True})
        except httpx.HTTPError:
            return False
        return reply.status_code == 200 and _json(reply)["adaptation"]["adapted"] is True

    def _look_for_leaks(self) -> None:
        if self._server.quiet_within(QUIET_SECONDS) is None:
            self._leak("busy", f"not quiet {QUIET_SECONDS:.0f} s after the last answer")
        for name in self._server.shared() - self._before:
            self._leak("shared memory", name)
        cores = [each for each in self._server.family() if _is_core(each)]
        if len(cores) != 1:
            self._leak("processes", f"{len(cores)} engine cores")

    def _wrong(self, category: str, why: str) -> None:
        self._now.wrong_answers += 1
        self._verdict.blame("wrong", category, why)

    def _leak(self, category: str, why: str) -> None:
        self._now.leaked += 1
        self._verdict.blame("leaked", category, why)


async def _ask(client: httpx.AsyncClient, budget: str, **fields: Any) -> httpx.Response:
    return await client.post(
        "/v1/completions", json=completion(**fields), headers={"Compute-Budget": budget}
    )


def _json(reply: httpx.Response) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        told = reply.json()
        if isinstance(told, dict):
            return told
    return {}


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _is_core(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "EngineCore" in " ".join(process.cmdline())
    return False


def faults(
    folder: Path, kinds: tuple[str, ...], times: int, seed: int, verdict: Verdict
) -> dict[str, Any]:
    """The whole run on a server of its own."""
    fill(folder, {_CORPUS: sources()})
    make_wild(folder, _CORPUS)
    draw = random.Random(seed)  # noqa: S311
    all_of_them = (Diverging(), Starved(), Stopped(), Full(), Unreadable(folder, _CORPUS, draw))
    injections = {each.name: each for each in all_of_them}
    own = _MEMORY_BYTES if Full.name in kinds else None
    # Else it is by luck that a struck request is let in.
    roomy = ROOMY if injections.keys() & set(kinds) else ()
    before = shared_memory()
    with serving(
        folder, "--corpus", _CORPUS, "--max-model-len", "512", *roomy, memory_bytes=own
    ) as server:
        run = Striking(server, verdict, draw, injections, before)
        try:
            asyncio.run(run.run(kinds, times))
        except KeyboardInterrupt:
            verdict.blame("wrong", "interrupted", "not all faults were tried")
    verdict.check_end(server)
    for name in shared_memory() - before if own is None else ():
        verdict.blame("leaked", "after the end", name)
    return {"faults": {kind: found.told() for kind, found in run.by_kind.items()}}


def main() -> None:
    """Strike, print, write the JSON."""
    parser = arguments(__doc__ or "", 0)
    parser.add_argument("--times", type=int, default=50, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    if Full.name in options.kinds and os.geteuid() != 0:
        parser.error(
            f"{Full.name!r} needs root, for a shared memory of the server's own: name other --kinds"
        )
    verdict = Verdict()
    with home() as folder:
        facts = faults(folder, tuple(options.kinds), options.times, options.seed, verdict)
    finish(verdict, facts, options)


if __name__ == "__main__":
    main()
