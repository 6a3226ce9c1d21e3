"""Lookup: where the corpus of a name, an id or a display name is."""

from __future__ import annotations

import re
from collections import Counter

from selection.access import OPERATOR, Principal
from selection.corpus.stores.places import corpora_at
from selection.errors import CorpusError, CorpusNotFoundError
from selection.location import Location, Place

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


def list_corpora(root: Location) -> list[str]:
    """Names of the corpora at a location, sorted."""
    return corpora_at(root).names()


def find_corpus(root: Location, name: str, principal: Principal = OPERATOR) -> Place:
    """The place of a corpus: of the one of that name, else the one with that id, else the only one
    with that display name.

    Args:
        root: where all corpora are.
        name: its name, its id or its display name.
        principal: corpora that they do not see are ignored.

    Raises:
        CorpusNotFoundError: no such corpus.
        CorpusError: several corpora have that display name.
    """
    corpora = corpora_at(root)
    if NAME.fullmatch(name) and corpora.holds(name):
        if principal.corpora is None:
            return root / name
        if any(principal.sees(*each) for each in corpora.metas([name])):
            return root / name
    visible: list[str] = []
    displayed: list[str] = []
    for each, meta in corpora.metas(list_corpora(root)):
        if not principal.sees(each, meta):
            continue
        if meta.get("id") == name:
            return root / each
        if meta.get("name") == name:
            displayed.append(each)
        visible.append(each)
    if len(displayed) > 1:
        raise CorpusError(f"{len(displayed)} corpora are called {name!r}: name one by its id")
    if not displayed:
        others = ", ".join(visible) or "none yet"
        raise CorpusNotFoundError(
            f"there is no corpus {name!r} (existing corpora: {others}); create one with `mayfly "
            "corpus add`"
        )
    return root / displayed[0]


class CorpusNames:
    """The names by which corpora are found; opens only those that have changed since the last call.

    Args:
        root: where all corpora are.
    """

    def __init__(self, root: Location) -> None:
        self._corpora = corpora_at(root)

    def of(self, principal: Principal = OPERATOR) -> dict[str, str]:
        """By folder, the name by which `find_corpus` finds each corpus that the principal sees: its
        display name, which owners choose freely, or its id where that name finds another corpus or
        several.
        """
        metas = dict(self._corpora.metas(self._corpora.names()))
        seen = {name: meta for name, meta in metas.items() if principal.sees(name, meta)}
        taken = Counter(meta.get("name") for meta in seen.values())
        taken.update([*seen, *(meta.get("id") for meta in seen.values())])
        names = {}
        for folder, meta in seen.items():
            name = meta.get("name", folder)
            names[folder] = meta["id"] if name != folder and taken[name] > 1 else name
        return names
