"""Ingestion: documents are split into chunks, embedded and added to a corpus.

Documents that the corpus already contains are skipped, so an interrupted run resumes where it
ended. Embedding runs in this process, unless the caller passes another way to embed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np

from selection.corpus.corpus import Corpus
from selection.corpus.sequences import Chunk, embedded_text
from selection.embedding import Embedder, Embeddings
from selection.errors import CorpusError, ExampleError
from selection.ingest.chunking import Chunking, split, tokenizer_digest
from selection.ingest.examples import ExampleChunker
from selection.ingest.files import find_files, package_folder
from selection.ingest.readers import Document, IngestCounts, read_file

__all__ = [
    "BATCH_CHUNKS",
    "Chunking",
    "Document",
    "IngestCounts",
    "chunks_of",
    "content_digest",
    "find_files",
    "ingest",
    "new_documents",
    "package_folder",
    "read_file",
    "split",
    "tokenizer_digest",
]

BATCH_CHUNKS = 64

_Batch: TypeAlias = list[tuple[Document, str, list[Chunk]]]


def ingest(
    corpus: Corpus,
    documents: Iterable[Document],
    embedder: Embedder,
    tokenizer: Any,
    *,
    chunking: Chunking | None = None,
    examples: ExampleChunker | None = None,
    on_progress: Callable[[Document, int], None] = lambda document, chunks: None,
    embed: Callable[[Iterable[list[str]]], Iterable[Embeddings]] | None = None,
    file: str | None = None,
    counts: IngestCounts | None = None,
    check_cancelled: Callable[[], None] = lambda: None,
) -> IngestCounts:
    """Split, embed and add documents; unchanged ones are skipped, so an interrupted run resumes.

    Args:
        corpus: created with this embedder and this tokenizer.
        documents: consumed one at a time.
        embedder: the corpus's embedder.
        tokenizer: the base model's tokenizer.
        chunking: how texts are split.
        examples: makes chunks of the documents that are examples, for the same tokenizer; None sets
            no limit to their length.
        on_progress: called with each document and its number of chunks, once it is durable or
            skipped (0).
        embed: maps batches of texts to their vectors, in order, by the same embedder elsewhere;
            None embeds in this process.
        file: id of the attachment that the documents belong to.
        counts: updated and returned; accurate at any time, also after an exception.
        check_cancelled: called for each document and each window of a long one; an exception that
            it raises ends the run.

    Raises:
        CorpusError: two documents have the same name, or an example cannot be rendered or is too
            long, or the corpus was created with another embedder, tokenizer or chat template, or
            cannot be written.
    """
    chunking, counts = chunking or Chunking(), counts or IngestCounts()
    examples = examples or ExampleChunker(tokenizer)
    corpus.check(embedder, tokenizer_digest(tokenizer), examples.digest)
    known = Counter(corpus.token_sequences()) if chunking.unique else Counter()
    pending: deque[_Batch | None] = deque()

    def batches() -> Iterator[_Batch]:
        batch: _Batch = []
        for document, digest in new_documents(
            corpus, documents, chunking, counts, on_progress, check_cancelled
        ):
            chunks = chunks_of(document, tokenizer, chunking, examples, check_cancelled)
            if chunking.unique:
                # A chunk may equal one of the version that the document replaces.
                known.subtract(corpus.token_sequences(document.name))
                chunks = _without_known(chunks, known)
            if not chunks:
                counts.empty += 1
                corpus.delete(document.name)  # an earlier version may have had chunks
                on_progress(document, 0)
                continue
            batch.append((document, digest, chunks))
            if sum(len(chunks) for _, _, chunks in batch) >= BATCH_CHUNKS:
                yield batch
                batch = []
        if batch:
            yield batch

    def texts() -> Iterator[list[str]]:
        """The texts of all batches in parts of BATCH_CHUNKS; `pending` gets the batch with its
        last part, and None with the others.
        """
        for batch in batches():
            batch_texts = [
                embedded_text(chunk.text, chunk.example, embedder)
                for _, _, chunks in batch
                for chunk in chunks
            ]
            for start in range(0, len(batch_texts), BATCH_CHUNKS):
                pending.append(batch if start + BATCH_CHUNKS >= len(batch_texts) else None)
                yield batch_texts[start : start + BATCH_CHUNKS]

    parts: list[Embeddings] = []
    for part in embed(texts()) if embed else map(embedder.embed, texts()):
        parts.append(part)
        batch = pending.popleft()
        if batch is None:
            continue
        vectors, row = np.concatenate(parts), 0
        parts = []
        for document, digest, chunks in batch:
            replaces = corpus.has_name(document.name)
            corpus.add(
                document.name,
                digest,
                chunks,
                vectors[row : row + len(chunks)],
                document.metadata,
                file,
            )
            row += len(chunks)
            counts.added += not replaces
            counts.replaced += replaces
            counts.chunks += len(chunks)
            on_progress(document, len(chunks))
    corpus.build_index()
    return counts


def new_documents(
    corpus: Corpus,
    documents: Iterable[Document],
    chunking: Chunking,
    counts: IngestCounts,
    on_progress: Callable[[Document, int], None],
    check_cancelled: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Document, str]]:
    """The documents that the corpus does not contain, each with its digest; the others are counted.

    Arguments and errors are those of `ingest`.
    """
    names: set[bytes] = set()
    for document in documents:
        check_cancelled()
        name = _name_digest(document.name)
        if name in names:
            raise CorpusError(
                f"two documents of one run are named {document.name!r}: give each its own name"
            )
        names.add(name)
        digest = content_digest(document, chunking)
        if corpus.has(document.name, digest) or _has_former(corpus, document, digest, names):
            counts.unchanged += 1
            on_progress(document, 0)
        else:
            yield document, digest


def chunks_of(
    document: Document,
    tokenizer: Any,
    chunking: Chunking,
    examples: ExampleChunker,
    check_cancelled: Callable[[], None] = lambda: None,
) -> list[Chunk]:
    """The chunks of a text, or the one of an example.

    Arguments and errors are those of `ingest`.
    """
    if document.example is None:
        return split(document.text, tokenizer, chunking, check_cancelled)
    try:
        return [examples.chunk(document.example)]
    except ExampleError as problem:
        raise CorpusError(f"{document.name}: {problem}") from problem


def content_digest(document: Document, chunking: Chunking) -> str:
    """Hex digest of what determines how a document is stored: its text, metadata and chunking, or
    its example and metadata.
    """
    if document.example is not None:
        metadata = sorted(document.metadata.items())
        kind = json.dumps(["example", chunking.unique, metadata])
        return hashlib.sha256(f"{kind}\n{document.example.to_json()}".encode()).hexdigest()
    options = json.dumps(
        [
            chunking.max_length,
            chunking.overlap,
            chunking.unique,
            sorted(document.metadata.items()),
        ]
    )
    return hashlib.sha256(f"{options}\n{document.text}".encode()).hexdigest()


def _has_former(corpus: Corpus, document: Document, digest: str, names: set[bytes]) -> bool:
    """Whether the corpus contains this very document under its former name, and no other document
    of the run has that name.
    """
    former = document.former
    return (
        former not in (None, document.name)
        and _name_digest(former) not in names
        and corpus.has(former, digest)
    )


def _name_digest(name: str) -> bytes:
    """16 bytes for a name, so that a run can remember millions of them."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def _without_known(chunks: Iterable[Chunk], known: Counter[bytes]) -> list[Chunk]:
    """The chunks whose tokens are not known yet; their tokens are added to `known`."""
    new = []
    for chunk in chunks:
        tokens = np.array(chunk.tokens, np.int32).tobytes()
        if known[tokens] <= 0:
            known[tokens] = 1
            new.append(chunk)
    return new
