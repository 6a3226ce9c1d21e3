"""Durability: kill -9 at random moments of adding, replacing, deleting and index building; is
anything lost?

Two processes work on one corpus, each on documents of its own, and say so once a change is
acknowledged. Each is killed at a random moment. Then the corpus is opened and compared with what
was acknowledged: the change that was under way may be there or not, but whole or not at all. What
it finds near a target is compared with brute force.

Kills show what a crash of the process does, not what a power cut does: the system's caches survive.

    python -m benchmarks.promises.durability [--kills 200] [--json] [--out
    benchmarks/results/durability.json]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
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

from selection.corpus import corpus as corpus_module
from selection.corpus.corpus import Corpus
from selection.corpus.faiss_index import Index
from selection.corpus.sqlite_store import Chunk
from selection.embedding import Embeddings, Prompt

NAME = "kept"
WORKERS = ("left", "right")
LONGEST = 0.4  # seconds of work before a kill
FAULTS = (
    "lost",
    "duplicated",
    "came_back",
    "half_written",
    "wrong_neighbours",
    "damaged_databases",
)


class TextEmbedder:
    """A vector of its own for each text."""

    name, revision, dimension = "texts", "1", 16

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Unit vectors [N, D]."""
        rows = np.empty((len(texts), self.dimension), np.float32)
        for i, text in enumerate(texts):
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
            row = np.random.default_rng(seed).standard_normal(self.dimension)
            rows[i] = row / np.linalg.norm(row)
        return rows

    def segments(self, prompt: Prompt) -> list[str]:
        """The prompt, whole."""
        return [prompt.text]


@dataclass(frozen=True)
class Change:
    """Something a worker does: "add" (or replace), "delete" or "build" the index."""

    kind: str
    name: str = ""
    texts: tuple[str, ...] = ()


def changes(worker: str, seed: int) -> Iterator[Change]:
    """What a worker does, without end; the same for the same seed, so that the parent knows it."""
    draw = random.Random(f"{worker} {seed}")  # noqa: S311
    for number in itertools.count():
        kind = draw.choices(("add", "delete", "build"), (6, 3, 2))[0]
        name = f"{worker} document {draw.randrange(12)}"
        texts = tuple(f"{name}, {seed}.{number}, part {part}" for part in range(draw.randint(1, 6)))
        yield Change(kind, *(() if kind == "build" else (name, texts if kind == "add" else ())))


def work(root: Path, worker: str, seed: int) -> None:
    """The child: make changes and print the number of each that was acknowledged, until killed or
    nobody listens.
    """
    corpus_module._MANY_CHANGES = 0  # the index is built anew at each "build"
    if seed % 2:  # with inverted lists, else flat
        Index.build = functools.partial(Index.build, flat_limit=10)  # type: ignore[method-assign]
    print("ready", flush=True)
    corpus, embedder = Corpus.open(root, NAME), TextEmbedder()
    for number, change in enumerate(changes(worker, seed)):
        if change.kind == "add":
            pieces = [Chunk(i, text, (seed, number, i)) for i, text in enumerate(change.texts)]
            corpus.add(change.name, f"{seed}.{number}", pieces, embedder.embed(change.texts))
        elif change.kind == "delete":
            corpus.delete(change.name)
        else:
            corpus.build_index()
        print(number, flush=True)


@dataclass
class Run:
    """What was acknowledged so far, and what was found wrong."""

    root: Path
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
            str(self.root),
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
                child.stdout.readline()  # it is ready
            started = time.monotonic()
            for delay, child in sorted(
                zip(delays, children, strict=True), key=lambda pair: pair[0]
            ):
                time.sleep(max(0.0, started + delay - time.monotonic()))
                child.kill()
        finally:
            for child in children:
                child.kill()
        under_way: list[Change] = []
        for worker, child in zip(workers, children, strict=True):
            said, _ = child.communicate()
            if child.returncode != -signal.SIGKILL:
                raise RuntimeError(
                    f"the worker {worker!r} ended with {child.returncode} before it was killed"
                )
            made = list(itertools.islice(changes(worker, seed), len(said.splitlines()) + 1))
            for change in made[:-1]:
                self._take_over(change)
            self.acknowledged += len(made) - 1
            self.killed_during[made[-1].kind] += 1
            under_way.append(made[-1])
        self._compare(under_way)

    def _take_over(self, change: Change) -> None:
        if change.kind == "add":
            self.documents[change.name] = change.texts
        elif change.kind == "delete":
            self.documents.pop(change.name, None)

    def _compare(self, under_way: Sequence[Change]) -> None:
        corpus, embedder = Corpus.open(self.root, NAME), TextEmbedder()
        found, _ = corpus.nearest(embedder.embed(["all"]), None)
        parts: dict[str, list[tuple[int, str]]] = {}
        for source, _ in corpus.read(found.tolist()).values():
            parts.setdefault(source.name, []).append((source.start, source.text))
        held = {name: tuple(text for _, text in sorted(there)) for name, there in parts.items()}
        if sorted(held) != [entry.name for entry in corpus.documents()] or corpus.counts()[
            1
        ] != len(found):
            self.faults["wrong_neighbours"] += 1  # the search and the list disagree
        for change in under_way:  # it happened, or it did not
            if change.kind != "build" and held.get(change.name, ()) == change.texts:
                self._take_over(change)
        for name in held.keys() | self.documents.keys():
            self._judge(held.get(name, ()), self.documents.get(name, ()))
        self.documents = held
        texts = [text for there in held.values() for text in there]
        for target in ("one", "two", "three"):
            target_1D = embedder.embed([target])
            expected_K = np.sort(np.abs(embedder.embed(texts) @ target_1D[0]))[::-1][:10]
            near, embeddings_KD = corpus.nearest(target_1D, 10)
            read = corpus.read(near.tolist())
            own_KD = embedder.embed(
                [read[i][0].text if i in read else "gone" for i in near.tolist()]
            )
            similarity_K = np.abs(own_KD @ target_1D[0])
            right = len(near) == len(expected_K) and np.allclose(
                similarity_K, expected_K, atol=1e-6
            )
            self.faults["wrong_neighbours"] += not (right and np.array_equal(embeddings_KD, own_KD))
        corpus.close()
        with contextlib.closing(sqlite3.connect(self.root / NAME / "corpus.db")) as database:
            self.faults["damaged_databases"] += database.execute(
                "PRAGMA integrity_check"
            ).fetchone() != ("ok",)

    def _judge(self, held: tuple[str, ...], expected: tuple[str, ...]) -> None:
        if held == expected:
            return
        if len(set(held)) != len(held):
            self.faults["duplicated"] += 1
        elif not held:
            self.faults["lost"] += 1
        elif not expected:
            self.faults["came_back"] += 1
        elif set(held) & set(expected):
            self.faults["half_written"] += 1
        else:  # another version than the last
            self.faults["lost"] += 1
            self.faults["came_back"] += 1


def main() -> None:
    """Kill, compare, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--out", type=Path, help="write the result here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.root, options.worker, options.seed)

    draw = random.Random(options.seed)  # noqa: S311
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), {}, 0, Counter(), Counter(dict.fromkeys(FAULTS, 0)))
        Corpus.create(run.root, NAME, TextEmbedder(), "none").close()
        for number in range(0, options.kills, len(WORKERS)):
            workers = WORKERS[: options.kills - number]
            run.round(workers, options.seed + number, [draw.uniform(0, LONGEST) for _ in workers])
            _progress(f"{number + len(workers)} of {options.kills} kills")
        _progress("")
    result = {
        "kills": options.kills,
        "acknowledged": run.acknowledged,
        "killed_during": dict(run.killed_during),
        **run.faults,
        "seconds": round(time.monotonic() - started, 1),
    }
    _report(result, options)
    sys.exit(any(run.faults.values()))


def _report(result: dict[str, Any], options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", box=None, pad_edge=False, show_header=False)
    for key, value in result.items():
        said = (
            ", ".join(f"{each} {count}" for each, count in value.items())
            if isinstance(value, dict)
            else str(value)
        )
        table.add_row(key.replace("_", " "), said)
    Console(stderr=options.json).print(table)
    if options.out:
        from benchmarks.quality.passages import circumstances  # not before: it imports torch

        result = {**circumstances(), **result}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.json:
        print(json.dumps(result))


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
