"""FolderCorpora: the corpora in one folder, each in a folder of its own with a SQLite database."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeAlias

from selection import durable
from selection.corpus.contents import taken
from selection.corpus.positions import Tombstones
from selection.corpus.sqlite_store import SQLiteStore
from selection.corpus.tables.database import FILE
from selection.errors import CorpusError

# Seconds after which a further change of a file gives it another time, on any file system.
_SETTLED_SECONDS = 2.0
# The folder of a corpus that is being received, which no corpus can be called.
_RECEIVED = ".received"

_State: TypeAlias = tuple[tuple[int, ...], ...]


class FolderCorpora:
    """The corpora under one folder, which need not exist.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        # By name, the state of a corpus's files and its metadata in that state.
        self._known: Mapping[str, tuple[_State, dict[str, str]]] = {}

    @property
    def tombstones(self) -> Tombstones:
        """Records of removed corpora."""
        return Tombstones(self._root)

    def names(self) -> list[str]:
        """Names of the corpora, sorted."""
        names = (path.parent.name for path in self._root.glob(f"*/{FILE}"))
        return sorted(name for name in names if name != _RECEIVED)

    def holds(self, name: str) -> bool:
        """Whether there is a corpus of that name."""
        return (self._root / name / FILE).is_file()

    def metas(self, names: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
        """Name and metadata of each of these corpora; no metadata of one that is missing or
        damaged. Called again, it opens only those that have changed.
        """
        known = {}
        for name in names:
            folder = self._root / name
            state = _state_of(folder)
            then, meta = self._known.get(name, (None, {}))
            if state is None or state != then:
                meta = _meta_of(folder)
            if state is not None:
                known[name] = state, meta
            yield name, meta
        # Replaced as a whole, since several threads may call.
        self._known = known

    def reserve(self, name: str) -> bool:
        """Take the name for a new corpus; False if it is taken."""
        try:
            (self._root / name).mkdir(parents=True)
        except FileExistsError:
            return False
        return True

    def release(self, name: str) -> None:
        """Give up a name that `reserve` took, with what is left of a corpus that could not be
        created.
        """
        shutil.rmtree(self._root / name, ignore_errors=True)

    def clean_cache(self) -> None:
        """Nothing to do: what is derived from a corpus is in its folder."""

    @contextmanager
    def receiving(self, name: str) -> Iterator[SQLiteStore]:
        """As `Corpora.receiving`: in a hidden folder, which is moved in the end. A folder receives
        one corpus at a time.

        Raises:
            CorpusError: there is a corpus of that name, or another one is being received.
            OSError: it could not be written.
        """
        if (self._root / name).exists():
            raise taken(name)
        hidden = self._root / _RECEIVED
        hidden.mkdir(parents=True, exist_ok=True)
        with _locked(hidden):
            try:
                # What a killed process has left.
                shutil.rmtree(hidden / name, ignore_errors=True)
                (hidden / name).mkdir()
                store = SQLiteStore(hidden / name)
                with closing(store), store.database.writing():
                    store.create_tables()
                    yield store
                durable.sync_folder(hidden / name)
                if not self.reserve(name):
                    raise taken(name)
                # Atomic: it takes the place of the empty folder.
                (hidden / name).rename(self._root / name)
                durable.sync_folder(self._root)
            finally:
                shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Be the one that fills a folder within the `with` block."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CorpusError(
                "another corpus is being copied to that folder: try again once it is there"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _meta_of(folder: Path) -> dict[str, str]:
    try:
        store = SQLiteStore(folder)
    except CorpusError:
        return {}
    try:
        return store.meta()
    except CorpusError:
        return {}
    finally:
        store.close()


def _state_of(folder: Path) -> _State | None:
    """What every change of a corpus's database changes; None if the next change may not, since
    file times are only so precise.
    """
    state: list[tuple[int, ...]] = []
    for file in (folder / FILE, folder / f"{FILE}-wal"):
        try:
            status = file.stat()
        except FileNotFoundError:
            continue
        if time.time() - status.st_mtime < _SETTLED_SECONDS:
            return None
        state.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(state)
