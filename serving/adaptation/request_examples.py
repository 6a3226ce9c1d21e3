"""The parser of what a request learns from: its examples and texts, how they are used, the filter
on a corpus, and the strategy that chooses.

Only their form is checked here; `serving.adaptation.candidates` renders them and counts tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selection.corpus.filters import Filter, to_sql
from selection.errors import ExampleError
from selection.examples.example import Example, parse_example
from selection.strategies.registry import STRATEGIES
from serving.budget import HEADER, ExampleLimits, ExamplesAs, Reuse
from serving.errors import RequestError

# Fields of `adaptation` that neither OpenAI nor vLLM has, and that vLLM would ignore in a body.
_ONLY_IN_ADAPTATION = ("corpus", "examples", "examples_as", "reuse", "show", "start", "texts")


def parse_examples(options: dict[str, Any], limits: ExampleLimits) -> tuple[Example, ...]:
    """The examples in an `adaptation` object.

    Raises:
        RequestError: they are not a list of examples, or more than the limits allow.
    """
    form = 'examples such as {"messages": [...]} or {"prompt": "...", "completion": "..."}'
    values = _list(options, "examples", form, limits)
    return tuple(_example(value, position) for position, value in enumerate(values, 1))


def parse_texts(options: dict[str, Any], limits: ExampleLimits) -> tuple[str, ...]:
    """The texts in an `adaptation` object.

    Raises:
        RequestError: they are not a list of texts, or more than the limits allow.
    """
    texts = _list(options, "texts", "texts", limits)
    for position, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            raise RequestError(f"text {position} of `adaptation.texts` is not a text, or is blank")
    return tuple(texts)


def default_form(examples: Sequence[Example]) -> ExamplesAs:
    """The better form for these examples: each after the others, where there are any."""
    return "single" if len(examples) < 2 else "leave-one-out"


def parse_examples_as(options: dict[str, Any], examples: Sequence[Example]) -> ExamplesAs:
    """Whether each example is a training sequence by itself, or after the others.

    Raises:
        RequestError: the form is unknown, or needs more examples.
    """
    value = options.get("examples_as", default_form(examples))
    if value == "single":
        return "single"
    if value != "leave-one-out":
        raise RequestError(
            '`adaptation.examples_as` is "single" (each example by itself) or "leave-one-out" '
            "(each after the others)"
        )
    if len(examples) < 2:
        raise RequestError(
            '`adaptation.examples_as` "leave-one-out" needs two `adaptation.examples` or more'
        )
    return "leave-one-out"


def parse_reuse(options: dict[str, Any], *, has_candidates: bool) -> Reuse | None:
    """Which earlier adapter may be used again.

    Args:
        options: the `adaptation` object.
        has_candidates: whether the request brings examples or texts.

    Raises:
        RequestError: it is unknown, or that of examples in a request without any.
    """
    value = options.get("reuse")
    if value is None or value == "conversation":
        return value
    if value != "examples":
        raise RequestError(
            '`adaptation.reuse` is "conversation" (go on from the adapter of the turn before) or '
            '"examples" (use the adapter of the same examples again)'
        )
    if not has_candidates:
        raise RequestError(
            '`adaptation.reuse` "examples" needs `adaptation.examples` or `adaptation.texts`'
        )
    return "examples"


def check_misplaced(body: dict[str, Any]) -> None:
    """Check that no field of `adaptation` stands beside it.

    Raises:
        RequestError: one does, and would have no effect.
    """
    if misplaced := [name for name in _ONLY_IN_ADAPTATION if name in body]:
        raise RequestError(
            f'`{misplaced[0]}` belongs into `adaptation`: "adaptation": {{"{misplaced[0]}": ...}}'
        )


def parse_filters(options: dict[str, Any], corpus: str | None) -> Filter | None:
    """The filter on the documents of a corpus.

    Raises:
        RequestError: it is invalid, or it stands beside examples or texts without a corpus whose
            documents it would filter.
    """
    value = options.get("filters")
    if value is None:
        return None
    if corpus is None and (options.get("examples") or options.get("texts")):
        raise RequestError(
            "`adaptation.filters` filters a corpus, and a request with `examples` or `texts` uses "
            "none unless it names one: give `adaptation.corpus`"
        )
    try:
        to_sql(value)
    except ValueError as problem:
        raise RequestError(f"`adaptation.filters`: {problem}") from problem
    parsed: Filter = value
    return parsed


def parse_strategy(options: dict[str, Any], *, has_alpha: bool) -> str | None:
    """The selection strategy in an `adaptation` object; None if it names none.

    Args:
        options: the `adaptation` object.
        has_alpha: whether the budget of the request itself, rather than the server's, has an alpha.

    Raises:
        RequestError: it is unknown, or has no stopping rule and the request has an alpha.
    """
    if "strategy" not in options:
        return None
    strategy = options["strategy"]
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise RequestError(f"`adaptation.strategy` is one of {', '.join(STRATEGIES)}")
    if strategy != "sift" and has_alpha:
        raise RequestError(
            f"`adaptation.strategy` {strategy} cannot stop by alpha: give {HEADER} steps or seconds"
        )
    return strategy


def _list(options: dict[str, Any], name: str, form: str, limits: ExampleLimits) -> list[Any]:
    value = options.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not value:
        raise RequestError(
            f"`adaptation.{name}` is a list of {form}; one at least, or leave it out"
        )
    if len(value) > limits.count:
        raise RequestError(
            f"`adaptation.{name}` has {len(value)} entries; this server takes {limits.count} in a "
            "request (--max-examples): add them to a corpus"
        )
    return value


def _example(value: Any, position: int) -> Example:
    try:
        return parse_example(value, f"example {position} of `adaptation.examples`")
    except ExampleError as problem:
        raise RequestError(str(problem)) from problem
