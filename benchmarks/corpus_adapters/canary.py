"""Does anything still know a secret whose document was learnt by a corpus's adapter, and then went?

While requests run, the document is removed or replaced by the command, deleted from a vector store,
or removed from a corpus in shards. Each request that is sent after the removal was acknowledged is
compared with the same request to a corpus that never had the document: the answer must not contain
the secret, and the log-probability of the secret must be the same. Half of the requests come while
the adapter is invalid, half after it was trained anew.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from transformers import AutoTokenizer

from benchmarks.corpus_adapters.canary_corpora import (
    SHARDS,
    WAYS,
    CanaryCorpora,
    other_corpus,
    taught_corpus,
)
from benchmarks.harness.command_line import progress
from benchmarks.harness.measures import TimeLimit
from benchmarks.harness.server import MODEL, ROOMY_FLAGS, mayfly_server
from benchmarks.promises.tenants import QUESTIONS
from serving.config import bundled_model

CONCURRENCY = 8
BUDGETS = ("instant", "steps=5")
# Rounding of float32, in nats over all tokens of the secret, with margin: what was learnt is nats.
TOLERANCE = 0.02
_ANSWER_TOKENS = 12
_MAX_EXAMPLES = 20
# In float32 the adapter of a request does not depend on the requests beside it.
_FLAGS = ("--precision", "float32", "--max-model-len", "512", "--shards", str(SHARDS))


@dataclass
class Found:
    """What a run has found.

    Attributes:
        known_before: answers with the secret while it was learnt.
        asked_before: number of such requests.
        asked: number of requests after the removal was acknowledged.
        known: those of them that knew the secret.
        starts: their number by what they started from.
        largest: largest difference of a log-probability to that without the document, in nats.
        before: smallest such difference while the document was learnt.
        examples: some of those that knew it.
    """

    known_before: int = 0
    asked_before: int = 0
    asked: int = 0
    known: int = 0
    starts: Counter[str] = field(default_factory=Counter)
    largest: float = 0.0
    before: float = float("inf")
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Answer:
    """An answer, or the log-probability of the secret, and what the request started from."""

    text: str
    logprob: float | None
    start: str


class Canary:
    """One run against one server."""

    def __init__(self, url: str, corpora: CanaryCorpora, rng: random.Random) -> None:
        self._url, self._corpora, self._rng = url, corpora, rng
        tokenizer = AutoTokenizer.from_pretrained(bundled_model())
        texts = (*QUESTIONS, corpora.secret)
        encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        *questions, self._secret = encoded
        self._questions = dict(zip(QUESTIONS, questions, strict=True))
        self.found: dict[str, Found] = {}
        # Of the way that is checked.
        self._limit = TimeLimit(None)

    async def run(self, requests: int, limit: TimeLimit) -> None:
        """Check all ways, with as many requests of each, or fewer if the time does not suffice."""
        client = httpx.AsyncClient(base_url=self._url, timeout=600)
        with httpx.Client(base_url=self._url, timeout=600) as commands:
            async with client:
                for number, way in enumerate(WAYS):
                    self.found[way] = Found()
                    self._limit = TimeLimit(limit.left / (len(WAYS) - number))
                    await self._check(way, requests // len(WAYS), client, commands)

    async def _check(
        self, way: str, requests: int, client: httpx.AsyncClient, commands: httpx.Client
    ) -> None:
        progress(f"{way}: learning the secret")
        await asyncio.to_thread(self._corpora.teach, way, commands)
        expected = await self._expected(way, client)
        await self._confirm(way, client, expected)
        gone, first = asyncio.Event(), requests // 2
        asking = asyncio.create_task(self._ask_all(way, first, client, expected, gone))
        progress(f"{way}: the document goes while requests run")
        await asyncio.to_thread(self._corpora.forget, way, commands)
        gone.set()
        await asking
        progress(f"{way}: learning anew")
        await asyncio.to_thread(self._corpora.renew, way, commands)
        expected = await self._expected(way, client)
        await self._ask_all(way, requests - first, client, expected, gone)

    async def _expected(
        self, way: str, client: httpx.AsyncClient
    ) -> dict[tuple[str, str], tuple[float, str]]:
        """The log-probability of the secret, by question and budget, of the corpus without it, and
        what its requests start from.
        """
        corpus = other_corpus(way)
        expected = {}
        for question in QUESTIONS:
            for budget in BUDGETS:
                answer = await self._ask(client, corpus, question, budget, scored=True)
                assert answer.logprob is not None
                expected[question, budget] = answer.logprob, answer.start
        return expected

    async def _confirm(
        self,
        way: str,
        client: httpx.AsyncClient,
        expected: dict[tuple[str, str], tuple[float, str]],
    ) -> None:
        """Record what is known while the document is learnt, without which nothing is shown."""
        found, corpus = self.found[way], taught_corpus(way)
        for question, budget in expected:
            told = await self._ask(client, corpus, question, budget, scored=False)
            scored = await self._ask(client, corpus, question, budget, scored=True)
            assert scored.logprob is not None
            found.asked_before += 1
            found.known_before += self._corpora.secret in told.text
            found.before = min(found.before, scored.logprob - expected[question, budget][0])

    async def _ask_all(
        self,
        way: str,
        requests: int,
        client: httpx.AsyncClient,
        expected: dict[tuple[str, str], tuple[float, str]],
        gone: asyncio.Event,
    ) -> None:
        """Ask until as many requests were sent after the document had gone, or the time is over
        and there was at least one for each client.
        """
        found, begin = self.found[way], self.found[way].asked
        end = begin + requests

        def is_over() -> bool:
            return self._limit.is_over and found.asked >= begin + CONCURRENCY

        async def worker() -> None:
            while found.asked < end and not (gone.is_set() and is_over()):
                question, budget = self._rng.choice(list(expected))
                counts = gone.is_set()
                found.asked += counts
                scored = self._rng.random() < 0.5
                answer = await self._ask(client, taught_corpus(way), question, budget, scored)
                if counts:
                    self._judge(found, answer, *expected[question, budget])

        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))

    def _judge(self, found: Found, answer: _Answer, logprob: float, start: str) -> None:
        found.starts[answer.start] += 1
        difference = 0.0 if answer.logprob is None else abs(answer.logprob - logprob)
        found.largest = max(found.largest, difference)
        is_known = self._corpora.secret in answer.text or difference > TOLERANCE
        if is_known or answer.start != start:
            found.known += 1
            if len(found.examples) < _MAX_EXAMPLES:
                found.examples.append(f"{answer}, expected {logprob:.4f} from {start}")

    async def _ask(
        self, client: httpx.AsyncClient, corpus: str, question: str, budget: str, scored: bool
    ) -> _Answer:
        """Ask for an answer, or for the log-probability of the secret.

        Raises:
            httpx.HTTPError: the request failed.
        """
        tokens = self._questions[question]
        body: dict[str, Any] = {
            "model": MODEL,
            "prompt": [*tokens, *self._secret] if scored else tokens,
            "max_tokens": 1 if scored else _ANSWER_TOKENS,
            "temperature": 0,
            # Without comparing: a start that the base model replaced would show nothing.
            "adaptation": {"corpus": corpus, "prompt": question, "seed": 0, "start": "corpus"},
            **({"prompt_logprobs": 0} if scored else {}),
        }
        headers = {"Compute-Budget": budget}
        reply = await client.post("/v1/completions", json=body, headers=headers)
        answer = reply.raise_for_status().json()
        choice, start = answer["choices"][0], answer["adaptation"]["start"]
        logprob = None
        if scored:
            entries = choice["prompt_logprobs"][len(tokens) :]
            logprob = sum(next(iter(each.values()))["logprob"] for each in entries)
        text = "" if scored else choice["text"]
        return _Answer(text, logprob, "base model" if start is None else start["from"])


def measure_canary(home: Path, requests: int, seed: int, limit: TimeLimit) -> dict[str, Any]:
    """The whole run, on a server of its own.

    Args:
        home: an empty folder.
        requests: number of requests after the removal, over all ways.
        seed: of the secret and the order of requests.
        limit: after it, only a few requests of each way are sent.
    """
    rng = random.Random(seed)  # noqa: S311
    corpora = CanaryCorpora(home, rng)
    corpora.make()
    with mayfly_server(home, *ROOMY_FLAGS, *_FLAGS) as server:
        canary = Canary(server.url, corpora, rng)
        asyncio.run(canary.run(requests, limit))
    found = canary.found
    return {
        "canary_known": sum(each.known for each in found.values()),
        "requests": sum(each.asked for each in found.values()),
        "by_way": {
            way: {
                "requests": each.asked,
                "known": each.known,
                "known_while_learnt": f"{each.known_before} of {each.asked_before}",
                "nats_while_learnt": each.before,
                "largest_difference_nats": each.largest,
                "starts": dict(each.starts),
                "examples": each.examples,
            }
            for way, each in found.items()
        },
    }
