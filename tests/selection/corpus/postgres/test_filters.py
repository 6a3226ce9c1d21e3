"""Filters in PostgreSQL: it finds what plain Python finds, and user input never becomes SQL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selection.corpus.filters import Filter
from selection.corpus.postgres.filters import fields_of, to_postgres
from tests.selection.corpus.test_filters import FILTERS, METADATA, ODD, Metadata, nested, passes

_MANY = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def connection(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE TEMP TABLE found (id integer PRIMARY KEY, fields jsonb)")
        yield connection


def found(
    connection: psycopg.Connection[Any], filter: Filter, documents: Sequence[Metadata]
) -> list[int]:
    """The documents that PostgreSQL finds, by position."""
    condition, values = to_postgres(filter, "d.fields")
    rows = [(i, json.dumps(fields_of(metadata))) for i, metadata in enumerate(documents)]
    connection.execute("TRUNCATE found")
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO found VALUES (%s, %s)", rows)
    query = f"SELECT d.id FROM found d WHERE {condition} ORDER BY d.id"
    return [row[0] for row in connection.execute(query, values).fetchall()]


@_MANY
@given(FILTERS, st.lists(METADATA, max_size=5))
def test_postgres_finds_what_python_finds(
    connection: psycopg.Connection[Any], filter: Filter, documents: list[Metadata]
) -> None:
    expected = [i for i, metadata in enumerate(documents) if passes(filter, metadata)]

    assert found(connection, filter, documents) == expected


@pytest.mark.parametrize("odd", [*ODD, "%s", "%(f0)s", "x'); DROP TABLE found; --"])
def test_unusual_keys_and_values_match_only_themselves(
    connection: psycopg.Connection[Any], odd: str
) -> None:
    documents: list[Metadata] = [{odd: "x"}, {"key": odd}, {"key": "x"}, {f"{odd}!": "x"}]

    def find(**filter: Any) -> list[int]:
        return found(connection, filter, documents)

    assert find(type="eq", key=odd, value="x") == [0]
    assert find(type="eq", key="key", value=odd) == [1]
    assert find(type="in", key="key", value=[odd, "y"]) == [1]
    assert find(type="lte", key="key", value=odd) == ([1, 2] if odd >= "x" else [1])


@pytest.mark.parametrize(
    "value",
    [1e20, -1e20, 1.7976931348623157e308, 2**63 - 1, 2.0**62, 2.0**63, 5e-324, 0.1 + 0.2, -0.0],
)
def test_any_finite_number_can_be_compared(
    connection: psycopg.Connection[Any], value: float
) -> None:
    documents: list[Metadata] = [{"n": value}, {"n": 1}, {"n": str(value)}]

    assert found(connection, {"type": "eq", "key": "n", "value": value}, documents) == [0]


def test_a_number_is_compared_as_it_is_and_not_as_it_is_written(
    connection: psycopg.Connection[Any],
) -> None:
    # As a decimal number, the shortest form of this float is another integer.
    assert str(2.0**62) == "4.611686018427388e+18"

    assert found(connection, {"type": "eq", "key": "n", "value": 2**62}, [{"n": 2.0**62}]) == [0]
    assert found(connection, {"type": "gt", "key": "n", "value": 2.0**62}, [{"n": 2**62}]) == []


@pytest.mark.parametrize(
    "filter",
    [
        {"type": "eq", "key": "a", "value": "\0"},
        {"type": "in", "key": "a\0", "value": ["b"]},
        {"type": "gt", "key": "a", "value": "b\0"},
    ],
)
def test_a_filter_with_a_character_that_postgres_cannot_store_is_refused(filter: Filter) -> None:
    with pytest.raises(ValueError, match=r"must not contain the character U\+0000"):
        to_postgres(filter, "fields")


def test_an_escape_that_only_looks_like_that_character_is_not(
    connection: psycopg.Connection[Any],
) -> None:
    filter = {"type": "eq", "key": "a", "value": "\\u0000"}

    assert found(connection, filter, [{"a": "\\u0000"}, {"a": "u0000"}]) == [0]


@pytest.mark.parametrize("filter", [nested(8), {"type": "in", "key": "n", "value": [*range(901)]}])
def test_limits_are_those_of_all_filters(filter: Filter) -> None:
    with pytest.raises(ValueError, match="at most"):
        to_postgres(filter, "fields")
