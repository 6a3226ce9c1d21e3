"""Transcript: a conversation in a canonical form, so that its later requests begin with its earlier
ones.

Of a chat's message the role, the text and the tool calls count. What clients change in transit does
not: a string or a list of texts, fields that are null, white space at the ends, ids, the spelling
of a call's arguments. A response's items have the form of a chat's messages. Nothing is validated
here: the form of a request is vLLM's to check.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any

from serving.conversations.completion_reader import AssistantMessage


@dataclass(frozen=True)
class Transcript:
    """The canonical form of a request's conversation.

    Attributes:
        text: begins with `with_answer` of the turn before it.
        is_chat: whether it consists of messages rather than of one text.
    """

    text: bytes
    is_chat: bool

    def with_answer(self, answer: AssistantMessage) -> bytes:
        """The canonical form of the conversation with the answer at its end."""
        if not self.is_chat:
            return self.text + _encode(answer.text)
        calls = [_tool_call(name, arguments) for name, arguments in answer.calls]
        return self.text + _canonical(
            {"role": "assistant", "content": answer.text, "tool_calls": calls}
        )


def parse_transcript(body: dict[str, Any]) -> Transcript | None:
    """The conversation of a request; None for a request that no other can follow: several prompts,
    tokens, an echo, or an invalid body.
    """
    messages, prompt = body.get("messages"), body.get("prompt")
    if "input" in body:
        value = body["input"]
        messages = value if isinstance(value, list) else [{"role": "user", "content": value}]
    if isinstance(messages, list):
        if not all(isinstance(message, dict) for message in messages):
            return None
        if "input" in body:
            messages = [
                {"role": "system", "content": body.get("instructions")},
                *_messages(messages),
            ]
        return Transcript(b"chat\n" + b"".join(map(_canonical, messages)), is_chat=True)
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, str) and not body.get("echo"):
        return Transcript(b"text\n" + _encode(prompt), is_chat=False)
    return None


def _messages(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A response's items as messages: an answer's text and its calls, which are separate items,
    make one message.
    """
    messages: list[dict[str, Any]] = []
    for item in items:
        kind = item.get("type")
        if kind == "function_call":
            if not messages or messages[-1].get("role") != "assistant":
                messages.append({"role": "assistant"})
            calls = messages[-1].setdefault("tool_calls", [])
            calls.append(_tool_call(item.get("name"), item.get("arguments")))
        elif kind == "function_call_output":
            messages.append({"role": "tool", "content": item.get("output")})
        elif kind != "reasoning":
            messages.append({"role": item.get("role"), "content": item.get("content")})
    return messages


def _tool_call(name: Any, arguments: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}}


def _canonical(message: dict[str, Any]) -> bytes:
    """A message as a line. No line is a prefix of another, so whole messages are compared."""
    content, calls = message.get("content"), message.get("tool_calls")
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    joined = "".join(text for text in texts if isinstance(text, str)).strip()
    other_parts = [
        part
        for part, text in zip(parts, texts, strict=True)
        if part is not None and not isinstance(text, str)
    ]
    tool_calls = [_canonical_call(call) for call in calls] if isinstance(calls, list) else []
    line = [message.get("role"), joined, other_parts, tool_calls]
    return json.dumps(line, sort_keys=True).encode() + b"\n"


def _canonical_call(call: Any) -> Any:
    """Name and arguments of a tool call; the arguments are parsed, since clients may have written
    the JSON anew.
    """
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    arguments: Any = function.get("arguments")
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        arguments = json.dumps(json.loads(arguments), sort_keys=True)
    return [function.get("name"), arguments]


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
