"""StepTime: a linear prediction, and a margin from its recent errors."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapters.step_time import StepTime

TOKENS = st.integers(0, 4096)
SECONDS = st.floats(1e-6, 10.0)


def measured(*steps: tuple[int, float]) -> StepTime:
    time = StepTime()
    for tokens, seconds in steps:
        time.observe(tokens, seconds)
    return time


def test_without_observations_it_expects_zero() -> None:
    assert StepTime().upper(100) == 0.0


@given(st.floats(1e-4, 1.0), st.floats(1e-7, 1e-2), st.lists(TOKENS, max_size=60), TOKENS)
def test_a_linear_relation_is_recovered(
    fixed: float, each: float, sizes: list[int], queried: int
) -> None:
    time = measured(*((tokens, fixed + each * tokens) for tokens in (64, 256, 64, 256, *sizes)))

    assert time.upper(queried) == pytest.approx(fixed + each * queried, rel=0.01)


@given(st.lists(st.tuples(TOKENS, SECONDS), max_size=40), TOKENS, TOKENS)
@example([(11, 3.691167358442187)], 0, 0)
def test_more_tokens_never_take_less_time(
    steps: list[tuple[int, float]], one: int, other: int
) -> None:
    time = measured(*steps)

    assert 0 <= time.upper(min(one, other)) <= time.upper(max(one, other)) + 1e-9


@given(SECONDS, st.integers(1, 4096), TOKENS)
def test_from_one_size_other_sizes_are_extrapolated_in_proportion(
    seconds: float, tokens: int, queried: int
) -> None:
    time = measured(*[(tokens, seconds)] * 5)

    assert time.upper(queried) == pytest.approx(seconds * queried / tokens, rel=1e-6, abs=1e-9)


@given(st.integers(0, 2**32))
def test_nine_in_ten_steps_take_no_longer_than_expected(seed: int) -> None:
    # A machine that is busy now and then: one step in twelve takes three times as long.
    random_ = random.Random(seed)
    time, late = StepTime(), 0
    for n in range(600):
        tokens = random_.choice([64, 128, 256, 512])
        seconds = (
            (0.002 + 1e-5 * tokens)
            * random_.uniform(0.95, 1.05)
            * (3 if random_.random() < 1 / 12 else 1)
        )
        if n >= 100:
            late += seconds > time.upper(tokens)
        time.observe(tokens, seconds)

    assert late / 500 < 0.25


def test_a_machine_that_becomes_slower_is_tracked() -> None:
    time = measured(*((tokens, 1e-5 * tokens) for tokens in (64, 256) * 100))
    for tokens in (64, 256) * 100:
        time.observe(tokens, 1e-4 * tokens)

    assert time.upper(256) == pytest.approx(1e-4 * 256, rel=0.3)


def test_a_machine_that_becomes_faster_is_tracked() -> None:
    time = measured(*((tokens, 1e-4 * tokens) for tokens in (64, 256) * 100))
    for tokens in (64, 256) * 200:
        time.observe(tokens, 1e-5 * tokens)

    assert time.upper(256) == pytest.approx(1e-5 * 256, rel=0.3)


@given(
    st.lists(st.floats(1.0, 3.0), min_size=4, max_size=4), st.integers(16, 512), st.integers(1, 40)
)
def test_steps_without_tokens_do_not_inflate_others(
    noise: list[float], tokens: int, again: int
) -> None:
    # Steps with reused gradients: near a prediction of zero, ratios can be arbitrarily large.
    sizes = (tokens // 4, tokens) * 2
    time = measured(
        *((size, 1e-5 * size * times) for size, times in zip(sizes, noise, strict=True))
    )
    for _ in range(again):
        time.observe(0, 1e-4)

    assert time.upper(tokens) <= 4 * 3 * 1e-5 * tokens + 1e-3


@given(st.lists(st.tuples(TOKENS, SECONDS), max_size=40), TOKENS)
def test_the_mean_never_exceeds_upper(steps: list[tuple[int, float]], queried: int) -> None:
    time = measured(*steps)

    assert 0 <= time.mean(queried) <= time.upper(queried)


@given(st.lists(st.tuples(TOKENS, SECONDS), max_size=40), st.integers(1, 4096), SECONDS)
def test_forgotten_observations_have_no_effect(
    steps: list[tuple[int, float]], tokens: int, seconds: float
) -> None:
    time = measured(*steps)

    time.forget()
    assert (time.upper(tokens), time.mean(tokens)) == (0.0, 0.0)
    time.observe(tokens, seconds)

    assert time.upper(tokens) == time.mean(tokens) == pytest.approx(seconds)


def test_occasional_pauses_are_not_typical() -> None:
    time = measured(*((256, 0.4 if n % 5 == 0 else 0.1) for n in range(100)))

    assert time.upper(256) >= 0.39
    assert time.mean(256) <= 0.2


def test_each_doubt_lowers_the_mean_until_the_next_observation() -> None:
    time = measured(*[(256, 2.0)] * 8)

    expected = []
    for _ in range(20):
        time.doubt()
        expected.append(time.mean(256))
    time.observe(256, 2.0)

    assert expected == sorted(expected, reverse=True)
    assert expected[-1] < 0.5
    assert time.mean(256) == pytest.approx(2.0)


@given(st.lists(SECONDS, min_size=1, max_size=40), TOKENS)
def test_steps_without_tokens_alone_can_be_observed(seconds: list[float], queried: int) -> None:
    time = measured(*((0, one) for one in seconds))

    assert min(seconds) * 0.5 <= time.upper(queried) <= 1e3 * max(seconds)
