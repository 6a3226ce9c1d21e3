"""Places: opens the corpora of a location, and the store of the corpus at a place."""

from __future__ import annotations

from selection.corpus.sqlite_store import SQLiteStore
from selection.corpus.stores.folder import FolderCorpora
from selection.corpus.stores.protocols import Corpora, CorpusStore
from selection.location import Location, Place


def corpora_at(location: Location) -> Corpora:
    """The corpora at a location."""
    return FolderCorpora(location)


def open_store(place: Place) -> CorpusStore:
    """Open the store of the corpus at a place.

    Raises:
        CorpusError: it cannot be opened.
    """
    return SQLiteStore(place)


def make_place(place: Place) -> None:
    """Make sure that a corpus can be created at a place."""
    place.mkdir(parents=True, exist_ok=True)
