from __future__ import annotations

from typing import Any

import pytest

from serving.http.openai_compat import conform, stream_needs_conforming


def test_nulls_that_openai_does_not_allow_are_dropped() -> None:
    answer = conform(
        {
            "object": "chat.completion",
            "system_fingerprint": None,
            "service_tier": None,
            "choices": [
                {
                    "message": {
                        "content": None,
                        "refusal": None,
                        "annotations": None,
                        "function_call": None,
                    },
                    "logprobs": None,
                }
            ],
            "usage": {
                "prompt_tokens": 1,
                "prompt_tokens_details": None,
                "completion_tokens_details": None,
            },
        }
    )

    assert answer == {
        "object": "chat.completion",
        # These must be present and may be null, as content, refusal and logprobs.
        "service_tier": None,
        "choices": [{"message": {"content": None, "refusal": None}, "logprobs": None}],
        "usage": {"prompt_tokens": 1},
    }


def test_log_probabilities_of_a_chat_have_a_refusal() -> None:
    answer = conform({"object": "chat.completion", "choices": [{"logprobs": {"content": []}}]})

    assert answer["choices"][0]["logprobs"] == {"content": [], "refusal": None}


def test_log_probabilities_of_a_completion_have_no_refusal() -> None:
    answer = {"object": "text_completion", "choices": [{"logprobs": {"tokens": ["a"]}}]}

    assert conform(answer) == {
        "object": "text_completion",
        "choices": [{"logprobs": {"tokens": ["a"]}}],
    }


def test_values_are_kept() -> None:
    calls = {"object": "chat.completion", "choices": [{"message": {"tool_calls": [{"id": "1"}]}}]}

    assert conform(calls)["choices"][0]["message"]["tool_calls"] == [{"id": "1"}]


def test_other_responses_are_unchanged() -> None:
    tokens = {"count": 1, "system_fingerprint": None}

    assert conform(dict(tokens)) == tokens


def test_log_probabilities_of_a_chunk_have_a_refusal_and_its_nulls_stay() -> None:
    chunk = {
        "object": "chat.completion.chunk",
        "choices": [{"logprobs": {"content": []}}, {"logprobs": None}],
    }

    assert conform({**chunk, "usage": None}) == {
        "object": "chat.completion.chunk",
        "choices": [{"logprobs": {"content": [], "refusal": None}}, {"logprobs": None}],
        "usage": None,
    }


@pytest.mark.parametrize(
    ("request_body", "expected"),
    [
        ({"messages": [], "logprobs": True}, True),
        ({"messages": [], "logprobs": False}, False),
        ({"messages": []}, False),
        ({"prompt": "", "logprobs": 1}, False),
    ],
)
def test_only_chats_with_log_probabilities_have_chunks_to_conform(
    request_body: dict[str, Any], expected: bool
) -> None:
    assert stream_needs_conforming(request_body) is expected
