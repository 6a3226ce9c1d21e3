"""HTTP/1.1 on bare sockets, for requests that no client library would send, and what an error must
look like.

A request is bytes and pauses; replies are parsed from whatever came back. Knows nothing of the
server but its port.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Headers = Sequence[tuple[bytes, bytes]]

_MEMBERS = {"message", "type", "param", "code"}
_INSIDES = re.compile(
    r"Traceback|File \"|\.py[\":]|site-packages|\b0x[0-9a-f]{6,}|\bobject at\b"
    r"|/(?:home|root|usr|work|tmp|var|opt|srv|dev/shm|proc)/|\b\d{1,3}(?:\.\d{1,3}){3}\b"
)


@dataclass(frozen=True)
class Reply:
    """One response; the names of headers are in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes


def http(
    method: str, target: bytes, body: bytes = b"", headers: Headers = (), version: bytes = b"1.1"
) -> bytes:
    """A request as bytes, as it is given; length and content type are added where no header names
    them.
    """
    named = {name.lower() for name, _ in headers}
    own = [
        (b"Host", b"127.0.0.1"),
        (b"Connection", b"close"),
        (b"Content-Type", b"application/json"),
    ]
    own += (
        [(b"Content-Length", str(len(body)).encode())] if b"transfer-encoding" not in named else []
    )
    lines = [
        name + b": " + value
        for name, value in [*(h for h in own if h[0].lower() not in named), *headers]
    ]
    return b"\r\n".join([method.encode() + b" " + target + b" HTTP/" + version, *lines, b"", body])


async def exchange(
    port: int, pieces: Sequence[bytes | float], patience: float, leave: bool = False
) -> bytes:
    """Send pieces, sleeping where a piece is a number of seconds; all that comes back until the
    server closes.

    Args:
        port: on the loopback interface.
        pieces: in order.
        patience: seconds to wait for the end of the reply.
        leave: close our side after the last piece rather than wait.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
    came = bytearray()

    async def listen() -> None:
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(1 << 16):
                came.extend(part)

    listening = asyncio.create_task(listen())
    try:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                if isinstance(piece, bytes):
                    writer.write(piece)
                    await writer.drain()
                else:
                    await asyncio.sleep(piece)
        await asyncio.wait([listening], timeout=0 if leave else patience)
    finally:
        listening.cancel()
        writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), 5)
    return bytes(came)


def replies(raw: bytes, head: bool = False) -> list[Reply]:
    """The responses in what came back, in order; one that is cut off is left out."""
    found: list[Reply] = []
    while True:
        start, separator, rest = raw.partition(b"\r\n\r\n")
        first, *lines = start.split(b"\r\n")
        version, _, status = first.partition(b" ")
        if not separator or not version.startswith(b"HTTP/") or not status[:3].isdigit():
            return found
        pairs = (line.decode("latin-1").partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        code = int(status[:3])
        if head or code < 200 or code in (204, 304):
            body, raw = b"", rest
        elif headers.get("transfer-encoding") == "chunked":
            whole = _unchunked(rest)
            if whole is None:
                return found
            body, raw = whole
        else:
            length = int(headers.get("content-length", len(rest)))
            if len(rest) < length:
                return found
            body, raw = rest[:length], rest[length:]
        if code >= 200:
            found.append(Reply(code, headers, body))


def _unchunked(raw: bytes) -> tuple[bytes, bytes] | None:
    body = b""
    while True:
        size, separator, raw = raw.partition(b"\r\n")
        if not separator:
            return None
        length = int(size.split(b";")[0], 16)
        if len(raw) < length + 2:
            return None
        body, raw = body + raw[:length], raw[length + 2 :]
        if length == 0:
            return body, raw


def fault(body: bytes, own: Sequence[str] = ()) -> str | None:
    """What is wrong with the body of an error: its shape, or something of the server's insides in
    it.

    Args:
        body: to be `{"error": {"message", "type", "param", "code"}}`.
        own: text of the request, which the message may repeat.
    """
    try:
        content: Any = json.loads(body)
    except ValueError:
        return f"an error that is not JSON: {body[:80]!r}"
    error = content.get("error") if isinstance(content, dict) else None
    if not isinstance(error, dict) or set(error) != _MEMBERS or set(content) != {"error"}:
        return f"not OpenAI's error object: {body[:120]!r}"
    if (
        not isinstance(error["message"], str)
        or not error["message"]
        or not isinstance(error["type"], str)
    ):
        return f"an error without a message or a type: {body[:120]!r}"
    if any(
        error[name] is not None and not isinstance(error[name], str) for name in ("param", "code")
    ):
        return f"`param` and `code` are strings or null: {body[:160]!r}"
    said = error["message"]
    for part in own:
        said = said.replace(part, "")
    inside = _INSIDES.search(said)
    return f"tells {inside[0]!r}: {error['message'][:160]!r}" if inside else None
