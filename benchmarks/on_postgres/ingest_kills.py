"""Kills of ingest workers: is every attached file ingested once, and no detached one at all?

Two workers, in processes of their own, take files from the queue of the database while the
benchmark attaches files and detaches some. Each worker is killed at a random moment and started
again, as often as is wanted; then they finish what is left, and the documents are compared.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.harness.command_line import progress
from benchmarks.promises.durability import TextEmbedder
from selection.corpus.corpus import Corpus
from selection.corpus.tables.attachment import Attachment
from selection.embedding import Embeddings
from selection.library.library import Library
from selection.library.uploads.database import DatabaseUploads
from selection.location import DatabaseLocation
from selection.threaded_embedder import ThreadedEmbedder
from serving.config import bundled_model

NAME = "files"
WORKERS = 2
ROWS = 40  # of a file
_MAX_WORK_SECONDS = 1.0  # before a kill
_FINISH_SECONDS = 120.0
_FILES_PER_KILL = 3
_WORKER = (
    "import sys; from pathlib import Path\n"
    "from benchmarks.on_postgres.ingest_kills import work\n"
    "from selection.location import DatabaseLocation\n"
    "work(DatabaseLocation(sys.argv[1], Path(sys.argv[2])))\n"
)


class SlowEmbedder(TextEmbedder):
    """Takes its time, so that kills meet files half way."""

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """As `TextEmbedder.embed`."""
        time.sleep(0.01)
        return super().embed(texts)


def work(location: DatabaseLocation) -> None:
    """Ingest files until killed; runs in a child."""
    _library(location)
    print("ready", flush=True)
    sys.stdin.read()


def kill_ingest_workers(location: DatabaseLocation, kills: int, seed: int) -> dict[str, int]:
    """Kill workers; how many files were attached for good, and what became of them."""
    rng = random.Random(seed)  # noqa: S311
    # Creates the corpus with the tokenizer that the workers have.
    library = _library(location)
    library.create_store(NAME)
    library.close()
    uploads = DatabaseUploads(location)
    attached: dict[str, bool] = {}
    children = [_started(location) for _ in range(WORKERS)]
    try:
        for number in range(kills):
            _change(location, uploads, attached, rng)
            time.sleep(rng.uniform(0, _MAX_WORK_SECONDS))
            victim = number % WORKERS
            children[victim].kill()
            children[victim].communicate()
            children[victim] = _started(location)
            progress(f"{number + 1} of {kills} kills of ingest workers")
        return _compare(location, attached) | {"kills": kills}
    finally:
        for child in children:
            child.kill()
            child.communicate()


def rows_of(file: str) -> str:
    """The content of a file of that name, as JSON lines."""
    return "".join(
        f'{{"id": "{row}", "text": "Row {row} of the file {file} speaks of itself."}}\n'
        for row in range(ROWS)
    )


def _change(
    location: DatabaseLocation,
    uploads: DatabaseUploads,
    attached: dict[str, bool],
    rng: random.Random,
) -> None:
    """Attach some files, and detach one now and then; by id, whether a file is attached."""
    with closing(Corpus.open(location, NAME)) as corpus:
        for _ in range(_FILES_PER_KILL):
            name = f"{len(attached)}.jsonl"
            file = uploads.add(name, rows_of(name).encode())
            corpus.attachments.attach([Attachment(file.id, name, chunking=(64, 0))])
            attached[file.id] = True
        if rng.random() < 0.5:
            gone = rng.choice([*attached])
            corpus.attachments.detach(gone)
            attached[gone] = False


def _compare(location: DatabaseLocation, attached: dict[str, bool]) -> dict[str, int]:
    """Wait until nothing is in progress any more, and count the faults."""
    end = time.monotonic() + _FINISH_SECONDS
    with closing(Corpus.open(location, NAME)) as corpus:
        while corpus.attachments.any_in_progress() and time.monotonic() < end:
            time.sleep(0.1)
        rows: dict[str, list[str]] = {}
        ids = corpus._store.embeddings()[0].tolist()
        for sequence in corpus.read(ids).values():
            file, _, row = sequence.source.name.partition("/")
            rows.setdefault(file, []).append(row)
        found = {file: corpus.attachments.get(file) for file in attached}
    result = {"acknowledged": len(attached), "lost": 0, "twice": 0, "back": 0}
    for file, stays in attached.items():
        have = rows.get(file, [])
        attachment = found[file]
        if not stays:
            result["back"] += bool(have) or attachment is not None
        elif len({*have}) < len(have):
            result["twice"] += 1
        elif len(have) < ROWS or attachment is None or attachment.status != "completed":
            result["lost"] += 1
    return result


def _library(location: DatabaseLocation) -> Library:
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(bundled_model())
    return Library(location, ThreadedEmbedder(SlowEmbedder), tokenizer, location.cache / "files")


def _started(location: DatabaseLocation) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", _WORKER, location.url, str(location.cache)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert child.stdout is not None
    child.stdout.readline()  # "ready"
    return child
