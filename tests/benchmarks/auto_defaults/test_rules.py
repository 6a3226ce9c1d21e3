"""What each rule answers with, and what it has to compare for that."""

from __future__ import annotations

import pytest

from benchmarks.auto_defaults.rules import (
    NOW,
    NOW_WITHOUT,
    SERVED,
    SERVED_WITHOUT,
    Look,
    always,
    hindsight,
    least_loss,
    rules_with_adapter,
    rules_without_adapter,
    with_text,
)
from benchmarks.auto_defaults.ways import BASE, CORPUS, WAYS, Text, Way
from serving.adaptation.auto import AutoChoice
from serving.adaptation.auto import Way as ServedWay
from tests.benchmarks.auto_defaults.samples import row

_SIFT, _NEAREST, _EIGHT = Text(4, "sift"), Text(4, "nn"), Text(8, "sift")


@pytest.mark.parametrize(
    ("losses", "way", "seconds"),
    [
        ({}, BASE, 3.1),
        ({"corpus": 1.9}, Way("corpus", _EIGHT), 2.1),
        ({"corpus": 1.9, "corpus, 8 by SIFT": 3.0}, Way("corpus", _EIGHT), 2.1),
        ({"base, 8 by SIFT": 1.85}, BASE, 3.1),
        ({"base, 8 by SIFT": 1.79}, Way("base", _EIGHT), 3.1),
        # The corpus's adapter is not looked at any further.
        ({"corpus": 2.1, "corpus, 8 by SIFT": 1.0}, BASE, 3.1),
    ],
)
def test_the_served_rule_decides_as_the_server(
    losses: dict[str, float], way: Way, seconds: float
) -> None:
    look = Look(row(losses=losses))

    answer = rules_with_adapter()[SERVED](look)

    assert answer == way
    assert look.seconds == pytest.approx(seconds)
    compared = [BASE, CORPUS, Way("base", _EIGHT)]
    served = AutoChoice(
        {
            ServedWay(each.model == "corpus", each.text is not None): look.row.loss(each)
            for each in compared
        },
        shows_beside_corpus=True,
    ).best
    assert (served.corpus, served.shown) == (way.model == "corpus", way.text is not None)


@pytest.mark.parametrize(("loss", "way"), [(1.87, CORPUS), (1.85, Way("corpus", _SIFT))])
def test_the_rule_of_now_compares_four_sequences(loss: float, way: Way) -> None:
    look = Look(row(losses={"corpus": 1.9, "corpus, 4 by SIFT": loss}))

    assert rules_with_adapter()[NOW](look) == way
    assert look.seconds == pytest.approx(3.1)


def test_text_without_a_bar_is_shown_without_a_comparison() -> None:
    worse = row(losses={"corpus": 1.9, "corpus, 4 by SIFT": 3.0})
    compared, alone = Look(worse), Look(worse)

    assert with_text(("base", "corpus"), [_SIFT], {"base": 0.1})(compared) == Way("corpus", _SIFT)
    assert always(Way("corpus", _SIFT))(alone) == Way("corpus", _SIFT)

    assert compared.seconds == pytest.approx(2.1)
    assert alone.seconds == pytest.approx(0.1)


def test_the_text_with_the_lower_loss_is_shown() -> None:
    look = Look(row(losses={"corpus, 4 nearest": 1.5, "corpus, 4 by SIFT": 1.6}))

    answer = with_text(["corpus"], [_SIFT, _NEAREST], {})(look)

    assert answer == Way("corpus", _NEAREST)
    assert look.seconds == pytest.approx(2.2)


def test_hindsight_knows_the_answer_and_the_lowest_loss_does_not() -> None:
    found = row(percents={"base, 2 nearest": 80.0}, losses={"corpus, 8 by SIFT": 1.0})

    assert hindsight(WAYS)(Look(found)).name == "base, 2 nearest"
    assert least_loss(WAYS)(Look(found)).name == "corpus, 8 by SIFT"


def test_rules_without_an_adapter_use_none() -> None:
    helped = row(losses=dict.fromkeys((way.name for way in WAYS if way.text), 1.0))

    rules = rules_without_adapter()

    assert {NOW_WITHOUT, SERVED_WITHOUT} <= rules.keys()
    assert all(rule(Look(helped)).model == "base" for rule in rules.values())
