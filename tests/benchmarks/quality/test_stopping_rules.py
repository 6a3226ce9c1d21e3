"""Stopping rules on known curves: what they take and keep; none beats the oracle."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from adapters.early_stopping import simulate
from benchmarks.quality import stopping_rules
from benchmarks.quality.measurements import Measurement
from benchmarks.quality.variants import SCORED_STEPS, STEPS
from benchmarks.report.stopping import stopping as stopping_section
from selection.strategies.sift import should_stop
from tests.benchmarks.sketches import sketches


def measurement(gain: float, pace: float = 10.0, similarity: float = 0.5) -> Measurement:
    """A passage whose per cent of base falls by `gain`, like 1 - exp(-n / pace) after n steps."""
    sigma = tuple(1 - similarity * (1 - math.exp(-n / 5)) for n in range(STEPS + 1))
    bits = {str(n): 2 * (1 - gain / 100 * (1 - math.exp(-n / pace))) for n in SCORED_STEPS}
    losses = tuple(3 * math.exp(-n / 20) for n in range(STEPS))
    prompt = {n: 1.25 * value for n, value in bits.items()}
    return Measurement(
        "SIFT",
        "any",
        "a document",
        "a passage",
        prompt,
        bits,
        sigma,
        0.3,
        losses,
        0.1,
        (0.1,) * STEPS,
        True,
        40,
    )


def test_the_rule_alpha_is_that_of_the_paper() -> None:
    (rule,) = (rule for rule in stopping_rules.RULES if rule.name == "alpha")
    passage = measurement(10)

    n, used = rule.stop(passage, 0.1)

    assert n == used
    assert should_stop(passage.sigma[n], n, 0.1)
    assert not any(should_stop(passage.sigma[m], m, 0.1) for m in range(n))


def rule_of(name: str) -> stopping_rules.Rule:
    (rule,) = (rule for rule in stopping_rules.RULES if rule.name == name)
    return rule


def test_the_rule_of_auto_ends_a_training_whose_gain_is_over() -> None:
    rule, average = rule_of(stopping_rules.AUTO), rule_of(stopping_rules.AVERAGE)
    fast = measurement(40, pace=3.0)

    (steps, used), (average_steps, _) = rule.stop(fast, 0.2), average.stop(fast, 0.2)

    assert steps <= 27
    assert stopping_rules.curve(fast)[used] < 61
    assert average_steps == STEPS


def test_rules_that_probe_keep_the_best_adapter_where_further_steps_hurt() -> None:
    prompt = {str(n): 2.0 + 0.002 * (n - 12) ** 2 for n in range(STEPS + 1)}
    harmed = replace(measurement(10), prompt=prompt, bits=prompt)

    for name in (
        stopping_rules.AUTO,
        stopping_rules.AVERAGE,
        stopping_rules.SMOOTHED,
        stopping_rules.PATIENCE,
    ):
        steps, used = rule_of(name).stop(harmed, 3.0 if name == stopping_rules.PATIENCE else 0.01)
        assert used == 12 < steps


def test_the_rule_of_auto_is_that_of_the_trainer() -> None:
    passage, gain = measurement(20, pace=15.0), 0.3

    steps, used = rule_of(stopping_rules.AUTO).stop(passage, gain)

    prompt = np.interp(
        range(STEPS + 1), [int(n) for n in passage.prompt], list(passage.prompt.values())
    )
    assert (steps, used) == simulate(prompt.tolist(), gain)


def test_parameters_are_chosen_on_some_passages_and_reported_on_others() -> None:
    choosing = [measurement(gain, pace) for gain in (5, 20) for pace in (3, 10, 40)]
    reporting = [
        replace(value, document=str(n))
        for n, value in enumerate([measurement(15, 5), measurement(30, 20), measurement(-5, 10)])
    ]

    result = json.loads(json.dumps(stopping_rules.evaluate(choosing, reporting)))

    assert result["passages"] == {"choosing": 6, "reporting": 3}
    for name, value in result["rules"].items():
        if value["parameter"] is None:
            continue
        steps, gain = stopping_rules.shares(
            [stopping_rules.curve(one) for one in choosing],
            [rule_of(name).stop(one, value["parameter"]) for one in choosing],
        )
        assert [steps, gain] == pytest.approx(value["choosing"])
        assert gain >= stopping_rules.TARGET_GAIN
        mean, low, high = value["reporting"]["gain_share"]
        assert low <= mean <= high or math.isclose(low, high)
    assert result["auto"]["harmed"] == pytest.approx(1 / 3)  # one passage only gets worse
    assert set(result["stopping_rules"]) == {*result["rules"], stopping_rules.ORACLE}
    console = Console(record=True, width=160)
    stopping_rules.show(result, console)
    assert all(name in console.export_text(clear=False) for name in result["rules"])
    report = "\n".join(stopping_section({"stopping": result}, sketches("stopping")))
    assert all(f"| {name} |" in report for name in result["rules"])
    assert "33% of the passages end worse" in report


def test_a_curve_is_interpolated_between_measured_steps() -> None:
    passage = measurement(20)

    curve = stopping_rules.curve(passage)

    assert curve[0] == 100
    assert len(curve) == STEPS + 1
    assert curve[22] == pytest.approx(0.6 * curve[20] + 0.4 * curve[25])


def test_all_steps_keep_all_of_the_gain_and_none_keeps_nothing() -> None:
    curves = [stopping_rules.curve(measurement(gain)) for gain in (10, 20)]

    assert stopping_rules.shares(curves, [(STEPS, STEPS)] * 2) == pytest.approx((1.0, 1.0))
    assert stopping_rules.shares(curves, [(0, 0)] * 2) == pytest.approx((0.0, 0.0))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.floats(-20, 60), st.floats(2, 100), st.floats(0.05, 0.9)),
        min_size=1,
        max_size=6,
    )
)
def test_no_rule_beats_the_oracle(
    passages: list[tuple[float, float, float]],
) -> None:
    rows = [measurement(*passage) for passage in passages]
    total_gain = np.mean([100 - stopping_rules.curve(value)[-1] for value in rows])
    if total_gain < 0.5:  # a share of no gain is undefined
        return

    curves = stopping_rules.compare(rows)

    bound = curves.pop(stopping_rules.ORACLE)
    for points in curves.values():
        for _, steps, gain in points:
            # The bound's points lie on the upper hull; no point of a rule lies above a line that
            # touches it.
            for price, most_steps, most_gain in bound:
                slope = price * STEPS / total_gain
                assert gain - slope * steps <= most_gain - slope * most_steps + 1e-9


def test_a_curve_is_read_at_a_share_of_the_steps_and_of_the_gain() -> None:
    points = [(1.0, 0.1, 0.4), (2.0, 0.3, 0.8), (3.0, 0.6, 0.95)]

    assert stopping_rules.gain_at_steps(points, 0.2) == pytest.approx(0.6)
    assert stopping_rules.gain_at_steps(points, 0.05) is None
    assert stopping_rules.steps_for_gain(points, 0.9) == 0.6
    assert stopping_rules.steps_for_gain(points, 0.99) is None
