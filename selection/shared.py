"""What the threads of one process share: an embedder, and corpora that stay open with their indexes in memory.

A tokenizer that two threads use at once fails, an index that two threads hold is memory spent twice. So both are taken
in turns; whoever embeds much should do it in small parts, since others wait for a part, not for the whole.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from selection.corpus import Corpus, find_corpus
from selection.embedding import Embedder, Embeddings, Prompt
from selection.reader import EVERYTHING, Reader


class SharedEmbedder:
    """An embedder that threads use one at a time, first come, first served."""

    def __init__(self, embedder: Embedder) -> None:
        self.name, self.revision, self.dimension = embedder.name, embedder.revision, embedder.dimension
        self._embedder = embedder
        self._tickets = itertools.count()
        self._served = 0
        self._changed = threading.Condition()

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Unit vectors [N, D] of texts."""
        with self._turn():
            return self._embedder.embed(texts)

    def segments(self, prompt: Prompt) -> list[str]:
        """The prompt's last windows, in order."""
        with self._turn():
            return self._embedder.segments(prompt)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        # A plain lock may be taken again by the thread that just released it, however long another waits.
        with self._changed:
            ticket = next(self._tickets)
            self._changed.wait_for(lambda: self._served == ticket)
        try:
            yield
        finally:
            with self._changed:
                self._served += 1
                self._changed.notify_all()


@dataclass(frozen=True)
class _Held:
    corpus: Corpus
    id: str
    inode: int


class OpenCorpora:
    """Corpora of one embedder and tokenizer, kept open, opened anew when they were removed and made again.

    Args:
        root: the folder of all corpora.
        embedder: whose vectors they must hold.
        tokenizer: the digest of the tokenizer whose tokens they must hold; None leaves that unchecked.
    """

    def __init__(self, root: Path, embedder: Embedder, tokenizer: str | None) -> None:
        self._root, self._embedder, self._tokenizer = root, embedder, tokenizer
        self._held: list[_Held] = []
        self._lock = threading.Lock()

    @contextmanager
    def use(self, name: str, reader: Reader = EVERYTHING) -> Iterator[Corpus]:
        """The corpus of that name, id or display name, for the length of a `with`; others wait.

        Raises:
            CorpusNotFoundError: there is none, or none that the reader sees.
            CorpusError: it was made with another embedder or tokenizer.
        """
        with self._lock:
            corpus = self._corpus(name, reader)
            corpus.check(self._embedder, self._tokenizer)  # each time: it may have been embedded anew meanwhile
            yield corpus

    def close(self) -> None:
        """Close them all; the next use opens again."""
        with self._lock:
            for held in self._held:
                held.corpus.close()
            self._held = []

    def _corpus(self, name: str, reader: Reader) -> Corpus:
        for held in [held for held in self._held if _inode(held.corpus.folder) != held.inode]:
            held.corpus.close()
            self._held.remove(held)
        for held in self._held:
            if name in (held.corpus.name, held.id) and reader.sees(held.corpus.name, held.corpus.meta()):
                return held.corpus
        folder = find_corpus(self._root, name, reader)
        for held in self._held:
            if held.corpus.folder == folder:  # by its display name
                return held.corpus
        corpus = Corpus.open(self._root, folder.name, reader)
        self._held.append(_Held(corpus, corpus.meta()["id"], _inode(folder)))
        return corpus


def _inode(folder: Path) -> int:
    try:
        return (folder / "corpus.db").stat().st_ino
    except FileNotFoundError:
        return -1
