"""Stopping rules on curves that are known: what they take and keep; none beats the one that knows the future."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import stopping
from benchmarks.variants import AT, STEPS, Row
from selection.sift import has_stalled


def row(gain: float, pace: float = 10.0, similarity: float = 0.5) -> Row:
    """A passage whose per cent of base falls by `gain` in the end, by 1 - exp(-n / pace) of it after n steps."""
    sigma = tuple(1 - similarity * (1 - math.exp(-n / 5)) for n in range(STEPS + 1))
    bits = {str(n): 2 * (1 - gain / 100 * (1 - math.exp(-n / pace))) for n in AT}
    losses = tuple(3 * math.exp(-n / 20) for n in range(STEPS))
    prompt = {n: 1.25 * each for n, each in bits.items()}
    return Row(
        "SIFT", "any", "a document", "a passage", prompt, bits, sigma, 0.3, losses, 0.1, (0.1,) * STEPS, True, 40
    )


def test_the_rule_named_alpha_is_the_papers() -> None:
    (rule,) = (rule for rule in stopping.RULES if rule.name == "alpha")
    passage = row(10)

    n = stopping.stopped(rule, passage, 0.1)

    assert has_stalled(passage.sigma[n], n, 0.1)
    assert not any(has_stalled(passage.sigma[m], m, 0.1) for m in range(n))


def test_the_prompt_is_asked_what_it_has_gained_a_step() -> None:
    (rule,) = (rule for rule in stopping.RULES if rule.name == "what the prompt has gained")
    much, little = row(40), row(4)

    assert stopping.stopped(rule, much, 1.0) > stopping.stopped(rule, little, 1.0) == stopping.LEAST_STEPS
    assert stopping.stopped(rule, much, 0.1) == STEPS


def test_between_measured_steps_a_curve_is_straight() -> None:
    passage = row(20)

    curve = stopping.curve(passage)

    assert curve[0] == 100
    assert len(curve) == STEPS + 1
    assert curve[22] == pytest.approx(0.6 * curve[20] + 0.4 * curve[25])


def test_all_steps_keep_all_of_the_gain_and_none_nothing() -> None:
    curves = [stopping.curve(row(gain)) for gain in (10, 20)]

    assert stopping.shares(curves, [STEPS, STEPS]) == pytest.approx((1.0, 1.0))
    assert stopping.shares(curves, [0, 0]) == pytest.approx((0.0, 0.0))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(-20, 60), st.floats(2, 100), st.floats(0.05, 0.9)), min_size=1, max_size=6))
def test_no_rule_beats_the_one_that_knows_the_future(passages: list[tuple[float, float, float]]) -> None:
    rows = [row(*passage) for passage in passages]
    whole = np.mean([100 - stopping.curve(each)[-1] for each in rows])
    if whole < 0.5:  # a share of no gain says nothing
        return

    found = stopping.compare(rows)

    bound = found.pop("knowing the future")
    for points in found.values():
        for _, steps, gain in points:
            # The bound's points lie on the upper hull; no point of a rule lies above a line that touches it.
            for price, most_steps, most_gain in bound:
                slope = price * STEPS / whole
                assert gain - slope * steps <= most_gain - slope * most_steps + 1e-9


def test_a_curve_is_read_at_a_share_of_the_steps_and_of_the_gain() -> None:
    points = [(1.0, 0.1, 0.4), (2.0, 0.3, 0.8), (3.0, 0.6, 0.95)]

    assert stopping.at_steps(points, 0.2) == pytest.approx(0.6)
    assert stopping.at_steps(points, 0.05) is None
    assert stopping.for_gain(points, 0.9) == 0.6
    assert stopping.for_gain(points, 0.99) is None
