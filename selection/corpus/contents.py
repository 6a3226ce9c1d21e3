"""Contents: what a corpus consists of, as tables that are the same in every store.

A store derives more from them, such as counts and indexes, which is not part of the content. Nor
are the new embeddings of an interrupted re-embedding, and the `uuid` that the metadata of each copy
has to itself: what is derived from one copy must not be used for another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from selection.errors import CorpusError

Value: TypeAlias = int | str | bytes | None
Row: TypeAlias = tuple[Value, ...]

# In an order in which no row refers to a later one; rows are ordered by their first columns.
TABLES = (
    "meta",  # key, value
    "batches",  # id, cancelled (0 or 1), created
    # number, batch, file, name, attributes, max_length, overlap, status, code, message
    "batch_files",
    # number, id, attached, name, attributes, max_length, overlap, batch, status, code, message
    "attachments",
    "detached",  # kind, number, added, id
    "documents",  # id, name, sha256, metadata, file, added
    # id, document, start, text, tokens (int32), embedding (float32), example, scored
    "sequences",
    "removed",  # sequence, generation
    "counters",  # "documents" or "sequences", the largest id that was ever given
)
_PROGRESS_ROWS = 500


@dataclass(frozen=True)
class TableDigest:
    """The number of rows of a table, and the SHA-256 of all of them."""

    rows: int
    sha256: str


@dataclass(frozen=True)
class Contents:
    """The digest of each table of a corpus."""

    tables: Mapping[str, TableDigest]

    @classmethod
    def of(
        cls,
        export: Callable[[str], Iterable[Row]],
        advance: Callable[[int], None],
        consume: Callable[[str, Iterator[Row]], None],
    ) -> Contents:
        """Digests of all tables.

        Args:
            export: the rows of a table.
            advance: called with a number of sequences that have passed since the last call.
            consume: takes a table and all of its rows.
        """
        tables = {}
        for table in TABLES:
            digest = _Digest(advance if table == "sequences" else lambda count: None)
            rows = export(table)
            try:
                consume(table, digest.of(rows))
            finally:
                # A failure leaves no statement under way, so that its transaction can end.
                if isinstance(rows, Generator):
                    rows.close()
            tables[table] = digest.result()
        return cls(tables)

    @property
    def sha256(self) -> str:
        """One digest of everything."""
        text = " ".join(f"{name} {each.rows} {each.sha256}" for name, each in self.tables.items())
        return hashlib.sha256(text.encode()).hexdigest()

    def difference(self, other: Contents) -> str | None:
        """The name of the first table that differs; None if none does."""
        return next((name for name in TABLES if self.tables[name] != other.tables[name]), None)


def taken(name: str) -> CorpusError:
    """The error for a destination that has a corpus of that name."""
    return CorpusError(
        f"corpus {name!r} was not copied: there is one of that name where it would go; remove that "
        "first"
    )


class _Digest:
    """Digests rows as they pass."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._rows, self._hash, self._advance = 0, hashlib.sha256(), advance

    def of(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The same rows."""
        for row in rows:
            self._hash.update(b"".join(map(_encoded, row)))
            self._rows += 1
            if self._rows % _PROGRESS_ROWS == 0:
                self._advance(_PROGRESS_ROWS)
            yield row
        self._advance(self._rows % _PROGRESS_ROWS)

    def result(self) -> TableDigest:
        """The digest, once all rows have passed."""
        return TableDigest(self._rows, self._hash.hexdigest())


def _encoded(value: Value) -> bytes:
    """A value with its kind and its size, so that no two rows have one encoding."""
    if value is None:
        return b"n"
    if isinstance(value, int):
        return b"i%d;" % value
    kind, content = (b"t", value.encode()) if isinstance(value, str) else (b"b", value)
    return b"%b%d:%b" % (kind, len(content), content)
