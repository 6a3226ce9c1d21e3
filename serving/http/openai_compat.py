"""The last differences between vLLM's answers and OpenAI's specification of them.

vLLM writes null where the specification has a value or nothing, and leaves out a `refusal` that the
specification requires beside log-probabilities. Clients that validate what they are sent refuse
both. Of streams only those are looked at that carry log-probabilities (`in_chunks`). Knows nothing
of Mayfly's own field, `adaptation`.
"""

from __future__ import annotations

from typing import Any

_WHOLE = ("chat.completion", "text_completion")
_CHATS = ("chat.completion", "chat.completion.chunk")
_OF_ANSWER = ("system_fingerprint", "usage")
_OF_USAGE = ("completion_tokens_details", "prompt_tokens_details")
_OF_MESSAGE = ("annotations", "function_call", "tool_calls")


def in_chunks(request: dict[str, Any]) -> bool:
    """Whether a stream that answers this request has chunks for `conform`: a chat's
    log-probabilities.
    """
    return "messages" in request and bool(request.get("logprobs"))


def conform(answer: dict[str, Any]) -> dict[str, Any]:
    """A completion, a chat or a chunk of one as OpenAI specifies it; others as they are. Changes
    what it is given.
    """
    kind, choices = answer.get("object"), answer.get("choices", [])
    if kind in _WHOLE:
        _drop_nulls(answer, _OF_ANSWER)
        _drop_nulls(answer.get("usage"), _OF_USAGE)
        for choice in choices:
            _drop_nulls(choice.get("message"), _OF_MESSAGE)
    if kind in _CHATS:
        for choice in choices:
            if choice.get("logprobs"):
                choice["logprobs"].setdefault("refusal", None)
    return answer


def _drop_nulls(part: dict[str, Any] | None, names: tuple[str, ...]) -> None:
    for name in names:
        if part is not None and name in part and part[name] is None:
            del part[name]
