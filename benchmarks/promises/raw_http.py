"""HTTP/1.1 on bare sockets, for requests that no client library would send, and a check of errors.

A request is bytes and pauses; responses are parsed from the bytes received. Knows nothing of the
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
_INTERNALS = re.compile(
    r"Traceback|File \"|\.py[\":]|site-packages|\b0x[0-9a-f]{6,}|\bobject at\b"
    r"|/(?:home|root|usr|work|tmp|var|opt|srv|dev/shm|proc)/|\b\d{1,3}(?:\.\d{1,3}){3}\b"
)


@dataclass(frozen=True)
class Response:
    """One response; header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes


def build_request(
    method: str, target: bytes, body: bytes = b"", headers: Headers = (), version: bytes = b"1.1"
) -> bytes:
    """A request as bytes; headers that it needs are added unless given."""
    given = {name.lower() for name, _ in headers}
    allowed = [
        (b"Host", b"127.0.0.1"),
        (b"Connection", b"close"),
        (b"Content-Type", b"application/json"),
    ]
    allowed += (
        [(b"Content-Length", str(len(body)).encode())] if b"transfer-encoding" not in given else []
    )
    lines = [
        name + b": " + value
        for name, value in [*(h for h in allowed if h[0].lower() not in given), *headers]
    ]
    return b"\r\n".join([method.encode() + b" " + target + b" HTTP/" + version, *lines, b"", body])


async def send_raw(
    port: int, parts: Sequence[bytes | float], wait_seconds: float, disconnect: bool = False
) -> bytes:
    """Send parts of a request, and return all bytes received until the server closes.

    Args:
        port: port on the loopback interface.
        parts: bytes to send, and pauses in seconds, in order.
        wait_seconds: time to wait for the end of the response.
        disconnect: close the connection after the last part rather than wait.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
    received = bytearray()

    async def receive() -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(1 << 16):
                received.extend(chunk)

    receiver = asyncio.create_task(receive())
    try:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                if isinstance(part, bytes):
                    writer.write(part)
                    await writer.drain()
                else:
                    await asyncio.sleep(part)
        await asyncio.wait([receiver], timeout=0 if disconnect else wait_seconds)
    finally:
        receiver.cancel()
        writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), 5)
    return bytes(received)


def parse_responses(raw: bytes, head: bool = False) -> list[Response]:
    """Parse the complete responses in the bytes received, in order.

    Args:
        raw: all bytes received.
        head: the request was a HEAD, so responses have no body.
    """
    responses: list[Response] = []
    while True:
        start, separator, rest = raw.partition(b"\r\n\r\n")
        first, *lines = start.split(b"\r\n")
        version, _, status = first.partition(b" ")
        if not separator or not version.startswith(b"HTTP/") or not status[:3].isdigit():
            return responses
        pairs = (line.decode("latin-1").partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        code = int(status[:3])
        if head or code < 200 or code in (204, 304):
            body, raw = b"", rest
        elif headers.get("transfer-encoding") == "chunked":
            decoded = _unchunked(rest)
            if decoded is None:
                return responses
            body, raw = decoded
        else:
            length = int(headers.get("content-length", len(rest)))
            if len(rest) < length:
                return responses
            body, raw = rest[:length], rest[length:]
        if code >= 200:
            responses.append(Response(code, headers, body))


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


def error_defect(body: bytes, allowed: Sequence[str] = ()) -> str | None:
    """What is wrong with an error's body: its shape, or internals of the server in its message.

    Args:
        body: expected to be `{"error": {"message", "type", "param", "code"}}`.
        allowed: text of the request, which the message may repeat.

    Returns:
        A description of the defect; None if there is none.
    """
    try:
        content: Any = json.loads(body)
    except ValueError:
        return f"not JSON: {body[:80]!r}"
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
    message = error["message"]
    for chunk in allowed:
        message = message.replace(chunk, "")
    detail = _INTERNALS.search(message)
    return f"reveals {detail[0]!r}: {error['message'][:160]!r}" if detail else None
