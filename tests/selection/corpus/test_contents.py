"""The digest of a corpus's contents tells any two contents apart."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

import pytest

from selection.corpus.contents import TABLES, Contents, Row


def contents_of(tables: Mapping[str, list[Row]], advanced: list[int] | None = None) -> Contents:
    def consume(table: str, rows: Iterator[Row]) -> None:
        deque(rows, maxlen=0)

    counts = [] if advanced is None else advanced
    return Contents.of(lambda table: tables.get(table, []), counts.append, consume)


def test_equal_contents_have_one_digest() -> None:
    rows: list[Row] = [(1, "a", None, b"\0"), (2, "", 3, b"")]

    first, second = (contents_of({"documents": [*rows]}) for _ in range(2))

    assert first == second
    assert first.sha256 == second.sha256
    assert first.difference(second) is None
    assert first.tables["documents"].rows == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([("ab", "c")], [("a", "bc")]),
        ([("a",), ("b",)], [("a", "b")]),
        ([("1",)], [(1,)]),
        ([("a",)], [(b"a",)]),
        ([(None,)], [("",)]),
        ([(1,), (2,)], [(2,), (1,)]),
        ([(12,)], [(1, 2)]),
        ([], [(None,)]),
    ],
)
def test_different_rows_have_different_digests(first: list[Row], second: list[Row]) -> None:
    contents = [contents_of({"removed": rows}) for rows in (first, second)]

    assert contents[0].difference(contents[1]) == "removed"
    assert contents[0].sha256 != contents[1].sha256


def test_rows_of_another_table_are_different_contents() -> None:
    first, second = (contents_of({table: [(1, "a")]}) for table in ("batches", "detached"))

    assert first.difference(second) == "batches"
    assert {*first.tables} == {*TABLES}


def test_progress_counts_sequences_only() -> None:
    advanced: list[int] = []

    contents_of({"sequences": [(i,) for i in range(1203)], "removed": [(1, 1)]}, advanced)

    assert (sum(advanced), max(advanced)) == (1203, 500)
