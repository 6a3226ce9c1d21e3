"""Corpora that the threads of one process share: kept open, with their indexes in memory.

An index that two threads hold is memory spent twice, so they take turns. A corpus is held for a
search, never while texts are embedded, and nobody waits for another corpus than the one they asked
for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from selection.access import OPERATOR, Principal
from selection.corpus.corpus import Corpus, find_corpus
from selection.embedding import Embedder
from selection.limit import UNLIMITED, Limit


@dataclass(frozen=True, eq=False)
class _Held:
    corpus: Corpus
    id: str
    inode: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_in_place(self) -> bool:
        """Whether the corpus was not removed or made anew since."""
        return _inode(self.corpus.folder) == self.inode


class CorpusPool:
    """Corpora of one embedder and tokenizer, kept open, opened anew when they were removed and made
    again.

    Args:
        root: the folder of all corpora.
        embedder: whose vectors they must hold; None leaves that unchecked, and the tokenizer.
        tokenizer: the digest of the tokenizer whose tokens they must hold; None leaves that
            unchecked.
    """

    def __init__(self, root: Path, embedder: Embedder | None, tokenizer: str | None) -> None:
        self._root, self._embedder, self._tokenizer = root, embedder, tokenizer
        self._held: list[_Held] = []
        self._lock = threading.Lock()  # of the list; never held while a corpus is waited for

    @contextmanager
    def use(
        self, name: str, reader: Principal = OPERATOR, limit: Limit = UNLIMITED
    ) -> Iterator[Corpus]:
        """The corpus of that name, id or display name, for the length of a `with`; others of this
        corpus wait.

        Raises:
            CorpusNotFoundError: there is none, or none that the reader sees.
            CorpusError: it was made with another embedder or tokenizer.
            AbandonedError, SecondsSpentError: the limit was reached before it could be used.
        """
        held = self._acquired(name, reader, limit)
        try:
            if self._embedder is not None:
                # Each time: it may have been embedded anew meanwhile.
                held.corpus.check(self._embedder, self._tokenizer)
            yield held.corpus
        finally:
            self._release(held)

    def close(self) -> None:
        """Close them all, those in use when they are released; the next use opens again."""
        with self._lock:
            closing, self._held = self._held, []
            for held in closing:
                self._close_unless_in_use(held)

    def _acquired(self, name: str, reader: Principal, limit: Limit) -> _Held:
        """The corpus, its lock taken."""
        at_hand = True  # whether one that is open may be taken by its name or id
        while True:
            held = self._at_hand(name, limit) if at_hand else None
            if held is None:
                held = self._opened(find_corpus(self._root, name, reader), reader, limit)
            limit.acquire(held.lock)
            try:
                with self._lock:
                    current = held in self._held and held.is_in_place
                if current:
                    if not at_hand or reader.sees(held.corpus.name, held.corpus.meta()):
                        return held
                    # The reader does not see it; its name may be the display name of another, which
                    # they see.
                    at_hand = False
            except BaseException:
                self._release(held)
                raise
            self._release(held)

    def _release(self, held: _Held) -> None:
        with self._lock:
            held.lock.release()
            if held not in self._held:
                self._close_unless_in_use(held)

    def _at_hand(self, name: str, limit: Limit) -> _Held | None:
        """The open corpus of that name or id, after those that are gone from disk were closed."""
        with limit.holding(self._lock):
            for held in [held for held in self._held if not held.is_in_place]:
                self._held.remove(held)
                self._close_unless_in_use(held)
            return next((held for held in self._held if name in (held.corpus.name, held.id)), None)

    def _opened(self, folder: Path, reader: Principal, limit: Limit) -> _Held:
        """The corpus in that folder, opened unless it is open."""
        with limit.holding(self._lock):
            for held in self._held:
                if held.corpus.folder == folder and held.is_in_place:
                    return held
            corpus = Corpus.open(self._root, folder.name, reader)
            held = _Held(corpus, corpus.meta()["id"], _inode(folder))
            self._held.append(held)
            return held

    @staticmethod
    def _close_unless_in_use(held: _Held) -> None:
        if held.lock.acquire(blocking=False):
            held.corpus.close()
            held.lock.release()


def _inode(folder: Path) -> int:
    try:
        return (folder / "corpus.db").stat().st_ino
    except FileNotFoundError:
        return -1
