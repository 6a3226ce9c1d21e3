"""A file_search among the tools of a response names the corpus, and is taken out of the tools."""

from __future__ import annotations

from typing import Any

import pytest

from serving.adaptation.file_search import take_file_search
from serving.errors import UnsupportedError

_ONLY = {"type": "eq", "key": "language", "value": "de"}
_FUNCTION = {"type": "function", "name": "f", "parameters": {}}
_SEARCH: dict[str, Any] = {"type": "file_search", "vector_store_ids": ["vs_1"]}


def taken(**fields: Any) -> dict[str, Any]:
    body = {"input": "hi", **fields}
    take_file_search(body)
    return body


def test_its_store_is_the_corpus_and_its_filters_are_the_filters() -> None:
    assert taken(tools=[_SEARCH]) == {"input": "hi", "adaptation": {"corpus": "vs_1"}}
    assert taken(tools=[{**_SEARCH, "filters": _ONLY}], adaptation={"seed": 3}) == {
        "input": "hi",
        "adaptation": {"corpus": "vs_1", "filters": _ONLY, "seed": 3},
    }
    assert taken(tools=[{**_SEARCH, "filters": None}], adaptation=None)["adaptation"] == {
        "corpus": "vs_1"
    }


def test_the_tool_and_the_extension_must_agree() -> None:
    same = {"corpus": "vs_1", "filters": _ONLY}

    assert taken(tools=[{**_SEARCH, "filters": _ONLY}], adaptation=same)["adaptation"] == same
    for other in ({"corpus": "vs_2"}, {"corpus": None}, {"filters": {**_ONLY, "value": "en"}}):
        with pytest.raises(UnsupportedError, match="disagree: give it in one of them"):
            taken(tools=[{**_SEARCH, "filters": _ONLY}], adaptation=other)


@pytest.mark.parametrize(
    ("tools", "choice", "left", "then"),
    [
        ([_SEARCH], None, None, None),
        ([_SEARCH], "auto", None, None),
        ([_SEARCH], "required", None, None),
        ([_SEARCH], {"type": "file_search"}, None, None),
        (
            [_SEARCH],
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "file_search"}]},
            None,
            None,
        ),
        ([_SEARCH, _FUNCTION], None, [_FUNCTION], None),
        ([_FUNCTION, _SEARCH], "auto", [_FUNCTION], "auto"),
        ([_FUNCTION, _SEARCH], "required", [_FUNCTION], "auto"),
        ([_FUNCTION, _SEARCH], {"type": "file_search"}, [_FUNCTION], "none"),
        (
            [_FUNCTION, _SEARCH],
            {"type": "function", "name": "f"},
            [_FUNCTION],
            {"type": "function", "name": "f"},
        ),
    ],
)
def test_tool_choice_concerns_the_other_tools(
    tools: list[Any], choice: Any, left: Any, then: Any
) -> None:
    body = taken(tools=tools, **({} if choice is None else {"tool_choice": choice}))

    assert (body.get("tools"), body.get("tool_choice")) == (left, then)


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([{**_SEARCH, "vector_store_ids": ["vs_1", "vs_2"]}], "one corpus"),
        ([{**_SEARCH, "vector_store_ids": []}], "one corpus"),
        ([{**_SEARCH, "vector_store_ids": "vs_1"}], "a list of one id"),
        ([{**_SEARCH, "vector_store_ids": [5]}], "a list of one id"),
        ([{"type": "file_search"}], "a list of one id"),
        ([_SEARCH, {**_SEARCH, "vector_store_ids": ["vs_2"]}], "one corpus"),
        ([_SEARCH, {**_SEARCH, "filters": _ONLY}], "one corpus"),
        ([{**_SEARCH, "max_num_results": 5}], "Compute-Budget"),
        ([{**_SEARCH, "ranking_options": {"score_threshold": 0.5}}], "`adaptation.strategy`"),
        (
            [{**_SEARCH, "ranking_options": {"hybrid_search": {"text_weight": 1}}}],
            "`adaptation.strategy`",
        ),
        ([{**_SEARCH, "ranking_options": 5}], "`ranking_options`"),
    ],
)
def test_unsupported_options_are_refused(tools: list[Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as refusal:
        taken(tools=tools)

    assert refusal.value.param == "tools"


def test_ranking_options_without_an_effect_are_accepted() -> None:
    body = taken(tools=[{**_SEARCH, "ranking_options": {"ranker": "auto", "score_threshold": 0}}])

    assert body["adaptation"] == {"corpus": "vs_1"}


def test_allowed_tools_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="allowed_tools has no effect") as refusal:
        taken(
            tools=[_FUNCTION],
            tool_choice={"type": "allowed_tools", "mode": "auto", "tools": [_FUNCTION]},
        )

    assert refusal.value.param == "tool_choice"


@pytest.mark.parametrize("tools", [None, [], 5, "x", [5], [[]], [{}], {}, [_FUNCTION]])
def test_tools_without_a_search_stay_as_they_are(tools: Any) -> None:
    assert taken(tools=tools, tool_choice="auto") == {
        "input": "hi",
        "tools": tools,
        "tool_choice": "auto",
    }


def test_an_invalid_extension_is_left_to_its_parser() -> None:
    assert taken(tools=[_SEARCH], adaptation="house")["adaptation"] == "house"
