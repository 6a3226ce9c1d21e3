"""Filters by a document's metadata as SQL for PostgreSQL: on a jsonb column, some of it by its
index.

Numbers are compared as decimal numbers of any size, so a number beyond 2^53 that is stored as a
float must be stored as the integer that it is (`fields_of`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from selection.corpus.filters import Filter, Scalar, to_sql


class _PostgresDialect:
    """Conditions on a jsonb column."""

    def one_of(self, column: str, key: str, values: Sequence[Scalar]) -> tuple[str, list[Scalar]]:
        """The value of a key is one of these."""
        # Each of them can be looked up in the index.
        return (
            f"({' OR '.join([f'{column} @> ?::jsonb'] * len(values))})",
            [json.dumps(fields_of({key: value})) for value in values],
        )

    def compares(
        self, column: str, key: str, operator: str, value: Scalar
    ) -> tuple[str, list[Scalar]]:
        """The value of a key is of the kind of this one, and so compared to it."""
        if isinstance(value, str):
            kind, found, cast = "string", f'({column} ->> ?::text) COLLATE "C"', "text"
        else:
            kind, found, cast = "number", f"({column} -> ?::text)", "jsonb"
            value = json.dumps(_exact(value))
        return (
            f"COALESCE(jsonb_typeof({column} -> ?::text) = '{kind}' "
            f"AND {found} {operator} ?::{cast}, false)"
        ), [key, key, value]


def to_postgres(filter: Filter, column: str) -> tuple[str, dict[str, Scalar]]:
    """An SQL condition on a jsonb column, and its parameters by name.

    Raises:
        ValueError: an invalid filter.
    """
    condition, values = to_sql(filter, column, _PostgresDialect())
    first, *others = condition.split("?")
    named = first + "".join(f"%(f{i})s{part}" for i, part in enumerate(others))
    return named, {f"f{i}": value for i, value in enumerate(values)}


def fields_of(metadata: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Metadata as it is compared."""
    return {key: _exact(value) for key, value in metadata.items()}


def _exact(value: Scalar) -> Scalar:
    return int(value) if isinstance(value, float) and value.is_integer() else value
