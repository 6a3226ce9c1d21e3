"""Compatibility: reports, excuses, and the narrowed specification."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from benchmarks.compat.cases import Case, Excuse, read_report, with_excuses
from benchmarks.compat.specification import GETS, POSTS, narrow

_REPORT = """<testsuites><testsuite>
<testcase classname="chat" name="test_a"/>
<testcase classname="chat" name="test_b"><failure message="400">no parser</failure></testcase>
<testcase classname="chat" name="test_c"><error message="gone"/></testcase>
<testcase classname="chat" name="test_d"><skipped message="no images"/></testcase>
</testsuite></testsuites>"""


def test_a_report_gives_the_outcome_of_each_test(tmp_path: Path) -> None:
    file = tmp_path / "report.xml"
    file.write_text(_REPORT)

    assert read_report(file) == [
        Case("chat.test_a", "passed"),
        Case("chat.test_b", "failed", "400\nno parser"),
        Case("chat.test_c", "failed", "gone"),
        Case("chat.test_d", "skipped", "no images"),
    ]


def test_only_the_described_failure_is_excused() -> None:
    cases = [
        Case("chat.test_tools", "failed", "no parser"),
        Case("chat.test_tools", "failed", "500"),
        Case("chat.test_text", "failed", "no parser"),
        Case("chat.test_tools", "passed"),
    ]

    result = list(with_excuses(cases, [Excuse("tools", "no parser", "needs tools")]))

    assert result == [Case("chat.test_tools", "skipped", "needs tools"), *cases[1:]]


def test_a_narrowed_specification_restricts_requests_and_keeps_responses() -> None:
    response_schema = {
        "type": "object",
        "required": ["usage"],
        "properties": {"usage": {"$ref": "#/components/schemas/Usage"}},
    }
    request_schema = {
        "allOf": [
            {"$ref": "#/components/schemas/Common"},
            {
                "required": ["model", "messages"],
                "properties": {"messages": {}, "audio": {}, "max_completion_tokens": {}},
            },
        ]
    }
    operation = {
        "security": [],
        "requestBody": {"content": {"application/json": {"schema": request_schema}}},
        "responses": {"200": {"content": {"application/json": {"schema": response_schema}}}},
    }
    document = {
        "openapi": "3.1.0",
        "info": {"version": "1"},
        "paths": {path: {"post": deepcopy(operation), "delete": {}} for path in POSTS}
        | {path: {"get": {}} for path in GETS}
        | {"/images": {"post": {}}},
        "components": {
            "schemas": {
                "Common": {"properties": {"model": {}, "seed": {"type": "integer"}}},
                "Usage": {},
                "Image": {},
            }
        },
    }

    narrowed = narrow(document, "nano")

    assert set(narrowed["paths"]) == {*POSTS, *GETS}
    chat = narrowed["paths"]["/chat/completions"]
    assert set(chat) == {"post"}
    schema = chat["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {"model", "seed", "messages", "max_completion_tokens"}
    assert schema["required"] == ["max_completion_tokens", "messages", "model"]
    assert schema["properties"]["model"]["enum"] == ["nano"]
    assert chat["post"]["responses"] == operation["responses"]
    assert set(narrowed["components"]["schemas"]) == {"Usage"}
