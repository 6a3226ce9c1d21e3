"""Fields of OpenAI's API that have no effect here: refused with the reason, before any compute.

vLLM's application accepts these fields and ignores them, so that a client would believe that a
response is stored, a page was searched or an output constrained. Only what an answer or a later
request depends on is refused. Hints (`prediction`, `verbosity`, `service_tier`, `prompt_cache_key`,
...), labels (`metadata`, `user`, `safety_identifier`, ...) and what holds for every answer here
(`max_tool_calls`: no hosted tool is ever called) are accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serving.errors import UnsupportedError

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"

# Values that vLLM reads as true.
_TRUE = (True, "true", "1", "yes", "on", "t", "y")
# The client itself calls tools of the first three types.
_SUPPORTED_TOOLS = ("function", "custom", "namespace", "file_search")
_SUPPORTED_INCLUDE = "message.output_text.logprobs"
# Some clients always include it, and send back what they received, if anything.
_HARMLESS_INCLUDE = "reasoning.encrypted_content"
_HISTORY = "nothing is stored between requests: send the conversation so far as `input`"


@dataclass(frozen=True)
class UnsupportedField:
    """A field without effect.

    Attributes:
        name: name of the field.
        is_refused: whether a client would rely on this value.
        instead: the reason, or what to do instead.
    """

    name: str
    is_refused: Callable[[Any], bool]
    instead: str


def _is_given(value: Any) -> bool:
    return value is not None


def _is_on(value: Any) -> bool:
    return value in _TRUE or (isinstance(value, str) and value.lower() in _TRUE)


def _has_audio(value: Any) -> bool:
    return isinstance(value, list) and "audio" in value


def _is_several(value: Any) -> bool:
    return value not in (None, 1)


_GUIDED = tuple(
    UnsupportedField(
        name,
        _is_given,
        "the output would not be constrained: use `structured_outputs` or `response_format`",
    )
    for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
)
_MODERATION = UnsupportedField(
    "moderation", _is_given, "this server does not moderate: leave it out"
)
_FIELDS: Mapping[str, tuple[UnsupportedField, ...]] = {
    CHAT: (
        UnsupportedField("store", _is_on, "completions are not stored: leave it out or send false"),
        UnsupportedField(
            "web_search_options", _is_given, "this server cannot search the web: leave it out"
        ),
        UnsupportedField(
            "modalities", _has_audio, 'answers are text: leave it out or send ["text"]'
        ),
        UnsupportedField(
            "max_output_tokens",
            _is_given,
            "it is a field of /v1/responses: use `max_completion_tokens`",
        ),
        _MODERATION,
        *_GUIDED,
    ),
    COMPLETIONS: _GUIDED,
    RESPONSES: (
        UnsupportedField("store", _is_on, "responses are not stored: leave it out or send false"),
        UnsupportedField(
            "background",
            _is_on,
            "responses are not stored, so none can be fetched later: leave it out or use `stream`",
        ),
        UnsupportedField("conversation", _is_given, _HISTORY),
        UnsupportedField("previous_response_id", _is_given, _HISTORY),
        UnsupportedField(
            "context_management",
            bool,
            "nothing is compacted: shorten `input`, or send `truncation`: auto",
        ),
        UnsupportedField(
            "prompt",
            _is_given,
            "this server has no prompt templates: send `instructions` and `input`",
        ),
        UnsupportedField(
            "response_format",
            _is_given,
            "it is a field of /v1/chat/completions: use `text.format`",
        ),
        UnsupportedField(
            "max_tokens", _is_given, "it is a field of /v1/completions: use `max_output_tokens`"
        ),
        UnsupportedField(
            "max_completion_tokens",
            _is_given,
            "it is a field of /v1/chat/completions: use `max_output_tokens`",
        ),
        UnsupportedField("n", _is_several, "a response has one output: send several requests"),
        _MODERATION,
        *_GUIDED,
    ),
}


def check_supported(path: str, body: Mapping[str, Any], calls_tools: bool) -> None:
    """Refuse what this server would silently not do.

    Args:
        path: path of the request.
        body: body of the request as the client sent it.
        calls_tools: whether the server can parse its model's tool calls.

    Raises:
        UnsupportedError: the body has a field without effect.
    """
    for field in _FIELDS.get(path, ()):
        if field.is_refused(body.get(field.name)):
            raise UnsupportedError(f"`{field.name}` is not supported: {field.instead}", field.name)
    if path == COMPLETIONS:
        _check_best_of(body)
        return
    if path == CHAT:
        if body.get("functions") and body.get("function_call") != "none":
            raise UnsupportedError(
                "`functions` is not supported: use `tools` and `tool_choice`", "functions"
            )
    elif path == RESPONSES:
        _check_hosted_tools(body)
        _check_include(body.get("include"))
    if not calls_tools:
        _check_tool_calls_are_parsed(body)


def _check_best_of(body: Mapping[str, Any]) -> None:
    best_of, n = body.get("best_of"), body.get("n")
    n = 1 if n is None else n
    if isinstance(best_of, int) and isinstance(n, int) and best_of > n:
        raise UnsupportedError(
            f"`best_of` {best_of} is not supported: request `n` {best_of} with `logprobs` and "
            "choose the best yourself",
            "best_of",
        )


def _check_hosted_tools(body: Mapping[str, Any]) -> None:
    tools = body.get("tools")
    for kind in map(_type, tools if isinstance(tools, list) else ()):
        if kind is not None and kind not in _SUPPORTED_TOOLS:
            raise UnsupportedError(
                f"`tools`: {kind} is not supported; a tool is a function that the client calls "
                "itself, or a file_search, which names the corpus to learn from",
                "tools",
            )
    kind = _type(body.get("tool_choice"))
    if kind is not None and kind not in (*_SUPPORTED_TOOLS, "allowed_tools"):
        raise UnsupportedError(f"`tool_choice`: {kind} is not supported", "tool_choice")


def _check_include(include: Any) -> None:
    for value in include if isinstance(include, list) else ():
        if value == "file_search_call.results":
            raise UnsupportedError(
                "`include`: a file search is not a tool call here; `adaptation.sources` of the "
                "response lists what was learnt from the corpus",
                "include",
            )
        if isinstance(value, str) and value not in (_SUPPORTED_INCLUDE, _HARMLESS_INCLUDE):
            raise UnsupportedError(
                f"`include`: {value[:100]!r} is not supported, only {_SUPPORTED_INCLUDE}",
                "include",
            )


def _check_tool_calls_are_parsed(body: Mapping[str, Any]) -> None:
    tools = body.get("tools")
    called = (
        [tool for tool in tools if _type(tool) != "file_search"] if isinstance(tools, list) else []
    )
    if called and body.get("tool_choice") != "none":
        raise UnsupportedError(
            "`tools` is not supported by this server, which cannot parse its model's tool calls: "
            'its operator must set --tool-call-parser; or send `tool_choice`: "none"',
            "tools",
        )


def _type(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None
