"""What an answer said, heard from vLLM's own response as its bytes pass: a JSON body, or the events
of a stream.

Chat, completions and responses, every choice. Only a whole answer counts: one that was broken off,
failed or grew beyond a limit was not heard. It changes nothing of what passes, and does not know
why anyone listens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from serving.sse import Event, EventParser

# Not: abort, error, failed.
_WELL_ENDED = ("stop", "length", "tool_calls", "repetition", "completed", "incomplete")


@dataclass(frozen=True)
class AssistantMessage:
    """An answer: its text, and name and arguments (JSON) of each tool call."""

    text: str
    calls: tuple[tuple[str, str], ...] = ()


@dataclass
class _Choice:
    texts: list[str] = field(default_factory=list)
    # The name, then pieces of the arguments.
    calls: dict[int, list[str]] = field(default_factory=dict)
    end: str | None = None


class CompletionReader:
    """Fed with the body of a response of 200.

    One of more than `most_bytes` is passed by unheard: the next request would hardly hold it.
    """

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes  # negative: there is nothing to hear
        self._pending = bytearray()
        self._first = b""
        self._events = EventParser()
        self._choices: dict[int, _Choice] = {}
        self._whole = False

    def feed(self, content: bytes) -> None:
        """The next bytes of the body, wherever they were cut."""
        self._left -= len(content)
        if self._left < 0:
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
                self._hear(event.data.strip())

    def answers(self) -> tuple[AssistantMessage, ...]:
        """Of each choice that ended well and said something, in order; nothing unless the whole
        response has passed.
        """
        if self._is_json() and not self._whole:
            self._hear(bytes(self._pending))
            self._whole = True
        if not self._whole or self._left < 0:
            return ()
        ended = [
            self._choices[i] for i in sorted(self._choices) if self._choices[i].end in _WELL_ENDED
        ]
        spoken = [
            AssistantMessage(
                "".join(choice.texts),
                tuple((call[0], "".join(call[1:])) for call in choice.calls.values()),
            )
            for choice in ended
        ]
        return tuple(answer for answer in spoken if answer.text or answer.calls)

    def _is_json(self) -> bool:
        return self._first == b"{"

    def _hear(self, content: bytes) -> None:
        """A body, or the data of an event."""
        if content == b"[DONE]":
            self._whole = True
            return
        try:
            said = json.loads(content)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict) or said.get("error"):
            self._left = -1  # it failed, or is nothing that is known here
        elif said.get("type") == "response.completed":
            self._add_response(said["response"])
            self._whole = True
        elif said.get("object") == "response":
            self._add_response(said)
        else:
            for choice in said.get("choices") or ():
                self._add(choice.get("index", 0), choice)

    def _add(self, index: int, said: dict[str, Any]) -> None:
        """A choice of a chat or a completion, or the next piece of it."""
        choice = self._choices.setdefault(index, _Choice())
        message = said.get("message") or said.get("delta") or {"content": said.get("text")}
        choice.texts.append(message.get("content") or "")
        for position, call in enumerate(message.get("tool_calls") or ()):
            pieces = choice.calls.setdefault(call.get("index", position), [""])
            function = call.get("function") or {}
            pieces[0] = function.get("name") or pieces[0]
            pieces.append(function.get("arguments") or "")
        choice.end = said.get("finish_reason") or choice.end

    def _add_response(self, response: dict[str, Any]) -> None:
        """A whole response: its items are the one answer's text and calls."""
        items = response["output"]
        parts = [
            part for item in items if item.get("type") == "message" for part in item["content"]
        ]
        calls = [{"function": item} for item in items if item.get("type") == "function_call"]
        message = {"content": "".join(part.get("text", "") for part in parts), "tool_calls": calls}
        self._add(0, {"message": message, "finish_reason": response.get("status")})
