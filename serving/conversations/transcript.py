"""Talk: what has been said until now, spelt so that a conversation's later requests begin with its
earlier ones.

Of a chat's message its role, its text and its tool calls count. What clients change on the way does
not: a string or a list of texts, fields that are null, white space at the ends, ids, the spelling
of a call's arguments. A response's items are spelt as the messages of a chat. It judges nothing:
the form of a request is vLLM's.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any

from serving.conversations.completion_reader import AssistantMessage


@dataclass(frozen=True)
class Transcript:
    """What a request says; `answered` of a turn is what `said` of the next one begins with."""

    said: bytes
    is_chat: bool

    def answered(self, answer: AssistantMessage) -> bytes:
        """The same, with the answer."""
        if not self.is_chat:
            return self.said + _encoded(answer.text)
        calls = [_called(name, arguments) for name, arguments in answer.calls]
        return self.said + _spelt(
            {"role": "assistant", "content": answer.text, "tool_calls": calls}
        )


def parse_transcript(body: dict[str, Any]) -> Transcript | None:
    """What a request says; None where nothing can follow: several prompts, tokens, an echo, or not
    a request at all.
    """
    messages, prompt = body.get("messages"), body.get("prompt")
    if "input" in body:
        said = body["input"]
        messages = said if isinstance(said, list) else [{"role": "user", "content": said}]
    if isinstance(messages, list):
        if not all(isinstance(message, dict) for message in messages):
            return None
        if "input" in body:
            messages = [
                {"role": "system", "content": body.get("instructions")},
                *_messages(messages),
            ]
        return Transcript(b"chat\n" + b"".join(map(_spelt, messages)), is_chat=True)
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, str) and not body.get("echo"):
        return Transcript(b"text\n" + _encoded(prompt), is_chat=False)
    return None


def _messages(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A response's items as messages: an answer's text and its calls, which are items of their own,
    are one again.
    """
    messages: list[dict[str, Any]] = []
    for item in items:
        kind = item.get("type")
        if kind == "function_call":
            if not messages or messages[-1].get("role") != "assistant":
                messages.append({"role": "assistant"})
            calls = messages[-1].setdefault("tool_calls", [])
            calls.append(_called(item.get("name"), item.get("arguments")))
        elif kind == "function_call_output":
            messages.append({"role": "tool", "content": item.get("output")})
        elif kind != "reasoning":
            messages.append({"role": item.get("role"), "content": item.get("content")})
    return messages


def _called(name: Any, arguments: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}}


def _spelt(message: dict[str, Any]) -> bytes:
    """A message as a line. No line is the beginning of another, so whole messages are compared."""
    content, calls = message.get("content"), message.get("tool_calls")
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    said = "".join(text for text in texts if isinstance(text, str)).strip()
    shown = [
        part
        for part, text in zip(parts, texts, strict=True)
        if part is not None and not isinstance(text, str)
    ]
    called = [_call(call) for call in calls] if isinstance(calls, list) else []
    return json.dumps([message.get("role"), said, shown, called], sort_keys=True).encode() + b"\n"


def _call(call: Any) -> Any:
    """Name and arguments of a tool call; clients read the arguments, which are JSON, and write them
    anew.
    """
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    arguments: Any = function.get("arguments")
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        arguments = json.dumps(json.loads(arguments), sort_keys=True)
    return [function.get("name"), arguments]


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
