"""Pages of lists, cursors and deletions."""

from __future__ import annotations

import itertools
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selection.errors import LibraryError
from selection.library.records import Page, PageRequest


def position(item: str) -> tuple[int, ...]:
    return (int(item.removeprefix("id")),)


def page_of(request: PageRequest, items: list[str]) -> Page[str]:
    """A page; cursors are ids of the list, or of items deleted from it."""
    return request.of(
        items, position, lambda cursor: position(cursor) if cursor.startswith("id") else None
    )


@given(st.integers(0, 30), st.integers(1, 12), st.sampled_from(["asc", "desc"]))
def test_pages_contain_every_item_once_in_order_both_ways(
    count: int, limit: int, order: str
) -> None:
    oldest_first = [f"id{i}" for i in range(count)]
    expected = oldest_first if order == "asc" else oldest_first[::-1]

    forwards: list[str] = []
    pages = []
    more = True
    while more:
        page = page_of(
            PageRequest(limit, order, after=forwards[-1] if forwards else None), oldest_first
        )
        forwards += page.items
        pages.append(page.items)
        more = page.more

    assert forwards == expected
    assert all(len(items) == limit for items in pages[:-1])
    for previous, items in itertools.pairwise(pages):
        back = page_of(PageRequest(limit, order, before=items[0]), oldest_first)
        assert (back.items, back.more) == (previous, previous is not pages[0])


def test_a_page_between_two_cursors() -> None:
    items = [f"id{i}" for i in range(10)]

    assert page_of(PageRequest(5, "asc", after="id2", before="id5"), items).items == ("id3", "id4")
    between = page_of(PageRequest(1, "desc", after="id5", before="id2"), items)
    assert between == page_of(PageRequest(1, "desc", after="id5"), items[3:])
    with pytest.raises(LibraryError, match="'unknown' is not in this list"):
        page_of(PageRequest(after="unknown"), items)


@given(
    st.sets(st.integers(0, 30)),
    st.integers(1, 12),
    st.sampled_from(["asc", "desc"]),
    st.sampled_from(["after", "before"]),
    st.sampled_from([1.0, 0.5]),
    st.randoms(use_true_random=False),
)
def test_deletions_while_listing_do_not_move_cursors(
    numbers: set[int], limit: int, order: str, direction: str, share: float, random: Random
) -> None:
    present = [f"id{number}" for number in sorted(numbers)]
    forwards = (order == "asc") == (direction == "after")
    expected = present[:] if forwards else present[::-1]

    seen: list[str] = []
    cursor: str | None = "id-1" if forwards else "id31"
    while cursor is not None:
        request = (
            PageRequest(limit, order, after=cursor)
            if direction == "after"
            else PageRequest(limit, order, before=cursor)
        )
        items = page_of(request, present).items
        items = items if direction == "after" else items[::-1]
        seen += items
        present = [item for item in present if item not in items or random.random() > share]
        cursor = items[-1] if items else None

    assert seen == expected
