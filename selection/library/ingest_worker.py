"""IngestWorker: ingests attached files into their corpora, one after the other, in a thread of its
own.

The database records which files are in progress, the queue (`ingest_queue`) only their order.
`ingest` skips documents that are complete, so a file that a kill interrupted is continued. A file
that is detached, cancelled or deleted in the meantime is abandoned within a few texts, or within a
window of a long one. A file that cannot be read leaves nothing but the reason.

When several processes share the corpora, two of them may ingest the same file at once; the result
is the same.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from selection.corpus.corpus import Corpus
from selection.corpus.pool import CorpusPool
from selection.corpus.tables.attachment import Attachment, DetachedError, Problem
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
from selection.library.ingest_queue import ClosedError, QueuedFile, ingest_queue_at
from selection.library.uploads.base import Uploads
from selection.location import Location

log = logging.getLogger(__name__)

# The time after which a database that cannot be reached is tried again.
_RETRY_SECONDS = 5.0
# Texts embedded at once; all other users of the embedder wait for as long.
_EMBED_BATCH = 8
# The interval at which the database is queried whether a file is still in progress, while it is
# parsed.
_CHECK_SECONDS = 0.05


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
        self._queue = ingest_queue_at(root)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ingest-worker", daemon=True)
        self._thread.start()

    def put(self, corpus: str, files: Iterable[str]) -> None:
        """Queue files that were attached to a corpus."""
        self._queue.put([QueuedFile(corpus, file) for file in files])

    def close(self) -> None:
        """End the thread within a few texts; files that are not complete stay in progress."""
        self._closed.set()
        self._queue.close()
        self._thread.join()
        self._corpora.close()

    def _work(self) -> None:
        is_idle = False
        while not self._closed.is_set():
            queued: QueuedFile | None = None
            try:
                with self._queue.taken(wait=is_idle) as queued:
                    if queued is not None:
                        self._ingest_queued(queued)
            except ClosedError:
                return
            except CorpusUnavailableError as problem:
                _log_later(queued, problem)
                self._closed.wait(_RETRY_SECONDS)
            except Exception:
                _log_failure(queued)
                self._closed.wait(0.0 if queued else _RETRY_SECONDS)
            is_idle = queued is None
            if is_idle:
                # An idle worker keeps no index in memory.
                self._corpora.close()

    def _ingest_queued(self, queued: QueuedFile) -> None:
        if self._closed.is_set():
            raise ClosedError
        # It may be detached, or its corpus removed, in the meantime.
        with (
            suppress(DetachedError, CorpusNotFoundError),
            self._corpora.open(queued.corpus) as corpus,
        ):
            self._ingest(corpus, queued.file)

    def _ingest(self, corpus: Corpus, file: str) -> None:
        """Ingest a file and record the outcome."""
        attachment = corpus.attachments.get(file)
        if attachment is None or attachment.status != "in_progress":
            return
        counts = IngestCounts()
        try:
            problem = self._add_documents(corpus, attachment, counts)
        except (DetachedError, CorpusNotFoundError, CorpusUnavailableError, ClosedError):
            raise
        except MissingError as missing:
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
                raise ClosedError
            if not corpus.attachments.is_in_progress(attachment.id):
                raise DetachedError(attachment.id)

        def check_now_and_then() -> None:
            nonlocal last_check
            now = time.monotonic()
            if self._closed.is_set() or now - last_check >= _CHECK_SECONDS:
                last_check = now
                check()

        def documents() -> Iterator[Document]:
            name = f"{attachment.id}/{attachment.name}"
            try:
                with self._uploads.as_path(upload) as path:
                    for document in read_file(
                        path,
                        name,
                        counts=counts,
                        check_cancelled=check_now_and_then,
                        check_example=self._examples.chunk,
                    ):
                        names.add(document.name)
                        metadata = {**document.metadata, **attachment.attributes}
                        yield replace(document, metadata=metadata)
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


def _log_later(queued: QueuedFile | None, problem: CorpusError) -> None:
    if queued is None:
        log.warning("attached files are ingested later: %s", problem)
    else:
        log.warning(
            "file %s of corpus %s is ingested later: %s", queued.file, queued.corpus, problem
        )


def _log_failure(queued: QueuedFile | None) -> None:
    if queued is None:
        log.exception("cannot look for files to ingest")
    else:
        log.exception(
            "file %s of corpus %s failed unexpectedly and stays in progress until this process "
            "restarts or another takes it over",
            queued.file,
            queued.corpus,
        )
