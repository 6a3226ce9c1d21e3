"""Intake: reads attached files into their corpora, one after the other, in a thread of its own.

The database says what is to be read, the queue only in which order: what a kill broke off is queued
again at the next start, and `ingest` passes over the documents that are there already. A file that
is detached, cancelled or deleted meanwhile is given up within a few texts, or a window of a long
one. One that cannot be read leaves nothing but the reason.

Of several processes over the same corpora, one that has nothing to read takes what others have not
read for a while: they may be gone. Two may read a file at once; the result is the same.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from selection.corpus.attachments import Attachment, DetachedError, Problem
from selection.corpus.corpus import Corpus, list_corpora
from selection.corpus.pool import CorpusPool
from selection.corpus.sqlite_store import CorpusError, CorpusNotFoundError
from selection.embedding import Embedder, Embeddings
from selection.ingest.ingest import (
    Chunking,
    Document,
    IngestCounts,
    ingest,
    read_file,
    tokenizer_digest,
)
from selection.ingest.readers import TABLE_SUFFIXES
from selection.library.uploads import MissingError, Uploads

log = logging.getLogger(__name__)

_LOOK_SECONDS = 60.0  # between looks of who has nothing to read
_PART = 8  # texts embedded at once, for whose length everyone else waits
# Between questions to the database whether a file is still wanted, while it is parsed.
_ASK_SECONDS = 0.05


class _ClosedError(Exception):
    """The intake was closed; what it reads stays in progress."""


class _UnreadableError(Exception):
    """The file is to blame."""


class IngestWorker:
    """The reading of attached files.

    Args:
        root: the folder of all corpora.
        embedder: theirs; other threads may use it, too.
        tokenizer: the base model's; nobody else may use it.
        uploads: where the files are.
    """

    def __init__(self, root: Path, embedder: Embedder, tokenizer: Any, uploads: Uploads) -> None:
        self._embedder, self._tokenizer, self._uploads = embedder, tokenizer, uploads
        self._corpora = CorpusPool(root, embedder, tokenizer_digest(tokenizer))
        self._waiting: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._root = root
        self._unsettled: set[tuple[str, str]] = set()  # what could not even be tried; another may
        self._left = set(_in_progress(root, log.warning))  # at the last look
        for item in sorted(self._left):
            self._waiting.put(item)
        self._thread = threading.Thread(target=self._work, name="intake", daemon=True)
        self._thread.start()

    def put(self, corpus: str, files: Iterable[str]) -> None:
        """Read these files of a corpus when their turn comes; they are attached already."""
        for file in files:
            self._waiting.put((corpus, file))

    def close(self) -> None:
        """End within a few texts; what was not read yet stays in progress."""
        self._closed.set()
        self._waiting.put(None)
        self._thread.join()
        self._corpora.close()

    def _work(self) -> None:
        while True:
            if self._waiting.empty():
                self._corpora.close()  # with their indexes
            try:
                item = self._waiting.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                try:
                    self._take_over()
                except Exception:
                    log.exception("cannot look for files that nobody reads")
                continue
            if item is None or self._closed.is_set():
                return
            try:
                with self._corpora.use(item[0]) as corpus:
                    self._settle(corpus, item[1])
            except (DetachedError, CorpusNotFoundError):  # nobody wants it any more
                continue
            except _ClosedError:
                return
            except Exception:
                self._unsettled.add(item)
                log.exception(
                    "file %s of corpus %s stays in progress until the next start", item[1], item[0]
                )

    def _take_over(self) -> None:
        """Queue what was in progress at the last look and still is, the last first: another may be
        at the first.
        """
        before, self._left = self._left, set(_in_progress(self._root))
        for item in sorted((before & self._left) - self._unsettled, reverse=True):
            self._waiting.put(item)

    def _settle(self, corpus: Corpus, file: str) -> None:
        seen = corpus.attachments.get(file)
        if seen is None or seen.status != "in_progress":
            return
        tally = IngestCounts()
        try:
            problem = self._read(corpus, seen, tally)
        except (DetachedError, CorpusNotFoundError, _ClosedError):
            raise
        except (MissingError, _UnreadableError) as unreadable:
            code = (
                "invalid_file"
                if Path(seen.name).suffix.lower() in TABLE_SUFFIXES
                else "unsupported_file"
            )
            problem = Problem(code, str(unreadable))
        except Exception:
            log.exception("file %s cannot be read into corpus %s", file, corpus.name)
            problem = Problem(
                "server_error", "the server failed to read the file; its log says why"
            )
        corpus.attachments.settle(
            seen, "failed" if problem else "completed", problem, tally.documents()
        )

    def _read(self, corpus: Corpus, seen: Attachment, tally: IngestCounts) -> Problem | None:
        upload = self._uploads.get(seen.id)
        names: set[str] = set()
        asked = -_ASK_SECONDS

        def check() -> None:
            if self._closed.is_set():
                raise _ClosedError
            if not corpus.attachments.reading(seen.id):
                raise DetachedError(seen.id)

        def alive() -> None:
            nonlocal asked
            now = time.monotonic()
            if self._closed.is_set() or now - asked >= _ASK_SECONDS:
                asked = now
                check()

        def documents() -> Iterator[Document]:
            path, name = self._uploads.path(upload), f"{seen.id}/{seen.name}"
            try:
                for document in read_file(path, name, counts=tally, check_cancelled=alive):
                    names.add(document.name)
                    yield replace(document, metadata={**document.metadata, **seen.attributes})
            except CorpusError as problem:
                raise _UnreadableError(str(problem)) from problem

        def embed(batches: Iterable[list[str]]) -> Iterator[Embeddings]:
            for texts in batches:
                parts = []
                for first in range(0, len(texts), _PART):
                    check()
                    parts.append(self._embedder.embed(texts[first : first + _PART]))
                yield np.concatenate(parts)

        cut = Chunking(*seen.cut) if seen.cut else Chunking()
        ingest(
            corpus,
            documents(),
            self._embedder,
            self._tokenizer,
            chunking=cut,
            embed=embed,
            file=seen.id,
            counts=tally,
            check_cancelled=alive,
        )
        for left in set(corpus.names(seen.id)) - names:
            # An earlier version named the row otherwise.
            corpus.delete(left)
        if tally.added or tally.replaced or tally.unchanged:
            return None
        return Problem("invalid_file", f"{seen.name} holds no text of two tokens or more")


def _in_progress(
    root: Path, warn: Callable[[str, object], None] = log.debug
) -> Iterator[tuple[str, str]]:
    """Name of the corpus and id of each file that is to be read."""
    for name in list_corpora(root):
        try:
            corpus = Corpus.open(root, name)
            files = corpus.attachments.ids("in_progress")
            corpus.close()
        except CorpusError as problem:
            warn("%s", problem)
            continue
        yield from ((name, file) for file in files)
