"""Documents are cut, embedded and added to a corpus; those that are there already are passed over.

A run that was broken off goes on where it was. Embedding is one process, unless the caller brings
another way.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np

from selection.corpus.corpus import Corpus
from selection.corpus.sqlite_store import Chunk, CorpusError
from selection.embedding import Embedder, Embeddings
from selection.ingest.chunking import Chunking, split, tokenizer_digest
from selection.ingest.files import find_files, package_folder
from selection.ingest.readers import Document, Tally, read_file

__all__ = [
    "Chunking",
    "Document",
    "Tally",
    "content_digest",
    "find_files",
    "ingest",
    "package_folder",
    "read_file",
    "split",
    "tokenizer_digest",
]

_BATCH = 64  # sequences

_Batch: TypeAlias = list[tuple[Document, str, list[Chunk]]]


def ingest(
    corpus: Corpus,
    documents: Iterable[Document],
    embedder: Embedder,
    tokenizer: Any,
    *,
    cut: Chunking | None = None,
    on_progress: Callable[[Document, int], None] = lambda document, sequences: None,
    embed: Callable[[Iterable[list[str]]], Iterable[Embeddings]] | None = None,
    file: str | None = None,
    tally: Tally | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Tally:
    """Cut, embed and add documents; those already there unchanged are passed over, so a broken-off
    run resumes.

    Args:
        corpus: made with this embedder and this tokenizer.
        documents: read as they are needed.
        embedder: of the corpus.
        tokenizer: the base model's.
        cut: how documents become sequences.
        on_progress: called with each document and its number of sequences, once it is durable or
            passed over.
        embed: batches of texts to their vectors, in order, by the same embedder elsewhere; None
            embeds here.
        file: the attachment that the documents belong to.
        tally: where to count; returned. It is right at any time, also when this raises.
        alive: called for each document and each window of a long one; what it raises ends the work.

    Raises:
        CorpusError: two of the documents have the same name, or the corpus was made with another
            embedder or tokenizer, or cannot be written.
    """
    cut, counted = cut or Chunking(), tally or Tally()
    corpus.check(embedder, tokenizer_digest(tokenizer))
    held = Counter(corpus.token_sequences()) if cut.unique else Counter()
    names: set[bytes] = set()
    waiting: deque[_Batch | None] = deque()

    def batches() -> Iterator[_Batch]:
        batch: _Batch = []
        for document in documents:
            alive()
            name = _short(document.name)
            if name in names:
                raise CorpusError(
                    f"two documents of one run are called {document.name!r}: give each a name of its own"
                )
            names.add(name)
            digest = content_digest(document, cut)
            if corpus.has(document.name, digest) or _has_former(corpus, document, digest, names):
                counted.unchanged += 1
                on_progress(document, 0)
                continue
            pieces = split(document.text, tokenizer, cut, alive)
            if cut.unique:
                # What it replaces is no reason to leave it out.
                held.subtract(corpus.token_sequences(document.name))
                pieces = _unseen(pieces, held)
            if not pieces:
                counted.empty += 1
                corpus.delete(document.name)  # it may have held something before
                on_progress(document, 0)
                continue
            batch.append((document, digest, pieces))
            if sum(len(pieces) for _, _, pieces in batch) >= _BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    def texts() -> Iterator[list[str]]:
        """Parts of batches; a batch waits with its last part."""
        for batch in batches():
            every = [piece.text for _, _, pieces in batch for piece in pieces]
            for first in range(0, len(every), _BATCH):
                waiting.append(batch if first + _BATCH >= len(every) else None)
                yield every[first : first + _BATCH]

    parts: list[Embeddings] = []
    for part in embed(texts()) if embed else map(embedder.embed, texts()):
        parts.append(part)
        batch = waiting.popleft()
        if batch is None:
            continue
        vectors, row = np.concatenate(parts), 0
        parts = []
        for document, digest, pieces in batch:
            there = corpus.holds(document.name)
            corpus.add(
                document.name,
                digest,
                pieces,
                vectors[row : row + len(pieces)],
                document.metadata,
                file,
            )
            row += len(pieces)
            counted.added += not there
            counted.replaced += there
            counted.sequences += len(pieces)
            on_progress(document, len(pieces))
    corpus.build_index()
    return counted


def content_digest(document: Document, cut: Chunking) -> str:
    """What changes when a document would be stored otherwise: its text, its metadata, how it is
    cut.
    """
    said = json.dumps([cut.max_length, cut.overlap, cut.unique, sorted(document.metadata.items())])
    return hashlib.sha256(f"{said}\n{document.text}".encode()).hexdigest()


def _has_former(corpus: Corpus, document: Document, digest: str, names: set[bytes]) -> bool:
    """Whether the corpus holds this very document under its former name, which no other document of
    the run has.
    """
    former = document.former
    return (
        former not in (None, document.name)
        and _short(former) not in names
        and corpus.has(former, digest)
    )


def _short(name: str) -> bytes:
    """A name, of a million of which a run can know whether it has met them."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def _unseen(pieces: Iterable[Chunk], held: Counter[bytes]) -> list[Chunk]:
    """The pieces that are not held yet; they are from now on."""
    kept = []
    for piece in pieces:
        tokens = np.array(piece.tokens, np.int32).tobytes()
        if held[tokens] <= 0:
            held[tokens] = 1
            kept.append(piece)
    return kept
