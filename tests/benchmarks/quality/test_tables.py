"""Tables of quality: from rows that are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.quality.main import line_of, remembered
from benchmarks.quality.tables import show, summary
from benchmarks.quality.variants import AT, STEPS, Row, Variant, record

NAMES = ("SIFT", "NN", "NN in context")


def rows(variant: str, percent: float, seconds: float = 0.1) -> list[Row]:
    """Four passages of two domains: after n steps n / 50 of the way to so many per cent of base."""
    found = []
    for number in range(4):
        base = 2.0 + number
        bits = {str(n): base * (1 - (1 - percent / 100) * n / STEPS) for n in AT}
        sigma = tuple(1 / (1 + n) for n in range(STEPS + 1))
        steps = tuple(seconds * (n + 1) for n in range(STEPS))
        group, name = ("legal", "Rust")[number % 2], f"document {number}"
        alone = number == 0
        if not alone:  # in company, whose seconds tell nothing
            steps = tuple(9 * each for each in steps)
        row = Row(
            variant,
            group,
            name,
            f"{name}@0",
            {"0": 2.5, "50": 2.0},
            bits,
            sigma,
            0.1,
            (1.0,) * STEPS,
            0.05,
            steps,
            alone,
            STEPS,
        )
        found.append(row)
    return found


@pytest.fixture
def everything() -> list[Row]:
    in_context = [
        replace(row, bits={"0": row.base, "2": 0.9 * row.base}, step_seconds=())
        for row in rows("NN in context", 90)
    ]
    return [*rows("SIFT", 80), *rows("NN", 85), *in_context, *rows("rank 4", 82)]


def test_means_are_those_of_the_passages(everything: list[Row]) -> None:
    result = summary(everything, NAMES, {"rank": [Variant("rank 4", rank=4)]})

    assert (result["passages"], result["documents"]) == (4, 4)
    assert result["percent_of_base"]["SIFT"] == pytest.approx((80, 80, 80))
    assert result["percent_of_base"]["NN in context"] == pytest.approx((90, 90, 90))
    assert result["sift_minus_nn"] == pytest.approx((-5, -5, -5))
    assert result["by_steps"]["SIFT"]["25"] == pytest.approx((90, 90, 90))
    assert set(result["by_steps"]) == {"SIFT", "NN"}  # what is in context takes no steps
    assert result["by_domain"]["legal"]["passages"] == 2
    assert result["axes"]["rank"]["rank 4"]["minus_sift"] == pytest.approx((2, 2, 2))


def test_sift_and_nearest_neighbours_are_compared_under_the_same_setting() -> None:
    everything = [
        *rows("SIFT", 80),
        *rows("NN", 85),
        *rows("SIFT, twice", 82),
        *rows("NN, twice", 90),
    ]

    result = summary(everything, ["SIFT", "NN"], {})

    assert list(result["sift_minus_nn_alike"]) == [", twice"]
    assert result["sift_minus_nn_alike"][", twice"] == pytest.approx((-8, -8, -8))


def test_at_equal_seconds_the_slower_has_taken_fewer_steps() -> None:
    result = summary([*rows("SIFT", 80, 0.1), *rows("NN", 80, 0.2)], ["SIFT", "NN"], {})

    for seconds, (fast, *_) in result["at_equal_seconds"]["SIFT"].items():
        slow = result["at_equal_seconds"]["NN"][seconds][0]
        reached = max(n for n in AT if n == 0 or 0.05 + 0.1 * n <= float(seconds) + 1e-9)
        assert fast == pytest.approx(100 - 20 * reached / STEPS)
        assert slow >= fast


def test_a_run_that_was_killed_goes_on_with_what_it_had(
    everything: list[Row], tmp_path: Path
) -> None:
    lines = [line_of(f"key {number}", row) for number, row in enumerate(everything)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join([*lines[:2], lines[2][:100], "\n", *lines[3:]]))

    known = remembered(file)

    left = [number for number in range(len(everything)) if number != 2]
    assert [record(row) for row in known.values()] == [
        record(everything[number]) for number in left
    ]
    assert list(known) == [f"key {number}" for number in left]
    assert remembered(tmp_path / "none yet.jsonl") == {}


def test_the_tables_tell_every_domain_and_setting(everything: list[Row]) -> None:
    console = Console(record=True, width=160)

    show(
        {
            **summary(everything, NAMES, {"rank": [Variant("rank 4", rank=4)]}),
            "corpus_sequences": 9,
        },
        console,
    )

    said = console.export_text()
    for word in ("legal", "Rust", "rank 4", "SIFT minus NN: -5.0", "of sigma times base"):
        assert word in said
