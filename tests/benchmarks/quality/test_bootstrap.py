"""Bootstrap intervals."""

from __future__ import annotations

import pytest

from benchmarks.quality.bootstrap import interval, paired_means
from benchmarks.quality.passages import Passage
from tests.benchmarks.quality.samples import measurements


def test_groups_are_drawn_whole() -> None:
    assert interval([1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"]) == (2.0, 1.0, 5.0)


def test_settings_are_compared_on_the_passages_that_both_measured() -> None:
    rows = [*measurements("first", 80.0), *measurements("other", 90.0)[:3]]
    passages = [Passage("any", f"document {n}", 0, (), "", "") for n in range(1, 4)]

    result = paired_means(rows, passages, "first", (10, 50))

    assert result["first"]["50"]["passages"] == 3
    assert result["first"]["50"]["percent_of_base"] == pytest.approx((80.0, 80.0, 80.0))
    assert result["first"]["50"]["difference"] is None
    assert result["other"]["50"]["passages"] == 2
    assert result["other"]["50"]["difference"] == pytest.approx((10.0, 10.0, 10.0))
    assert result["other"]["10"]["difference"] == pytest.approx((2.0, 2.0, 2.0))
