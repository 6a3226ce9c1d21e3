"""Pages of lists."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selection.catalogue import Part
from selection.uploads import LibraryError


@given(st.integers(0, 30), st.integers(1, 12), st.sampled_from(["asc", "desc"]))
def test_pages_hold_every_item_once_and_in_order_both_ways(count: int, limit: int, order: str) -> None:
    oldest_first = [f"id{i}" for i in range(count)]
    expected = oldest_first if order == "asc" else oldest_first[::-1]

    forwards: list[str] = []
    pages = []
    more = True
    while more:
        page = Part(limit, order, after=forwards[-1] if forwards else None).of(oldest_first, str)
        forwards += page.items
        pages.append(page.items)
        more = page.more

    assert forwards == expected
    assert all(len(items) == limit for items in pages[:-1])
    for previous, items in itertools.pairwise(pages):
        back = Part(limit, order, before=items[0]).of(oldest_first, str)
        assert (back.items, back.more) == (previous, previous is not pages[0])


def test_between_two_cursors_lies_what_is_between_them() -> None:
    items = [f"id{i}" for i in range(10)]

    assert Part(5, "asc", after="id2", before="id5").of(items, str).items == ("id3", "id4")
    assert Part(1, "desc", after="id5", before="id2").of(items, str) == Part(1, "desc", after="id5").of(items[3:], str)
    with pytest.raises(LibraryError, match="'gone'"):
        Part(after="gone").of(items, str)
