"""Rows: which tokens are scored, and which ranges are refused."""

from __future__ import annotations

import pytest

from adapters.errors import TrainingOptionError
from adapters.model.row import Row, Spans, check_spans


def test_without_ranges_all_tokens_but_the_first_are_scored() -> None:
    row = Row.of([5, 6, 7, 8])

    assert row == Row.of((5, 6, 7, 8), ((1, 4),))
    assert (len(row), row.scored_tokens) == (4, 3)
    assert Row.of(range(12), ((1, 2), (5, 12))).scored_tokens == 8


@pytest.mark.parametrize("scored", [((1, 12),), ((11, 12),), ((1, 2), (2, 3), (7, 12))])
def test_valid_ranges_are_accepted(scored: Spans) -> None:
    check_spans(scored, 12)


@pytest.mark.parametrize(
    ("scored", "message"),
    [
        ((), "no scored tokens to learn from"),
        (((0, 3),), r"cannot score tokens \[0, 3\) of a sequence of 12"),
        (((-3, 3),), r"tokens \[-3, 3\)"),
        (((4, 4),), r"tokens \[4, 4\)"),
        (((5, 4),), r"tokens \[5, 4\)"),
        (((3, 13),), r"tokens \[3, 13\)"),
        (((12, 13),), r"tokens \[12, 13\)"),
        (((1, 4), (3, 6)), r"tokens \[3, 6\) .* here lies within \[4, 12\)"),
        (((5, 6), (2, 3)), r"tokens \[2, 3\)"),
    ],
)
def test_invalid_ranges_are_refused(scored: Spans, message: str) -> None:
    with pytest.raises(TrainingOptionError, match=message):
        check_spans(scored, 12)
