"""Fields without effect are refused by name, and those that clients always send are accepted."""

from __future__ import annotations

from typing import Any

import pytest

from serving.errors import UnsupportedError, to_http
from serving.http.unsupported import CHAT, COMPLETIONS, RESPONSES, check_supported

_VALID: dict[str, dict[str, Any]] = {
    CHAT: {"model": "nano", "messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"model": "nano", "prompt": "hi"},
    RESPONSES: {"model": "nano", "input": "hi"},
}
_FUNCTION = {"type": "function", "name": "f", "parameters": {}}
_CHAT_FUNCTION = {"type": "function", "function": {"name": "f"}}
_NOT_STORED = "nothing is stored between requests"


@pytest.mark.parametrize(
    ("path", "field", "value", "message"),
    [
        (RESPONSES, "conversation", "conv_1", _NOT_STORED),
        (RESPONSES, "conversation", {"id": "conv_1"}, _NOT_STORED),
        (RESPONSES, "previous_response_id", "resp_1", _NOT_STORED),
        (RESPONSES, "previous_response_id", 5, _NOT_STORED),
        (RESPONSES, "store", True, "not stored"),
        (RESPONSES, "store", "Yes", "not stored"),
        (RESPONSES, "store", 1, "not stored"),
        (RESPONSES, "background", True, "`stream`"),
        (RESPONSES, "prompt", {"id": "pmpt_1"}, "`instructions`"),
        (RESPONSES, "context_management", [{"type": "compaction"}], "`truncation`"),
        (RESPONSES, "moderation", {"model": "omni"}, "does not moderate"),
        (RESPONSES, "response_format", {"type": "json_object"}, "`text.format`"),
        (RESPONSES, "max_tokens", 5, "`max_output_tokens`"),
        (RESPONSES, "max_completion_tokens", 5, "`max_output_tokens`"),
        (RESPONSES, "n", 2, "several requests"),
        (RESPONSES, "guided_regex", "[0-9]+", "`structured_outputs`"),
        (RESPONSES, "tools", [{"type": "web_search"}], "web_search is not"),
        (
            RESPONSES,
            "tools",
            [{"type": "web_search_preview_2025_03_11"}],
            "web_search_preview_2025_03_11 is not",
        ),
        (
            RESPONSES,
            "tools",
            [_FUNCTION, {"type": "code_interpreter", "container": {"type": "auto"}}],
            "code_interpreter is not",
        ),
        (
            RESPONSES,
            "tools",
            [{"type": "mcp", "server_label": "x", "server_url": "http://x"}],
            "mcp is not",
        ),
        (RESPONSES, "tools", [{"type": "image_generation"}], "image_generation is not"),
        (RESPONSES, "tools", [{"type": "computer_use_preview"}], "computer_use_preview is not"),
        (RESPONSES, "tools", [{"type": "local_shell"}], "local_shell is not"),
        (RESPONSES, "tools", [{"type": "tool_search"}], "tool_search is not"),
        (RESPONSES, "tool_choice", {"type": "mcp", "server_label": "x"}, "mcp is not"),
        (RESPONSES, "include", ["file_search_call.results"], "`adaptation.sources`"),
        (
            RESPONSES,
            "include",
            ["message.output_text.logprobs", "message.input_image.image_url"],
            "image_url",
        ),
        (CHAT, "store", True, "not stored"),
        (CHAT, "web_search_options", {}, "cannot search the web"),
        (CHAT, "modalities", ["text", "audio"], "answers are text"),
        (CHAT, "moderation", {"model": "omni"}, "does not moderate"),
        (CHAT, "functions", [{"name": "f"}], "`tools`"),
        (CHAT, "max_output_tokens", 5, "`max_completion_tokens`"),
        (CHAT, "guided_json", {"type": "object"}, "`response_format`"),
        (COMPLETIONS, "guided_choice", ["a", "b"], "`structured_outputs`"),
        (COMPLETIONS, "best_of", 3, "`n` 3"),
    ],
)
def test_a_field_without_effect_is_refused_by_name(
    path: str, field: str, value: Any, message: str
) -> None:
    with pytest.raises(UnsupportedError) as refusal:
        check_supported(path, {**_VALID[path], field: value}, calls_tools=True)

    status, body = to_http(refusal.value)
    assert status == 400
    assert (body["error"]["type"], body["error"]["param"]) == ("invalid_request_error", field)
    assert body["error"]["code"] == "unsupported_parameter"
    assert body["error"]["message"].startswith(f"`{field}`")
    assert message in body["error"]["message"]


_LABELS = {"metadata": {"a": "b"}, "user": "u", "safety_identifier": "s", "prompt_cache_key": "k"}
_OFF = {
    "store": False,
    "background": False,
    "conversation": None,
    "previous_response_id": None,
    "prompt": None,
}


@pytest.mark.parametrize(
    ("path", "more"),
    [
        *((path, {}) for path in _VALID),
        *(
            (path, {**_LABELS, "service_tier": "auto", "stream": True, "temperature": 0.5})
            for path in _VALID
        ),
        (
            RESPONSES,
            {**_OFF, "include": None, "tools": [], "tool_choice": "auto", "truncation": "auto"},
        ),
        (
            RESPONSES,
            {
                "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
                "top_logprobs": 1,
                "max_tool_calls": 3,
                "n": 1,
            },
        ),
        (
            RESPONSES,
            {
                "text": {"format": {"type": "text"}, "verbosity": "low"},
                "reasoning": {"effort": "low"},
            },
        ),
        (
            RESPONSES,
            {
                "tools": [
                    _FUNCTION,
                    {"type": "custom", "name": "c"},
                    {"type": "namespace", "tools": []},
                ]
            },
        ),
        (RESPONSES, {"tools": [_FUNCTION], "tool_choice": {"type": "function", "name": "f"}}),
        (
            RESPONSES,
            {
                "tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}],
                "tool_choice": "required",
            },
        ),
        (
            CHAT,
            {
                "store": False,
                "modalities": ["text"],
                "functions": [{"name": "f"}],
                "function_call": "none",
            },
        ),
        (
            CHAT,
            {
                "prediction": {"type": "content", "content": "x"},
                "verbosity": "low",
                "parallel_tool_calls": True,
            },
        ),
        (
            CHAT,
            {
                "tools": [_CHAT_FUNCTION],
                "tool_choice": "auto",
                "n": 2,
                "stream_options": {"include_usage": True},
            },
        ),
        (COMPLETIONS, {"best_of": 2, "n": 2, "echo": True, "suffix": "x"}),
        (COMPLETIONS, {"best_of": 1}),
        ("/tokenize", {"store": True, "conversation": "x"}),
    ],
)
def test_fields_with_an_effect_and_hints_are_accepted(path: str, more: dict[str, Any]) -> None:
    check_supported(path, {**_VALID.get(path, {}), **more}, calls_tools=True)


@pytest.mark.parametrize(
    "value", [5, "x", [5], [[]], [{}], [{"type": 5}], {"type": "web_search"}, None, [None], True]
)
@pytest.mark.parametrize(
    "field", ["tools", "include", "tool_choice", "modalities", "functions", "best_of", "n"]
)
def test_a_field_of_the_wrong_type_is_refused_or_left_to_vllm(field: str, value: Any) -> None:
    for path, valid in _VALID.items():
        for calls_tools in (True, False):
            try:
                check_supported(path, {**valid, field: value}, calls_tools)
            except UnsupportedError as refusal:
                assert refusal.param == field  # noqa: PT017


@pytest.mark.parametrize(("path", "tool"), [(CHAT, _CHAT_FUNCTION), (RESPONSES, _FUNCTION)])
def test_tools_without_a_parser_are_refused_with_what_the_operator_must_set(
    path: str, tool: dict[str, Any]
) -> None:
    body = {**_VALID[path], "tools": [tool]}

    for choice in ({}, {"tool_choice": "auto"}, {"tool_choice": "required"}, {"tool_choice": tool}):
        with pytest.raises(
            UnsupportedError, match="its operator must set --tool-call-parser"
        ) as refusal:
            check_supported(path, {**body, **choice}, calls_tools=False)
        assert refusal.value.param == "tools"
    check_supported(path, {**body, "tool_choice": "none"}, calls_tools=False)
    check_supported(path, {**_VALID[path], "tools": [{"type": "file_search"}]}, calls_tools=False)
    check_supported(path, body, calls_tools=True)
