"""Isolation: four keys whose corpora and examples teach secrets; does any answer know another's?

Every corpus answers the same question, each with its own secret, and an adapter of 20 steps makes
the bundled model produce it. Each key has a second secret, in examples that its requests bring,
with and without `reuse`; no log may have it. Adapted and base requests of all keys are interleaved,
eight at once.
The tokens of each answer are compared with those of the same request alone (greedy, the trainer in
float32): a token may differ only where two tokens were about equally likely, and the text after it
may then differ too. Other requests name another key's corpus (404), or have no key or a wrong one
(401). Every body is searched for all secrets and names of other keys.

    python -m benchmarks.promises.isolation [--requests 10000] [--seconds 120] [--json]
    [--out benchmarks/results/isolation.json]
"""

from __future__ import annotations

import asyncio
import random
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.harness.command_line import progress
from benchmarks.harness.server import (
    MODEL,
    ROOMY_FLAGS,
    Server,
    create_corpora,
    mayfly_server,
)
from benchmarks.harness.violations import Violations, argument_parser, run_and_finish
from benchmarks.promises.disclosure import DisclosureChecks, check_logs
from benchmarks.promises.tenants import (
    QUESTIONS,
    Tenant,
    draw_tenants,
    key_file,
    teaching_documents,
    teaching_examples,
)

CONCURRENCY = 8
STEPS = 20
TOKENS = 12
TIE_NATS = 1e-2  # within this margin, float rounding may decide between two tokens
SETTLE_SECONDS = 30.0
# Requests whose answers are compared with those of the same request alone.
_ANSWERED = ("base", "adapted", "examples", "examples again")
_ACTIONS = {
    "adapted": 35,
    "examples": 10,
    "examples again": 10,
    "base": 35,
    "foreign corpus": 4,
    "foreign store": 3,
    "list": 1,
    "no key": 1,
    "wrong key": 1,
}


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        text: its text.
        tokens: its tokens.
        margins: log-probability of each token minus that of the next best, in nats.
    """

    text: str
    tokens: tuple[str, ...]
    margins: tuple[float, ...]


def difference(expected: Answer, answer: Answer) -> str | None:
    """How an answer differs from the expected one: None, "tie" or "tokens"."""
    for ours, theirs, margin in zip(expected.tokens, answer.tokens, expected.margins, strict=False):
        if ours != theirs:
            return "tie" if margin < TIE_NATS else "tokens"
    return None if len(expected.tokens) == len(answer.tokens) else "tokens"


class Isolation:
    """One run against one server."""

    def __init__(
        self,
        server: Server,
        tenants: Sequence[Tenant],
        violations: Violations,
        rng: random.Random,
    ) -> None:
        self._client = httpx.AsyncClient(base_url=server.url, timeout=120)
        self._server, self._tenants, self._violations, self._rng = (
            server,
            tenants,
            violations,
            rng,
        )
        self._expected: dict[tuple[str, str, str], Answer] = {}
        self._checks = DisclosureChecks(tenants, violations)
        self.actions: Counter[str] = Counter()
        self.ties = 0
        self.resident_bytes = 0  # after a tenth of the requests

    async def run(self, requests: int, seconds: float) -> float:
        """Record the answers of single requests, then send `requests` in random order.

        Returns:
            Seconds that the concurrent requests took, at most about `seconds`.
        """
        async with self._client:
            await self._record_expected()
            started = time.monotonic()
            actions = iter(self._rng.choices(tuple(_ACTIONS), tuple(_ACTIONS.values()), k=requests))

            async def worker() -> None:
                for action in actions:
                    if time.monotonic() - started > seconds:
                        return
                    self.actions[action] += 1
                    self._violations.requests += 1
                    if self._violations.requests == max(1, requests // 10):
                        self.resident_bytes = await asyncio.to_thread(self._server.resident_bytes)
                    progress(f"request {self._violations.requests} of {requests}")
                    try:
                        await self._perform(action)
                    except httpx.HTTPError as error:
                        self._violations.record("wrong", action, f"no answer: {error!r}")

            await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
            return time.monotonic() - started

    async def _record_expected(self) -> None:
        for tenant in self._tenants:
            stores = await self._client.get("/v1/vector_stores", headers=tenant.headers)
            self._checks.check_foreign("list", tenant, stores)
            if stores.status_code == 200:
                self._checks.record_stores(stores.json()["data"])
            for question in QUESTIONS:
                for action in _ANSWERED:
                    reply = await self._complete(action, tenant, question)
                    self._checks.check_foreign(action, tenant, reply)
                    answer = self._parse_answer(action, reply)
                    if answer is None:
                        continue
                    self._expected[tenant.name, question, action] = answer
                    secrets = (tenant.secret, tenant.example_secret)
                    told = [secret for secret in secrets if secret in answer.text]
                    taught = tenant.taught(action)
                    self._violations.check(
                        told == ([] if taught is None else [taught]),
                        "wrong",
                        "canary",
                        f"{action}: {answer.text!r}, {taught}",
                    )

    async def _perform(self, action: str) -> None:
        tenant, other = self._rng.sample(self._tenants, 2)
        question = self._rng.choice(QUESTIONS)
        if action in _ANSWERED:
            reply = await self._complete(action, tenant, question)
            self._checks.check_foreign(action, tenant, reply)
            answer, expected = (
                self._parse_answer(action, reply),
                self._expected.get((tenant.name, question, action)),
            )
            if answer is not None and expected is not None:
                kind_of_difference = difference(expected, answer)
                self.ties += kind_of_difference == "tie"
                self._violations.check(
                    kind_of_difference != "tokens",
                    "wrong",
                    action,
                    f"{answer.text!r} instead of {expected.text!r}",
                )
        elif action == "list":
            self._checks.check_foreign(
                action, tenant, await self._client.get("/v1/vector_stores", headers=tenant.headers)
            )
        elif action == "foreign corpus":
            name = self._rng.choice([other.corpus, self._checks.store_id(other)])
            reply = await self._complete("adapted", tenant, question, corpus=name)
            self._checks.check_refused(action, tenant, reply, 404, (name,))
        elif action == "foreign store":
            name = self._rng.choice([other.corpus, self._checks.store_id(other)])
            path, method = (
                f"/v1/vector_stores/{name}",
                self._rng.choice(("GET", "DELETE", "search", "files")),
            )
            if method == "search":
                reply = await self._client.post(
                    f"{path}/search", json={"query": question}, headers=tenant.headers
                )
            elif method == "files":
                reply = await self._client.get(f"{path}/files", headers=tenant.headers)
            else:
                reply = await self._client.request(method, path, headers=tenant.headers)
            self._checks.check_refused(action, tenant, reply, 404, (name,))
        else:
            headers = {} if action == "no key" else {"Authorization": f"Bearer {tenant.key[:-1]}x"}
            reply = await self._complete("adapted", tenant, question, headers=headers)
            self._checks.check_refused(action, None, reply, 401, ())

    async def _complete(
        self,
        action: str,
        tenant: Tenant,
        question: str,
        corpus: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        budget = "none" if action == "base" else f"steps={STEPS}"
        adaptation: dict[str, Any] = {"corpus": corpus or tenant.corpus}
        if action.startswith("examples"):
            reuse = "examples" if action == "examples again" else None
            adaptation = {"corpus": None, "examples": teaching_examples(tenant), "reuse": reuse}
        return await self._client.post(
            "/v1/completions",
            headers={"Compute-Budget": budget, **(tenant.headers if headers is None else headers)},
            json={
                "model": MODEL,
                "prompt": question,
                "max_tokens": TOKENS,
                "temperature": 0,
                "logprobs": 2,
                "adaptation": adaptation,
            },
        )

    def _parse_answer(self, action: str, reply: httpx.Response) -> Answer | None:
        if reply.status_code != 200:
            kind: Any = "server_errors" if reply.status_code >= 500 else "wrong"
            self._violations.record(kind, action, f"{reply.status_code} {reply.text[:160]}")
            return None
        body = reply.json()
        report, choice = body["adaptation"], body["choices"][0]
        if report["adapted"] is (action == "base"):
            self._violations.record(
                "wrong", action, f"adapted is {report['adapted']}: {report['reason']}"
            )
            return None
        logprobs = choice["logprobs"]
        best = [sorted(top.values(), reverse=True) for top in logprobs["top_logprobs"]]
        margins = tuple(top[0] - top[1] if len(top) > 1 else 1e9 for top in best)
        return Answer(choice["text"], tuple(logprobs["tokens"]), margins)


def run(folder: Path, options: Namespace, violations: Violations) -> dict[str, Any]:
    """The whole run, on a server of its own."""
    rng = random.Random(options.seed)  # noqa: S311
    tenants = draw_tenants(rng)
    create_corpora(folder, {tenant.corpus: teaching_documents(tenant) for tenant in tenants})
    keys = key_file(folder, tenants)
    # Load must not reduce anybody's steps: an answer must equal that of the request alone.
    flags = [
        *ROOMY_FLAGS,
        "--api-key-file",
        str(keys),
        "--precision",
        "float32",
        "--max-model-len",
        "512",
    ]
    headers = tenants[0].headers
    with mayfly_server(folder, *flags) as server:
        workers = server.workers()
        trial = Isolation(server, tenants, violations, rng)
        seconds = asyncio.run(trial.run(options.requests, options.seconds))
        violations.check_idle(server, SETTLE_SECONDS, headers)
        violations.check_workers(workers, server.workers())
        after = server.resident_bytes()
        violations.check_memory(trial.resident_bytes, after)
        check_logs(server, folder, tenants, violations)
    violations.check_end(server)
    return {
        "seconds": round(seconds, 1),
        "asked": dict(trial.actions),
        "ties": trial.ties,
        "resident_bytes": {"before": trial.resident_bytes, "after": after},
    }


def main() -> None:
    """Ask, print, write the JSON."""
    parser = argument_parser(__doc__, 10_000)
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="time limit of the requests (default: none)",
    )
    run_and_finish(run, parser.parse_args())


if __name__ == "__main__":
    main()
