"""LiteLLM as a library: chat, streams, completions, the budget header, and its own exceptions."""

# mypy: ignore-errors
# (litellm is in this file's own environment only)

# ruff: noqa: D103  # the tests' names describe them

from __future__ import annotations

import os

import litellm
import pytest

_SERVER = {"api_base": f"{os.environ['COMPAT_URL']}/v1", "api_key": "none", "num_retries": 0}
_CHAT = {
    **_SERVER,
    "model": f"openai/{os.environ['COMPAT_MODEL']}",
    "messages": [{"role": "user", "content": "def area(radius):"}],
    "max_tokens": 8,
}
_COMPLETION = {
    **_SERVER,
    "model": f"text-completion-openai/{os.environ['COMPAT_MODEL']}",
    "prompt": "def area(radius):",
    "max_tokens": 8,
}
_BUDGET = {"X-Compute-Budget": "steps=1"}


def test_chat() -> None:
    answer = litellm.completion(**_CHAT)

    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == 8


def test_a_chat_streams() -> None:
    chunks = list(litellm.completion(**_CHAT, stream=True, stream_options={"include_usage": True}))

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert litellm.stream_chunk_builder(chunks).usage.completion_tokens == 8


async def test_chat_from_a_coroutine() -> None:
    answer = await litellm.acompletion(**_CHAT)

    assert answer.choices[0].message.content


def test_a_completion() -> None:
    answer = litellm.text_completion(**_COMPLETION)

    assert answer.choices[0].text


def test_a_completion_streams() -> None:
    chunks = list(litellm.text_completion(**_COMPLETION, stream=True))

    assert "".join(chunk.choices[0].text or "" for chunk in chunks)


def test_the_budget_is_a_header() -> None:
    answer = litellm.completion(**_CHAT, extra_headers=_BUDGET)

    assert answer.adaptation["spent"]["steps"] == 1


def test_log_probabilities() -> None:
    answer = litellm.completion(**_CHAT, logprobs=True, top_logprobs=2)

    assert len(answer.choices[0].logprobs.content) == 8


def test_an_unknown_model_is_litellms_own_error() -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**_CHAT, "model": "openai/unknown"})


def test_a_bad_budget_is_litellms_own_error() -> None:
    with pytest.raises(litellm.BadRequestError, match="Compute-Budget"):
        litellm.completion(**_CHAT, extra_headers={"X-Compute-Budget": "steps=-1"})
