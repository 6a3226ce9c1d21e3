"""Ingestion by several processes: one reads the documents, others split, embed and store them.

Each document is one transaction, as in `ingest`. The documents come into the corpus, and get their
ids, in the order in which they are finished. Which of two documents has a sequence that must be
`unique` would depend on that order, so such a corpus is written by one process. This module does
not depend on how the processes are started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from typing import Any, TypeAlias

import numpy as np

from selection.corpus.corpus import Corpus
from selection.corpus.sequences import Chunk, embedded_text
from selection.embedding import Embedder, Embeddings
from selection.errors import CorpusUnavailableError
from selection.ingest.examples import ExampleChunker
from selection.ingest.ingest import (
    BATCH_CHUNKS,
    Chunking,
    Document,
    IngestCounts,
    chunks_of,
    new_documents,
    tokenizer_digest,
)

# A document with the digest of its content.
Batch: TypeAlias = list[tuple[Document, str]]
# The name of a document and the number of its sequences; 0 if it is empty.
Written: TypeAlias = tuple[str, int]

_BATCH_CHARACTERS = 1 << 16
# With many writers, one may wait for the corpus's lock until its time is over; and while a database
# is away, callers are refused at once for a moment after one has waited.
_ATTEMPTS, _RETRY_SECONDS = 3, 2.0


def ingest_in_parallel(
    corpus: Corpus,
    documents: Iterable[Document],
    write: Callable[[Iterable[Batch]], Generator[list[Written], None, None]],
    *,
    chunking: Chunking,
    counts: IngestCounts,
    on_progress: Callable[[Document, int], None] = lambda document, chunks: None,
    check_cancelled: Callable[[], None] = lambda: None,
) -> None:
    """Add documents by other processes; unchanged ones are skipped, so an interrupted run resumes.

    Args:
        corpus: its place is a database, and its embedder, tokenizer and template were checked.
        documents: consumed one at a time.
        write: has a `DocumentWriter` write each batch, in any order.
        chunking: how texts are split; not `unique`.
        counts: updated; after an exception, more documents may be in the corpus.
        on_progress: called as by `ingest`, with documents without their texts.
        check_cancelled: called as by `ingest`.

    Raises:
        CorpusError: as `ingest`.
    """
    assert not chunking.unique
    # Documents that are being written, without their texts, and whether each replaces one.
    pending: dict[str, tuple[Document, bool]] = {}

    def batches() -> Iterator[Batch]:
        batch: Batch = []
        characters = 0
        for document, digest in new_documents(
            corpus, documents, chunking, counts, on_progress, check_cancelled
        ):
            pending[document.name] = (
                replace(document, text="", example=None),
                corpus.has_name(document.name),
            )
            batch.append((document, digest))
            characters += len(document.text)
            if len(batch) == BATCH_CHUNKS or characters >= _BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
        if batch:
            yield batch

    # Closed at once if this process is interrupted, so that the others end.
    with closing(write(batches())) as results:
        for name, sequences in chain.from_iterable(results):
            document, replaces = pending.pop(name)
            if sequences:
                counts.added += not replaces
                counts.replaced += replaces
                counts.chunks += sequences
            else:
                counts.empty += 1
            on_progress(document, sequences)
    corpus.build_index()


class DocumentWriter:
    """Writes documents into a corpus that other processes write into, too.

    Args:
        corpus: created with this embedder and this tokenizer.
        embedder: the corpus's embedder.
        tokenizer: the base model's tokenizer.
        chunking: how texts are split; not `unique`.
        examples: makes chunks of examples, for the same tokenizer.
    """

    def __init__(
        self,
        corpus: Corpus,
        embedder: Embedder,
        tokenizer: Any,
        chunking: Chunking,
        examples: ExampleChunker,
    ) -> None:
        self._corpus, self._embedder, self._tokenizer = corpus, embedder, tokenizer
        self._chunking, self._examples = chunking, examples
        self._digest = tokenizer_digest(tokenizer)

    def write(self, batch: Batch) -> list[Written]:
        """Split, embed and store documents. Writing a batch again changes nothing.

        Raises:
            CorpusError: as `ingest`.
        """
        self._corpus.check(self._embedder, self._digest, self._examples.digest)
        chunked = [
            chunks_of(document, self._tokenizer, self._chunking, self._examples)
            for document, _ in batch
        ]
        texts = [
            embedded_text(chunk.text, chunk.example, self._embedder)
            for chunks in chunked
            for chunk in chunks
        ]
        parts = [
            self._embedder.embed(texts[start : start + BATCH_CHUNKS])
            for start in range(0, len(texts), BATCH_CHUNKS)
        ]
        empty_ND = np.empty((0, self._embedder.dimension), np.float32)
        vectors_ND, row = np.concatenate([empty_ND, *parts]), 0
        for (document, digest), chunks in zip(batch, chunked, strict=True):
            self._store(document, digest, chunks, vectors_ND[row : row + len(chunks)])
            row += len(chunks)
        return [
            (document.name, len(chunks))
            for (document, _), chunks in zip(batch, chunked, strict=True)
        ]

    def _store(
        self, document: Document, digest: str, chunks: Sequence[Chunk], vectors_ND: Embeddings
    ) -> None:
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                if not chunks:
                    # An earlier version may have had some.
                    self._corpus.delete(document.name)
                # An attempt that was reported as failed may have stored it.
                elif not self._corpus.has(document.name, digest):
                    self._corpus.add(document.name, digest, chunks, vectors_ND, document.metadata)
                return
            except CorpusUnavailableError:
                if not attempts_left:
                    raise
                time.sleep(_RETRY_SECONDS)
