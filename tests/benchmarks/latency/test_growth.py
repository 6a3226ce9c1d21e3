"""Lines through the points of growth curves."""

from __future__ import annotations

import pytest

from benchmarks.latency.growth import fit


def test_a_straight_line_has_no_bend() -> None:
    result = fit(
        [(x, 0.5 + 0.1 * x + wobble) for x in (1, 2, 4, 8, 16) for wobble in (-0.01, 0.0, 0.01)]
    )

    assert result is not None
    assert (result.intercept, result.slope) == pytest.approx((0.5, 0.1), abs=1e-3)
    assert (result.bend, result.slope_before, result.slope_after) == (
        None,
        result.slope,
        result.slope,
    )
    assert (result.least, result.most, result.values, result.requests) == (1, 16, 5, 15)


def test_a_bend_is_found_at_its_place() -> None:
    points = [
        (x, max(1.0, 0.25 * x) + wobble) for x in (1, 2, 4, 8, 16) for wobble in (-0.01, 0.0, 0.01)
    ]

    result = fit(points)

    assert result is not None
    assert result.bend == 4
    assert (result.intercept, result.slope_before, result.slope_after) == pytest.approx(
        (1.0, 0.0, 0.25), abs=0.02
    )


def test_two_values_have_no_bend_and_one_has_no_line() -> None:
    two = fit([(1, 1.0), (4, 2.0), (4, 2.2)])

    assert two is not None
    assert two.bend is None
    assert fit([(4, 1.0), (4, 2.0)]) is None
    assert fit([]) is None
