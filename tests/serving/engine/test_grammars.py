"""Grammars with a dead end, and only those, are recognised before any compute."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from serving.engine import grammars as grammars_module
from serving.engine.grammars import Grammars, dead_end
from serving.errors import BusyError, GrammarError

xgrammar = pytest.importorskip("xgrammar")

LOOP: dict[str, Any] = {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
TREE = {
    "$defs": {
        "t": {
            "type": "object",
            "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/t"}}},
        }
    },
    "$ref": "#/$defs/t",
}


def of_schema(schema: dict[str, Any]) -> str:
    return str(xgrammar.Grammar.from_json_schema(json.dumps(schema)))


@pytest.mark.parametrize(
    "schema",
    [
        LOOP,
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {
            **LOOP,
            "$ref": None,
            "type": "object",
            "properties": {"k": {"$ref": "#/$defs/a"}},
            "required": ["k"],
        },
        {
            **LOOP,
            "$ref": None,
            "anyOf": [
                {"type": "null"},
                {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1},
            ],
        },
    ],
)
def test_a_schema_that_refers_only_to_itself_is_a_dead_end_anywhere(
    schema: dict[str, Any],
) -> None:
    schema = {key: value for key, value in schema.items() if value is not None}

    assert dead_end(of_schema(schema)) is not None


@pytest.mark.parametrize(
    "schema",
    [
        {},
        TREE,
        {"type": "object", "properties": {"a": {"type": "string", "maxLength": 5},
                                          "b": {"enum": ["(|)", "x ::= y"]}}},
        {"$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}},
                         "required": ["n"]}},
         "$ref": "#/$defs/n"},
        {**LOOP, "$ref": None, "anyOf": [{"$ref": "#/$defs/a"}, {"type": "string"}]},
    ],
)  # fmt: skip
def test_other_recursive_schemas_have_no_dead_end(schema: dict[str, Any]) -> None:
    schema = {key: value for key, value in schema.items() if value is not None}

    assert dead_end(of_schema(schema)) is None


@pytest.mark.parametrize(
    ("grammar", "rule"),
    [
        ("root ::= x\nx ::= x", "root"),
        ('root ::= root "a"', "root"),
        ('root ::= "a" "\\"" x\nx ::= x "b"', "x"),
        ('root ::= ("a" | "") x "b"\nx ::= x', "x"),
        ('root ::= "a" | x "b"\nx ::= x "c" | x', None),
        ('root ::= "a" x?\nx ::= "(" x ")" | ""', None),
        ('root ::= [a-z]+ x*\nx ::= "|" [^")]', None),
    ],
)
def test_dead_ends_of_grammars(grammar: str, rule: str | None) -> None:
    assert dead_end(str(xgrammar.Grammar.from_ebnf(grammar))) == rule


def test_a_dead_end_in_a_tag_after_free_text_is_found() -> None:
    def tagged(schema: dict[str, Any]) -> str:
        item = xgrammar.StructuralTagItem(begin="<a>", schema=json.dumps(schema), end="</a>")
        return str(xgrammar.Grammar.from_structural_tag([item], ["<a>"]))

    assert dead_end(tagged(LOOP)) is not None
    assert dead_end(tagged(TREE)) is None


class Manager:
    """vLLM's manager with one thread, in which compilation ends when `may_end` is set."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1)
        self.may_end = threading.Event()

    def grammar_init(self, request: Any) -> None:
        request.structured_output_request._grammar = self._executor.submit(self.may_end.wait)


def request_with(text: str) -> Any:
    return SimpleNamespace(
        structured_output_request=SimpleNamespace(
            structured_output_key=("json", text), _grammar=None
        )
    )


async def test_a_grammar_that_takes_too_long_is_rejected_and_those_behind_it_may_try_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grammars_module, "SECONDS", 0.2)
    manager = Manager()
    grammars = Grammars(manager)

    outcomes = await asyncio.gather(
        *(grammars.check(request_with(text)) for text in ("slow", "behind it")),
        return_exceptions=True,
    )

    manager.may_end.set()
    assert [type(each) for each in outcomes] == [GrammarError, BusyError]
    assert "longer than 0.2 seconds" in str(outcomes[0])


async def test_a_grammar_that_is_too_long_is_not_compiled() -> None:
    with pytest.raises(GrammarError, match="100,001 characters"):
        await Grammars(None).check(request_with("x" * 100_001))
