"""IndexManager: loads, updates and rebuilds the index of one corpus, so that a search always sees
the latest state of its store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from selection.corpus.filters import Filter
from selection.corpus.index import files as index_files
from selection.corpus.index.faiss_index import Ids, Index
from selection.corpus.index.live_index import LiveIndex
from selection.corpus.stores.protocols import CorpusStore

log = logging.getLogger(__name__)

# Number of added and removed sequences up to which searching them beside the index is cheaper than
# rebuilding it.
_MAX_CHANGES = 10_000


class IndexManager:
    """The index of one corpus, in the folder of its store. Use it from one thread at a time."""

    def __init__(self, store: CorpusStore) -> None:
        self._store = store
        # The index in memory, and the uuid of the embeddings it contains.
        self._in_memory: tuple[str, LiveIndex] | None = None

    def current(
        self, filter: Filter | None = None, on_found: Callable[[], None] = lambda: None
    ) -> tuple[LiveIndex, Ids | None]:
        """The index of the corpus's present state, and the sequences in it that a filter allows.

        `on_found` is called in the read transaction of that state.

        Raises:
            CorpusError: the corpus is damaged or was removed.
            ValueError: an invalid filter.
        """
        while True:
            with self._store.reading():
                meta = self._store.meta()
                live = self._usable_index(meta)
                if live is not None:
                    on_found()
                    allowed = None if filter is None else self._store.matching(filter)
                    return self._updated(live, meta), allowed
            with index_files.build_lock(self._store.folder):
                # Another process may have built the index while this one waited for the lock.
                meta = self._store.meta()
                saved = self._read_from_disk(meta)
                self._in_memory = self._build() if saved is None else (meta["uuid"], saved)

    def rebuild_if_stale(self) -> None:
        """Build and save the index if it is missing or damaged, or if much has changed since it was
        built.
        """
        if self.current()[0].changes > max(_MAX_CHANGES, self._store.counts()[1] // 10):
            with index_files.build_lock(self._store.folder):
                self._in_memory = self._build()

    def _usable_index(self, meta: Mapping[str, str]) -> LiveIndex | None:
        """The index on disk if none is in memory, or if the one in memory has many changes and the
        one on disk is newer; else the one in memory. Neither is used if the corpus was set back to
        an earlier state, as a database is that was restored.
        """
        if self._in_memory is not None and self._in_memory[0] == meta["uuid"]:
            live = self._in_memory[1]
            if live.generation <= int(meta["generation"]) and (
                live.changes <= _MAX_CHANGES
                or index_files.saved_generation(self._store.folder) <= live.built
            ):
                return live
        saved = self._read_from_disk(meta)
        if saved is not None:
            self._in_memory = (meta["uuid"], saved)
        return saved

    def _read_from_disk(self, meta: Mapping[str, str]) -> LiveIndex | None:
        loaded = index_files.load(self._store.folder, meta["uuid"], int(meta["dimension"]))
        if loaded is None or loaded[0] > int(meta["generation"]):
            return None
        return LiveIndex(*loaded)

    def _updated(self, live: LiveIndex, meta: Mapping[str, str]) -> LiveIndex:
        generation = int(meta["generation"])
        if live.generation != generation:
            added, embeddings_ND = self._store.embeddings(live.newest)
            live.apply(generation, added, embeddings_ND, self._store.removed(live.generation))
        return live

    def _build(self) -> tuple[str, LiveIndex]:
        """A new index of everything, saved; the build lock must be held."""
        with self._store.reading():
            meta = self._store.meta()
            ids_N, vectors_ND = self._store.embeddings()
        index, generation = Index.build(ids_N, vectors_ND), int(meta["generation"])
        try:
            version = index_files.CorpusVersion(meta["uuid"], generation)
            index_files.save(index, self._store.folder, version)
        except OSError as problem:
            log.warning(
                "the index of corpus %r cannot be saved (%s) and will be rebuilt when it is next "
                "opened",
                self._store.name,
                problem,
            )
        return meta["uuid"], LiveIndex(generation, index)
