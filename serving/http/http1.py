"""HTTP/1 where uvicorn is not exact: valid headers, requests for other protocols, and HTTP/1.0
clients.

Functions over parsed requests, and one ASGI `send`. This module is independent of sockets
and routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

Headers = Sequence[tuple[bytes, bytes]]

# Bytes of the request line and all headers.
MAX_HEADERS = 32 << 10
TOO_LARGE = 431, f"the request headers are larger than {MAX_HEADERS >> 10} KiB"


def find_fault(version: str, url: bytes, headers: Headers) -> tuple[int, str] | None:
    """Status and message of the refusal of a request that is too large, or that a proxy may read
    differently; None for a valid request.
    """
    if len(url) + sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEADERS:
        return TOO_LARGE
    if version not in ("1.0", "1.1"):
        return 400, f"HTTP/{version} is not supported: use HTTP/1.1"
    hosts = sum(name == b"host" for name, _ in headers)
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        return 400, f"a request must have one Host header, not {hosts}"
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if codings not in ([], [b"chunked"]):
        return 400, "no Transfer-Encoding but chunked is supported"
    return None


def without_upgrade(method: bytes, url: bytes, version: str, headers: Headers) -> bytes:
    """The request line and headers without the request for another protocol."""
    lines = [b"%s %s HTTP/%s" % (method, url, version.encode())]
    for name, value in headers:
        if name == b"connection":
            options = [option.strip() for option in value.lower().split(b",")]
            value = b", ".join(option for option in options if option in (b"close", b"keep-alive"))
        if name not in (b"upgrade", b"http2-settings") and (value or name != b"connection"):
            lines.append(name + b": " + value)
    return b"\r\n".join([*lines, b"", b""])


class CloseDelimitedSend:
    """The `send` of a request by HTTP/1.0, which has no chunks: a response without a length ends
    with the connection.

    Args:
        cycle: the request, which has sent nothing yet.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle, self._send = cycle, cycle.send
        self._has_no_length = False

    async def __call__(self, message: Any) -> None:
        """ASGI."""
        if message["type"] == "http.response.start":
            self._has_no_length = all(
                name.lower() != b"content-length" for name, _ in message.get("headers", ())
            )
            if self._has_no_length:
                self._cycle.chunked_encoding = False
        elif self._has_no_length:
            # Otherwise uvicorn compares the body with the length in the headers.
            self._cycle.expected_content_length = len(message.get("body", b""))
        await self._send(message)


def abandon(cycle: RequestResponseCycle) -> None:
    """Tell the application that its client has left, and send nothing more."""
    cycle.disconnected = True
    cycle.message_event.set()
