"""Filters by a document's metadata, in the grammar of OpenAI's vector stores, as SQL.

    {"type": "eq", "key": "language", "value": "de"}             eq ne gt gte lt lte in nin
    {"type": "and", "filters": [{...}, {...}]}                   and or

A document without the key matches only `ne` and `nin`. Numbers are compared with numbers, strings
with strings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

Filter: TypeAlias = dict[str, Any]
Scalar: TypeAlias = str | int | float | bool

_COMPARED = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_NUMBER = "f.type IN ('integer', 'real')"
_DEPTH = 8
# SQLite refuses conditions of 1000 terms.
_PARAMETERS = 900


class Dialect(Protocol):
    """How a database compares what a column of JSON objects contains.

    Each method returns a condition that is true or false, with `?` for each of its parameters, and
    the parameters.
    """

    def one_of(self, column: str, key: str, values: Sequence[Scalar]) -> tuple[str, list[Scalar]]:
        """The value of a key is one of these."""

    def compares(
        self, column: str, key: str, operator: str, value: Scalar
    ) -> tuple[str, list[Scalar]]:
        """The value of a key is of the kind of this one, a string or a number, and compares to it
        by an operator of SQL.
        """


class _SQLiteDialect:
    """Conditions on a text column."""

    # json_each takes the key as a parameter; a JSON path would need quoting.
    def one_of(self, column: str, key: str, values: Sequence[Scalar]) -> tuple[str, list[Scalar]]:
        """Not nested, because SQLite refuses deep conditions."""
        booleans = sorted(
            {f"'{str(value).lower()}'" for value in values if isinstance(value, bool)}
        )
        texts = [value for value in values if isinstance(value, str)]
        numbers = [value for value in values if not isinstance(value, bool | str)]
        marks, more_marks = ", ".join("?" * len(texts)), ", ".join("?" * len(numbers))
        return self._found(
            column,
            f"(f.type IN ({', '.join(booleans)}) OR (f.type = 'text' AND f.atom IN ({marks}))"
            f" OR ({_NUMBER} AND f.atom IN ({more_marks})))",
        ), [key, *texts, *numbers]

    def compares(
        self, column: str, key: str, operator: str, value: Scalar
    ) -> tuple[str, list[Scalar]]:
        """As `Dialect.compares`."""
        types = "f.type = 'text'" if isinstance(value, str) else _NUMBER
        return self._found(column, f"{types} AND f.atom {operator} ?"), [key, value]

    @staticmethod
    def _found(column: str, test: str) -> str:
        return f"EXISTS (SELECT 1 FROM json_each({column}) AS f WHERE f.key = ? AND {test})"  # noqa: S608


_SQLITE = _SQLiteDialect()


def to_sql(
    filter: Filter, column: str = "metadata", dialect: Dialect = _SQLITE
) -> tuple[str, list[Scalar]]:
    """An SQL condition on a column of JSON objects, and its parameters.

    Raises:
        ValueError: an invalid filter; the message says what is wrong.
    """
    condition, parameters = _node(filter, column, dialect, _DEPTH)
    if len(parameters) > _PARAMETERS:
        raise ValueError(f"a filter has at most {_PARAMETERS} keys and values")
    return condition, parameters


def _node(filter: Any, column: str, dialect: Dialect, depth: int) -> tuple[str, list[Scalar]]:
    if not isinstance(filter, dict) or depth == 0:
        raise ValueError(
            'a filter is an object such as {"type": "eq", "key": "language", "value": "de"}, '
            "nested at most 8 deep"
        )
    kind = filter.get("type")
    if kind in ("and", "or"):
        operands = filter.get("filters")
        if not isinstance(operands, list) or not operands or set(filter) != {"type", "filters"}:
            raise ValueError(
                f"a filter of type {kind!r} has `filters`, a list of filters, and nothing else"
            )
        nodes = [_node(operand, column, dialect, depth - 1) for operand in operands]
        return f"({f' {kind.upper()} '.join(sql for sql, _ in nodes)})", [
            value for _, values in nodes for value in values
        ]
    if set(filter) != {"type", "key", "value"} or not isinstance(filter["key"], str):
        raise ValueError("a filter that compares has `type`, `key` (a string) and `value`")
    return _comparison(kind, _text(filter["key"]), filter["value"], column, dialect)


def _comparison(
    kind: Any, key: str, value: Any, column: str, dialect: Dialect
) -> tuple[str, list[Scalar]]:
    if kind in ("eq", "ne", "in", "nin"):
        several = kind in ("in", "nin")
        if several and not (isinstance(value, list) and value):
            raise ValueError(f"a filter of type {kind!r} has a list of values")
        values = [_scalar(each) for each in (value if several else [value])]
        sql, parameters = dialect.one_of(column, key, values)
        return (f"NOT {sql}" if kind in ("ne", "nin") else sql), parameters
    if isinstance(kind, str) and kind in _COMPARED:
        if isinstance(value, bool):
            raise ValueError("true and false can only be compared with eq, ne, in and nin")
        return dialect.compares(column, key, _COMPARED[kind], _scalar(value))
    raise ValueError(
        f"unknown filter type {kind!r}: use eq, ne, gt, gte, lt, lte, in, nin, and, or"
    )


def _text(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("the keys and values of a filter must be Unicode text")
    # No stored text contains it, and PostgreSQL cannot compare with it.
    if "\0" in text:
        raise ValueError("the keys and values of a filter must not contain the character U+0000")
    return text


def _scalar(value: Any) -> Scalar:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and abs(value) < (
        1 << 63 if isinstance(value, int) else math.inf
    ):
        return value
    raise ValueError(
        "a filter compares with a string, true, false, or a number that is finite and below 2^63"
    )
