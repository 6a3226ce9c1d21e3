"""The tokens of a request's prompts, as vLLM itself renders and tokenizes them.

vLLM has an endpoint that renders a request without answering it; the gateway leads no client there.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
from starlette.types import ASGIApp

# What vLLM names as the parameter of a prompt that is longer than the context.
_TOO_LONG = ("input_text", "input_tokens")


class PromptRefusedError(Exception):
    """vLLM refuses to render a request; the message is vLLM's own."""


class PromptTooLongError(PromptRefusedError):
    """A prompt is longer than the context."""


async def prompt_tokens(
    app: ASGIApp, path: str, body: dict[str, Any]
) -> tuple[tuple[int, ...], ...]:
    """The tokens of each prompt of a request, before vLLM truncates any.

    Args:
        app: vLLM's OpenAI application.
        path: path of the request.
        body: body of the request, JSON.

    Raises:
        PromptRefusedError: vLLM refuses the request.
    """
    # Without the contents of images, which take megabytes.
    whole = {**body, "mm_payload": "none"}
    if "truncation" in body:
        whole["truncation"] = "disabled"
    content = json.dumps(whole)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        answer = await client.post(
            f"http://vllm{path}/render",
            content=content,
            headers={"content-type": "application/json"},
        )
    if answer.status_code != 200:
        raise _refusal(answer)
    rendered = answer.json()
    prompts = rendered if isinstance(rendered, list) else [rendered]
    return tuple(tuple(prompt["token_ids"]) for prompt in prompts)


def _refusal(answer: httpx.Response) -> PromptRefusedError:
    """The exception for OpenAI's error object, or for the status of another answer."""
    try:
        error = answer.json()["error"]
        message, param = str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError):
        return PromptRefusedError(f"status {answer.status_code}")
    return PromptTooLongError(message) if param in _TOO_LONG else PromptRefusedError(message)
