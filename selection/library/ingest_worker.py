"""IngestWorker: ingests attached files into their corpora, one after the other, in a thread of its
own.

The database records which files are in progress, the queue only their order: what a kill
interrupted is queued again at the next start, and `ingest` skips documents that are complete. A
file that is detached, cancelled or deleted in the meantime is abandoned within a few texts, or
within a window of a long one. A file that cannot be read leaves nothing but the reason.

When several processes share the corpora, an idle one takes over files that have been in progress
for a while, because their process may be gone. Two processes may ingest the same file at once; the
result is the same.
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

from selection.corpus.corpus import Corpus
from selection.corpus.lookup import list_corpora
from selection.corpus.pool import CorpusPool
from selection.corpus.tables.attachments import Attachment, DetachedError, Problem
from selection.embedding import Embedder, Embeddings
from selection.errors import (
    CorpusError,
    CorpusNotFoundError,
    CorpusUnavailableError,
    MissingError,
)
from selection.ingest.examples import ExampleChunker
from selection.ingest.ingest import (
    Chunking,
    Document,
    IngestCounts,
    ingest,
    read_file,
    tokenizer_digest,
)
from selection.ingest.readers import TABLE_SUFFIXES
from selection.library.uploads import Uploads
from selection.location import Location

log = logging.getLogger(__name__)

# The interval at which an idle worker looks for files to take over.
_TAKEOVER_SECONDS = 60.0
# The time after which a database that cannot be reached is tried again.
_RETRY_SECONDS = 5.0
# Texts embedded at once; all other users of the embedder wait for as long.
_EMBED_BATCH = 8
# The interval at which the database is queried whether a file is still in progress, while it is
# parsed.
_CHECK_SECONDS = 0.05


class _ClosedError(Exception):
    """The worker was closed; its file stays in progress."""


class _UnreadableError(Exception):
    """The file cannot be read; the message says why."""


class IngestWorker:
    """Ingests attached files in the background.

    Args:
        root: where all corpora are.
        embedder: the embedder of the corpora, which other threads may use at the same time.
        tokenizer: the base model's tokenizer, which no other thread may use.
        examples: makes chunks of examples, for the same tokenizer.
        uploads: the uploaded files.
    """

    def __init__(
        self,
        root: Location,
        embedder: Embedder,
        tokenizer: Any,
        examples: ExampleChunker,
        uploads: Uploads,
    ) -> None:
        self._embedder, self._tokenizer, self._uploads = embedder, tokenizer, uploads
        self._examples = examples
        self._corpora = CorpusPool(root, embedder, tokenizer_digest(tokenizer), examples.digest)
        # Names of corpora and ids of files; None ends the thread.
        self._queue: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._root = root
        # Files on which this process failed unexpectedly; it leaves them to others.
        self._failed: set[tuple[str, str]] = set()
        # What was in progress when files to take over were last looked for.
        self._seen_in_progress = set(_in_progress(root, log.warning))
        for item in sorted(self._seen_in_progress):
            self._queue.put(item)
        self._thread = threading.Thread(target=self._work, name="ingest-worker", daemon=True)
        self._thread.start()

    def put(self, corpus: str, files: Iterable[str]) -> None:
        """Queue files that were attached to a corpus."""
        for file in files:
            self._queue.put((corpus, file))

    def close(self) -> None:
        """End the thread within a few texts; files that are not complete stay in progress."""
        self._closed.set()
        self._queue.put(None)
        self._thread.join()
        self._corpora.close()

    def _work(self) -> None:
        while True:
            if self._queue.empty():
                # An idle worker keeps no index in memory.
                self._corpora.close()
            try:
                item = self._queue.get(timeout=_TAKEOVER_SECONDS)
            except queue.Empty:
                try:
                    self._take_over()
                except Exception:
                    log.exception("cannot look for files that other processes have abandoned")
                continue
            if item is None or self._closed.is_set():
                return
            try:
                with self._corpora.open(item[0]) as corpus:
                    self._ingest(corpus, item[1])
            except (DetachedError, CorpusNotFoundError):
                continue
            except _ClosedError:
                return
            except CorpusUnavailableError as problem:
                log.warning("file %s of corpus %s is ingested later: %s", item[1], item[0], problem)
                self._queue.put(item)
                self._closed.wait(_RETRY_SECONDS)
            except Exception:
                self._failed.add(item)
                log.exception(
                    "file %s of corpus %s failed unexpectedly and stays in progress until this "
                    "process restarts or another takes it over",
                    item[1],
                    item[0],
                )

    def _take_over(self) -> None:
        """Queue files that have been in progress since the last call, the last first, because their
        own process begins with the first.
        """
        before, self._seen_in_progress = self._seen_in_progress, set(_in_progress(self._root))
        for item in sorted((before & self._seen_in_progress) - self._failed, reverse=True):
            self._queue.put(item)

    def _ingest(self, corpus: Corpus, file: str) -> None:
        """Ingest a file and record the outcome."""
        attachment = corpus.attachments.get(file)
        if attachment is None or attachment.status != "in_progress":
            return
        counts = IngestCounts()
        try:
            problem = self._add_documents(corpus, attachment, counts)
        except (DetachedError, CorpusNotFoundError, CorpusUnavailableError, _ClosedError):
            raise
        except MissingError as missing:
            if not isinstance(self._root, Path):
                # It may be on another machine that shares the database, whose worker ingests it.
                return
            # The upload is gone, so nothing is known of its format.
            problem = Problem("server_error", str(missing))
        except _UnreadableError as unreadable:
            code = (
                "invalid_file"
                if Path(attachment.name).suffix.lower() in TABLE_SUFFIXES
                else "unsupported_file"
            )
            problem = Problem(code, str(unreadable))
        except Exception:
            log.exception("file %s cannot be ingested into corpus %s", file, corpus.name)
            problem = Problem(
                "server_error", "the server failed to read the file; its log says why"
            )
        corpus.attachments.finish(
            attachment, "failed" if problem else "completed", problem, counts.documents()
        )

    def _add_documents(
        self, corpus: Corpus, attachment: Attachment, counts: IngestCounts
    ) -> Problem | None:
        upload = self._uploads.get(attachment.id)
        names: set[str] = set()
        last_check = -_CHECK_SECONDS

        def check() -> None:
            if self._closed.is_set():
                raise _ClosedError
            if not corpus.attachments.is_in_progress(attachment.id):
                raise DetachedError(attachment.id)

        def check_now_and_then() -> None:
            nonlocal last_check
            now = time.monotonic()
            if self._closed.is_set() or now - last_check >= _CHECK_SECONDS:
                last_check = now
                check()

        def documents() -> Iterator[Document]:
            path, name = self._uploads.path(upload), f"{attachment.id}/{attachment.name}"
            try:
                for document in read_file(
                    path,
                    name,
                    counts=counts,
                    check_cancelled=check_now_and_then,
                    check_example=self._examples.chunk,
                ):
                    names.add(document.name)
                    yield replace(document, metadata={**document.metadata, **attachment.attributes})
            except CorpusUnavailableError:
                raise
            except CorpusError as problem:
                raise _UnreadableError(str(problem)) from problem

        def embed(batches: Iterable[list[str]]) -> Iterator[Embeddings]:
            for texts in batches:
                vectors = []
                for first in range(0, len(texts), _EMBED_BATCH):
                    check()
                    vectors.append(self._embedder.embed(texts[first : first + _EMBED_BATCH]))
                yield np.concatenate(vectors)

        chunking = Chunking(*attachment.chunking) if attachment.chunking else Chunking()
        ingest(
            corpus,
            documents(),
            self._embedder,
            self._tokenizer,
            chunking=chunking,
            examples=self._examples,
            embed=embed,
            file=attachment.id,
            counts=counts,
            check_cancelled=check_now_and_then,
        )
        for obsolete in set(corpus.names(attachment.id)) - names:
            # An earlier version gave the rows of tables other names.
            corpus.delete(obsolete)
        if counts.added or counts.replaced or counts.unchanged:
            return None
        return Problem("invalid_file", f"{attachment.name} contains no text of two tokens or more")


def _in_progress(
    root: Location, warn: Callable[[str, object], None] = log.debug
) -> Iterator[tuple[str, str]]:
    """Name of the corpus and id of each file in progress."""
    for name in list_corpora(root):
        try:
            corpus = Corpus.open(root, name)
            files = corpus.attachments.ids("in_progress")
            corpus.close()
        except CorpusError as problem:
            warn("%s", problem)
            continue
        yield from ((name, file) for file in files)
