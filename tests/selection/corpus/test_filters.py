"""Filters: SQLite finds what plain Python finds, and user input never becomes SQL."""

from __future__ import annotations

import json
import operator
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from selection.corpus.filters import Filter, Scalar, to_sql

_MANY = settings(max_examples=300, deadline=None)
_OPERATORS: dict[str, Any] = {
    "eq": operator.eq,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
ODD = [
    "",
    " ",
    "a",
    "$",
    "$.a",
    "a.b",
    "[0]",
    "'",
    '"',
    "\\",
    "a' OR '1'='1",
    "a\nb",
    "é",
    "名",
    "😀",
    "\u2028",
    "f",
    "?",
]

Metadata = Mapping[str, Scalar]


def found(filter: Filter, documents: Sequence[Metadata]) -> list[int]:
    """The documents that SQLite finds, by position."""
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE documents (id INTEGER PRIMARY KEY, metadata TEXT NOT NULL)")
    rows = [(i, json.dumps(metadata)) for i, metadata in enumerate(documents)]
    database.executemany("INSERT INTO documents VALUES (?, ?)", rows)
    condition, parameters = to_sql(filter, "d.metadata")
    query = f"SELECT d.id FROM documents d WHERE {condition} ORDER BY d.id"
    return [row[0] for row in database.execute(query, parameters)]


def kind_of(value: Scalar) -> type:
    """Only values of one kind compare: true and false are not numbers."""
    return bool if isinstance(value, bool) else str if isinstance(value, str) else float


def passes(filter: Filter, metadata: Metadata) -> bool:
    """The same grammar, in Python."""
    if filter["type"] == "and":
        return all(passes(operand, metadata) for operand in filter["filters"])
    if filter["type"] == "or":
        return any(passes(operand, metadata) for operand in filter["filters"])
    kind, value = filter["type"], filter["value"]
    if kind in ("ne", "nin"):
        return not passes({**filter, "type": {"ne": "eq", "nin": "in"}[kind]}, metadata)
    if filter["key"] not in metadata:
        return False
    has = metadata[filter["key"]]
    if kind == "in":
        return any(kind_of(has) is kind_of(each) and has == each for each in value)
    return kind_of(has) is kind_of(value) and bool(_OPERATORS[kind](has, value))


# SQLite ends a string of JSON at U+0000, and lone surrogates are no Unicode text.
_TEXTS = st.sampled_from(ODD) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4
)
_NUMBERS = (
    st.integers(-3, 3)
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.sampled_from([0.0, -0.0, 1.0, 0.5, 0.1, 2.0**53, 2**53 + 1, 1e-300, 1.5e300])
    | st.floats(-1e9, 1e9)
)
_SCALARS = st.booleans() | _NUMBERS | _TEXTS
_KEYS = st.sampled_from(["a", "b", "a.b", "$.a", "'", '"', ""]) | _TEXTS
METADATA = st.dictionaries(_KEYS, _SCALARS, max_size=4)
_LEAVES = (
    st.fixed_dictionaries({"type": st.sampled_from(["eq", "ne"]), "key": _KEYS, "value": _SCALARS})
    | st.fixed_dictionaries(
        {
            "type": st.sampled_from(["gt", "gte", "lt", "lte"]),
            "key": _KEYS,
            "value": _NUMBERS | _TEXTS,
        }
    )
    | st.fixed_dictionaries(
        {
            "type": st.sampled_from(["in", "nin"]),
            "key": _KEYS,
            "value": st.lists(_SCALARS, min_size=1, max_size=5),
        }
    )
)
FILTERS = st.recursive(
    _LEAVES,
    lambda parts: st.fixed_dictionaries(
        {"type": st.sampled_from(["and", "or"]), "filters": st.lists(parts, min_size=1, max_size=3)}
    ),
    max_leaves=6,
)


@_MANY
@given(FILTERS, st.lists(METADATA, max_size=5))
def test_sqlite_finds_what_python_finds(filter: Filter, documents: list[Metadata]) -> None:
    expected = [i for i, metadata in enumerate(documents) if passes(filter, metadata)]

    assert found(filter, documents) == expected


@_MANY
@given(st.sampled_from(["eq", "ne", "gt", "gte", "lt", "lte"]), _KEYS, _SCALARS, _SCALARS)
def test_values_compare_only_with_their_own_kind(
    kind: str, key: str, has: Scalar, value: Scalar
) -> None:
    # The same as above, on documents that do have the key.
    assume(kind in ("eq", "ne") or not isinstance(value, bool))
    filter = {"type": kind, "key": key, "value": value}
    documents: list[Metadata] = [{key: has}, {key: value}, {}]

    assert found(filter, documents) == [
        i for i, metadata in enumerate(documents) if passes(filter, metadata)
    ]


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"type": "eq", "key": "language", "value": "de"}, ["de"]),
        ({"type": "ne", "key": "language", "value": "de"}, ["en", "bare"]),
        ({"type": "in", "key": "language", "value": ["de", "en", 7]}, ["en", "de"]),
        ({"type": "nin", "key": "language", "value": ["de", "en"]}, ["bare"]),
        ({"type": "gte", "key": "year", "value": 2021}, ["de"]),
        ({"type": "lt", "key": "year", "value": 2020.5}, ["en"]),
        ({"type": "gt", "key": "year", "value": "2000"}, ["bare"]),  # there it is a string
        ({"type": "eq", "key": "draft", "value": True}, ["en"]),
        ({"type": "eq", "key": "draft", "value": 1}, ["de"]),  # there it is a number
        ({"type": "in", "key": "draft", "value": [False, True]}, ["en", "bare"]),
        (
            {
                "type": "or",
                "filters": [
                    {"type": "eq", "key": "language", "value": "en"},
                    {
                        "type": "and",
                        "filters": [
                            {"type": "eq", "key": "language", "value": "de"},
                            {"type": "gt", "key": "year", "value": 2020},
                        ],
                    },
                ],
            },
            ["en", "de"],
        ),
    ],
)
def test_a_filter_finds(filter: Filter, expected: list[str]) -> None:
    documents: dict[str, Metadata] = {
        "en": {"language": "en", "year": 2020, "draft": True},
        "de": {"language": "de", "year": 2021, "draft": 1},
        "bare": {"year": "2022", "draft": False},
    }

    positions = found(filter, list(documents.values()))

    assert [list(documents)[i] for i in positions] == expected


@pytest.mark.parametrize("odd", ODD)
def test_unusual_keys_and_values_match_only_themselves(odd: str) -> None:
    documents: list[Metadata] = [{odd: "x"}, {"key": odd}, {"key": "x"}, {f"{odd}!": "x"}]

    assert found({"type": "eq", "key": odd, "value": "x"}, documents) == [0]
    assert found({"type": "eq", "key": "key", "value": odd}, documents) == [1]
    assert found({"type": "in", "key": "key", "value": [odd, "y"]}, documents) == [1]


@pytest.mark.parametrize(
    "text", ["x' OR 1=1 --", "x); DROP TABLE documents; --", "{}", "?", ":x", "%s"]
)
def test_user_input_never_becomes_sql(text: str) -> None:
    for kind, plain, odd in (("eq", "a", text), ("lt", "a", text), ("in", ["a", "b"], [text, "b"])):
        harmless, _ = to_sql({"type": kind, "key": "k", "value": plain})
        condition, parameters = to_sql({"type": kind, "key": text, "value": odd})

        assert condition == harmless
        assert parameters[:2] == [text, text]
    assert found({"type": "eq", "key": text, "value": text}, [{"a": 1}, {text: text}, {}]) == [1]


@pytest.mark.parametrize(
    "value",
    [1e20, -1e20, 1.7976931348623157e308, 2**63 - 1, -(2**63) + 1, 2.0**63, 5e-324, 0.1 + 0.2],
)
def test_any_finite_number_can_be_compared(value: float) -> None:
    assert found(
        {"type": "eq", "key": "n", "value": value}, [{"n": value}, {"n": 1}, {"n": str(value)}]
    ) == [0]


def test_a_list_may_be_long() -> None:
    documents: list[Metadata] = [{"n": 5}, {"n": 799}, {"n": 800}, {"n": "5"}, {}]
    numbers = list(range(800))

    assert found({"type": "in", "key": "n", "value": numbers}, documents) == [0, 1]
    assert found({"type": "nin", "key": "n", "value": numbers}, documents) == [2, 3, 4]
    assert found(
        {"type": "in", "key": "n", "value": [*map(str, numbers[:-1]), True]}, documents
    ) == [3]


def test_a_filter_may_have_many_operands() -> None:
    operands = [{"type": "eq", "key": "n", "value": i} for i in range(300)]

    assert found({"type": "or", "filters": operands}, [{"n": 5}, {"n": 299}, {"n": 300}]) == [0, 1]


@pytest.mark.parametrize(
    "filter",
    [
        {"type": "in", "key": "n", "value": list(range(1001))},
        {"type": "and", "filters": [{"type": "eq", "key": "n", "value": 1}] * 1001},
        {"type": "and", "filters": [{"type": "eq", "key": "n", "value": True}] * 1001},
        {"type": "or", "filters": [{"type": "in", "key": "n", "value": list(range(500))}] * 100},
    ],
)
def test_filters_beyond_the_limit_of_sqlite_are_refused(filter: Filter) -> None:
    with pytest.raises(ValueError, match="at most 900 keys and values"):
        to_sql(filter)


def nested(depth: int) -> Filter:
    """A comparison nested in `depth` lists."""
    leaf: Filter = {"type": "eq", "key": "a", "value": 1}
    for _ in range(depth):
        leaf = {"type": "and", "filters": [leaf]}
    return leaf


def test_nesting_is_limited() -> None:
    assert found(nested(7), [{"a": 1}, {"a": 2}]) == [0]
    with pytest.raises(ValueError, match="nested at most 8 deep"):
        to_sql(nested(8))
    with pytest.raises(ValueError, match="nested at most 8 deep"):
        to_sql(nested(900))


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        (None, "a filter is an object"),
        ([], "a filter is an object"),
        ("language = 'de'", "a filter is an object"),
        ({}, "`type`, `key` .* and `value`"),
        ({"type": "eq", "key": "a"}, "`type`, `key` .* and `value`"),
        ({"key": "a", "value": 1}, "`type`, `key` .* and `value`"),
        ({"type": "eq", "key": 1, "value": 1}, "`type`, `key` .* and `value`"),
        ({"type": "eq", "key": None, "value": 1}, "`type`, `key` .* and `value`"),
        ({"type": "eq", "key": "a", "value": 1, "filters": []}, "`type`, `key` .* and `value`"),
        ({"type": "like", "key": "a", "value": "%"}, "unknown filter type 'like': use eq, ne, gt"),
        ({"type": "EQ", "key": "a", "value": 1}, "unknown filter type 'EQ'"),
        ({"type": None, "key": "a", "value": 1}, "unknown filter type None"),
        ({"type": ["eq"], "key": "a", "value": 1}, "unknown filter type"),
        ({"type": {"eq": 1}, "key": "a", "value": 1}, "unknown filter type"),
        ({"type": "eq", "key": "a", "value": None}, "compares with a string"),
        ({"type": "eq", "key": "a", "value": [1]}, "compares with a string"),
        ({"type": "gt", "key": "a", "value": {}}, "compares with a string"),
        ({"type": "eq", "key": "a", "value": float("nan")}, "compares with a string"),
        ({"type": "lt", "key": "a", "value": float("inf")}, "compares with a string"),
        ({"type": "eq", "key": "a", "value": 2**63}, "compares with a string"),
        ({"type": "eq", "key": "a", "value": -(10**400)}, "compares with a string"),
        (
            {"type": "gt", "key": "a", "value": True},
            "true and false can only be compared with eq, ne",
        ),
        ({"type": "in", "key": "a", "value": 1}, "has a list of"),
        ({"type": "in", "key": "a", "value": "de"}, "has a list of"),
        ({"type": "nin", "key": "a", "value": []}, "has a list of"),
        ({"type": "in", "key": "a", "value": [1, None]}, "compares with a string"),
        ({"type": "in", "key": "a", "value": [[1]]}, "compares with a string"),
        ({"type": "and"}, "'and' has `filters`"),
        ({"type": "or", "filters": []}, "'or' has `filters`"),
        ({"type": "or", "filters": {}}, "'or' has `filters`"),
        ({"type": "or", "filters": nested(0)}, "'or' has `filters`"),
        ({"type": "and", "filters": [nested(0)], "key": "a"}, "'and' has `filters`"),
        ({"type": "and", "filters": [nested(0), None]}, "a filter is an object"),
    ],
)
def test_an_invalid_filter_is_refused(filter: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_sql(filter)


@pytest.mark.parametrize(
    "filter",
    [
        {"type": "eq", "key": "a", "value": "\ud800"},
        {"type": "eq", "key": "\ud800", "value": 1},
        {"type": "in", "key": "a", "value": ["a", "\udfff"]},
    ],
)
def test_surrogates_are_refused(filter: Filter) -> None:
    with pytest.raises(ValueError, match="Unicode text"):
        to_sql(filter)


@pytest.mark.parametrize(
    "filter",
    [
        {"type": "eq", "key": "a", "value": "b\0"},
        {"type": "nin", "key": "a", "value": ["b", "\0"]},
        {"type": "gt", "key": "a\0", "value": 1},
        {"type": "or", "filters": [{"type": "lt", "key": "a", "value": "\0"}]},
    ],
)
def test_null_characters_are_refused(filter: Filter) -> None:
    with pytest.raises(ValueError, match=r"must not contain the character U\+0000"):
        to_sql(filter)
