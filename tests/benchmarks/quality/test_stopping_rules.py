"""Stopping rules on curves that are known: what they take and keep; none beats the one that knows
the future.
"""

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
from benchmarks.quality import stopping_rules as stopping
from benchmarks.quality.variants import AT, STEPS, Row
from benchmarks.report.main import HERE
from benchmarks.report.stopping import stopping as section
from selection.strategies.sift import should_stop
from tests.benchmarks.report.test_main import Sketches


def row(gain: float, pace: float = 10.0, similarity: float = 0.5) -> Row:
    """A passage whose per cent of base falls by `gain` in the end, by 1 - exp(-n / pace) of it
    after n steps.
    """
    sigma = tuple(1 - similarity * (1 - math.exp(-n / 5)) for n in range(STEPS + 1))
    bits = {str(n): 2 * (1 - gain / 100 * (1 - math.exp(-n / pace))) for n in AT}
    losses = tuple(3 * math.exp(-n / 20) for n in range(STEPS))
    prompt = {n: 1.25 * each for n, each in bits.items()}
    return Row(
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


def test_the_rule_named_alpha_is_the_papers() -> None:
    (rule,) = (rule for rule in stopping.RULES if rule.name == "alpha")
    passage = row(10)

    n, kept = rule.ends(passage, 0.1)

    assert n == kept

    assert should_stop(passage.sigma[n], n, 0.1)
    assert not any(should_stop(passage.sigma[m], m, 0.1) for m in range(n))


def rule_of(name: str) -> stopping.Rule:
    (rule,) = (rule for rule in stopping.RULES if rule.name == name)
    return rule


def test_the_rule_of_auto_ends_what_has_gained_all_it_will() -> None:
    rule, average = rule_of(stopping.AUTO), rule_of(stopping.AVERAGE)
    quick = row(40, pace=3.0)

    (taken, kept), (on_average, _) = rule.ends(quick, 0.2), average.ends(quick, 0.2)

    assert taken <= 22
    assert stopping.curve(quick)[kept] < 61
    assert on_average == STEPS


def test_where_going_on_hurts_rules_that_look_keep_the_best_adapter() -> None:
    prompt = {str(n): 2.0 + 0.002 * (n - 12) ** 2 for n in range(STEPS + 1)}
    harmed = replace(row(10), prompt=prompt, bits=prompt)

    for name in (
        stopping.AUTO,
        stopping.AVERAGE,
        "the prompt's gain, smoothed",
        "patience with the prompt",
    ):
        taken, kept = rule_of(name).ends(harmed, 3.0 if name.startswith("patience") else 0.01)
        assert kept == 12 < taken


def test_the_rule_of_auto_is_the_trainers() -> None:
    passage, gain = row(20, pace=15.0), 0.3

    taken, kept = rule_of(stopping.AUTO).ends(passage, gain)

    prompt = np.interp(
        range(STEPS + 1), [int(n) for n in passage.prompt], list(passage.prompt.values())
    )
    assert (taken, kept) == simulate(prompt.tolist(), gain)


def test_rules_are_chosen_on_some_passages_and_reported_on_others() -> None:
    choosing = [row(gain, pace) for gain in (5, 20) for pace in (3, 10, 40)]
    reporting = [
        replace(each, document=str(n))
        for n, each in enumerate([row(15, 5), row(30, 20), row(-5, 10)])
    ]

    result = json.loads(json.dumps(stopping.judged(choosing, reporting)))

    assert result["passages"] == {"choosing": 6, "reporting": 3}
    for name, each in result["rules"].items():
        if each["parameter"] is None:
            continue
        steps, gain = stopping.shares(
            [stopping.curve(one) for one in choosing],
            [rule_of(name).ends(one, each["parameter"]) for one in choosing],
        )
        assert [steps, gain] == pytest.approx(each["choosing"])
        assert gain >= stopping.TARGET_GAIN
        mean, low, high = each["reporting"]["gain_share"]
        assert low <= mean <= high or math.isclose(low, high)
    assert result["auto"]["harmed"] == pytest.approx(1 / 3)  # one passage only gets worse
    assert set(result["stopping_rules"]) == {*result["rules"], stopping.KNOWING}
    console = Console(record=True, width=160)
    stopping.show(result, console)
    assert all(name in console.export_text(clear=False) for name in result["rules"])
    drawn = "\n".join(section({"stopping": result}, Sketches(HERE, "stopping", "results")))
    assert all(f"| {name} |" in drawn for name in result["rules"])
    assert "33% of the passages end worse" in drawn


def test_between_measured_steps_a_curve_is_straight() -> None:
    passage = row(20)

    curve = stopping.curve(passage)

    assert curve[0] == 100
    assert len(curve) == STEPS + 1
    assert curve[22] == pytest.approx(0.6 * curve[20] + 0.4 * curve[25])


def test_all_steps_keep_all_of_the_gain_and_none_nothing() -> None:
    curves = [stopping.curve(row(gain)) for gain in (10, 20)]

    assert stopping.shares(curves, [(STEPS, STEPS)] * 2) == pytest.approx((1.0, 1.0))
    assert stopping.shares(curves, [(0, 0)] * 2) == pytest.approx((0.0, 0.0))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.floats(-20, 60), st.floats(2, 100), st.floats(0.05, 0.9)),
        min_size=1,
        max_size=6,
    )
)
def test_no_rule_beats_the_one_that_knows_the_future(
    passages: list[tuple[float, float, float]],
) -> None:
    rows = [row(*passage) for passage in passages]
    whole = np.mean([100 - stopping.curve(each)[-1] for each in rows])
    if whole < 0.5:  # a share of no gain says nothing
        return

    found = stopping.compare(rows)

    bound = found.pop("knowing the future")
    for points in found.values():
        for _, steps, gain in points:
            # The bound's points lie on the upper hull; no point of a rule lies above a line that
            # touches it.
            for price, most_steps, most_gain in bound:
                slope = price * STEPS / whole
                assert gain - slope * steps <= most_gain - slope * most_steps + 1e-9


def test_a_curve_is_read_at_a_share_of_the_steps_and_of_the_gain() -> None:
    points = [(1.0, 0.1, 0.4), (2.0, 0.3, 0.8), (3.0, 0.6, 0.95)]

    assert stopping.at_steps(points, 0.2) == pytest.approx(0.6)
    assert stopping.at_steps(points, 0.05) is None
    assert stopping.for_gain(points, 0.9) == 0.6
    assert stopping.for_gain(points, 0.99) is None
