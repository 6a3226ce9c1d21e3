"""Invalid values of a request's fields, by endpoint and field: wrong types, numbers out of range.

Every value here must be refused. `NAN` and `HUGE` are numbers that JSON writers refuse; `as_json`
writes them into the text.
"""

from __future__ import annotations

import json
from typing import Any

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
STORES = "/v1/vector_stores"
NAN, HUGE = "<<NaN>>", "<<1e400>>"

VALID: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"model": "nano", "prompt": "def f(", "max_tokens": 1},
    CHAT: {"model": "nano", "messages": [{"role": "user", "content": "def f("}], "max_tokens": 1},
    RESPONSES: {"model": "nano", "input": "def f(", "max_output_tokens": 1, "store": False},
}

_NUMBER: list[Any] = ["much", [1], {"a": 1}, "", NAN, HUGE]
_WHOLE: list[Any] = [*_NUMBER, 1.5, 2**70]
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 5}}}
_SAMPLING: dict[str, list[Any]] = {
    "temperature": [*_NUMBER, -1],
    "top_p": [*_NUMBER, 0, -1, 2],
}
_SHARED: dict[str, list[Any]] = {
    **_SAMPLING,
    "model": [5, [], {}, "gpt-99", True],
    "frequency_penalty": [*_NUMBER, 3, -3],
    "presence_penalty": [*_NUMBER, 3, -3],
    "repetition_penalty": [*_NUMBER, 0, -1],
    "top_k": [*_WHOLE, -5],
    "min_p": [*_NUMBER, -1, 2],
    "seed": _WHOLE,
    "n": [*_WHOLE, 0, -1, 129, 16_384, 10**9],
    "max_tokens": [*_WHOLE, -1, -(2**40)],
    "min_tokens": [*_WHOLE, -1],
    "stop": [5, {}, [1], [[]]],
    "stream": ["maybe", [], {}, 17],
    "stream_options": [5, "a", [], {"include_usage": "maybe"}, {"include_usage": True}],
    "logit_bias": [5, "a", {"a": "b"}, {"1": []}],
    "user": [5, [], {}],
    "stop_token_ids": [5, "a", ["a"]],
    "allowed_token_ids": [5, ["a"], [10**9]],
    "truncate_prompt_tokens": ["a", -5],
    "prompt_logprobs": ["a", -5, 10**6],
    "response_format": [5, "json", {"type": "poem"}, {"type": "json_schema"}, _SCHEMA],
    "structured_outputs": [
        5,
        {"regex": "("},
        {"choice": []},
        {"json": {"type": "object"}, "regex": "a"},
    ],
    "priority": ["a", 2**70],
    "cache_salt": [5, "", "a" * 2000],
    "bad_words": [5, [5]],
    "vllm_xargs": [5, "a"],
    "kv_transfer_params": [5, "a"],
}
_CONTENTS: list[Any] = [
    5, [{"type": "image_url"}], [{"type": "dream", "dream": "x"}],
    [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
]  # fmt: skip
FIELDS: dict[str, dict[str, list[Any]]] = {
    COMPLETIONS: {
        **_SHARED,
        "prompt": [5, {}, [], [[]], [1, "a"], [-1], [10**9], [1.5], [None], [{}], True],
        "logprobs": ["a", [], -5, 10**6],
        "echo": ["maybe", [], 17],
        "suffix": [5, []],
    },
    CHAT: {
        **_SHARED,
        "messages": [None, 5, "x", {}, [], [5], [[]], [None], [{"role": 5}], [{"content": "x"}],
                     *([{"role": "user", "content": content}] for content in _CONTENTS)],
        "logprobs": ["maybe", [], 17], "top_logprobs": ["a", [], -5, 10**6, 3],
        "tools": [5, "a", [5], [{}], [{"type": "function"}],
                  [{"type": "function", "function": {"name": 5}}]],
        "tool_choice": ["maybe", 5, {"type": "function", "function": {"name": "absent"}}],
        "chat_template": [5, "{{ 1 / 0 }}", "{% for %}", "{{ ''.__class__.__mro__ }}"],
        "chat_template_kwargs": [5, "a"], "add_generation_prompt": ["maybe", []],
    },
    RESPONSES: {
        **_SAMPLING,
        "model": [5, [], {}, "gpt-99"],
        "input": [None, 5, {}, [5], [[]], [{"role": 5}], [{"type": "dream"}], True],
        "instructions": [5, [], {}],
        "max_output_tokens": [*_WHOLE, -1],
        "tools": [5, "a", [5], [{}]],
        "previous_response_id": [5, "resp_nowhere"],
        "stream": ["maybe", [], 17],
        "text": [5, {"format": {"type": "poem"}}],
        "metadata": [5, "a"],
    },
}  # fmt: skip
_DEEP: dict[str, Any] = {"type": "eq", "key": "a", "value": 1}
for _ in range(200):
    _DEEP = {"type": "and", "filters": [_DEEP]}
ADAPTATIONS: list[Any] = [
    5, [], "x", True, {"corpus": 5}, {"corpus": "nowhere"}, {"corpus": "../../../etc"},
    {"corpus": ""}, {"corpus": "a" * 10_000}, {"corpus": "\u202e\u0000"}, {"corpus": "/etc/passwd"},
    {"seed": -1}, {"seed": 1.5}, {"seed": 2**70}, {"seed": "0"}, {"unknown": 1},
    {"strategy": "luck"}, {"strategy": 5}, {"plan": "magic"}, {"plan": ["sequential"]},
    {"plan": "last-layer"}, {"required": "yes"}, {"required": 1}, {"prompt": 5}, {"filters": 5},
    {"filters": {"type": "eq"}}, {"filters": {"type": "sql", "key": "'; DROP TABLE documents; --"}},
    {"filters": {"type": "eq", "key": "a", "value": {}}}, {"filters": _DEEP}, {"reuse": "forever"},
    {"reuse": 5}, {"seed": HUGE}, {"seed": NAN},
]  # fmt: skip
BUDGETS: list[bytes] = [
    b"lots", b"1e9", b"steps", b"steps=", b"steps=1.5", b"steps=-1", b"steps=five", b"steps=+5",
    b"steps=1e3", b"steps=?1", b"seconds=NaN", b"seconds=-1", b"seconds=0", b"seconds=Infinity",
    b"seconds=1e3", b"seconds=", b"alpha=0", b"alpha=-1", b"alpha=nan", b"steps=1, steps=2",
    b"none, steps=1", b"auto, none", b"none, none", b"steps=1, depth=3", b"depth=3", b"", b",",
    b"steps=1,,", b"(1 2)", b'"none"', b"?1", b":YQ==:", b"steps=(1)",
    b"steps=99999999999999999999", b"STEPS=5", b"steps = 5", b"steps=5 seconds=1", b"none=?0",
    b"auto=5", b"a" * 300, b"steps=1" + b", x=1" * 100, b"\xff\xfe", "steps=\u0661".encode(),
    b"steps=0x10", b"{}", b'{"steps": 5}', b"@1659578233", b"steps=1\x01", b"*", b"none*",
]  # fmt: skip
BODY_BUDGETS: list[Any] = [
    5, True, [], "lots", "", "steps=-1", {"steps": -1}, {"steps": "5"}, {"steps": 1.5},
    {"steps": True}, {"steps": 2**70}, {"seconds": 0}, {"seconds": -1}, {"seconds": "1"},
    {"seconds": HUGE}, {"seconds": NAN}, {"alpha": 0}, {"alpha": True}, {"unknown": 1},
    {"steps": [5]}, {"none": True},
]  # fmt: skip
STORE: dict[str, list[Any]] = {
    "name": [5, [], "a" * 10_000],
    "metadata": [5, "a", {"a": []}, {"a": "x" * 10_000}],
    "file_ids": [5, "a", [5], ["nowhere"]],
    "chunking_strategy": [
        5, {"type": "magic"}, {"type": "static"}, {"type": "static", "static": {}},
        {"type": "static",
         "static": {"max_chunk_size_tokens": 10**9, "chunk_overlap_tokens": -1}},
    ],
    "expires_after": [{"anchor": "last_active_at", "days": 1}],
    "unknown": [1],
}  # fmt: skip
SEARCH: dict[str, list[Any]] = {
    "query": [5, {}, None, [5]],
    "max_num_results": [0, -1, 51, "a", 1.5, 2**70],
    "ranking_options": [5, {"ranker": "luck"}, {"score_threshold": 2}, {"score_threshold": NAN}],
    "filters": [5, "a", {"type": "eq"}, {"type": "eq", "key": "a", "value": {}}, _DEEP],
    "rewrite_query": [True],
}
TOKENS: dict[str, list[dict[str, Any]]] = {
    "/tokenize": [
        {"prompt": 5},
        {"prompt": None},
        {"prompt": []},
        {},
        {"messages": 5},
        {"messages": [5]},
    ],
    "/detokenize": [
        {"tokens": "a"},
        {"tokens": [-1]},
        {"tokens": [10**9]},
        {"tokens": [2**70]},
        {"tokens": 5},
        {},
    ],
}


def as_json(body: dict[str, Any]) -> bytes:
    """A body as JSON, with NAN and HUGE as numbers."""
    text = json.dumps(body)
    return text.replace(f'"{NAN}"', "NaN").replace(f'"{HUGE}"', "1e400").encode()
