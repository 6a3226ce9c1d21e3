"""Tables of quality, from measurements with known results."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from benchmarks.quality.measurements import Measurement
from benchmarks.quality.tables import show, summary
from benchmarks.quality.variants import SCORED_STEPS, STEPS, Variant
from tests.benchmarks.quality.samples import measurements

NAMES = ("SIFT", "NN", "NN in context")


@pytest.fixture
def all_measurements() -> list[Measurement]:
    in_context = [
        replace(row, bits={"0": row.base, "2": 0.9 * row.base}, step_seconds=())
        for row in measurements("NN in context", 90)
    ]
    return [
        *measurements("SIFT", 80),
        *measurements("NN", 85),
        *in_context,
        *measurements("rank 4", 82),
    ]


def test_means_are_over_passages(all_measurements: list[Measurement]) -> None:
    result = summary(all_measurements, NAMES, {"rank": [Variant("rank 4", rank=4)]})

    assert (result["passages"], result["documents"]) == (4, 4)
    assert result["percent_of_base"]["SIFT"] == pytest.approx((80, 80, 80))
    assert result["percent_of_base"]["NN in context"] == pytest.approx((90, 90, 90))
    assert result["sift_minus_nn"] == pytest.approx((-5, -5, -5))
    assert result["by_steps"]["SIFT"]["25"] == pytest.approx((90, 90, 90))
    assert set(result["by_steps"]) == {"SIFT", "NN"}  # a variant in context takes no steps
    assert result["by_domain"]["legal"]["passages"] == 2
    assert result["axes"]["rank"]["rank 4"]["minus_sift"] == pytest.approx((2, 2, 2))


def test_sift_and_nearest_neighbours_are_compared_under_the_same_setting() -> None:
    all_measurements = [
        *measurements("SIFT", 80),
        *measurements("NN", 85),
        *measurements("SIFT, twice", 82),
        *measurements("NN, twice", 90),
    ]

    result = summary(all_measurements, ["SIFT", "NN"], {})

    assert list(result["sift_minus_nn_alike"]) == [", twice"]
    assert result["sift_minus_nn_alike"][", twice"] == pytest.approx((-8, -8, -8))


def test_at_equal_seconds_the_slower_variant_has_taken_fewer_steps() -> None:
    result = summary(
        [*measurements("SIFT", 80, 0.1), *measurements("NN", 80, 0.2)], ["SIFT", "NN"], {}
    )

    for seconds, (fast, *_) in result["at_equal_seconds"]["SIFT"].items():
        slow = result["at_equal_seconds"]["NN"][seconds][0]
        steps = max(n for n in SCORED_STEPS if n == 0 or 0.05 + 0.1 * n <= float(seconds) + 1e-9)
        assert fast == pytest.approx(100 - 20 * steps / STEPS)
        assert slow >= fast


def test_the_tables_show_every_domain_and_setting(all_measurements: list[Measurement]) -> None:
    console = Console(record=True, width=160)

    show(
        {
            **summary(all_measurements, NAMES, {"rank": [Variant("rank 4", rank=4)]}),
            "corpus_sequences": 9,
        },
        console,
    )

    output = console.export_text()
    for word in ("legal", "Rust", "rank 4", "SIFT minus NN: -5.0", "of sigma times base"):
        assert word in output
