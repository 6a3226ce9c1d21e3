"""FolderCorpora: the corpora in one folder, each in a folder of its own with a SQLite database."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from selection.corpus.positions import Tombstones
from selection.corpus.sqlite_store import SQLiteStore
from selection.corpus.tables.database import FILE
from selection.errors import CorpusError

# Seconds after which a further change of a file gives it another time, on any file system.
_SETTLED_SECONDS = 2.0

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
        return sorted(path.parent.name for path in self._root.glob(f"*/{FILE}"))

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
