"""Places: opens the corpora of a location, and the store of the corpus at a place.

PostgreSQL's client is imported only where a location is a database.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selection.corpus.sqlite_store import SQLiteStore
from selection.corpus.stores.folder import FolderCorpora
from selection.corpus.stores.protocols import Corpora, CorpusStore
from selection.errors import CorpusError
from selection.location import Location, Place


def corpora_at(location: Location) -> Corpora:
    """The corpora at a location.

    Raises:
        CorpusError: PostgreSQL's client is not installed.
    """
    if isinstance(location, Path):
        return FolderCorpora(location)
    with postgres_client():
        from selection.corpus.postgres.corpora import PostgresCorpora
    return PostgresCorpora(location)


def open_store(place: Place) -> CorpusStore:
    """Open the store of the corpus at a place.

    Raises:
        CorpusError: it cannot be opened.
    """
    if isinstance(place, Path):
        return SQLiteStore(place)
    with postgres_client():
        from selection.corpus.postgres.store import PostgresStore
    return PostgresStore(place)


def make_place(place: Place) -> None:
    """Make sure that a corpus can be created at a place."""
    if isinstance(place, Path):
        place.mkdir(parents=True, exist_ok=True)


@contextmanager
def postgres_client() -> Iterator[None]:
    """Say what to do if PostgreSQL's client, which is imported within the `with` block, is missing.

    Raises:
        CorpusError: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as problem:
        if (problem.name or "").partition(".")[0] not in ("psycopg", "psycopg_pool", "pgvector"):
            raise
        raise CorpusError(
            f"corpora in PostgreSQL need the package {problem.name}: pip install 'mayfly-serve["
            "postgres]'"
        ) from problem
