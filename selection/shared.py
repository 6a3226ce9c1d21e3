"""What the threads of one process share: an embedder, and corpora that stay open with their indexes in memory.

A tokenizer that two threads use at once fails, an index that two threads hold is memory spent twice. So both are taken
in turns. Texts are embedded in small parts, and callers take turns part by part: one with few texts waits for one part
of each other caller, whatever the others still have to embed. A corpus is held for a search, never while texts are
embedded, and nobody waits for another corpus than the one they asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np

from selection.corpus import Corpus, find_corpus
from selection.embedding import Embedder, Embeddings, Prompt
from selection.limit import UNLIMITED, Limit
from selection.reader import EVERYTHING, Reader

# Embedded in one turn: several short texts, or one that fills an embedder's window. More long ones at once are no
# faster, and hold others up for longer.
PART_TEXTS, PART_CHARACTERS = 8, 1024
P = ParamSpec("P")
Result = TypeVar("Result")


class SharedEmbedder:
    """An embedder that threads use in turns, each for a part of its texts.

    It is loaded and computes in a thread of its own: OpenMP keeps a team for each thread that has computed, and where
    teams have more threads than there are cores it lets none spin, which makes an embedding half as long again.

    Args:
        load: makes the embedder.
    """

    def __init__(self, load: Callable[[], Embedder]) -> None:
        self._thread = ThreadPoolExecutor(1, "embedder")
        self._tokenising = ThreadPoolExecutor(1, "segments")
        self._embedder = self._thread.submit(load).result()
        self.name, self.revision, self.dimension = (
            self._embedder.name,
            self._embedder.revision,
            self._embedder.dimension,
        )

    def embed(self, texts: Sequence[str], limit: Limit = UNLIMITED) -> Embeddings:
        """Unit vectors [N, D] of texts.

        Raises:
            AbandonedError, SecondsSpentError: the limit was reached; at most one more part was embedded.
        """
        embed = self._embedder.embed
        return np.concatenate([_in_turn(self._thread, limit, embed, part) for part in _parts(texts)])

    def segments(self, prompt: Prompt, limit: Limit = UNLIMITED) -> list[str]:
        """The prompt's last windows, in order.

        Raises:
            AbandonedError, SecondsSpentError: as `embed`.
        """
        # In a thread of its own: a short text would wait for a part of a long one twice.
        return _in_turn(self._tokenising, limit, self._embedder.segments, prompt)


def _in_turn(
    thread: ThreadPoolExecutor, limit: Limit, work: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
) -> Result:
    """Do one unit of work when its turn comes: a caller waits with one unit at a time, first come, first served."""

    def unit() -> Result:
        # Here and not before the wait: what has become useless meanwhile must not hold up the next caller.
        limit.check()
        return work(*args, **kwargs)

    return thread.submit(unit).result()


def _parts(texts: Sequence[str]) -> list[list[str]]:
    """The texts in parts, each for one turn; one part at least."""
    parts: list[list[str]] = [[]]
    characters = 0
    for text in texts:
        if parts[-1] and (len(parts[-1]) == PART_TEXTS or characters + len(text) > PART_CHARACTERS):
            parts.append([])
            characters = 0
        parts[-1].append(text)
        characters += len(text)
    return parts


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


class OpenCorpora:
    """Corpora of one embedder and tokenizer, kept open, opened anew when they were removed and made again.

    Args:
        root: the folder of all corpora.
        embedder: whose vectors they must hold; None leaves that unchecked, and the tokenizer.
        tokenizer: the digest of the tokenizer whose tokens they must hold; None leaves that unchecked.
    """

    def __init__(self, root: Path, embedder: Embedder | None, tokenizer: str | None) -> None:
        self._root, self._embedder, self._tokenizer = root, embedder, tokenizer
        self._held: list[_Held] = []
        self._lock = threading.Lock()  # of the list; never held while a corpus is waited for

    @contextmanager
    def use(self, name: str, reader: Reader = EVERYTHING, limit: Limit = UNLIMITED) -> Iterator[Corpus]:
        """The corpus of that name, id or display name, for the length of a `with`; others of this corpus wait.

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

    def _acquired(self, name: str, reader: Reader, limit: Limit) -> _Held:
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
                    # The reader does not see it; its name may be the display name of another, which they see.
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

    def _opened(self, folder: Path, reader: Reader, limit: Limit) -> _Held:
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
