"""Lookup: which folder holds the corpus of a name, an id or a display name."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from selection.access import OPERATOR, Principal
from selection.corpus.sqlite_store import SQLiteStore
from selection.corpus.tables.database import FILE
from selection.errors import CorpusError, CorpusNotFoundError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ID = re.compile(r"vs_[0-9a-f]{24}")


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


def names_of(root: Path, principal: Principal = OPERATOR) -> dict[str, str]:
    """By folder, the name by which `find_corpus` finds each corpus that the principal sees: its
    display name, which owners choose freely, or its id where that name finds another corpus or
    several.
    """
    metas = {name: _meta_of(root / name) for name in list_corpora(root)}
    seen = {name: meta for name, meta in metas.items() if principal.sees(name, meta)}
    taken = Counter(meta.get("name") for meta in seen.values())
    taken.update([*seen, *(meta.get("id") for meta in seen.values())])
    names = {}
    for folder, meta in seen.items():
        name = meta.get("name", folder)
        names[folder] = meta["id"] if name != folder and taken[name] > 1 else name
    return names


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
