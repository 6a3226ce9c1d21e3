"""PostgresCorpora: the corpora in one PostgreSQL database, as
`selection.corpus.stores.folder.FolderCorpora` has those of a folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString

from selection.corpus.positions import Position, position_in_id
from selection.corpus.postgres.connections import ANSWER_SECONDS, pool_of
from selection.corpus.postgres.errors import translated
from selection.corpus.postgres.store import PostgresStore
from selection.location import DatabaseLocation


class PostgresCorpora:
    """The corpora in a database.

    Every method raises CorpusError if it cannot be used.
    """

    def __init__(self, location: DatabaseLocation) -> None:
        self._location = location

    @property
    def tombstones(self) -> IdsAsTombstones:
        """Records of removed corpora."""
        return IdsAsTombstones()

    def names(self) -> list[str]:
        """Names of the corpora, sorted."""
        # One without metadata is only a name that was taken.
        rows = self._rows(
            "SELECT name FROM corpora WHERE meta <> '{}' ORDER BY name", {}, ANSWER_SECONDS
        )
        return [row[0] for row in rows]

    def holds(self, name: str) -> bool:
        """Whether there is a corpus of that name."""
        query: LiteralString = "SELECT 1 FROM corpora WHERE meta <> '{}' AND name = %(name)s"
        return bool(self._rows(query, {"name": name}, ANSWER_SECONDS))

    def metas(self, names: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
        """Name and metadata of each of these corpora; no metadata of one that is missing."""
        wanted = [*names]
        rows = self._rows(
            "SELECT name, meta, generation FROM corpora WHERE name = ANY(%(names)s)",
            {"names": wanted},
            ANSWER_SECONDS,
        )
        found = {
            name: {**meta, "generation": str(generation)} for name, meta, generation in rows if meta
        }
        yield from ((name, found.get(name, {})) for name in wanted)

    def with_adapter(self) -> list[str]:
        """Names of the corpora that have an adapter, sorted, whatever its state."""
        rows = self._rows(
            "SELECT c.name FROM corpora c JOIN adapter_manifests m ON m.corpus = c.id "
            "WHERE m.kind = 'adapter' ORDER BY c.name",
            {},
            ANSWER_SECONDS,
        )
        return [row[0] for row in rows]

    def reserve(self, name: str) -> bool:
        """Take the name for a new corpus; False if it is taken."""
        return bool(
            self._rows(
                "INSERT INTO corpora (name) VALUES (%(name)s) ON CONFLICT DO NOTHING "
                "RETURNING name",
                {"name": name},
            )
        )

    def release(self, name: str) -> None:
        """Give up a name that `reserve` took."""
        self._rows(
            "DELETE FROM corpora WHERE name = %(name)s AND meta = '{}' RETURNING name",
            {"name": name},
        )

    def clean_cache(self) -> None:
        """Delete the folders that this machine has of corpora that were removed elsewhere.

        Raises:
            CorpusError: the database cannot be used; nothing was deleted.
        """
        if folders := [*filter(_is_derived, self._location.cache.glob("*"))]:
            rows = self._rows("SELECT name FROM corpora", {}, ANSWER_SECONDS)
            for folder in folders:
                if (folder.name,) not in rows:
                    shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def receiving(self, name: str) -> Iterator[PostgresStore]:
        """As `Corpora.receiving`: one transaction of the database."""
        store = PostgresStore(self._location / name)
        with store.database.creating():
            yield store

    def _rows(
        self,
        query: LiteralString,
        values: Mapping[str, Any],
        answer_seconds: float | None = None,
    ) -> list[Any]:
        pool = pool_of(self._location)
        with translated(self._location), pool.connection(answer_seconds) as connection:
            return connection.execute(query, values).fetchall()


def _is_derived(folder: Path) -> bool:
    """Whether a folder has an index and nothing else: it may be one that is not Mayfly's."""
    names = {path.name for path in folder.glob("*")}
    return "index.lock" in names and all(name.startswith("index") for name in names)


class IdsAsTombstones:
    """The positions of removed corpora, which their ids contain; those that versions before
    PostgreSQL made at random have none.
    """

    def record(self, prefix: str, deleted: Mapping[str, str]) -> None:
        """Nothing to do."""

    def position(
        self, identity: str, prefix: str, is_visible: Callable[[Mapping[str, str]], bool]
    ) -> Position | None:
        """The position of a removed corpus."""
        return position_in_id(identity, prefix)
