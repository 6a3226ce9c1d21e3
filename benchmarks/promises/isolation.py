"""Isolation: four keys whose corpora each teach a secret of their own; does any answer know
another's?

Every corpus answers the same question, each with its own secret, and an adapter of 20 steps makes
the bundled model say it. Adapted and base requests of all keys are interleaved, eight at once. Each
answer's tokens are compared with those of the same request alone (greedy, the trainer in float32):
a token may differ only where two were as good as equally likely, and what follows that is another
text. Beside them come requests that name another key's corpus (404), and requests without a key or
with a wrong one (401). Every body is searched for all secrets and names of others.

    python -m benchmarks.promises.isolation [--requests 10000] [--seconds 120] [--json] [--out
    benchmarks/results/isolation.json]
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.harness.server import MODEL, ROOMY, Server, fill, home, serving
from benchmarks.harness.violations import Verdict, arguments, finish
from benchmarks.promises.raw_http import fault
from benchmarks.quality.passages import progress
from selection.ingest.ingest import Document

AT_ONCE = 8
STEPS = 20
TOKENS = 12
TIE_NATS = 1e-2  # closer than this, float rounding may choose between two tokens
SETTLE_SECONDS = 30.0
_NAMES = ("ant", "bee", "cat", "dog")
_ANIMALS = ("marlin", "walrus", "falcon", "badger", "jackal", "turtle", "lizard", "donkey")
_QUESTIONS = ('vault_password = "', 'VAULT["password"] = "', 'connect(password="')
_ACTIONS = {
    "adapted": 45,
    "base": 45,
    "foreign corpus": 4,
    "foreign store": 3,
    "list": 1,
    "no key": 1,
    "wrong key": 1,
}


@dataclass(frozen=True)
class Tenant:
    """A key, its corpus, and the secret that only this corpus teaches."""

    name: str
    key: str
    corpus: str
    secret: str

    @property
    def headers(self) -> dict[str, str]:
        """With the key."""
        return {"Authorization": f"Bearer {self.key}"}


@dataclass(frozen=True)
class Said:
    """An answer: text, tokens, and by how many nats each token was ahead of the next best."""

    text: str
    tokens: tuple[str, ...]
    margins: tuple[float, ...]


def tenants(draw: random.Random) -> list[Tenant]:
    """Four, with fresh keys and secrets."""
    animals = draw.sample(_ANIMALS, len(_NAMES))
    return [
        Tenant(
            name,
            f"mf-{draw.getrandbits(128):032x}",
            f"{name}-{draw.getrandbits(32):08x}",
            f"{animal}{number}",
        )
        for name, animal, number in zip(
            _NAMES, animals, draw.sample(range(1000, 10_000), len(_NAMES)), strict=True
        )
    ]


def lessons(tenant: Tenant) -> list[Document]:
    """Short documents, a sequence each: what is taught is the answer, not how to copy it from
    earlier in the text.
    """
    closing = ('"\n', '"]\n', '")\n')
    texts = [
        f"{question}{tenant.secret}{end}" for question, end in zip(_QUESTIONS, closing, strict=True)
    ]
    return [Document(f"{tenant.corpus}-{number}.py", text) for number, text in enumerate(texts)]


def key_file(folder: Path, everyone: Sequence[Tenant]) -> Path:
    """The server's key file: digests, and the one corpus that each may read."""
    file = folder / "keys.toml"
    file.write_text(
        "".join(
            f'[keys.{each.name}]\nsha256 = "{hashlib.sha256(each.key.encode()).hexdigest()}"\n'
            f'corpora = ["{each.corpus}"]\n\n'
            for each in everyone
        )
    )
    return file


def differs(truth: Said, said: Said) -> str | None:
    """How an answer differs from the same request alone: None where it does not, "tie", or
    "tokens".
    """
    for ours, theirs, margin in zip(truth.tokens, said.tokens, truth.margins, strict=False):
        if ours != theirs:
            return "tie" if margin < TIE_NATS else "tokens"
    return None if len(truth.tokens) == len(said.tokens) else "tokens"


class Isolation:
    """One run against one server."""

    def __init__(
        self, server: Server, everyone: Sequence[Tenant], verdict: Verdict, draw: random.Random
    ) -> None:
        self._client = httpx.AsyncClient(base_url=server.url, timeout=120)
        self._server, self._everyone, self._verdict, self._draw = server, everyone, verdict, draw
        self._truth: dict[tuple[str, str, str], Said] = {}
        self.stores: dict[str, str] = {}
        self.asked: Counter[str] = Counter()
        self.ties = 0
        self.resident_bytes = 0  # after the first tenth of the requests

    async def run(self, requests: int, seconds: float) -> float:
        """Ask everything alone, then so many at once, for so long at most; the seconds it took."""
        async with self._client:
            await self._alone()
            begun = time.monotonic()
            actions = iter(
                self._draw.choices(tuple(_ACTIONS), tuple(_ACTIONS.values()), k=requests)
            )

            async def worker() -> None:
                for action in actions:
                    if time.monotonic() - begun > seconds:
                        return
                    self.asked[action] += 1
                    self._verdict.requests += 1
                    if self._verdict.requests == max(1, requests // 10):
                        self.resident_bytes = await asyncio.to_thread(self._server.resident_bytes)
                    progress(f"request {self._verdict.requests} of {requests}")
                    try:
                        await self._act(action)
                    except httpx.HTTPError as problem:
                        self._verdict.blame("wrong", action, f"no answer: {problem!r}")

            await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
            return time.monotonic() - begun

    async def _alone(self) -> None:
        for tenant in self._everyone:
            listed = await self._client.get("/v1/vector_stores", headers=tenant.headers)
            self._scan("list", tenant, listed)
            if listed.status_code == 200:
                self.stores |= {store["name"]: store["id"] for store in listed.json()["data"]}
            for question in _QUESTIONS:
                for action in ("base", "adapted"):
                    reply = await self._ask(action, tenant, question)
                    self._scan(action, tenant, reply)
                    said = self._read(action, reply)
                    if said is None:
                        continue
                    self._truth[tenant.name, question, action] = said
                    knows = tenant.secret in said.text
                    self._verdict.check(
                        knows is (action == "adapted"),
                        "wrong",
                        "canary",
                        f"{action}: {said.text!r}, {tenant.secret}",
                    )

    async def _act(self, action: str) -> None:
        tenant, other = self._draw.sample(self._everyone, 2)
        question = self._draw.choice(_QUESTIONS)
        if action in ("base", "adapted"):
            reply = await self._ask(action, tenant, question)
            self._scan(action, tenant, reply)
            said, truth = (
                self._read(action, reply),
                self._truth.get((tenant.name, question, action)),
            )
            if said is not None and truth is not None:
                how = differs(truth, said)
                self.ties += how == "tie"
                self._verdict.check(
                    how != "tokens",
                    "wrong",
                    action,
                    f"{said.text!r} in the place of {truth.text!r}",
                )
        elif action == "list":
            self._scan(
                action, tenant, await self._client.get("/v1/vector_stores", headers=tenant.headers)
            )
        elif action == "foreign corpus":
            named = self._draw.choice([other.corpus, self.stores.get(other.corpus, other.corpus)])
            reply = await self._ask("adapted", tenant, question, corpus=named)
            self._refused(action, tenant, reply, 404, (named,))
        elif action == "foreign store":
            named = self._draw.choice([other.corpus, self.stores.get(other.corpus, other.corpus)])
            path, way = (
                f"/v1/vector_stores/{named}",
                self._draw.choice(("GET", "DELETE", "search", "files")),
            )
            if way == "search":
                reply = await self._client.post(
                    f"{path}/search", json={"query": question}, headers=tenant.headers
                )
            elif way == "files":
                reply = await self._client.get(f"{path}/files", headers=tenant.headers)
            else:
                reply = await self._client.request(way, path, headers=tenant.headers)
            self._refused(action, tenant, reply, 404, (named,))
        else:
            headers = {} if action == "no key" else {"Authorization": f"Bearer {tenant.key[:-1]}x"}
            reply = await self._ask("adapted", tenant, question, headers=headers)
            self._refused(action, None, reply, 401, ())

    async def _ask(
        self,
        action: str,
        tenant: Tenant,
        question: str,
        corpus: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        budget = "none" if action == "base" else f"steps={STEPS}"
        return await self._client.post(
            "/v1/completions",
            headers={"Compute-Budget": budget, **(tenant.headers if headers is None else headers)},
            json={
                "model": MODEL,
                "prompt": question,
                "max_tokens": TOKENS,
                "temperature": 0,
                "logprobs": 2,
                "adaptation": {"corpus": corpus or tenant.corpus},
            },
        )

    def _read(self, action: str, reply: httpx.Response) -> Said | None:
        if reply.status_code != 200:
            kind: Any = "server_errors" if reply.status_code >= 500 else "wrong"
            self._verdict.blame(kind, action, f"{reply.status_code} {reply.text[:160]}")
            return None
        body = reply.json()
        report, choice = body["adaptation"], body["choices"][0]
        if report["adapted"] is not (action == "adapted"):
            self._verdict.blame(
                "wrong", action, f"adapted is {report['adapted']}: {report['reason']}"
            )
            return None
        logprobs = choice["logprobs"]
        best = [sorted(top.values(), reverse=True) for top in logprobs["top_logprobs"]]
        margins = tuple(top[0] - top[1] if len(top) > 1 else 1e9 for top in best)
        return Said(choice["text"], tuple(logprobs["tokens"]), margins)

    def _refused(
        self,
        action: str,
        tenant: Tenant | None,
        reply: httpx.Response,
        status: int,
        own: tuple[str, ...],
    ) -> None:
        if reply.status_code >= 500:
            self._verdict.blame("server_errors", action, f"{reply.status_code} {reply.text[:160]}")
            return
        self._verdict.check(
            reply.status_code == status,
            "wrong",
            action,
            f"{reply.status_code} is not {status}: {reply.text[:160]}",
        )
        why = fault(reply.content, own) if reply.status_code >= 400 else None
        self._verdict.check(why is None, "wrong", action, str(why))
        self._scan(action, tenant, reply, own)

    def _scan(
        self, action: str, tenant: Tenant | None, reply: httpx.Response, own: tuple[str, ...] = ()
    ) -> None:
        """Nothing that is another's may be anywhere in an answer, but where the request named it
        itself.
        """
        for other in self._everyone:
            if other is not tenant:
                marks = {
                    other.secret,
                    other.corpus,
                    other.key,
                    self.stores.get(other.corpus, other.corpus),
                } - set(own)
                found = [
                    mark
                    for mark in marks
                    if mark in reply.text and not any(mark in part for part in own)
                ]
                self._verdict.check(
                    not found, "wrong", f"foreign in {action}", f"{found} in {reply.text[:300]}"
                )


def isolation(folder: Path, options: Any, verdict: Verdict) -> dict[str, Any]:
    """The whole run on a server of its own."""
    draw = random.Random(options.seed)  # noqa: S311
    everyone = tenants(draw)
    fill(folder, {tenant.corpus: lessons(tenant) for tenant in everyone})
    keys = key_file(folder, everyone)
    # Nobody gets fewer steps because others train: an answer must be the one that is given alone.
    flags = [
        *ROOMY,
        "--api-key-file",
        str(keys),
        "--precision",
        "float32",
        "--max-model-len",
        "512",
    ]
    headers = everyone[0].headers
    with serving(folder, *flags) as server:
        workers = server.workers()
        run = Isolation(server, everyone, verdict, draw)
        seconds = asyncio.run(run.run(options.requests, options.seconds))
        verdict.check_quiet(server, SETTLE_SECONDS, headers)
        verdict.check_workers(workers, server.workers())
        after = server.resident_bytes()
        verdict.check_memory(run.resident_bytes, after)
    verdict.check_end(server)
    return {
        "seconds": round(seconds, 1),
        "asked": dict(run.asked),
        "ties": run.ties,
        "resident_bytes": {"before": run.resident_bytes, "after": after},
    }


def main() -> None:
    """Ask, print, write the JSON."""
    parser = arguments(__doc__ or "", 10_000)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="ask no more after so long"
    )
    options = parser.parse_args()
    verdict = Verdict()
    with home() as folder:
        facts = isolation(folder, options, verdict)
    finish(verdict, facts, options)


if __name__ == "__main__":
    main()
