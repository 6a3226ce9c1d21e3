"""Diagnostics of the quality tables, from measurements with known results."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.quality import diagnostics, stopping_rules
from tests.benchmarks.quality.samples import measurements


def test_passages_are_grouped_by_number_of_distinct_sequences() -> None:
    sift = [
        replace(row, distinct=10 * number) for number, row in enumerate(measurements("SIFT", 80), 1)
    ]
    nearest = measurements("NN", 85)
    nearest[0] = replace(
        nearest[0],
        bits={n: 0.9 * bits for n, bits in nearest[0].bits.items()} | {"0": nearest[0].base},
    )

    parts = diagnostics.by_distinct(
        {row.passage: row for row in sift}, {row.passage: row for row in nearest}
    )

    assert [part["passages"] for part in parts] == [2, 1, 1]
    assert [part["distinct"] for part in parts] == [[10, 15, 20], [30, 30, 30], [40, 40, 40]]
    assert [part["minus_nn"][0] for part in parts] == pytest.approx(
        [(80 - 0.9 * 85 - 5) / 2, -5, -5]
    )


def test_an_exact_prediction_by_sigma_lies_on_the_line() -> None:
    rows = [
        replace(
            row,
            bits={"0": row.base}
            | {n: 1 + 0.5 * row.sigma[int(n)] * row.base for n in row.bits if n != "0"},
        )
        for row in measurements("SIFT", 80)
    ]

    result = diagnostics.reliability(rows)

    assert (result["slope"], result["intercept"]) == pytest.approx((0.5, 1.0))
    assert len(result["points"]) == diagnostics.BINS
    for x, y in result["points"]:
        assert y == pytest.approx(1 + 0.5 * x)


def test_a_passage_does_not_count_after_its_rule_has_stopped() -> None:
    rows = [replace(row, sigma=(1.0,) * len(row.sigma)) for row in measurements("SIFT", 80)]
    rows[0] = replace(rows[0], sigma=(0.01,) * len(rows[0].sigma))
    rule = next(rule for rule in stopping_rules.RULES if rule.name == stopping_rules.ALPHA)

    result = diagnostics.in_proportion(rows, rule, 0.1)

    assert {n: count for n, (count, _) in result.items() if int(n) in (0, 10, 13)} == {
        "0": 4,
        "10": 4,
        "13": 1,
    }
    for n, (_, percent) in result.items():
        assert percent == pytest.approx(100 - 20 * int(n) / 50)


def test_the_parameter_nearest_to_a_third_of_the_steps() -> None:
    assert (
        diagnostics.parameter_at_a_third([(0.1, 0.2, 0.5), (0.3, 0.35, 0.6), (0.9, 0.8, 0.7)])
        == 0.3
    )
