"""CorpusPool: open corpora that the threads of one process share, with their indexes in memory.

The threads take turns, because an index per thread would multiply its memory. A corpus is locked
while a caller has it open, so callers that others wait for embed their texts before they open it;
the ingest worker embeds inside, and has a pool of its own. While a corpus is opened for the first
time, the other threads wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from selection.access import OPERATOR, Principal
from selection.corpus.corpus import Corpus
from selection.corpus.lookup import find_corpus
from selection.corpus.stores.places import corpora_at
from selection.embedding import Embedder
from selection.errors import CorpusError, CorpusNotFoundError
from selection.limit import UNLIMITED, Limit
from selection.location import Location, Place

# Seconds between two looks for open corpora that were removed.
_LOOK_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class _Entry:
    corpus: Corpus
    id: str
    lock: threading.Lock = field(default_factory=threading.Lock)


class CorpusPool:
    """Corpora of one embedder, tokenizer and chat template, kept open, and reopened when they are
    replaced.

    Args:
        root: where all corpora are.
        embedder: the embedder that they must have been made with; None skips this check and that of
            the tokenizer.
        tokenizer: digest of the tokenizer that they must have been made with; None skips this
            check and that of the template.
        template: digest of the template that their examples must have been rendered with; None
            skips this check.
    """

    def __init__(
        self,
        root: Location,
        embedder: Embedder | None,
        tokenizer: str | None,
        template: str | None = None,
    ) -> None:
        self._root, self._embedder = root, embedder
        self._tokenizer, self._template = tokenizer, template
        self._entries: list[_Entry] = []
        # Guards the list of entries; never held while waiting for a corpus.
        self._lock = threading.Lock()
        self._next_look = 0.0

    @contextmanager
    def open(
        self, name: str, principal: Principal = OPERATOR, limit: Limit = UNLIMITED
    ) -> Iterator[Corpus]:
        """Lock the corpus of that name, id or display name within the `with` block.

        Raises:
            CorpusNotFoundError: no such corpus, or the principal does not see it.
            CorpusError: it was made with another embedder, tokenizer or chat template.
            AbandonedError, SecondsSpentError: the limit was reached before the corpus was free.
        """
        entry, meta = self._acquire(name, principal, limit)
        try:
            if self._embedder is not None:
                # Checked every time, because another process may have re-embedded the corpus.
                entry.corpus.check(self._embedder, self._tokenizer, self._template, meta)
            yield entry.corpus
        finally:
            self._release(entry)

    def close(self) -> None:
        """Close all corpora, those in use once they are released; `open` opens them again."""
        with self._lock:
            closing, self._entries = self._entries, []
            for entry in closing:
                self._close_unless_in_use(entry)

    def _acquire(
        self, name: str, principal: Principal, limit: Limit
    ) -> tuple[_Entry, Mapping[str, str]]:
        """The entry of the corpus, locked, and its metadata."""
        by_name = True
        while True:
            entry = self._find(name, limit) if by_name else None
            if entry is None:
                place = find_corpus(self._root, name, principal)
                entry = self._find_or_open(place, principal, limit)
            limit.acquire(entry.lock)
            try:
                with self._lock:
                    is_known = entry in self._entries
                meta = _meta_of(entry.corpus) if is_known else None
                if meta is not None:
                    if not by_name or principal.sees(entry.corpus.name, meta):
                        return entry, meta
                    # The principal does not see this corpus, but its name may be the display name
                    # of another one that they do see.
                    by_name = False
                elif is_known:
                    self._forget(entry)
            except BaseException:
                self._release(entry)
                raise
            self._release(entry)

    def _release(self, entry: _Entry) -> None:
        with self._lock:
            entry.lock.release()
            if entry not in self._entries:
                self._close_unless_in_use(entry)

    def _forget(self, entry: _Entry) -> None:
        """Let go of a corpus that is gone."""
        with self._lock:
            if entry in self._entries:
                self._entries.remove(entry)
                self._close_unless_in_use(entry)
        self._clean_cache()

    def _clean_cache(self) -> None:
        # If the database cannot be used, opening a corpus raises the error that says so.
        with suppress(CorpusError):
            corpora_at(self._root).clean_cache()

    def _find(self, name: str, limit: Limit) -> _Entry | None:
        """The entry of the open corpus of that name or id. Every few seconds, closes those that
        are gone; what this machine has of those is deleted then, and the first time.
        """
        with limit.holding(self._lock):
            is_first, is_due = not self._next_look, time.monotonic() >= self._next_look
            if is_due:
                self._next_look = time.monotonic() + _LOOK_SECONDS
            looked_at = [*self._entries] if is_due else []
        # Without the lock, since a corpus in a database has to ask it.
        if is_first:
            self._clean_cache()
        for entry in looked_at:
            if not entry.corpus.is_in_place:
                self._forget(entry)
        with limit.holding(self._lock):
            return next((each for each in self._entries if _is_called(each, name)), None)

    def _find_or_open(self, place: Place, principal: Principal, limit: Limit) -> _Entry:
        """The entry of the corpus at that place, opened unless it is open."""
        with limit.holding(self._lock):
            for entry in self._entries:
                if entry.corpus.name == place.name:
                    return entry
            corpus = Corpus.open(self._root, place.name, principal)
            entry = _Entry(corpus, corpus.meta()["id"])
            self._entries.append(entry)
            return entry

    @staticmethod
    def _close_unless_in_use(entry: _Entry) -> None:
        if entry.lock.acquire(blocking=False):
            entry.corpus.close()
            entry.lock.release()


def _meta_of(corpus: Corpus) -> Mapping[str, str] | None:
    """The metadata of a corpus; None if it was removed or replaced since it was opened."""
    try:
        return corpus.meta()
    except CorpusNotFoundError:
        return None


def _is_called(entry: _Entry, name: str) -> bool:
    return name in (entry.corpus.name, entry.id)
