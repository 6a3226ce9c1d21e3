"""The front door: what stands before everything that Ray Serve answers over HTTP.

That is a uvicorn server in each engine replica (behind `serving.entrance`), or in Ray's HTTP proxy where a cluster has
one. It takes any size of header, waits for a half-sent one as long as the client likes, lets a client switch off
timeouts and disconnects by header, and Ray tells its own errors in plain text. `middlewares` is called by Ray as such a
process starts (`IMPORT_PATH` in its environment) and changes that: an ASGI layer around everything Ray answers, and a
stricter HTTP protocol. It knows nothing of Mayfly's routes.

Seams into Ray Serve 2.60 and uvicorn, a test each: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, and the class that
uvicorn's "auto" protocol names.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn.protocols.http.auto
from starlette.middleware import Middleware
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.body import Message, Receive, Send, send_json
from serving.errors import FULL, BusyError, RouteError, in_openais_shape, more_headers, to_http

log = logging.getLogger(__name__)

IMPORT_PATH = "serving.front:middlewares"
HEADER_SECONDS = 10.0  # for all headers of a request to come
MAX_HEADERS = 32 << 10  # bytes of them, and of the request line
FULL_SECONDS = 0.2  # so long a replica that said it was full is believed
_LINGER_SECONDS = 1.0
_ANSWERS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_HEALTH = "/-/healthz"
_RAYS = (b"x-request-disconnect-disabled", b"x-request-timeout-seconds")


def middlewares() -> list[Middleware]:
    """For Ray Serve: the layer around it. Puts the stricter protocol in uvicorn's place, in this process."""
    uvicorn.protocols.http.auto.AutoHTTPProtocol = StrictProtocol
    return [Middleware(Front, alone=os.environ.get("RAY_SERVE_ENABLE_DIRECT_INGRESS") == "1")]


class Front:
    """An ASGI layer: Ray's own headers and routes do not pass, and every error is OpenAI's error object.

    Args:
        app: what Ray Serve answers.
        alone: whether one replica stands behind it, so that when that was full, everything was.
    """

    def __init__(self, app: ASGIApp, alone: bool = True) -> None:
        self._app, self._alone = app, alone
        self._full: dict[bytes, tuple[float, float]] = {}  # of what; until when, and when to try again

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = _Told(send, self._remember)
        # Ray's own: which applications there are. A cluster asks each proxy whether it is there, or sends it nothing.
        if scope["path"].startswith("/-/") and scope["path"] != _HEALTH:
            await told.error(*to_http(RouteError(f"there is no {scope['path']} here")))
            return
        busy = self._busy(scope)
        if busy is not None:
            await told.error(*to_http(busy), more_headers(busy))
            return
        # Ray fails on headers that are not UTF-8.
        headers = [(name, _ascii(value)) for name, value in scope["headers"] if name not in _RAYS]
        try:
            await self._app({**scope, "headers": headers}, receive, told)
        except Exception:
            log.exception("a request failed in the web server")
        if not told.begun:
            await told.error(*to_http(RuntimeError()))

    def _remember(self, what: bytes, retry_after: float) -> None:
        if not self._alone:
            return
        self._full[what] = time.monotonic() + FULL_SECONDS, retry_after

    def _busy(self, scope: Message) -> BusyError | None:
        """Why a request that asks for an answer cannot have one now; only one that names a budget is known to adapt."""
        if scope["method"] != "POST" or scope["path"] not in _ANSWERS:
            return None
        budgets = [value for name, value in scope["headers"] if name in (b"compute-budget", b"x-compute-budget")]
        adapts = any(value.strip().lower() != b"none" for value in budgets)
        for what in (b"requests", b"adaptations") if adapts else (b"requests",):
            until, retry_after = self._full.get(what, (0.0, 0.0))
            if time.monotonic() < until:
                kind = what.decode()
                return BusyError(f"as many {kind} are under way as this server takes; try again later", retry_after)
        return None


def _ascii(value: bytes) -> bytes:
    return value if value.isascii() else value.decode("latin-1").encode("ascii", "backslashreplace")


class _Told:
    """An ASGI send that tells errors of others than Mayfly in OpenAI's shape."""

    def __init__(self, send: Send, full: Callable[[bytes, float], None]) -> None:
        self.begun = False
        self._send, self._is_full = send, full
        self._start: Message | None = None
        self._held = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            headers = dict(message["headers"])
            if FULL in headers:
                self._is_full(headers[FULL], float(headers[b"retry-after"]))
            self._start = message if not _is_json(message) else None
        if self._start is None:
            self.begun = True
            await self._send(message)
        elif message["type"] == "http.response.body":
            self._held += message.get("body", b"")
            if not message.get("more_body", False):
                status = self._start["status"]
                kept = [pair for pair in self._start["headers"] if pair[0] in (b"retry-after", b"x-request-id")]
                await self.error(status, in_openais_shape(status, self._held.decode(errors="replace")), kept)

    async def error(self, status: int, content: Any, more: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """A whole answer."""
        self.begun = True
        await send_json(self._send, status, content, more)


class StrictProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a bound on the size of a request's headers and on the time they take to come."""

    _headers_due: asyncio.TimerHandle | None = None
    _refused = False
    _size: int | None = 0  # of headers so far; None while a body is read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request, or of several."""
        if self._refused:
            return
        if self._size is not None:
            if self._headers_due is None:
                self._wait()
            self._size += len(data)
            # What comes in one piece may hold the body, too: only a request whose headers still go on is judged.
            if self._size > MAX_HEADERS and b"\r\n\r\n" not in data[: MAX_HEADERS + 4]:
                self._refuse(431, f"the request headers are larger than {MAX_HEADERS >> 10} KiB")
                return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """All headers are here."""
        self._stop_waiting()
        self._size = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The whole request is here."""
        self._size = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Not HTTP."""
        self._refuse(400, "this is not a valid HTTP request")

    def _wait(self) -> None:
        self._headers_due = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _too_slow(self) -> None:
        if self._size == 0:
            self.transport.close()
        elif self.cycle is None or self.cycle.response_complete:
            self._refuse(408, f"the request headers were not whole after {HEADER_SECONDS:.0f} seconds")

    def _refuse(self, status: int, message: str) -> None:
        if self._refused or self.transport.is_closing():
            return
        body = json.dumps(in_openais_shape(status, message)).encode()
        lines = [b"content-type: application/json", b"content-length: %d" % len(body), b"connection: close"]
        self.transport.write(STATUS_LINE[status] + b"\r\n".join(lines) + b"\r\n\r\n" + body)
        # Closed at once, what the client still sends would reset the connection before it has read why.
        self._refused = True
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)


def _is_json(start: Message) -> bool:
    return any(name == b"content-type" and value.startswith(b"application/json") for name, value in start["headers"])
