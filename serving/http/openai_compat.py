"""The last differences between vLLM's responses and OpenAI's specification.

vLLM writes null where the specification has a value or nothing, and omits the `refusal` that the
specification requires beside log-probabilities. Clients that validate responses reject both. Of
streams, only those with log-probabilities are changed (`stream_needs_conforming`). Mayfly's own
field, `adaptation`, is not known here.
"""

from __future__ import annotations

from typing import Any

_COMPLETIONS = ("chat.completion", "text_completion")
_CHATS = ("chat.completion", "chat.completion.chunk")
_RESPONSE_FIELDS = ("system_fingerprint", "usage")
_USAGE_FIELDS = ("completion_tokens_details", "prompt_tokens_details")
_MESSAGE_FIELDS = ("annotations", "function_call", "tool_calls")


def stream_needs_conforming(request: dict[str, Any]) -> bool:
    """Whether chunks of the stream that answers this request need `conform`."""
    return "messages" in request and bool(request.get("logprobs"))


def conform(response: dict[str, Any]) -> dict[str, Any]:
    """Change a completion, a chat completion or a chunk of one to OpenAI's specification, in place;
    leave other responses unchanged.
    """
    kind, choices = response.get("object"), response.get("choices", [])
    if kind in _COMPLETIONS:
        _drop_nulls(response, _RESPONSE_FIELDS)
        _drop_nulls(response.get("usage"), _USAGE_FIELDS)
        for choice in choices:
            _drop_nulls(choice.get("message"), _MESSAGE_FIELDS)
    if kind in _CHATS:
        for choice in choices:
            if choice.get("logprobs"):
                choice["logprobs"].setdefault("refusal", None)
    return response


def with_model(response: dict[str, Any], model: str | None) -> dict[str, Any]:
    """A response, or a chunk or an event of one, with the name of the model that its request gave;
    as it is for None.
    """
    if model is None:
        return response
    renamed = {**response, "model": model} if "model" in response else dict(response)
    if isinstance(inner := renamed.get("response"), dict):  # an event of the Responses API
        renamed["response"] = with_model(inner, model)
    return renamed


def _drop_nulls(fields: dict[str, Any] | None, names: tuple[str, ...]) -> None:
    for name in names:
        if fields is not None and name in fields and fields[name] is None:
            del fields[name]
