"""What explains the tables of quality, from rows that are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.quality import diagnostics as insight
from benchmarks.quality import stopping_rules as stopping
from tests.benchmarks.quality.test_tables import rows


def test_passages_are_parted_by_how_many_different_sequences_were_chosen() -> None:
    sift = [replace(row, distinct=10 * number) for number, row in enumerate(rows("SIFT", 80), 1)]
    nearest = rows("NN", 85)
    nearest[0] = replace(
        nearest[0],
        bits={n: 0.9 * bits for n, bits in nearest[0].bits.items()} | {"0": nearest[0].base},
    )

    parts = insight.by_distinct(
        {row.passage: row for row in sift}, {row.passage: row for row in nearest}
    )

    assert [part["passages"] for part in parts] == [2, 1, 1]
    assert [part["distinct"] for part in parts] == [[10, 15, 20], [30, 30, 30], [40, 40, 40]]
    assert [part["minus_nn"][0] for part in parts] == pytest.approx(
        [(80 - 0.9 * 85 - 5) / 2, -5, -5]
    )


def test_what_sigma_foretells_exactly_lies_on_its_line() -> None:
    foretold = [
        replace(
            row,
            bits={"0": row.base}
            | {n: 1 + 0.5 * row.sigma[int(n)] * row.base for n in row.bits if n != "0"},
        )
        for row in rows("SIFT", 80)
    ]

    found = insight.reliability(foretold)

    assert (found["slope"], found["intercept"]) == pytest.approx((0.5, 1.0))
    assert len(found["points"]) == insight.BINS
    for x, y in found["points"]:
        assert y == pytest.approx(1 + 0.5 * x)


def test_after_a_rule_has_stopped_a_passage_it_counts_no_more() -> None:
    patient = [replace(row, sigma=(1.0,) * len(row.sigma)) for row in rows("SIFT", 80)]
    patient[0] = replace(patient[0], sigma=(0.01,) * len(patient[0].sigma))
    rule = next(rule for rule in stopping.RULES if rule.name == stopping.ALPHA)

    found = insight.in_proportion(patient, rule, 0.1)

    assert {n: count for n, (count, _) in found.items() if int(n) in (0, 10, 13)} == {
        "0": 4,
        "10": 4,
        "13": 1,
    }
    for n, (_, percent) in found.items():
        assert percent == pytest.approx(100 - 20 * int(n) / 50)


def test_a_third_of_the_steps() -> None:
    assert insight.at_a_third([(0.1, 0.2, 0.5), (0.3, 0.35, 0.6), (0.9, 0.8, 0.7)]) == 0.3
