"""Kills of the database under a real server: does every HTTP request get a right answer, or a clear
error, within its seconds, and are answers adapted again once the database is back?

`mayfly serve --corpora postgresql://...` answers CLIENTS clients at once: completions and chat with
different budgets on a corpus that nothing changes, and searches of it as a vector store. Each
outage begins at a random moment with SIGKILL of all processes of the database and lasts one to two
seconds; of every fifth, six to eight, which is longer than anybody waits for a connection. What a
client may get:

- a completion: status 200 with an adapted answer, whose report names sequences of this corpus only;
  or with the base model's, which must be one that it gave before the first kill, and whose report
  must say why there is no adapter. `auto` may have put text of the corpus into the prompt; its
  documents are checked, and the answer is not.
- a search: status 200 with the results of before the first kill; or 503 with the code
  `corpora_unavailable` and Retry-After.

Anything else is `wrong`, and so is an adaptation that fails before the first kill. A request is
`late` that takes longer than its seconds and ALLOWANCE_SECONDS, and `hung` without an answer within
HANGS_SECONDS. Its seconds are those of its budget; none for `none`, which needs no database; and
for a search, which has no budget, the five that a caller waits for a connection (docs/postgres.md).
A budget's seconds end with the loaded adapter (docs/budgets.md), so the allowance is for what
follows and for what was under way: one training step or one search that had begun, GRACE_SECONDS at
most, and two seconds for the answer's eight tokens on two cores, beside up to fifteen other
requests that train, search and generate there as well. The same clients run for UNDISTURBED_SECONDS
before the first kill, and the result has the longest excess over a request's seconds of then and of
later (`excess_seconds`): what they have in common is load, not an outage. So has it the median of
an adapted answer's seconds before the first kill (`adapted_seconds`), which every recovery
includes.

An outage counts as recovered once a request that was sent after the database's start is answered
with an adapter, within RECOVERY_SECONDS.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.harness.command_line import progress
from benchmarks.harness.server import (
    NO_KEEP_ALIVE,
    ROOMY_FLAGS,
    Server,
    create_corpora,
    mayfly_server,
    source_documents,
)
from benchmarks.harness.thresholds import GRACE_SECONDS
from benchmarks.on_postgres.judge import CORPUS, KINDS, SECONDS, TEXTS, Kind, Known, answer_of
from benchmarks.on_postgres.server import KillableServer, wait_for_clients_to_end
from selection.corpus.copying import copy_corpus
from selection.corpus.corpus import Corpus
from selection.location import DatabaseLocation

CLIENTS = 16
ALLOWANCE_SECONDS = GRACE_SECONDS + 2.0
HANGS_SECONDS, RECOVERY_SECONDS, UNDISTURBED_SECONDS = 60.0, 60.0, 15.0
_UP_SECONDS, _DOWN_SECONDS, _LONG_SECONDS = (0.0, 2.0), (1.0, 2.0), (6.0, 8.0)
# Every fifth outage is a long one.
_LONG_EVERY = 5
_PAUSE_SECONDS, _IDLE_SECONDS = 0.05, 30.0
_MAX_EXAMPLES = 40
# The outcome of an adaptation that failed, which none does while the database is there.
FAILED = "base model, failed"


@dataclass
class Counts:
    """Counts of requests, of answers and of kills."""

    injected: int = 0
    recovered: int = 0
    requests: int = 0
    answered: int = 0
    unavailable: int = 0
    wrong: int = 0
    late: int = 0
    hung: int = 0
    left: int = 0
    recovery_seconds: list[float] = field(default_factory=list)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    excess_seconds: dict[str, float] = field(default_factory=dict)
    adapted_seconds: list[float] = field(default_factory=list)
    examples: Counter[str] = field(default_factory=Counter)

    def record(self, kind: Kind, seconds: float, outcome: str, problem: str | None) -> None:
        """Count the response to a request."""
        excess = seconds - kind.seconds
        when = "under_kills" if self.injected else "before"
        self.outcomes.setdefault(kind.name, Counter())[outcome] += 1
        self.excess_seconds[when] = max(excess, self.excess_seconds.get(when, 0.0))
        if outcome == "adapted" and not self.injected:
            self.adapted_seconds.append(seconds)
        if outcome == FAILED and not self.injected and problem is None:
            problem = "an adaptation has failed before the first kill"
        if problem is not None:
            self.wrong += 1
            self.note(f"wrong, {kind.name}: {problem}")
        elif outcome == "unavailable":
            self.unavailable += 1
        else:
            self.answered += 1
        if excess > ALLOWANCE_SECONDS:
            self.late += 1
            self.note(f"late, {kind.name}: {outcome} after {seconds:.1f} s")

    def hang(self, kind: Kind) -> None:
        """Count a request without a response."""
        self.hung += 1
        self.note(f"hung, {kind.name}: no answer after {HANGS_SECONDS:g} s")

    def leave(self, what: str) -> None:
        """Count something that is still under way, or has ended that should not."""
        self.left += 1
        self.note(f"left: {what}")

    def note(self, example: str) -> None:
        """Count an example, unless there are enough others."""
        example = example[:600]
        if example in self.examples or len(self.examples) < _MAX_EXAMPLES:
            self.examples[example] += 1

    def as_dict(self) -> dict[str, Any]:
        """The counts, as the result has them."""
        seconds = self.recovery_seconds
        names = (
            "injected",
            "recovered",
            "requests",
            "answered",
            "unavailable",
            "wrong",
            "late",
            "hung",
            "left",
        )
        return {
            **{name: getattr(self, name) for name in names},
            "recovery_seconds": {
                "p50": _median(seconds),
                "max": round(max(seconds), 2) if seconds else None,
            },
            "adapted_seconds": _median(self.adapted_seconds),
            "allowance_seconds": ALLOWANCE_SECONDS,
            "excess_seconds": {when: round(s, 2) for when, s in self.excess_seconds.items()},
            "outcomes": {name: dict(sorted(of.items())) for name, of in self.outcomes.items()},
            "examples": dict(self.examples),
        }


def _median(seconds: Sequence[float]) -> float | None:
    return round(statistics.median(seconds), 2) if seconds else None


class Run:
    """One run: clients that send requests, and kills.

    Args:
        url: of the server.
        database: server of the corpora.
        known: what right answers are made of; the answers are recorded here.
        rng: random numbers.

    Attributes:
        counts: what was counted.
    """

    def __init__(self, url: str, database: KillableServer, known: Known, rng: random.Random):
        self._url, self._database, self._known, self._rng = url, database, known, rng
        self._started, self._recovered = float("inf"), asyncio.Event()
        self.counts = Counts()

    async def run(self, kills: int) -> None:
        """Record right answers, then kill the database under load."""
        async with httpx.AsyncClient(
            base_url=self._url, timeout=2 * HANGS_SECONDS, limits=NO_KEEP_ALIVE
        ) as client:
            await self._record_answers(client)
            ended = asyncio.Event()
            clients = [asyncio.create_task(self._ask(client, ended)) for _ in range(CLIENTS)]
            try:
                await asyncio.sleep(UNDISTURBED_SECONDS)
                for number in range(kills):
                    await asyncio.sleep(self._rng.uniform(*_UP_SECONDS))
                    is_long = number % _LONG_EVERY == 1
                    await self._kill(_LONG_SECONDS if is_long else _DOWN_SECONDS)
                    progress(f"{number + 1} of {kills} kills of the database under requests")
            finally:
                ended.set()
                await asyncio.gather(*clients)

    async def _record_answers(self, client: httpx.AsyncClient) -> None:
        """Alone and concurrently, since rounding, and with it a word, may differ between both."""
        kinds = [kind for kind in KINDS if kind.is_search or kind.budget == "none"]
        asked = [(kind, text) for kind in kinds for text in TEXTS]
        for each in asked:
            await self._record_answer(client, *each)
        for _ in range(5):
            await asyncio.gather(*(self._record_answer(client, *each) for each in asked))

    async def _record_answer(self, client: httpx.AsyncClient, kind: Kind, text: str) -> None:
        reply = await _send(client, kind, text)
        answer = answer_of(kind, reply.raise_for_status().json())
        self._known.answers.setdefault((kind.path, text), set()).add(answer)

    async def _ask(self, client: httpx.AsyncClient, ended: asyncio.Event) -> None:
        """Send one request after the other."""
        shares = [kind.share for kind in KINDS]
        while not ended.is_set():
            (kind,), text = self._rng.choices(KINDS, shares), self._rng.choice(TEXTS)
            await self._ask_once(client, kind, text)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _ask_once(self, client: httpx.AsyncClient, kind: Kind, text: str) -> None:
        sent = time.monotonic()
        self.counts.requests += 1
        try:
            async with asyncio.timeout(HANGS_SECONDS):
                reply = await _send(client, kind, text)
        except TimeoutError:
            self.counts.hang(kind)
            return
        except httpx.HTTPError as error:
            self.counts.record(kind, time.monotonic() - sent, "no response", repr(error))
            return
        body: Any = reply.text
        with suppress(ValueError):
            body = reply.json()
        outcome, problem = self._known.judge(kind, text, reply.status_code, reply.headers, body)
        self.counts.record(kind, time.monotonic() - sent, outcome, problem)
        if outcome == "adapted" and problem is None and sent >= self._started:
            self._recovered.set()

    async def _kill(self, down: tuple[float, float]) -> None:
        self._started = float("inf")
        self._recovered.clear()
        self.counts.injected += 1
        await asyncio.to_thread(self._database.kill)
        await asyncio.sleep(self._rng.uniform(*down))
        await asyncio.to_thread(self._database.restart)
        self._started = time.monotonic()
        try:
            async with asyncio.timeout(RECOVERY_SECONDS):
                await self._recovered.wait()
        except TimeoutError:
            self.counts.note(f"no adapted answer for {RECOVERY_SECONDS:g} s")
            return
        self.counts.recovered += 1
        self.counts.recovery_seconds.append(time.monotonic() - self._started)


async def _send(client: httpx.AsyncClient, kind: Kind, text: str) -> httpx.Response:
    headers = {} if kind.budget is None else {"Compute-Budget": kind.budget}
    return await client.post(kind.path, json=kind.body(text), headers=headers)


def kill_under_requests(
    database: KillableServer, location: DatabaseLocation, folder: Path, kills: int, seed: int
) -> dict[str, Any]:
    """Kill the database under a server's requests; what they got, and when all went on."""
    rng = random.Random(seed)  # noqa: S311
    home = folder / "server"
    create_corpora(home, {CORPUS: source_documents()[:24]})
    copy_corpus(home / "corpora", CORPUS, location, lambda *_: nullcontext(lambda _: None))
    known = Known(sources=_sources(location))
    flags = ("--max-seconds", f"{SECONDS:g}", "--max-model-len", "1024", *ROOMY_FLAGS)
    with mayfly_server(home, "--corpora", location.url, *flags) as server:
        run = Run(server.url, database, known, rng)
        before = server.workers()
        asyncio.run(run.run(kills))
        _check_end(server, before, run.counts)
    for leftover in server.leftovers:
        run.counts.leave(leftover)
    try:
        wait_for_clients_to_end(location.url)
    except RuntimeError as problem:
        run.counts.leave(str(problem))
    return run.counts.as_dict()


def _check_end(server: Server, before: Mapping[str, Any], counts: Counts) -> None:
    """Check that nothing is under way, and that no process was replaced."""
    if server.seconds_until_idle(_IDLE_SECONDS) is None:
        counts.leave(f"the server is not idle {_IDLE_SECONDS:g} s after the last answer")
    after = server.workers()
    for name, process in before.items():
        if after.get(name) != process:
            counts.leave(f"the {name} is another process now")


def _sources(location: DatabaseLocation) -> dict[tuple[int, str], set[int]]:
    """Starts of the sequences of each document, by its id and name."""
    found: dict[tuple[int, str], set[int]] = {}
    with closing(Corpus.open(location, CORPUS)) as corpus:
        for document in corpus.documents():
            for sequence in corpus.sequences_of(document.id):
                source = sequence.source
                found.setdefault((source.document, source.name), set()).add(source.start)
    return found
