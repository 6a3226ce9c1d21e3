"""Abuse: thousands of malformed requests; is each refused in OpenAI's shape, without harm?

Every hundredth request is a valid one that must be answered as before the abuse began, by the base
model and by an adapter in turn. A few connections send half a header and wait: the server must end
them. `wrong` counts a response other than the attack must get (`benchmarks/promises/attacks`),
an error in another shape or that reveals paths, addresses or a stack, and a valid request with
another answer. `server_errors` counts 5xx and processes that were replaced. `leaked` counts
connections, adapters, work and memory still held half a minute after the end.

    python -m benchmarks.promises.abuse [--requests 10000] [--json]
    [--out benchmarks/results/abuse.json]
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness.command_line import progress
from benchmarks.harness.server import (
    ROOMY_FLAGS,
    Server,
    completion_body,
    create_corpora,
    mayfly_server,
    source_documents,
)
from benchmarks.harness.violations import Violations, argument_parser, run_and_finish
from benchmarks.promises.attacks.attack import ANSWERED, REFUSED, Attack
from benchmarks.promises.attacks.draw import draw_attacks
from benchmarks.promises.attacks.field_values import COMPLETIONS
from benchmarks.promises.raw_http import build_request, error_defect, parse_responses, send_raw

CONCURRENCY = 8
VALID_EVERY = 100
TIMEOUT_SECONDS = 30.0  # of a response
# Connections with half a header, and the time within which the server must close each.
HALF_OPEN, HALF_OPEN_SECONDS = 16, 60.0
SETTLE_SECONDS = 30.0
_CORPUS = "web"
_FLAGS = [
    "--budget",
    "steps=1",
    "--max-steps",
    "4",
    "--max-model-len",
    "512",
    "--precision",
    "float32",
]
_BUDGETS = (b"none", b"steps=2")


class Abuse:
    """One run against one server."""

    def __init__(self, server: Server, violations: Violations, rng: random.Random) -> None:
        self._server, self._violations, self._rng = server, violations, rng
        self._expected_text: dict[bytes, str] = {}
        self.outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by category
        self.seconds_to_end_half_open: float | None = None

    async def run(self, requests: int) -> dict[str, int]:
        """Warm up, attack and settle; return the resident bytes before and after."""
        for budget in _BUDGETS:
            self._expected_text[budget] = await self._complete(budget) or ""
            self._violations.check(
                bool(self._expected_text[budget]),
                "wrong",
                "valid",
                "no answer before the abuse began",
            )
        warm_up = max(100, requests // 10)
        await self._send_all(draw_attacks(random.Random(self._rng.random()), warm_up), warm_up)  # noqa: S311
        await asyncio.to_thread(self._server.seconds_until_idle, SETTLE_SECONDS)
        before = self._server.resident_bytes()

        waiting = asyncio.create_task(self._half_open())
        await self._send_all(draw_attacks(self._rng, requests), requests)
        self.seconds_to_end_half_open = await waiting
        await asyncio.to_thread(self._violations.check_idle, self._server, SETTLE_SECONDS)
        after = self._server.resident_bytes()
        self._violations.check_memory(before, after)
        return {"before": before, "after": after}

    async def _send_all(self, attacks: Iterator[Attack], count: int) -> None:
        numbered = enumerate(attacks)

        async def worker() -> None:
            for number, attack in numbered:
                if number % VALID_EVERY == VALID_EVERY - 1:
                    await self._check_valid(_BUDGETS[number // VALID_EVERY % len(_BUDGETS)])
                else:
                    await self._attack(attack)
                progress(f"request {number + 1} of {count}")

        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))

    async def _attack(self, attack: Attack) -> None:
        self._violations.requests += 1
        started = time.monotonic()
        try:
            received = await send_raw(
                self._server.port, attack.parts, TIMEOUT_SECONDS, attack.disconnect
            )
        except OSError as error:
            self._record_violation("server_errors", attack, f"no connection: {error}")
            return
        responses = parse_responses(received, attack.head)
        self.outcomes[attack.category][
            ", ".join(str(response.status) for response in responses) or "closed"
        ] += 1
        for response, expected in zip(responses, attack.expected, strict=False):
            if response.status >= 500:
                self._record_violation(
                    "server_errors", attack, f"{response.status} {response.body[:160]!r}"
                )
            elif (expected == REFUSED and response.status < 400) or (
                expected == ANSWERED and response.status != 200
            ):
                self._record_violation(
                    "wrong",
                    attack,
                    f"must be {expected}: {response.status} {response.body[:160]!r}",
                )
            elif (
                response.status >= 400
                and not attack.head
                and (reason := error_defect(response.body, attack.allowed))
            ):
                self._record_violation("wrong", attack, f"{response.status}: {reason}")
        if len(responses) != len(attack.expected) and not attack.may_close:
            seconds = time.monotonic() - started
            self._record_violation(
                "wrong",
                attack,
                f"{len(responses)} responses of {len(attack.expected)} after {seconds:.1f} s",
            )

    def _record_violation(self, kind: Any, attack: Attack, reason: str) -> None:
        request = b"".join(part for part in attack.parts if isinstance(part, bytes))
        first, _, rest = request.partition(b"\r\n")
        excerpt = first[:120] + b" ... " + rest.split(b"Content-Length", 1)[-1][:240]
        self._violations.record(kind, attack.category, f"{reason} to {excerpt!r}")

    async def _complete(self, budget: bytes) -> str | None:
        request = build_request(
            "POST",
            COMPLETIONS.encode(),
            json.dumps(completion_body()).encode(),
            ((b"Compute-Budget", budget),),
        )
        responses = parse_responses(await send_raw(self._server.port, (request,), TIMEOUT_SECONDS))
        if not responses or responses[0].status != 200:
            return None
        body = json.loads(responses[0].body)
        as_expected = body["adaptation"]["adapted"] is (budget != b"none")
        return str(body["choices"][0]["text"]) if as_expected else None

    async def _check_valid(self, budget: bytes) -> None:
        self._violations.requests += 1
        actual, expected = await self._complete(budget), self._expected_text[budget]
        self.outcomes["valid"]["not answered" if actual is None else "answered"] += 1
        self._violations.check(
            actual == expected, "wrong", "valid", f"{budget!r}: {actual!r} instead of {expected!r}"
        )

    async def _half_open(self) -> float | None:
        """Open connections with half a header; seconds until the server had closed the last one."""
        start = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-Half: "
        started = time.monotonic()

        async def hold_open() -> bool:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
            writer.write(start)
            try:
                async with asyncio.timeout(HALF_OPEN_SECONDS):
                    while await reader.read(1 << 16):
                        pass
                return True
            except ConnectionError:
                return True
            except TimeoutError:
                return False
            finally:
                writer.close()

        closed = await asyncio.gather(*(hold_open() for _ in range(HALF_OPEN)))
        open_count = closed.count(False)
        if open_count:
            self._violations.record(
                "leaked",
                "half-open headers",
                f"{open_count} held for {HALF_OPEN_SECONDS:.0f} s",
                open_count,
            )
        return None if open_count else time.monotonic() - started


def run(folder: Path, options: Namespace, violations: Violations) -> dict[str, Any]:
    """The whole run, on a server of its own."""
    create_corpora(folder, {_CORPUS: source_documents()[:4]})
    with mayfly_server(folder, *ROOMY_FLAGS, "--corpus", _CORPUS, *_FLAGS) as server:
        workers = server.workers()
        trial = Abuse(server, violations, random.Random(options.seed))  # noqa: S311
        started = time.monotonic()
        resident = asyncio.run(trial.run(options.requests))
        violations.check_workers(workers, server.workers())
        seconds = time.monotonic() - started
    violations.check_end(server)
    return {
        "seconds": round(seconds, 1),
        "resident_bytes": resident,
        "seconds_to_end_half_open": trial.seconds_to_end_half_open,
        "met_with": {
            category: dict(outcomes) for category, outcomes in sorted(trial.outcomes.items())
        },
    }


def main() -> None:
    """Run, print, write the JSON."""
    run_and_finish(run, argument_parser(__doc__, 10_000).parse_args())


if __name__ == "__main__":
    main()
