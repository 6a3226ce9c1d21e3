"""What a request brings to learn from: its parser, and the errors before any compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from selection.examples.example import Example
from serving.adaptation.request import AdaptationRequest, parse_adaptation_request
from serving.budget import Budget, ExampleLimits, Terms
from serving.errors import RequestError

PAIR = {"prompt": "2 + 2", "completion": "4"}
CHAT = {
    "messages": [
        {"role": "system", "content": "Calculate."},
        {"role": "user", "content": "2 + 2"},
        {"role": "assistant", "content": "4"},
    ]
}
_NO_CORPUS = Terms(
    Budget(steps=50, seconds=None, gain=0.25),
    Budget(steps=50, seconds=60.0),
    examples=ExampleLimits(count=4),
)
_ONLY = {"type": "eq", "key": "language", "value": "de"}


def parse(
    tokenizer: Any, header: str | None = None, terms: Terms = _NO_CORPUS, **adaptation: Any
) -> AdaptationRequest:
    body = {"messages": [{"role": "user", "content": "1 + 1"}], "adaptation": adaptation}
    return parse_adaptation_request(body, header, None, terms, tokenizer)


def test_examples_and_texts_are_read(tokenizer: Any) -> None:
    request = parse(
        tokenizer,
        examples=[PAIR, CHAT],
        texts=["Three is a number."],
        examples_as="leave-one-out",
        show=8,
        reuse="examples",
    )

    pair = ({"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"})
    assert request.examples == (Example(pair), Example(tuple(CHAT["messages"])))
    assert request.texts == ("Three is a number.",)
    assert (request.examples_as, request.show, request.reuse) == ("leave-one-out", 8, "examples")


def test_without_them_nothing_is_brought(tokenizer: Any) -> None:
    request = parse(tokenizer, examples=None, texts=None)

    assert (request.examples, request.texts) == ((), ())
    assert (request.examples_as, request.show, request.reuse) == ("single", 0, None)
    assert not request.adapts


def test_two_examples_or_more_are_left_out_one_by_one_unless_the_request_says_otherwise(
    tokenizer: Any,
) -> None:
    one, two = parse(tokenizer, examples=[PAIR]), parse(tokenizer, examples=[PAIR, CHAT])
    single = parse(tokenizer, examples=[PAIR, CHAT], examples_as="single")

    assert [(each.examples_as, each.show) for each in (one, two, single)] == [
        ("single", 0),
        ("leave-one-out", 2),
        ("single", 0),
    ]


@pytest.mark.parametrize("brought", [{"examples": [PAIR]}, {"texts": ["Three is a number."]}])
def test_what_a_request_brings_is_mixed_only_with_a_corpus_that_it_names(
    tokenizer: Any, brought: dict[str, Any]
) -> None:
    terms = replace(_NO_CORPUS, corpus="the server's")

    corpora = [
        parse(tokenizer, terms=terms, **options).corpus
        for options in ({}, brought, {**brought, "corpus": "mine"})
    ]

    assert corpora == ["the server's", None, "mine"]


def test_leave_one_out_shows_all_examples_unless_the_request_says_how_many(
    tokenizer: Any,
) -> None:
    options: dict[str, Any] = {"examples": [PAIR, CHAT], "examples_as": "leave-one-out"}

    requests = [parse(tokenizer, **(options | more)) for more in ({}, {"show": 1}, {"show": 0})]

    assert [(each.show, each.shows_chosen) for each in requests] == [
        (2, False),
        (1, True),
        (0, True),
    ]


@pytest.mark.parametrize("budget", ["none", "steps=2"])
def test_all_examples_are_shown_in_their_order_where_all_may_be(
    tokenizer: Any, budget: str
) -> None:
    options: dict[str, Any] = {"examples": [PAIR, CHAT], "examples_as": "single"}
    more: list[dict[str, Any]] = [{}, {"show": 1}, {"texts": ["Three."]}, {"corpus": "mine"}]

    requests = [parse(tokenizer, budget, **{**options, "show": 3, **each}) for each in more]

    assert [(each.show, each.shows_chosen) for each in requests] == [
        (3, False),
        (1, True),
        (3, True),
        (3, True),
    ]


@pytest.mark.parametrize("brought", [{"examples": [PAIR]}, {"texts": ["Three is a number."]}])
def test_a_request_adapts_to_what_it_brings_without_a_corpus(
    tokenizer: Any, brought: dict[str, Any]
) -> None:
    assert parse(tokenizer, **brought).adapts
    assert not parse(tokenizer, header="none", **brought).adapts


@pytest.mark.parametrize(
    ("brought", "is_judged"),
    [
        ({"examples": [PAIR]}, False),
        ({"texts": ["Three is a number."]}, True),
        ({"texts": ["Three is a number."], "reuse": "examples"}, False),
    ],
)
def test_the_prompts_loss_ends_the_training_only_where_the_prompt_is_adapted_to(
    tokenizer: Any, brought: dict[str, Any], is_judged: bool
) -> None:
    request = parse(tokenizer, **brought)

    assert bool(request.probe_tokens) is is_judged
    assert (request.budget_for(None).gain is not None) is is_judged


@pytest.mark.parametrize(
    ("adaptation", "message"),
    [
        ({"examples": []}, "examples` is a list of examples such as"),
        ({"examples": PAIR}, "examples` is a list of examples such as"),
        ({"examples": "2 + 2 = 4"}, "examples` is a list of examples such as"),
        ({"examples": [PAIR] * 10_000}, "has 10000 entries; this server takes 4"),
        ({"examples": [PAIR, {"question": "x"}]}, "^example 2 of `adaptation.examples`"),
        ({"examples": [PAIR, "4"]}, "^example 2 of `adaptation.examples`"),
        ({"examples": [{"messages": CHAT["messages"][:2]}]}, "^example 1 .* must be the assist"),
        (
            {"examples": [{"messages": [{"role": "owner", "content": "x"}] * 2}]},
            "^example 1 .* `role` is one of",
        ),
        ({"examples": [PAIR, {**PAIR, "completion": ""}]}, "^example 2 .* neither text nor tool"),
        (
            {"examples": [{"messages": [{"role": "tool", "content": "4"}, CHAT["messages"][-1]]}]},
            "^example 1 .* answers no call",
        ),
        ({"texts": []}, "texts` is a list of texts"),
        ({"texts": "Three is a number."}, "texts` is a list of texts"),
        ({"texts": ["x"] * 5}, "texts` has 5 entries; this server takes 4"),
        ({"texts": ["Three is a number.", " "]}, "text 2 of `adaptation.texts` is not a text"),
        ({"texts": [3]}, "text 1 of `adaptation.texts` is not a text"),
        ({"examples": [PAIR], "examples_as": "all"}, 'examples_as` is "single"'),
        ({"examples": [PAIR], "examples_as": None}, 'examples_as` is "single"'),
        ({"examples": [PAIR], "examples_as": ["single"]}, 'examples_as` is "single"'),
        ({"examples": [PAIR], "examples_as": "leave-one-out"}, "needs two"),
        ({"texts": ["x y", "z"], "examples_as": "leave-one-out"}, "needs two"),
        ({"show": -1}, "show` is a whole number"),
        ({"show": 1.0}, "show` is a whole number"),
        ({"show": True}, "show` is a whole number"),
        ({"show": "8"}, "show` is a whole number"),
        ({"reuse": "examples"}, 'reuse` "examples" needs'),
        (
            {"examples": [PAIR], "filters": _ONLY},
            "filters` filters .* give `adaptation.corp",
        ),
        ({"texts": ["x y"], "corpus": None, "filters": _ONLY}, "filters` filters a corpus"),
        ({"reuse": "texts", "texts": ["x y"]}, 'reuse` is "conversation" .* or "examples"'),
    ],
)
def test_what_cannot_be_is_refused(
    tokenizer: Any, adaptation: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        parse(tokenizer, **adaptation)


def test_a_filter_beside_examples_is_for_the_corpus_that_the_request_names(tokenizer: Any) -> None:
    request = parse(tokenizer, examples=[PAIR], corpus="web", filters=_ONLY)

    assert (request.corpus, request.filter) == ("web", _ONLY)


@pytest.mark.parametrize("field", ["corpus", "examples", "examples_as", "reuse", "show", "texts"])
def test_what_stands_beside_the_adaptation_is_refused(tokenizer: Any, field: str) -> None:
    body = {"prompt": "1 + 1", field: [PAIR]}

    with pytest.raises(RequestError, match=f"`{field}` belongs into `adaptation`"):
        parse_adaptation_request(body, None, None, _NO_CORPUS, tokenizer)
