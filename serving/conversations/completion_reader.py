"""CompletionReader: the messages in vLLM's own response, read as its bytes pass: a JSON body, or
the events of a stream.

Chats, completions and responses, every choice. Only a whole response counts: one that was broken
off, failed or exceeded the limit has no messages. The reader changes nothing of what passes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from serving.sse import Event, EventParser

# Reasons of a whole answer; abort, error and failed are not among them.
_COMPLETE = ("stop", "length", "tool_calls", "repetition", "completed", "incomplete")


@dataclass(frozen=True)
class AssistantMessage:
    """An answer: its text, and name and arguments (JSON) of each tool call."""

    text: str
    calls: tuple[tuple[str, str], ...] = ()


@dataclass
class _Choice:
    texts: list[str] = field(default_factory=list)
    # Each call's name, followed by the parts of its arguments.
    calls: dict[int, list[str]] = field(default_factory=dict)
    finish_reason: str | None = None


class CompletionReader:
    """Reads the body of a response with status 200.

    Args:
        max_bytes: size of the longest body that is read; a longer one would hardly fit into the
            next request.
    """

    def __init__(self, max_bytes: int) -> None:
        # Negative once the response has no messages.
        self._bytes_left = max_bytes
        self._pending = bytearray()
        self._first = b""
        self._events = EventParser()
        self._choices: dict[int, _Choice] = {}
        self._is_whole = False

    def feed(self, content: bytes) -> None:
        """Read the next bytes of the body, wherever they were split."""
        self._bytes_left -= len(content)
        if self._bytes_left < 0:
            self._pending.clear()
            self._events = EventParser()
            self._choices.clear()
            return
        self._first = self._first or content[:1]
        if self._is_json():
            self._pending += content
            return
        for event in self._events.feed(content):
            if isinstance(event, Event):
                self._read(event.data.strip())

    def answers(self) -> tuple[AssistantMessage, ...]:
        """The message of each choice that is complete and not empty, in order; none before the
        whole response has passed.
        """
        if self._is_json() and not self._is_whole:
            self._read(bytes(self._pending))
            self._is_whole = True
        if not self._is_whole or self._bytes_left < 0:
            return ()
        choices = (self._choices[i] for i in sorted(self._choices))
        messages = [
            AssistantMessage(
                "".join(choice.texts),
                tuple((call[0], "".join(call[1:])) for call in choice.calls.values()),
            )
            for choice in choices
            if choice.finish_reason in _COMPLETE
        ]
        return tuple(message for message in messages if message.text or message.calls)

    def _is_json(self) -> bool:
        return self._first == b"{"

    def _read(self, content: bytes) -> None:
        """Read a body, or the data of an event."""
        if content == b"[DONE]":
            self._is_whole = True
            return
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or value.get("error"):
            self._bytes_left = -1
        elif value.get("type") == "response.completed":
            self._add_response(value["response"])
            self._is_whole = True
        elif value.get("object") == "response":
            self._add_response(value)
        else:
            for choice in value.get("choices") or ():
                self._add_choice(choice.get("index", 0), choice)

    def _add_choice(self, index: int, part: dict[str, Any]) -> None:
        """Add a choice of a chat or a completion, or the next part of it."""
        choice = self._choices.setdefault(index, _Choice())
        message = part.get("message") or part.get("delta") or {"content": part.get("text")}
        choice.texts.append(message.get("content") or "")
        for position, call in enumerate(message.get("tool_calls") or ()):
            parts = choice.calls.setdefault(call.get("index", position), [""])
            function = call.get("function") or {}
            parts[0] = function.get("name") or parts[0]
            parts.append(function.get("arguments") or "")
        choice.finish_reason = part.get("finish_reason") or choice.finish_reason

    def _add_response(self, response: dict[str, Any]) -> None:
        """Add a whole response: its items are the text and the calls of one answer."""
        items = response["output"]
        parts = [
            part for item in items if item.get("type") == "message" for part in item["content"]
        ]
        calls = [{"function": item} for item in items if item.get("type") == "function_call"]
        message = {"content": "".join(part.get("text", "") for part in parts), "tool_calls": calls}
        self._add_choice(0, {"message": message, "finish_reason": response.get("status")})
