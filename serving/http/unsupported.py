"""What a client of OpenAI's API may ask for and this server cannot do: refused with the reason,
before any compute.

vLLM's application takes these fields and does nothing with them, so that a client would go on
believing that a response is stored, a page was searched or an output constrained. Refused is only
what an answer, or a later request, would depend on. What is a hint (`prediction`, `verbosity`,
`service_tier`, `prompt_cache_key`, ...), a label (`metadata`, `user`, `safety_identifier`, ...) or
true of every answer here (`max_tool_calls`: no hosted tool is ever called) may stand in any
request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serving.errors import UnsupportedError

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"

_TRUE = (True, "true", "1", "yes", "on", "t", "y")  # as vLLM reads a flag
# The client calls the first three itself.
_OWN_TOOLS = ("function", "custom", "namespace", "file_search")
_INCLUDED = "message.output_text.logprobs"
# Some clients always ask for it, and send back what they got, if anything.
_HARMLESS = "reasoning.encrypted_content"
_HISTORY = "nothing is kept between requests: send the conversation so far as `input`"


@dataclass(frozen=True)
class Rule:
    """A field that has no effect: when that matters, and why or what to do instead."""

    field: str
    matters: Callable[[Any], bool]
    instead: str


def _given(value: Any) -> bool:
    return value is not None


def _filled(value: Any) -> bool:
    return bool(value)


def _on(value: Any) -> bool:
    return value in _TRUE or (isinstance(value, str) and value.lower() in _TRUE)


def _has_audio(value: Any) -> bool:
    return isinstance(value, list) and "audio" in value


_GUIDED = tuple(
    Rule(
        field,
        _given,
        "the output would not be constrained: use `structured_outputs` or `response_format`",
    )
    for field in ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
)
_MODERATION = Rule("moderation", _given, "nothing is moderated here: leave it out")
_TABLE: Mapping[str, tuple[Rule, ...]] = {
    CHAT: (
        Rule("store", _on, "completions are not stored: leave it out or send false"),
        Rule("web_search_options", _given, "there is no web search here: leave it out"),
        Rule("modalities", _has_audio, 'answers are text: leave it out or send ["text"]'),
        Rule(
            "max_output_tokens",
            _given,
            "it is a field of /v1/responses: use `max_completion_tokens`",
        ),
        _MODERATION,
        *_GUIDED,
    ),
    COMPLETIONS: _GUIDED,
    RESPONSES: (
        Rule("store", _on, "responses are not stored: leave it out or send false"),
        Rule(
            "background",
            _on,
            "responses are not stored, so none can be fetched later: leave it out or use `stream`",
        ),
        Rule("conversation", _given, _HISTORY),
        Rule("previous_response_id", _given, _HISTORY),
        Rule(
            "context_management",
            _filled,
            "nothing is compacted: shorten `input`, or send `truncation`: auto",
        ),
        Rule(
            "prompt", _given, "there are no prompt templates here: send `instructions` and `input`"
        ),
        Rule("response_format", _given, "it is a field of /v1/chat/completions: use `text.format`"),
        Rule("max_tokens", _given, "it is a field of /v1/completions: use `max_output_tokens`"),
        Rule(
            "max_completion_tokens",
            _given,
            "it is a field of /v1/chat/completions: use `max_output_tokens`",
        ),
        Rule(
            "n",
            lambda value: value not in (None, 1),
            "a response has one output: send several requests",
        ),
        _MODERATION,
        *_GUIDED,
    ),
}


def check_supported(path: str, body: Mapping[str, Any], calls_tools: bool) -> None:
    """Refuse what this server would silently not do.

    Args:
        path: of the request.
        body: of the request, before anything is taken out of it.
        calls_tools: whether the server knows how its model calls tools.

    Raises:
        UnsupportedError: a field that has no effect here.
    """
    for rule in _TABLE.get(path, ()):
        if rule.matters(body.get(rule.field)):
            raise UnsupportedError(f"`{rule.field}` is not supported: {rule.instead}", rule.field)
    if path == COMPLETIONS:
        _check_best_of(body)
        return
    if path == CHAT:
        if _filled(body.get("functions")) and body.get("function_call") != "none":
            raise UnsupportedError(
                "`functions` is not supported: use `tools` and `tool_choice`", "functions"
            )
    elif path == RESPONSES:
        _check_hosted_tools(body)
        _check_included(body.get("include"))
    if not calls_tools:
        _check_tools_are_parsed(body)


def _check_best_of(body: Mapping[str, Any]) -> None:
    best_of, n = body.get("best_of"), body.get("n")
    wanted = 1 if n is None else n
    if isinstance(best_of, int) and isinstance(wanted, int) and best_of > wanted:
        raise UnsupportedError(
            f"`best_of` {best_of} is not supported: ask for `n` {best_of} with `logprobs` and choose the best yourself",
            "best_of",
        )


def _check_hosted_tools(body: Mapping[str, Any]) -> None:
    tools = body.get("tools")
    for kind in map(_type, tools if isinstance(tools, list) else ()):
        if kind is not None and kind not in _OWN_TOOLS:
            raise UnsupportedError(
                f"`tools`: there is no {kind} here; a tool is a function that the client calls itself, or a "
                "file_search, which names the corpus to learn from",
                "tools",
            )
    kind = _type(body.get("tool_choice"))
    if kind is not None and kind not in (*_OWN_TOOLS, "allowed_tools"):
        raise UnsupportedError(f"`tool_choice`: there is no {kind} here", "tool_choice")


def _check_included(include: Any) -> None:
    for each in include if isinstance(include, list) else ():
        if each == "file_search_call.results":
            raise UnsupportedError(
                "`include`: a file search is not a call here; `adaptation.sources` of the response names what was "
                "learnt from the corpus",
                "include",
            )
        if isinstance(each, str) and each not in (_INCLUDED, _HARMLESS):
            raise UnsupportedError(
                f"`include`: {each[:100]!r} cannot be had here, only {_INCLUDED}", "include"
            )


def _check_tools_are_parsed(body: Mapping[str, Any]) -> None:
    tools = body.get("tools")
    named = (
        [tool for tool in tools if _type(tool) != "file_search"] if isinstance(tools, list) else []
    )
    if named and body.get("tool_choice") != "none":
        raise UnsupportedError(
            "`tools` is not supported by this server, as it does not know how its model calls tools: its operator must "
            'set --tool-call-parser; or send `tool_choice`: "none"',
            "tools",
        )


def _type(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None
