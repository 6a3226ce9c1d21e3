"""What the tests of the library share: texts, an embedder that can be held, waiting for a file to
be read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selection.corpus.attachments import Attachment
from selection.corpus.corpus import Corpus
from selection.embedding import Embedder, Embeddings, Prompt
from selection.library.library import Library
from selection.library.records import AttachmentRequest, PageRequest

CATS = "The cat sleeps on the sofa. The kitten plays with a ball of wool and purrs all day long.\n"
SHIPS = "The ship leaves the harbour with full sails and sets course for the islands in the west.\n"
ALL = PageRequest(limit=1000, order="asc")


class HeldEmbedder:
    """A real embedder that waits before each call while it is held, and tells that it does."""

    def __init__(self, embedder: Embedder) -> None:
        self.name, self.revision, self.dimension = (
            embedder.name,
            embedder.revision,
            embedder.dimension,
        )
        self.free = threading.Event()
        self.free.set()
        self.waiting = threading.Event()
        self._embedder = embedder

    def embed(self, texts: Sequence[str]) -> Embeddings:
        if not self.free.is_set():
            self.waiting.set()
            assert self.free.wait(30)
        return self._embedder.embed(texts)

    def windows(self, prompt: Prompt) -> list[str]:
        return self._embedder.windows(prompt)

    @contextmanager
    def held(self) -> Iterator[None]:
        self.waiting.clear()
        self.free.clear()
        try:
            yield
        finally:
            self.free.set()


def settled(library: Library, store: str, file: str) -> Attachment:
    """The file once it is read, or is known to be unreadable."""
    for _ in range(3000):
        attachment = library.file(store, file).file
        if attachment.status != "in_progress":
            return attachment
        time.sleep(0.01)
    raise AssertionError("a file is in progress for half a minute")


def attached(library: Library, store: str, name: str, content: str | bytes, **wanted: Any) -> str:
    """Uploads a file, attaches it and waits; its id."""
    file = library.upload(name, content.encode() if isinstance(content, str) else content).id
    library.attach(store, AttachmentRequest(file, **wanted))
    settled(library, store, file)
    return file


def documents(root: Path, store: str) -> dict[str, dict[str, Any]]:
    """Names and metadata of what a corpus holds, read as another process would."""
    corpus = Corpus.open(root, store)
    found = {entry.name: dict(entry.metadata) for entry in corpus.documents()}
    corpus.close()
    return found


def long_text(paragraphs: int, word: str = "harbour") -> str:
    return "\n\n".join(
        f"Paragraph {i} speaks of the {word} and of number {i * i} at length."
        for i in range(paragraphs)
    )
