"""Helpers of the library's tests: texts, an embedder that can be paused, waiting for ingestion."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from selection.corpus.corpus import Corpus
from selection.corpus.tables.attachment import Attachment
from selection.embedding import Embedder, Embeddings, Prompt
from selection.library.library import Library
from selection.library.records import AttachmentRequest, PageRequest
from selection.location import Location

CATS = "The cat sleeps on the sofa. The kitten plays with a ball of wool and purrs all day long.\n"
SHIPS = "The ship leaves the harbour with full sails and sets course for the islands in the west.\n"
ALL = PageRequest(limit=1000, order="asc")


class PausableEmbedder:
    """A real embedder whose calls wait while it is paused; `waiting` is set when one does."""

    def __init__(self, embedder: Embedder) -> None:
        self.name, self.revision, self.dimension = (
            embedder.name,
            embedder.revision,
            embedder.dimension,
        )
        self.resumed = threading.Event()
        self.resumed.set()
        self.waiting = threading.Event()
        self._embedder = embedder

    def embed(self, texts: Sequence[str]) -> Embeddings:
        if not self.resumed.is_set():
            self.waiting.set()
            assert self.resumed.wait(30)
        return self._embedder.embed(texts)

    def windows(self, prompt: Prompt) -> list[str]:
        return self._embedder.windows(prompt)

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.waiting.clear()
        self.resumed.clear()
        try:
            yield
        finally:
            self.resumed.set()


def wait_until_ingested(library: Library, store: str, file: str) -> Attachment:
    """The file, once it is no longer in progress."""
    for _ in range(3000):
        attachment = library.file(store, file).file
        if attachment.status != "in_progress":
            return attachment
        time.sleep(0.01)
    raise AssertionError("a file was in progress for half a minute")


def attach_and_wait(
    library: Library, store: str, name: str, content: str | bytes, **options: Any
) -> str:
    """Upload a file, attach it and wait until it is ingested; its id."""
    file = library.upload(name, content.encode() if isinstance(content, str) else content).id
    library.attach(store, AttachmentRequest(file, **options))
    wait_until_ingested(library, store, file)
    return file


def documents(root: Location, store: str) -> dict[str, dict[str, Any]]:
    """Names and metadata of a corpus's documents, read as another process would."""
    corpus = Corpus.open(root, store)
    documents = {document.name: dict(document.metadata) for document in corpus.documents()}
    corpus.close()
    return documents


def long_text(paragraphs: int, word: str = "harbour") -> str:
    return "\n\n".join(
        f"Paragraph {i} speaks of the {word} and of number {i * i} at length."
        for i in range(paragraphs)
    )
