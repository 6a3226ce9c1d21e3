"""Which windows are used when there are too many: the ends of prompts first, at equal distances."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selection.targets import Truncation, allocate_windows, evenly_spaced


@pytest.mark.parametrize(
    ("windows", "maximum", "used"),
    [
        ([1, 4, 2], 8, [1, 4, 2]),  # all fit
        ([4, 4], 5, [2, 3]),  # the last of each, the last but one of each, then one more
        ([1, 4, 1], 4, [1, 2, 1]),
        ([2, 2, 2, 2], 6, [2, 1, 1, 2]),  # at equal distances
        ([1, 1, 1], 2, [1, 0, 1]),
        ([], 3, []),
    ],
)
def test_the_last_windows_come_first(windows: list[int], maximum: int, used: list[int]) -> None:
    assert allocate_windows(windows, maximum) == used


@given(st.lists(st.integers(1, 4), max_size=80), st.integers(1, 64))
def test_as_many_windows_are_used_as_fit(windows: list[int], maximum: int) -> None:
    used = allocate_windows(windows, maximum)

    assert sum(used) == min(sum(windows), maximum)
    assert all(0 <= count <= total for count, total in zip(used, windows, strict=True))
    # No prompt uses two windows more than another one with as many.
    assert all(
        used[i] >= min(used[j] - 1, windows[i])
        for i in range(len(windows))
        for j in range(len(windows))
    )


@given(st.integers(0, 3000), st.integers(1, 100))
def test_items_are_evenly_spaced(count: int, maximum: int) -> None:
    chosen = evenly_spaced(range(count), maximum)

    assert len(chosen) == min(count, maximum)
    assert chosen == sorted(set(chosen))
    gaps = {later - earlier for earlier, later in itertools.pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    if count and maximum > 1:
        assert (chosen[0], chosen[-1]) == (0, count - 1)


def test_a_truncation_as_the_report_gives_it() -> None:
    assert Truncation(64, 2048, "prompts").as_dict() == {"used": 64, "of": 2048, "unit": "prompts"}
