"""Filters by a document's metadata, in the grammar of OpenAI's vector stores, as SQL.

    {"type": "eq", "key": "language", "value": "de"}             eq ne gt gte lt lte in nin
    {"type": "and", "filters": [{...}, {...}]}                   and or

A document without the key matches only `ne` and `nin`. Numbers are compared with numbers, strings
with strings.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

Filter: TypeAlias = dict[str, Any]
Scalar: TypeAlias = str | int | float | bool

_COMPARED = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_NUMBER = "f.type IN ('integer', 'real')"
_DEPTH = 8
# SQLite refuses conditions of 1000 terms.
_PARAMETERS = 900


def to_sql(filter: Filter, column: str = "metadata") -> tuple[str, list[Scalar]]:
    """An SQL condition on a column of JSON objects, and its parameters.

    Raises:
        ValueError: an invalid filter; the message says what is wrong.
    """
    condition, parameters = _node(filter, column, _DEPTH)
    if len(parameters) > _PARAMETERS:
        raise ValueError(f"a filter has at most {_PARAMETERS} keys and values")
    if any("\ud800" <= c <= "\udfff" for text in parameters if isinstance(text, str) for c in text):
        raise ValueError("the keys and values of a filter must be Unicode text")
    return condition, parameters


def _node(filter: Any, column: str, depth: int) -> tuple[str, list[Scalar]]:
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
        nodes = [_node(operand, column, depth - 1) for operand in operands]
        return f"({f' {kind.upper()} '.join(sql for sql, _ in nodes)})", [
            value for _, values in nodes for value in values
        ]
    if set(filter) != {"type", "key", "value"} or not isinstance(filter["key"], str):
        raise ValueError("a filter that compares has `type`, `key` (a string) and `value`")
    return _comparison(kind, filter["key"], filter["value"], column)


def _comparison(kind: Any, key: str, value: Any, column: str) -> tuple[str, list[Scalar]]:
    # json_each takes the key as a parameter; a JSON path would need quoting.
    found = f"EXISTS (SELECT 1 FROM json_each({column}) AS f WHERE f.key = ? AND {{}})"  # noqa: S608
    if kind in ("eq", "ne", "in", "nin"):
        several = kind in ("in", "nin")
        if several and not (isinstance(value, list) and value):
            raise ValueError(f"a filter of type {kind!r} has a list of values")
        test, parameters = _any_of(value if several else [value])
        sql = found.format(test)
        return (f"NOT {sql}" if kind in ("ne", "nin") else sql), [key, *parameters]
    if isinstance(kind, str) and kind in _COMPARED:
        if isinstance(value, bool):
            raise ValueError("true and false can only be compared with eq, ne, in and nin")
        types = "f.type = 'text'" if isinstance(_scalar(value), str) else _NUMBER
        return found.format(f"{types} AND f.atom {_COMPARED[kind]} ?"), [key, value]
    raise ValueError(
        f"unknown filter type {kind!r}: use eq, ne, gt, gte, lt, lte, in, nin, and, or"
    )


def _any_of(values: list[Any]) -> tuple[str, list[Scalar]]:
    """Whether the value is one of these; not nested, because SQLite refuses deep conditions."""
    booleans = sorted({f"'{str(value).lower()}'" for value in values if isinstance(value, bool)})
    texts = [value for value in values if isinstance(_scalar(value), str)]
    numbers = [value for value in values if not isinstance(value, bool | str)]
    marks, more_marks = ", ".join("?" * len(texts)), ", ".join("?" * len(numbers))
    return (
        f"(f.type IN ({', '.join(booleans)}) OR (f.type = 'text' AND f.atom IN ({marks}))"
        f" OR ({_NUMBER} AND f.atom IN ({more_marks})))"
    ), [*texts, *numbers]


def _scalar(value: Any) -> Scalar:
    if isinstance(value, str | bool):
        return value
    if isinstance(value, int | float) and abs(value) < (
        1 << 63 if isinstance(value, int) else math.inf
    ):
        return value
    raise ValueError(
        "a filter compares with a string, true, false, or a number that is finite and below 2^63"
    )
