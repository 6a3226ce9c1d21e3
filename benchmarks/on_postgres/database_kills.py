"""Kills of the database itself under load: is every answer right or an error, within its time, and
does everything go on once the database is back?

A reader selects from a corpus that nothing changes, and knows every right answer; a writer changes
another one and records what was acknowledged. The server is killed with SIGKILL at a random moment,
and started again some time later. A change whose outcome is not known, because the connection was
lost, may have been made or not.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from benchmarks.harness.command_line import progress
from benchmarks.on_postgres.server import KillableServer
from benchmarks.promises.durability import TextEmbedder, changes
from selection.corpus.corpus import Corpus
from selection.corpus.pool import CorpusPool
from selection.corpus.sequences import Chunk
from selection.errors import CorpusUnavailableError
from selection.location import DatabaseLocation

STILL, CHANGING = "still", "changing"
_TEXTS = [f"text number {number}" for number in range(300)]
# A call waits five seconds for a connection, and five more where a new one is made.
HANGS_SECONDS = 20.0
_RECOVERY_SECONDS = 60.0
_UP_SECONDS, _DOWN_SECONDS = 1.0, 1.0


@dataclass
class Load:
    """What reader and writer have seen.

    Attributes:
        answers: right answers of the reader.
        changes: acknowledged changes of the writer.
        wrong: wrong answers, and unexpected errors.
        hung: calls that took too long.
        possible: by document of the changing corpus, the contents that it may have; an empty one
            if it may be missing.
    """

    answers: int = 0
    changes: int = 0
    wrong: list[str] = field(default_factory=list)
    hung: int = 0
    possible: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)


def kill_the_database(
    server: KillableServer, location: DatabaseLocation, kills: int, seed: int
) -> dict[str, int]:
    """Kill the server; how often all went on, and what went wrong."""
    rng = random.Random(seed)  # noqa: S311
    load, embedder = Load(), TextEmbedder()
    with closing(Corpus.create(location, STILL, embedder, "none")) as still:
        for number, text in enumerate(_TEXTS):
            still.add(str(number), text, [Chunk(0, text, (1, 2))], embedder.embed([text]))
    Corpus.create(location, CHANGING, embedder, "none").close()
    ended = threading.Event()
    work: list[Callable[[], None]] = [Reader(location, load), Writer(location, load, seed)]
    threads = [threading.Thread(target=_repeat, args=(each, load, ended)) for each in work]
    for thread in threads:
        thread.start()
    recovered = 0
    try:
        for number in range(kills):
            time.sleep(rng.uniform(0, _UP_SECONDS))
            server.kill()
            time.sleep(rng.uniform(0, _DOWN_SECONDS))
            server.restart()
            recovered += _goes_on(load)
            progress(f"{number + 1} of {kills} kills of the database")
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    lost = compare(location, load)
    return {
        "injected": kills,
        "recovered": recovered,
        "wrong_answers": len(load.wrong) + lost,
        "hung": load.hung,
        "answers": load.answers,
        "changes": load.changes,
    }


def _repeat(work: Callable[[], None], load: Load, ended: threading.Event) -> None:
    while not ended.is_set():
        started = time.monotonic()
        try:
            work()
        except CorpusUnavailableError:
            pass
        except Exception as problem:
            load.wrong.append(repr(problem))
        load.hung += time.monotonic() - started > HANGS_SECONDS
        # A client, too, does not try again at once.
        ended.wait(0.01)


def _goes_on(load: Load) -> bool:
    """Whether both reader and writer succeed again."""
    answers, made = load.answers, load.changes
    end = time.monotonic() + _RECOVERY_SECONDS
    while time.monotonic() < end:
        if load.answers > answers and load.changes > made:
            return True
        time.sleep(0.02)
    return False


class Reader:
    """Selects from the corpus that nothing changes."""

    def __init__(self, location: DatabaseLocation, load: Load) -> None:
        self._pool, self._load = CorpusPool(location, None, None), load
        self._embedder = TextEmbedder()
        self._numbers = itertools.count()
        self._all_ND = self._embedder.embed(_TEXTS)

    def __call__(self) -> None:
        """One selection."""
        target_1D = self._embedder.embed([f"query {next(self._numbers)}"])
        with self._pool.open(STILL) as corpus:
            ids_K, _ = corpus.nearest(target_1D, 10)
            read = corpus.read(ids_K.tolist())
        expected = np.argsort(-np.abs(self._all_ND @ target_1D[0]), kind="stable")[:10]
        if [read[i].source.text for i in ids_K.tolist()] != [_TEXTS[i] for i in expected]:
            self._load.wrong.append("another selection")
        self._load.answers += 1


class Writer:
    """Adds, replaces and deletes documents of the other corpus."""

    def __init__(self, location: DatabaseLocation, load: Load, seed: int) -> None:
        self._location, self._load, self._embedder = location, load, TextEmbedder()
        self._changes = (
            (number, change)
            for number, change in enumerate(changes("writer", seed))
            if change.kind != "build"
        )

    def __call__(self) -> None:
        """One change."""
        number, change = next(self._changes)
        now = self._load.possible.get(change.name, {()})
        # Until it is acknowledged, it may have been made or not.
        self._load.possible[change.name] = now | {change.texts}
        with closing(Corpus.open(self._location, CHANGING)) as corpus:
            if change.kind == "add":
                chunks = [Chunk(i, text, (number, i)) for i, text in enumerate(change.texts)]
                corpus.add(change.name, str(number), chunks, self._embedder.embed(change.texts))
            else:
                corpus.delete(change.name)
        self._load.possible[change.name] = {change.texts}
        self._load.changes += 1


def compare(location: DatabaseLocation, load: Load) -> int:
    """The number of documents that have a content which they cannot have."""
    with closing(Corpus.open(location, CHANGING)) as corpus:
        stored: dict[str, list[tuple[int, str]]] = {}
        ids = corpus._store.embeddings()[0].tolist()
        for each in corpus.read(ids).values():
            stored.setdefault(each.source.name, []).append((each.source.start, each.source.text))
        contents = {name: tuple(text for _, text in sorted(of)) for name, of in stored.items()}
    names = contents.keys() | load.possible.keys()
    return sum(contents.get(each, ()) not in load.possible.get(each, {()}) for each in names)
