"""What measured passages come to."""

from __future__ import annotations

import json

import pytest

from benchmarks.auto_defaults.rules import NOW
from benchmarks.auto_defaults.summary import summary
from benchmarks.proof_of_gain.first_token import FirstToken
from tests.benchmarks.auto_defaults.samples import row

_COSTS = FirstToken(fixed=0.5, per_token=0.001, load=9.0)


def test_rules_are_compared_with_the_one_of_now() -> None:
    helped = {"corpus": 90.0, "corpus, 4 by SIFT": 80.0, "corpus, 4 nearest": 70.0}
    rows = [row(n, percents=helped, losses={"corpus": 1.9}) for n in range(4)]

    rules = summary(rows, _COSTS)["rules_with_adapter"]

    now, nearest = rules[NOW], rules["always corpus, 4 nearest"]
    assert now["percent_of_base"] == pytest.approx((90.0, 90.0, 90.0))
    assert now["answers"] == {"corpus": 4}
    # Three comparisons and a choice; then a prompt of a hundred tokens.
    assert now["first_token"] == pytest.approx(3.1 + 0.5 + 0.1)
    assert nearest["minus_now"] == pytest.approx((-20.0, -20.0, -20.0))
    assert nearest["first_token_minus_now"] == pytest.approx(0.1 + 0.5 + 1.0 - 3.7)


def test_what_the_server_would_train_for_is_counted() -> None:
    rows = [row(0), row(1, percents={"base, 4 by SIFT": 80.0}, losses={"base, 4 by SIFT": 1.0})]

    rule = summary(rows, _COSTS)["rules_without_adapter"]["4 by SIFT from 10 %"]

    assert rule["takes_steps"] == 1
    assert rule["percent_of_base"][0] == pytest.approx(90.0)
    assert rule["percent_with_steps"] == pytest.approx((92.6 + 80.0) / 2)


def test_strategies_are_compared_by_near_copies() -> None:
    rows = [
        row(0, percents={"base, 8 nearest": 60.0}, copies=0.5),
        row(1, percents={"base, 8 by SIFT": 90.0}, copies=1.0),
        row(2, percents={"base, 8 by SIFT": 95.0}),
    ]

    found = summary(rows, _COSTS)

    assert found["sift_minus_nearest"]["base, 8"][0] == pytest.approx((40 - 10 - 5) / 3)
    by_copies = found["sift_minus_nearest_by_copies"]
    assert {name: each["passages"] for name, each in by_copies.items()} == {
        "0 to 5 %": 1,
        "25 to 100 %": 2,
    }
    assert by_copies["25 to 100 %"]["base, 8"][0] == pytest.approx(15.0)
    assert json.loads(json.dumps(found))["passages"] == {"domain 0": 2, "domain 1": 1}
