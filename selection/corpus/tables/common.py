"""What a corpus in SQLite and one in PostgreSQL have in common: a database with transactions and
metadata, and what its store and its tables do with these alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Generic, Protocol, TypeVar

from selection.errors import CorpusError


class CorpusDatabase(Protocol):
    """As `tables.database.Database`."""

    @property
    def name(self) -> str:
        """Name of the corpus."""

    @property
    def is_in_place(self) -> bool:
        """Whether the corpus was neither removed nor replaced since it was opened."""

    def writing(self) -> AbstractContextManager[None]:
        """One transaction that changes something."""

    def reading(self) -> AbstractContextManager[None]:
        """One consistent state, whatever others write in the meantime."""

    def meta(self) -> dict[str, str]:
        """The corpus's metadata."""

    def update_meta(self, changes: Mapping[str, str]) -> None:
        """Add or replace entries of the metadata, within `writing`."""

    def unusable(self, why: str) -> CorpusError:
        """The error for a corpus that cannot be used."""


AnyDatabase = TypeVar("AnyDatabase", bound=CorpusDatabase)


class DatabaseTable(Generic[AnyDatabase]):
    """A table of one corpus."""

    def __init__(self, database: AnyDatabase) -> None:
        self._database = database


class DatabaseStore(Generic[AnyDatabase]):
    """What the store of one corpus leaves to its database."""

    def __init__(self, database: AnyDatabase) -> None:
        self.database, self.name = database, database.name

    @property
    def is_in_place(self) -> bool:
        """As `Database.is_in_place`."""
        return self.database.is_in_place

    def unusable(self, why: str) -> CorpusError:
        """As `Database.unusable`."""
        return self.database.unusable(why)

    def reading(self) -> AbstractContextManager[None]:
        """As `Database.reading`."""
        return self.database.reading()

    def meta(self) -> dict[str, str]:
        """As `Database.meta`."""
        return self.database.meta()

    def update_meta(self, changes: Mapping[str, str]) -> None:
        """Add or replace entries of the corpus's metadata."""
        with self.database.writing():
            self.database.update_meta(changes)
