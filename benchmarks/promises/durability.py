"""Durability: kill -9 at random moments of adding, deleting and index building; is anything lost?

Two processes work on one corpus, each on its own documents, and print each change that was
acknowledged. Each is killed at a random moment. Then the corpus is opened and compared with the
acknowledged changes: the change in progress may be there or not, but whole or not at all. Searches
are compared with brute force.

Kills show what a crash of the process does, not what a power cut does: the system's caches survive.

    python -m benchmarks.promises.durability [--kills 200] [--json]
    [--out benchmarks/results/durability.json]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.harness.command_line import argument_parser, progress, write_result
from benchmarks.harness.provenance import provenance
from selection.corpus.corpus import Corpus
from selection.corpus.index import manager as index_manager
from selection.corpus.index.faiss_index import Index
from selection.corpus.sqlite_store import Chunk
from selection.embedding import Embeddings, Prompt
from selection.location import DatabaseLocation, Location

NAME = "kept"
WORKERS = ("left", "right")
MAX_WORK_SECONDS = 0.4  # before a kill
FAULTS = (
    "lost",
    "duplicated",
    "came_back",
    "half_written",
    "wrong_neighbours",
    "damaged_databases",
)


class TextEmbedder:
    """An embedder that gives each text a random vector, by its hash."""

    name, revision, dimension = "texts", "1", 16

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Unit vectors [N, D]."""
        rows = np.empty((len(texts), self.dimension), np.float32)
        for i, text in enumerate(texts):
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
            row = np.random.default_rng(seed).standard_normal(self.dimension)
            rows[i] = row / np.linalg.norm(row)
        return rows

    def windows(self, prompt: Prompt) -> list[str]:
        """The whole prompt."""
        return [prompt.text]


@dataclass(frozen=True)
class Change:
    """A change by a worker: "add" (or replace), "delete", or "build" the index."""

    kind: str
    name: str = ""
    texts: tuple[str, ...] = ()


def changes(worker: str, seed: int) -> Iterator[Change]:
    """Endless changes of a worker, seeded, so that the parent can repeat them."""
    rng = random.Random(f"{worker} {seed}")  # noqa: S311
    for number in itertools.count():
        kind = rng.choices(("add", "delete", "build"), (6, 3, 2))[0]
        name = f"{worker} document {rng.randrange(12)}"
        texts = tuple(f"{name}, {seed}.{number}, part {part}" for part in range(rng.randint(1, 6)))
        yield Change(kind, *(() if kind == "build" else (name, texts if kind == "add" else ())))


def work(root: Location, worker: str, seed: int) -> None:
    """Make changes until killed, and print the number of each acknowledged one; runs in a child."""
    index_manager._MAX_CHANGES = 0  # so that each "build" builds the whole index
    # Seeds of successive rounds are apart by the number of workers.
    turn = seed // len(WORKERS)
    if turn % 2:  # with inverted lists, else flat
        Index.build = functools.partial(Index.build, flat_limit=10)  # type: ignore[method-assign]
    # Opening may take longer than the time until the kill: only some rounds kill meanwhile, too.
    is_killed_while_opening = turn % 4 >= 2
    if is_killed_while_opening:
        print("ready", flush=True)
    corpus, embedder = Corpus.open(root, NAME), TextEmbedder()
    if not is_killed_while_opening:
        print("ready", flush=True)
    for number, change in enumerate(changes(worker, seed)):
        if change.kind == "add":
            chunks = [Chunk(i, text, (seed, number, i)) for i, text in enumerate(change.texts)]
            corpus.add(change.name, f"{seed}.{number}", chunks, embedder.embed(change.texts))
        elif change.kind == "delete":
            corpus.delete(change.name)
        else:
            corpus.build_index()
        print(number, flush=True)


@dataclass
class Run:
    """Acknowledged changes so far, and the faults found."""

    root: Location
    documents: dict[str, tuple[str, ...]]
    acknowledged: int
    killed_during: Counter[str]
    faults: Counter[str]

    def round(self, workers: Sequence[str], seed: int, delays: Sequence[float]) -> None:
        """Start workers, kill each after its delay, and compare."""
        command = [
            sys.executable,
            "-m",
            "benchmarks.promises.durability",
            "--root",
            *_words(self.root),
            "--seed",
            str(seed),
            "--worker",
        ]
        children = [
            subprocess.Popen([*command, worker], stdout=subprocess.PIPE, text=True)
            for worker in workers
        ]
        try:
            for child in children:
                assert child.stdout is not None
                child.stdout.readline()  # "ready"
            started = time.monotonic()
            for delay, child in sorted(
                zip(delays, children, strict=True), key=lambda pair: pair[0]
            ):
                time.sleep(max(0.0, started + delay - time.monotonic()))
                child.kill()
        finally:
            for child in children:
                child.kill()
        in_progress: list[Change] = []
        for worker, child in zip(workers, children, strict=True):
            output, _ = child.communicate()
            if child.returncode != -signal.SIGKILL:
                raise RuntimeError(
                    f"the worker {worker!r} ended with {child.returncode} before it was killed"
                )
            done = list(itertools.islice(changes(worker, seed), len(output.splitlines()) + 1))
            for change in done[:-1]:
                self._apply(change)
            self.acknowledged += len(done) - 1
            self.killed_during[done[-1].kind] += 1
            in_progress.append(done[-1])
        if isinstance(self.root, DatabaseLocation):
            # PostgreSQL's client is needed only there.
            from benchmarks.on_postgres.server import wait_for_clients_to_end

            wait_for_clients_to_end(self.root.url)
        self._compare(in_progress)

    def _apply(self, change: Change) -> None:
        if change.kind == "add":
            self.documents[change.name] = change.texts
        elif change.kind == "delete":
            self.documents.pop(change.name, None)

    def _compare(self, in_progress: Sequence[Change]) -> None:
        corpus, embedder = Corpus.open(self.root, NAME), TextEmbedder()
        ids, _ = corpus.nearest(embedder.embed(["all"]), None)
        texts_by_name: dict[str, list[tuple[int, str]]] = {}
        for source in (each.source for each in corpus.read(ids.tolist()).values()):
            texts_by_name.setdefault(source.name, []).append((source.start, source.text))
        stored = {
            name: tuple(text for _, text in sorted(texts_of))
            for name, texts_of in texts_by_name.items()
        }
        if sorted(stored) != [entry.name for entry in corpus.documents()] or corpus.counts()[
            1
        ] != len(ids):
            self.faults["wrong_neighbours"] += 1  # the search and the list differ
        for change in in_progress:  # either applied or not
            if change.kind != "build" and stored.get(change.name, ()) == change.texts:
                self._apply(change)
        for name in stored.keys() | self.documents.keys():
            self._compare_document(stored.get(name, ()), self.documents.get(name, ()))
        self.documents = stored
        texts = [text for texts_of in stored.values() for text in texts_of]
        for target in ("one", "two", "three"):
            target_1D = embedder.embed([target])
            expected_K = np.sort(np.abs(embedder.embed(texts) @ target_1D[0]))[::-1][:10]
            nearest_ids, embeddings_KD = corpus.nearest(target_1D, 10)
            read = corpus.read(nearest_ids.tolist())
            own_KD = embedder.embed(
                [read[i].source.text if i in read else "gone" for i in nearest_ids.tolist()]
            )
            similarity_K = np.abs(own_KD @ target_1D[0])
            correct = len(nearest_ids) == len(expected_K) and np.allclose(
                similarity_K, expected_K, atol=1e-6
            )
            self.faults["wrong_neighbours"] += not (
                correct and np.array_equal(embeddings_KD, own_KD)
            )
        corpus.close()
        if isinstance(self.root, Path):
            with contextlib.closing(sqlite3.connect(self.root / NAME / "corpus.db")) as database:
                self.faults["damaged_databases"] += database.execute(
                    "PRAGMA integrity_check"
                ).fetchone() != ("ok",)

    def _compare_document(self, stored: tuple[str, ...], expected: tuple[str, ...]) -> None:
        if stored == expected:
            return
        if len(set(stored)) != len(stored):
            self.faults["duplicated"] += 1
        elif not stored:
            self.faults["lost"] += 1
        elif not expected:
            self.faults["came_back"] += 1
        elif set(stored) & set(expected):
            self.faults["half_written"] += 1
        else:  # another version than the last
            self.faults["lost"] += 1
            self.faults["came_back"] += 1


def kill_changers(root: Location, kills: int, seed: int) -> tuple[int, Counter[str]]:
    """Kill processes that change a corpus; the number of acknowledged changes, and the faults."""
    run = _new_run(root)
    _kill(run, kills, seed)
    return run.acknowledged, run.faults


def _new_run(root: Location) -> Run:
    Corpus.create(root, NAME, TextEmbedder(), "none").close()
    return Run(root, {}, 0, Counter(), Counter(dict.fromkeys(FAULTS, 0)))


def _kill(run: Run, kills: int, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    for number in range(0, kills, len(WORKERS)):
        workers = WORKERS[: kills - number]
        run.round(workers, seed + number, [rng.uniform(0, MAX_WORK_SECONDS) for _ in workers])
        progress(f"{number + len(workers)} of {kills} kills")


def _words(root: Location) -> list[str]:
    """A location as words of a command line: a folder, or a URL and a folder."""
    return [root.url, str(root.cache)] if isinstance(root, DatabaseLocation) else [str(root)]


def _location(words: Sequence[str]) -> Location:
    """The inverse of `_words`."""
    return DatabaseLocation(words[0], Path(words[1])) if len(words) > 1 else Path(words[0])


def main() -> None:
    """Kill, compare, print, write the JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument("--kills", type=int, default=200, help="number (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--root", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(_location(options.root), options.worker, options.seed)

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = _new_run(Path(folder))
        _kill(run, options.kills, options.seed)
        progress("")
    result = {
        "kills": options.kills,
        "acknowledged": run.acknowledged,
        "killed_during": dict(run.killed_during),
        **run.faults,
        "seconds": round(time.monotonic() - started, 1),
    }
    _print(result, options)
    write_result(options, {**provenance(), **result}, result)
    sys.exit(any(run.faults.values()))


def _print(result: dict[str, Any], options: argparse.Namespace) -> None:
    table = Table("", "", box=None, pad_edge=False, show_header=False)
    for key, value in result.items():
        text = (
            ", ".join(f"{name} {count}" for name, count in value.items())
            if isinstance(value, dict)
            else str(value)
        )
        table.add_row(key.replace("_", " "), text)
    Console(stderr=options.json).print(table)


if __name__ == "__main__":
    main()
