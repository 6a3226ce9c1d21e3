"""Which windows are looked at where there are more than can be: the ends of prompts first, evenly,
never silently.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selection.targets import Truncation, allocate_windows, evenly_spaced


@pytest.mark.parametrize(
    ("windows", "most", "used"),
    [
        ([1, 4, 2], 8, [1, 4, 2]),  # there is room for all
        ([4, 4], 5, [2, 3]),  # the last of each, the last but one of each, then as far as it goes
        ([1, 4, 1], 4, [1, 2, 1]),
        ([2, 2, 2, 2], 6, [2, 1, 1, 2]),  # at equal distances
        ([1, 1, 1], 2, [1, 0, 1]),
        ([], 3, []),
    ],
)
def test_the_last_windows_come_first(windows: list[int], most: int, used: list[int]) -> None:
    assert allocate_windows(windows, most) == used


@given(st.lists(st.integers(1, 4), max_size=80), st.integers(1, 64))
def test_as_many_windows_are_used_as_there_is_room_for(windows: list[int], most: int) -> None:
    used = allocate_windows(windows, most)

    assert sum(used) == min(sum(windows), most)
    assert all(0 <= mine <= there for mine, there in zip(used, windows, strict=True))
    # No prompt has two windows more in use than one that has as many.
    assert all(
        used[i] >= min(used[j] - 1, windows[i])
        for i in range(len(windows))
        for j in range(len(windows))
    )


@given(st.integers(0, 3000), st.integers(1, 100))
def test_items_at_equal_distances(count: int, most: int) -> None:
    chosen = evenly_spaced(range(count), most)

    assert len(chosen) == min(count, most)
    assert chosen == sorted(set(chosen))
    gaps = {later - earlier for earlier, later in itertools.pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    if count and most > 1:
        assert (chosen[0], chosen[-1]) == (0, count - 1)


def test_a_report_says_what_was_left_out() -> None:
    assert Truncation(64, 2048, "prompts").as_dict() == {"used": 64, "of": 2048, "unit": "prompts"}
