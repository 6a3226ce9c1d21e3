"""The last differences between vLLM's whole answers and OpenAI's specification of them.

vLLM writes null where the specification has a value or nothing, and leaves out a `refusal` that the specification
requires beside log-probabilities. Clients that validate what they are sent refuse both. Only
whole answers are looked at: streams are passed on as they come. Knows nothing of Mayfly's own field, `adaptation`.
"""

from __future__ import annotations

from typing import Any

_OF_ANSWER = ("system_fingerprint", "usage")
_OF_USAGE = ("completion_tokens_details", "prompt_tokens_details")
_OF_MESSAGE = ("annotations", "function_call", "tool_calls")


def conform(answer: dict[str, Any]) -> dict[str, Any]:
    """A chat completion or a completion as OpenAI specifies it; other answers as they are. Changes what it is given."""
    if answer.get("object") not in ("chat.completion", "text_completion"):
        return answer
    _drop_nulls(answer, _OF_ANSWER)
    _drop_nulls(answer.get("usage"), _OF_USAGE)
    for choice in answer.get("choices", []):
        _drop_nulls(choice.get("message"), _OF_MESSAGE)
        logprobs = choice.get("logprobs")
        if logprobs and answer["object"] == "chat.completion":
            logprobs.setdefault("refusal", None)
    return answer


def _drop_nulls(part: dict[str, Any] | None, names: tuple[str, ...]) -> None:
    for name in names:
        if part is not None and name in part and part[name] is None:
            del part[name]
