"""Budgets: valid and invalid ones, in several places, and clamped to a server's limits."""

from __future__ import annotations

import math
import pickle
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.budget import (
    ALIAS,
    FIELD,
    HEADER,
    INSTANT,
    MAX_HEADER,
    NONE,
    Budget,
    agreed_budget,
    parse_budget,
)
from serving.errors import BudgetError, to_http

_DEFAULT = Budget(steps=7, seconds=3.0, alpha=0.7)
_AUTO = Budget(steps=50, seconds=None, alpha=0.1)
_LIMITS = Budget(steps=40, seconds=60.0)


def parse(header: str | None) -> Budget:
    return parse_budget(header, default=_DEFAULT, auto=_AUTO, limits=_LIMITS)


MALFORMED = [
    # nothing
    *["", " ", "\t", ",", ", ,", ";", "=", "\0", "\n"],
    # numbers that are none, or out of range
    *[
        "steps=-1",
        "seconds=-1",
        "seconds=-0.5",
        "alpha=-0.1",
        "steps=1.5",
        "steps=1.0",
        "steps=NaN",
    ],
    *["seconds=NaN", "seconds=nan", "alpha=NaN", "seconds=inf", "seconds=Infinity", "alpha=-inf"],
    *["gain=-0.1", "gain=0", "gain=NaN", "gain", 'gain="1"', "gain=1, gain=1", "auto, gain=1"],
    *[
        "steps=1e9",
        "seconds=1e9",
        "seconds=1e-3",
        "alpha=1E1",
        "steps=0x10",
        "steps=+5",
        "steps=1_000",
    ],
    *[
        "seconds=0",
        "seconds=0.0",
        "seconds=-0.0",
        "alpha=0",
        "alpha=0.000",
        "seconds=.5",
        "seconds=5.",
    ],
    *[
        "seconds=0.0001",
        "steps=1000000000000000",
        "seconds=1234567890123.5",
        "steps=",
        "steps= 5",
        "steps =5",
    ],
    *["steps=5 5", "steps=5s", "steps=--5", "steps=5%"],
    # values of other kinds
    *[
        "steps",
        "seconds",
        "alpha",
        "steps=?1",
        "seconds=?0",
        "alpha=?1",
        'steps="5"',
        'seconds="1.5"',
    ],
    *[
        "steps=five",
        "steps=(5)",
        "seconds=(1 2)",
        "alpha=()",
        "steps=:BQ==:",
        "seconds=:AAAA:",
        "steps=@5",
    ],
    *[
        "seconds=@1659578233",
        "alpha=@99999999999999",
        'alpha=%"0.1"',
        'steps=%"%ff"',
        'steps="a,b"',
        "steps=(5",
    ],
    # words that do not stand alone, or are no words
    *[
        "none, steps=3",
        "steps=3, none",
        "auto, alpha=0.1",
        "none, auto",
        "auto=?0",
        "none=?0",
        "none=1",
        "instant, steps=3",
        "instant, none",
        "instant=1",
        "Instant",
    ],
    *[
        "auto=auto",
        "None",
        "NONE",
        "AUTO",
        "Auto",
        "maximum",
        "20",
        "1.5",
        '"auto"',
        "(none)",
        "-auto",
    ],
    # keys
    *[
        "Steps=5",
        "STEPS=5",
        "step=5",
        "steps=5, second=1",
        "sigma=0.1",
        "steps=5, tokens=3",
        "*steps=5",
        "a=1",
    ],
    # twice, also over several lines, which HTTP joins with commas
    *[
        "steps=1, steps=2",
        "steps=5, steps=5",
        "seconds=1, steps=3, seconds=2",
        "none, none",
        "auto, auto",
    ],
    *[
        "alpha=0.1, alpha=0.1, alpha=0.1",
        "steps=1,,seconds=1",
        "steps=1, ",
        ",steps=1",
        "auto,",
        "auto, , auto",
    ],
    # parameters
    *[
        "auto;x=1",
        "none;x",
        "steps=5;x=1",
        "seconds=1.5; q=0.5",
        "alpha=0.1;a;b",
        "auto;",
        "steps=(5);x",
    ],
    # separators and bytes
    *["steps=5 seconds=1", "steps:5", '{"steps": 5}', "steps=5\n", "steps=5\r\nseconds=1", ":"],
    *["steps=5;;seconds=1", ";steps=5", "steps=5; steps=5", "none; steps=5", "steps=5;,seconds=1"],
    *[
        "steps=\uff15",
        "säconds=1",
        "auto\u00a0",
        "\ufeffauto",
        "st\u0435ps=5",
        "steps=5\x7f",
        "steps=5\0",
    ],
    # too long
    *["auto" + " " * MAX_HEADER, "steps=" + "1" * MAX_HEADER, "a" * 100_000],
]


@pytest.mark.parametrize(
    ("header", "budget"),
    [
        (None, _DEFAULT),
        ("none", NONE),
        ("instant", INSTANT),
        ("auto", _AUTO),
        ("  auto ", _AUTO),
        ("auto=?1", _AUTO),  # the long form of the same member (RFC 9651, 3.2)
        ("steps=20", Budget(20)),
        ("steps=0", Budget(0)),
        ("steps=999999999999999", Budget(999_999_999_999_999)),
        ("seconds=1.5", Budget(40, 1.5)),
        ("seconds=2", Budget(40, 2.0)),
        ("seconds=0.001", Budget(40, 0.001)),
        ("alpha=0.1", Budget(40, None, 0.1)),
        ("alpha=3", Budget(40, None, 3.0)),
        ("gain=0.4", Budget(40, gain=0.4)),
        ("steps=20, alpha=0.1, gain=1", Budget(20, None, 0.1, 1.0)),
        ("steps=20, seconds=1.5", Budget(20, 1.5)),
        ("alpha=0.1,steps=20", Budget(20, None, 0.1)),
        ("seconds=1.5 ,\t alpha=0.25, steps=20", Budget(20, 1.5, 0.25)),
        ("steps=20; seconds=1.5", Budget(20, 1.5)),
        ("steps=20;seconds=1.5, alpha=0.25", Budget(20, 1.5, 0.25)),
    ],
)
def test_valid_budgets(header: str | None, budget: Budget) -> None:
    assert parse(header) == budget


@pytest.mark.parametrize("header", MALFORMED)
def test_invalid_budgets_are_refused(header: str) -> None:
    with pytest.raises(BudgetError, match="Compute-Budget"):
        parse(header)


@pytest.mark.parametrize("source", [{"header": "fast"}, {"field": "fast"}, {"field": {"step": 3}}])
def test_the_error_of_an_unknown_key_names_everything_that_is_known(source: Any) -> None:
    with pytest.raises(BudgetError) as refused:
        agree(**source)

    for known in ("`none`", "`instant`", "`auto`", "steps", "seconds", "gain", "alpha"):
        assert known in str(refused.value)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=40),
        st.text(st.sampled_from('stepsecondalphaunoe=,; .-?:@"%()*0123456789\t'), max_size=30),
        st.from_regex(r"(steps|seconds|alpha|auto|none)=[ -~]{0,20}", fullmatch=True),
    )
)
def test_any_text_is_a_valid_budget_or_refused(header: str) -> None:
    try:
        budget = parse(header)
    except BudgetError:
        return
    assert type(budget.steps) is int
    assert budget.steps >= 0
    for limit in (budget.seconds, budget.alpha):
        assert limit is None or 0 < limit < 1e12


_DECIMALS = st.integers(1, 10**9).map(lambda thousandths: Decimal(thousandths) / 1000)


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries(
        {}, optional={"steps": st.integers(0, 10**15 - 1), "seconds": _DECIMALS, "alpha": _DECIMALS}
    ),
    st.randoms(use_true_random=False),
)
def test_a_formatted_budget_is_parsed_back(
    values: dict[str, int | Decimal], random: Random
) -> None:
    members = [
        f"{key}={value:f}" if isinstance(value, Decimal) else f"{key}={value}"
        for key, value in values.items()
    ]
    random.shuffle(members)
    if not members:
        members = ["none"]

    budget = parse(random.choice([", ", ",", ";", " ; "]).join(members))

    if values:
        assert budget.steps == values.get("steps", _LIMITS.steps)
        assert budget.seconds == (float(values["seconds"]) if "seconds" in values else None)
        assert budget.alpha == (float(values["alpha"]) if "alpha" in values else None)
    else:
        assert budget == NONE


def agree(**sources: Any) -> Budget:
    places = {"header": HEADER, "alias": ALIAS, "field": FIELD}
    return agreed_budget(
        {places[key]: value for key, value in sources.items()}, _DEFAULT, _AUTO, _LIMITS
    )


@pytest.mark.parametrize(
    ("field", "budget"),
    [
        (None, _DEFAULT),
        ("none", NONE),
        ("instant", INSTANT),
        ("auto", _AUTO),
        ("steps=20", Budget(20)),
        ("steps=20; alpha=0.1", Budget(20, None, 0.1)),
        ({"steps": 20}, Budget(20)),
        ({"steps": 0}, Budget(0)),
        ({"steps": 999_999_999_999_999}, Budget(999_999_999_999_999)),
        ({"seconds": 2}, Budget(40, 2.0)),
        ({"alpha": 0.05}, Budget(40, None, 0.05)),
        ({"steps": 20, "seconds": 1.5, "alpha": 0.1}, Budget(20, 1.5, 0.1)),
    ],
)
def test_valid_budgets_of_a_body(field: Any, budget: Budget) -> None:
    assert agree(field=field) == budget


MALFORMED_FIELDS = [
    *[True, False, 0, 20, 1.5, [], ["steps=20"], [20], {}, "", "steps=-1", "NONE", "a" * 100_000],
    *[
        {"steps": value}
        for value in (
            -1,
            1.0,
            1.5,
            True,
            "20",
            None,
            [20],
            {"a": 1},
            10**15,
            10**400,
            math.nan,
            math.inf,
        )
    ],
    *[
        {"seconds": value}
        for value in (
            0,
            -1,
            -0.5,
            True,
            "1.5",
            None,
            [1],
            {"a": 1},
            1e12,
            10**400,
            math.nan,
            math.inf,
        )
    ],
    *[
        {"alpha": value}
        for value in (
            0,
            0.0,
            -0.1,
            False,
            "0.1",
            None,
            [1],
            {"a": 1},
            1e12,
            1e308,
            math.nan,
            -math.inf,
        )
    ],
    *[
        {"Steps": 5},
        {"steps": 5, "second": 1},
        {"none": True},
        {"auto": True, "steps": 5},
        {"": 5},
        {"x" * 100_000: 1},
    ],
]


@pytest.mark.parametrize("field", MALFORMED_FIELDS, ids=lambda field: str(field)[:40])
def test_invalid_budgets_of_a_body_are_refused(field: Any) -> None:
    with pytest.raises(BudgetError, match=FIELD) as caught:
        agree(field=field)

    assert caught.value.param == FIELD
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("place", "name"), [("header", HEADER), ("alias", ALIAS), ("field", FIELD)]
)
@pytest.mark.parametrize(
    "text", ["steps=-1", "tokens=5", "steps", "auto, steps=5", "steps=5;steps=5", "", "?"]
)
def test_an_error_names_the_place(place: str, name: str, text: str) -> None:
    with pytest.raises(BudgetError) as caught:
        agree(**{place: text})

    assert name in str(caught.value)
    assert caught.value.param == name


@pytest.mark.parametrize(
    "sources",
    [
        {
            "header": "steps=20, seconds=1.5",
            "alias": "seconds=1.500; steps=20",
            "field": {"steps": 20, "seconds": 1.5},
        },
        {"header": "none", "field": {"steps": 0}},
        {"alias": "auto", "field": "auto"},
        {"header": "instant", "alias": "instant", "field": "instant"},
        {"header": "auto", "field": {"steps": 50, "alpha": 0.1}},
        {"header": None, "alias": "steps=3", "field": None},
    ],
)
def test_equal_budgets_in_several_places_agree(sources: dict[str, Any]) -> None:
    assert agree(**sources) == agree(
        **dict([next(pair for pair in sources.items() if pair[1] is not None)])
    )


@pytest.mark.parametrize(
    ("sources", "places"),
    [
        ({"header": "steps=20", "alias": "steps=21"}, [HEADER, ALIAS]),
        ({"header": "none", "alias": None, "field": "auto"}, [HEADER, FIELD]),
        ({"header": "none", "field": "instant"}, [HEADER, FIELD]),
        ({"alias": "steps=5", "field": {"steps": 5, "seconds": 1}}, [ALIAS, FIELD]),
        ({"header": "steps=5", "alias": "steps=5", "field": {"steps": 6}}, [HEADER, ALIAS, FIELD]),
    ],
)
def test_places_that_disagree_are_named(sources: dict[str, Any], places: list[str]) -> None:
    with pytest.raises(BudgetError, match="disagree") as caught:
        agree(**sources)

    assert caught.value.param == ", ".join(places)
    assert str(caught.value).startswith(" and ".join(places))


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries(
        {}, optional={"steps": st.integers(0, 10**15 - 1), "seconds": _DECIMALS, "alpha": _DECIMALS}
    ),
    st.sets(st.sampled_from(["header", "alias", "field"]), min_size=1),
)
def test_a_budget_is_the_same_in_any_place(values: dict[str, Any], places: set[str]) -> None:
    values = values or {"steps": 1}
    text = "; ".join(
        f"{key}={value:f}" if key != "steps" else f"steps={value}" for key, value in values.items()
    )
    members = {key: value if key == "steps" else float(value) for key, value in values.items()}

    assert agree(**{place: members if place == "field" else text for place in places}) == parse(
        text
    )


def test_a_budget_error_survives_pickling() -> None:
    problem = pickle.loads(pickle.dumps(BudgetError("what to do", FIELD)))

    assert (str(problem), problem.param) == ("what to do", FIELD)
    assert to_http(problem)[1]["error"]["param"] == FIELD


@pytest.mark.parametrize(
    ("asked", "within", "cut"),
    [
        (Budget(10, 5.0, 0.1), Budget(10, 5.0, 0.1), ()),
        (Budget(40, 60.0), Budget(40, 60.0), ()),
        (Budget(41, 5.0), Budget(40, 5.0), ("steps",)),
        (Budget(10, 60.5), Budget(10, 60.0), ("seconds",)),
        (Budget(99, 99.0, 9.0), Budget(40, 60.0, 9.0), ("steps", "seconds")),
        # None asked, none cut; the server's limit holds all the same.
        (Budget(10), Budget(10, 60.0), ()),
        (NONE, Budget(0, 60.0), ()),
        (INSTANT, Budget(0, 60.0, instant=True), ()),
    ],
)
def test_a_budget_is_clamped_to_the_limits(
    asked: Budget, within: Budget, cut: tuple[str, ...]
) -> None:
    assert asked.clamp(_LIMITS) == (within, cut)


def test_a_server_without_a_time_limit_leaves_the_seconds() -> None:
    limits = Budget(steps=5)

    assert Budget(9, 1e9).clamp(limits) == (Budget(5, 1e9), ("steps",))
    assert Budget(3).clamp(limits) == (Budget(3), ())


@given(st.integers(0, 100), st.none() | st.floats(0.001, 100), st.none() | st.floats(0.001, 100))
def test_clamping_is_idempotent(steps: int, seconds: float | None, alpha: float | None) -> None:
    within, _ = Budget(steps, seconds, alpha).clamp(_LIMITS)

    assert within.steps <= 40
    assert within.seconds is not None
    assert within.seconds <= 60
    assert within.alpha == alpha
    assert within.clamp(_LIMITS) == (within, ())


def test_the_report_has_every_limit() -> None:
    limits = {"steps": 5, "seconds": 1.5, "alpha": None, "gain": None}

    assert Budget(5, 1.5).as_dict() == limits
    assert Budget(5, 1.5, instant=True).as_dict() == {**limits, "instant": True}
