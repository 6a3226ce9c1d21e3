"""The numbers of the benchmark, on made-up measurements, and their report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.corpus_adapters.arms import COMBINED, FRESH, INSTANT, TRAININGS, Arm, arms_of
from benchmarks.corpus_adapters.result import merged, part_name, summary
from benchmarks.corpus_adapters.summary import combined_gain, instant_shares, steps_gain
from benchmarks.report.corpus_adapter import corpus_adapter
from tests.benchmarks.corpus_adapters.samples import ARMS, STEPPED, parts, rows
from tests.benchmarks.report.samples import RESULTS
from tests.benchmarks.sketches import sketches


@pytest.mark.parametrize("choice", TRAININGS)
def test_every_choice_of_trainings_has_the_arms_that_are_compared(choice: str) -> None:
    arms = arms_of(TRAININGS[choice])

    assert {Arm(), INSTANT, FRESH, COMBINED} <= {*arms}
    assert len({arm.name for arm in arms}) == len(arms)


def test_both_together_are_compared_with_the_better_of_both_alone() -> None:
    mean, low, high = combined_gain(rows({FRESH: 95, INSTANT: 90, COMBINED: 88}), ARMS)
    assert (mean, low, high) == pytest.approx((2, 2, 2))

    mean, *_ = combined_gain(rows({Arm(steps=50): 85, INSTANT: 90, COMBINED: 88}), ARMS)
    assert mean == pytest.approx(-3)


def test_instant_is_compared_with_the_best_arm_with_and_without_shown_text() -> None:
    shown = replace(COMBINED, shown=True)

    shares = instant_shares(rows({INSTANT: 92, COMBINED: 90, shown: 84}), ARMS)

    assert shares["best_arm"] == shown.name
    assert shares["gain_share"] == pytest.approx(0.5)
    assert shares["gain_share_without_shown"] == pytest.approx(0.8)
    assert shares["seconds_share"] == pytest.approx(0.1 / 50.1)
    assert shares["seconds_share_of"] == "SIFT 50"


def test_of_corpora_that_are_divided_the_parts_are_compared() -> None:
    whole = {INSTANT: 150.0, COMBINED: 140.0}
    divided = {replace(INSTANT, start="parts"): 90.0, replace(COMBINED, start="parts"): 85.0}
    arms = arms_of(TRAININGS["all"])
    scored = rows({**whole, **divided, replace(STEPPED, start="parts"): 89}, arms=arms)

    assert instant_shares(scored, arms, "parts")["gain_share"] == pytest.approx(10 / 15)
    assert combined_gain(scored, arms, "parts") == pytest.approx((5, 5, 5))
    assert steps_gain(scored, "parts") == pytest.approx((1, 1, 1))


def test_no_share_is_made_up_where_nothing_gains() -> None:
    assert instant_shares(rows({}), ARMS)["gain_share"] is None


def test_what_was_not_measured_is_null() -> None:
    numbers = summary({"kills": parts()["kills"]})

    assert numbers.pop("kills") == {
        "injected": 50,
        "with_checkpoint": 30,
        "resumed": 29,
        "half_written_used": 0,
    }
    assert {*numbers.pop("instant").values()} == {None}
    assert {*numbers.values()} == {None}


def test_a_run_keeps_the_parts_of_a_former_result(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    assert merged(file, {"kills": {"injected": 1}}) == {"kills": {"injected": 1}}
    file.write_text(json.dumps({"parts": {"kills": {"injected": 1}, "canary": {}}}))

    found = merged(file, {"kills": {"injected": 2}})

    assert found == {"kills": {"injected": 2}, "canary": {}}


@pytest.mark.parametrize(
    ("part", "name"),
    [("instant", "instant smollm2"), ("quality", "quality smollm2"), ("kills", "kills")],
)
def test_a_part_that_depends_on_the_model_is_named_after_it(part: str, name: str) -> None:
    assert part_name(part, "smollm2") == part_name(part, "/models/smollm2/") == name


def test_quality_on_chosen_corpora_does_not_replace_that_on_all() -> None:
    assert part_name("quality", "nano", ["large"]) == "quality nano, large"
    assert part_name("instant", "nano", ["large"]) == "instant nano"


def test_instant_of_another_model_keeps_that_of_the_first(tmp_path: Path) -> None:
    file, measured = tmp_path / "result.json", parts()
    nano, smollm2 = (part_name("instant", model) for model in ("nano", "smollm2"))
    file.write_text(json.dumps({"parts": {nano: measured[nano]}}))

    numbers = summary(merged(file, {smollm2: measured[smollm2]}))

    assert numbers["instant"]["first_token_ratio"] == {
        "nano": {"1": 1.1, "8": 1.2},
        "smollm2": {"1": 1.0, "8": 1.3},
    }
    assert numbers["instant"]["speedup_vs_naive"] == {"nano": 6.0, "smollm2": 4.0}
    assert numbers["instant"]["gain_share"] is None


def test_the_kept_result_has_the_numbers_of_its_parts() -> None:
    kept = json.loads((RESULTS / "corpus-adapter.json").read_text())

    numbers = json.loads(json.dumps(summary(kept["parts"])))

    assert {key: kept[key] for key in numbers} == numbers
    assert "nano" in numbers["instant"]["first_token_ratio"]


def test_the_report_shows_promises_and_arms() -> None:
    result = {**summary(parts()), "parts": parts()}

    lines = corpus_adapter(
        {"corpus-adapter": json.loads(json.dumps(result))}, sketches("corpus-adapter")
    )

    for row in (
        "`instant` on nano: share of the best arm's gain | 0.83 | at least 0.9 | "
        "**does not hold** |",
        "on nano: points ahead of both alone | 2.0 (2.0 to 2.0) | interval above 0 | holds |",
        "ten SIFT steps after the corpus's adapter on nano: points ahead of it | -1.0 (-1.0 to "
        "-1.0) | interval above 0 | **does not hold** |",
        "50 kills: resumed, of those after a checkpoint | 29 of 30 | all | **does not hold** |",
        "`instant` on nano: first token over a resident adapter's, 8 at once | 1.20 | at most 1.15 "
        "| **does not hold** |",
        "`instant` on smollm2: first token over a resident adapter's, 1 at once | 1.00 | at most "
        "1.15 | holds |",
        "`instant` on nano: answers per second over those of a PEFT loop per request, 8 at once | "
        "6.0 | at least 5 | holds |",
        "`instant` on smollm2: answers per second over those of a PEFT loop per request, 8 at once "
        "| 4.0 | at least 5 | **does not hold** |",
        "a hundredth more of documents: share of training anew | 0.060 | at most 0.05 | "
        "**does not hold** |",
        "requests that knew what was deleted | 0 | 0 | holds |",
        "| corpus if better + 10 | 88.0 (88.0 to 88.0) | -7.0 (-7.0 to -7.0) | 10.100 |",
        "| removed | 250 | 0 | 5 of 6 | 0.0001 |",
        "| while something was written | 20 |",
    ):
        assert any(row in line for line in lines), row


def test_the_report_shows_a_result_of_one_part() -> None:
    only = {"increment": parts()["increment"]}

    lines = corpus_adapter(
        {"corpus-adapter": {**summary(only), "parts": only}}, sketches("corpus-adapter")
    )

    assert any("`steps=5` beside a training" in line for line in lines)
    assert not any(line.startswith("### Quality") for line in lines)
