"""Abuse: thousands of malformed requests; is each refused in OpenAI's shape, does the server live,
is its memory back?

Every hundredth request is a sound one that must be answered as it was before the abuse began, by
the base model and by an adapter in turn. A few connections send half a header and wait: the server
must end them. `wrong` is an answer other than the attack must be met with
(`benchmarks/promises/attacks.py`), an error in another shape or that tells of paths, addresses or a stack,
and a sound request that is answered otherwise. `server_errors` are 5xx and processes that were
replaced. `leaked` are connections, adapters, work and memory still held half a minute after the
end.

    python -m benchmarks.promises.abuse [--requests 10000] [--json] [--out benchmarks/results/abuse.json]
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness.server import ROOMY, Server, completion, fill, home, serving, sources
from benchmarks.harness.violations import Verdict, arguments, finish
from benchmarks.promises.attacks import ANSWERED, REFUSED, Attack, attacks
from benchmarks.promises.field_values import COMPLETIONS
from benchmarks.promises.raw_http import exchange, fault, http, replies
from benchmarks.quality.passages import progress

AT_ONCE = 8
SOUND_EVERY = 100
PATIENCE = 30.0  # seconds until an answer that has not come counts as none
# So many half-sent headers, each to be ended within this time.
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

    def __init__(self, server: Server, verdict: Verdict, draw: random.Random) -> None:
        self._server, self._verdict, self._draw = server, verdict, draw
        self._truth: dict[bytes, str] = {}
        self.met: defaultdict[str, Counter[str]] = defaultdict(Counter)  # answers by category
        self.seconds_to_end_half_open: float | None = None

    async def run(self, requests: int) -> dict[str, int]:
        """Warm up, attack, settle; the resident bytes before and after."""
        for budget in _BUDGETS:
            self._truth[budget] = await self._sound(budget) or ""
            self._verdict.check(
                bool(self._truth[budget]), "wrong", "sound", "not answered before the abuse began"
            )
        warm = max(100, requests // 10)
        await self._all(attacks(random.Random(self._draw.random()), warm), warm)  # noqa: S311
        await asyncio.to_thread(self._server.quiet_within, SETTLE_SECONDS)
        before = self._server.resident_bytes()

        waiting = asyncio.create_task(self._half_open())
        await self._all(attacks(self._draw, requests), requests)
        self.seconds_to_end_half_open = await waiting
        await asyncio.to_thread(self._verdict.check_quiet, self._server, SETTLE_SECONDS)
        after = self._server.resident_bytes()
        self._verdict.check_memory(before, after)
        return {"before": before, "after": after}

    async def _all(self, drawn: Iterator[Attack], count: int) -> None:
        numbered = enumerate(drawn)

        async def worker() -> None:
            for number, attack in numbered:
                if number % SOUND_EVERY == SOUND_EVERY - 1:
                    await self._check_sound(_BUDGETS[number // SOUND_EVERY % len(_BUDGETS)])
                else:
                    await self._attack(attack)
                progress(f"request {number + 1} of {count}")

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    async def _attack(self, attack: Attack) -> None:
        self._verdict.requests += 1
        begun = time.monotonic()
        try:
            raw = await exchange(self._server.port, attack.pieces, PATIENCE, attack.leave)
        except OSError as problem:
            self._blame("server_errors", attack, f"no connection: {problem}")
            return
        answers = replies(raw, attack.head)
        self.met[attack.category][
            ", ".join(str(answer.status) for answer in answers) or "closed"
        ] += 1
        for answer, expected in zip(answers, attack.expect, strict=False):
            if answer.status >= 500:
                self._blame("server_errors", attack, f"{answer.status} {answer.body[:160]!r}")
            elif (expected == REFUSED and answer.status < 400) or (
                expected == ANSWERED and answer.status != 200
            ):
                self._blame(
                    "wrong", attack, f"must be {expected}: {answer.status} {answer.body[:160]!r}"
                )
            elif (
                answer.status >= 400 and not attack.head and (why := fault(answer.body, attack.own))
            ):
                self._blame("wrong", attack, f"{answer.status}: {why}")
        if len(answers) != len(attack.expect) and not attack.may_close:
            took = time.monotonic() - begun
            self._blame(
                "wrong",
                attack,
                f"{len(answers)} answers of {len(attack.expect)} after {took:.1f} s",
            )

    def _blame(self, kind: Any, attack: Attack, why: str) -> None:
        asked = b"".join(piece for piece in attack.pieces if isinstance(piece, bytes))
        first, _, rest = asked.partition(b"\r\n")
        said = first[:120] + b" ... " + rest.split(b"Content-Length", 1)[-1][:240]
        self._verdict.blame(kind, attack.category, f"{why} to {said!r}")

    async def _sound(self, budget: bytes) -> str | None:
        request = http(
            "POST",
            COMPLETIONS.encode(),
            json.dumps(completion()).encode(),
            ((b"Compute-Budget", budget),),
        )
        answers = replies(await exchange(self._server.port, (request,), PATIENCE))
        if not answers or answers[0].status != 200:
            return None
        body = json.loads(answers[0].body)
        right = body["adaptation"]["adapted"] is (budget != b"none")
        return str(body["choices"][0]["text"]) if right else None

    async def _check_sound(self, budget: bytes) -> None:
        self._verdict.requests += 1
        said, truth = await self._sound(budget), self._truth[budget]
        self.met["sound"]["not answered" if said is None else "answered"] += 1
        self._verdict.check(
            said == truth, "wrong", "sound", f"{budget!r}: {said!r} in the place of {truth!r}"
        )

    async def _half_open(self) -> float | None:
        """Half-sent headers: seconds until the server had ended the last of them."""
        start = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-Half: "
        begun = time.monotonic()

        async def one() -> bool:
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

        ended = await asyncio.gather(*(one() for _ in range(HALF_OPEN)))
        held = ended.count(False)
        if held:
            self._verdict.blame(
                "leaked", "half-open headers", f"{held} held for {HALF_OPEN_SECONDS:.0f} s", held
            )
        return None if held else time.monotonic() - begun


def abuse(folder: Path, requests: int, seed: int, verdict: Verdict) -> dict[str, Any]:
    """The whole run on a server of its own."""
    fill(folder, {_CORPUS: sources()[:4]})
    with serving(folder, *ROOMY, "--corpus", _CORPUS, *_FLAGS) as server:
        workers = server.workers()
        run = Abuse(server, verdict, random.Random(seed))  # noqa: S311
        begun = time.monotonic()
        resident = asyncio.run(run.run(requests))
        verdict.check_workers(workers, server.workers())
        seconds = time.monotonic() - begun
    verdict.check_end(server)
    return {
        "seconds": round(seconds, 1),
        "resident_bytes": resident,
        "seconds_to_end_half_open": run.seconds_to_end_half_open,
        "met_with": {category: dict(met) for category, met in sorted(run.met.items())},
    }


def main() -> None:
    """Attack, print, write the JSON."""
    options = arguments(__doc__ or "", 10_000).parse_args()
    verdict = Verdict()
    with home() as folder:
        facts = abuse(folder, options.requests, options.seed, verdict)
    finish(verdict, facts, options)


if __name__ == "__main__":
    main()
