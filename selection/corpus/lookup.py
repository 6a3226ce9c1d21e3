"""Lookup: which folder holds the corpus of a name, an id or a display name."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from selection.access import OPERATOR, Principal
from selection.corpus.sqlite_store import SQLiteStore
from selection.corpus.tables.database import FILE
from selection.errors import CorpusError, CorpusNotFoundError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ID = re.compile(r"vs_[0-9a-f]{24}")
# Seconds after which a further change of a file gives it another time, on any file system.
_SETTLED_SECONDS = 2.0

_State: TypeAlias = tuple[tuple[int, ...], ...]


def check_name(name: str) -> None:
    """Refuse an invalid name of a corpus.

    Raises:
        CorpusError: it contains other characters, or is too long.
    """
    if not NAME.fullmatch(name):
        raise CorpusError(
            f"{name!r} is not a corpus name: use letters, digits, '.', '_' and '-', 64 at most"
        )


def list_corpora(root: Path) -> list[str]:
    """Names of the corpora under a folder, sorted."""
    return sorted(path.parent.name for path in root.glob(f"*/{FILE}"))


def find_corpus(root: Path, name: str, principal: Principal = OPERATOR) -> Path:
    """The folder of a corpus: the one of that name, else the one with that id, else the only one
    with that display name.

    Args:
        root: folder of all corpora.
        name: its name, its id or its display name.
        principal: corpora that they do not see are ignored.

    Raises:
        CorpusNotFoundError: no such corpus.
        CorpusError: several corpora have that display name.
    """
    named = root / name
    exists = NAME.fullmatch(name) and (named / FILE).is_file()
    if exists and (principal.corpora is None or principal.sees(name, _meta_of(named))):
        return named
    visible: list[str] = []
    displayed: list[Path] = []
    for folder in (root / each for each in list_corpora(root)):
        meta = _meta_of(folder)
        if not principal.sees(folder.name, meta):
            continue
        if meta.get("id") == name:
            return folder
        if meta.get("name") == name:
            displayed.append(folder)
        visible.append(folder.name)
    if len(displayed) > 1:
        raise CorpusError(f"{len(displayed)} corpora are called {name!r}: name one by its id")
    if not displayed:
        others = ", ".join(visible) or "none yet"
        raise CorpusNotFoundError(
            f"there is no corpus {name!r} (existing corpora: {others}); create one with `mayfly "
            "corpus add`"
        )
    return displayed[0]


class CorpusNames:
    """The names by which corpora are found; opens only those that have changed since the last call.

    Args:
        root: folder of all corpora.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        # By folder, the state of a corpus's files and its metadata in that state.
        self._known: Mapping[str, tuple[_State, dict[str, str]]] = {}

    def of(self, principal: Principal = OPERATOR) -> dict[str, str]:
        """By folder, the name by which `find_corpus` finds each corpus that the principal sees: its
        display name, which owners choose freely, or its id where that name finds another corpus or
        several.
        """
        metas = self._metas()
        seen = {name: meta for name, meta in metas.items() if principal.sees(name, meta)}
        taken = Counter(meta.get("name") for meta in seen.values())
        taken.update([*seen, *(meta.get("id") for meta in seen.values())])
        names = {}
        for folder, meta in seen.items():
            name = meta.get("name", folder)
            names[folder] = meta["id"] if name != folder and taken[name] > 1 else name
        return names

    def _metas(self) -> dict[str, dict[str, str]]:
        """The metadata of each corpus by its folder."""
        known, metas = {}, {}
        for name in list_corpora(self._root):
            folder = self._root / name
            state = _state_of(folder)
            then, meta = self._known.get(name, (None, {}))
            if state is None or state != then:
                meta = _meta_of(folder)
            if state is not None:
                known[name] = state, meta
            metas[name] = meta
        # Replaced as a whole, since several threads may call.
        self._known = known
        return metas


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
