"""Server-sent events: bytes in, comments and events out, wherever the bytes are split.

Lines end with a newline, with or without a carriage return before it; event names and ids are not
read. httpx-sse is not used: it drops comments, in which Mayfly sends progress, and it reads httpx
responses only, while the engine's own output must be read as well.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Comment:
    """A comment.

    Attributes:
        text: its text without surrounding blanks.
    """

    text: str


@dataclass(frozen=True)
class Event:
    """An event.

    Attributes:
        data: its data, the lines joined by newlines.
    """

    data: bytes


class EventParser:
    """Parses one stream."""

    def __init__(self) -> None:
        # The bytes of an incomplete line, and the data lines of an incomplete event.
        self._pending = bytearray()
        self._data: list[bytes] = []

    def feed(self, content: bytes) -> list[Comment | Event]:
        """The comments and events that end in the next bytes of the stream."""
        self._pending += content
        if b"\n" not in content:
            return []
        *lines, self._pending = self._pending.split(b"\n")
        found: list[Comment | Event] = []
        for line in map(bytes, lines):
            line = line.removesuffix(b"\r")
            if not line and self._data:
                found.append(Event(b"\n".join(self._data)))
                self._data = []
            elif line.startswith(b":"):
                found.append(Comment(line[1:].decode(errors="replace").strip()))
            elif line.startswith(b"data:"):
                self._data.append(line.removeprefix(b"data:").removeprefix(b" "))
        return found
