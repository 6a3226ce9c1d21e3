"""The front door: what stands before everything that Ray Serve answers over HTTP.

That is a uvicorn server in each engine replica (behind `serving.local.haproxy`), or in Ray's HTTP
proxy where a cluster has one. It takes any size of header, waits for a half-sent one as long as the
client likes, lets a client switch off timeouts and disconnects by header, and Ray tells its own
errors in plain text. `middlewares` is called by Ray as such a process starts (`IMPORT_PATH` in its
environment) and changes that: an ASGI layer around everything Ray answers, and a stricter HTTP
protocol. It knows nothing of Mayfly's routes.

Seams into Ray Serve 2.60 and uvicorn, a test each: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, and
the class that uvicorn's "auto" protocol names.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httptools
import uvicorn.protocols.http.auto
from starlette.middleware import Middleware
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from serving.errors import FULL, BusyError, RouteError, in_openais_shape, more_headers, to_http
from serving.http.body import Message, Receive, Send, send_json
from serving.http.http1 import MAX_HEADERS, TOO_LARGE, UntilClose, abandon, fault, without_upgrade

log = logging.getLogger(__name__)

IMPORT_PATH = "serving.http.hardening:middlewares"
HEADER_SECONDS = 10.0  # for all headers of a request to come
FULL_SECONDS = 0.2  # so long a replica that said it was full is believed
_LINGER_SECONDS = 1.0
_ANSWERS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_HEALTH = "/-/healthz"
_KEPT = (b"retry-after", b"x-request-id", b"allow")
_RAYS = (b"x-request-disconnect-disabled", b"x-request-timeout-seconds")


def middlewares() -> list[Middleware]:
    """For Ray Serve: the layer around it. Puts the stricter protocol in uvicorn's place, in this
    process.
    """
    uvicorn.protocols.http.auto.AutoHTTPProtocol = LimitedHttpProtocol
    return [
        Middleware(
            ErrorShapeMiddleware, alone=os.environ.get("RAY_SERVE_ENABLE_DIRECT_INGRESS") == "1"
        )
    ]


class ErrorShapeMiddleware:
    """An ASGI layer: Ray's own headers and routes do not pass, and every error is OpenAI's error
    object.

    Args:
        app: what Ray Serve answers.
        alone: whether one replica stands behind it, so that when that was full, everything was.
    """

    def __init__(self, app: ASGIApp, alone: bool = True) -> None:
        self._app, self._alone = app, alone
        self._full: dict[bytes, _Full] = {}  # by what there is no more of

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = dict(scope["headers"]).get(b"origin")
        told = _Told(send, lambda what, headers: self._remember(what, headers, origin))
        # Ray's own: which applications there are. A cluster asks each proxy whether it is there, or
        # sends it nothing.
        if scope["path"].startswith("/-/") and scope["path"] != _HEALTH:
            await told.error(*to_http(RouteError(f"there is no {scope['path']} here")))
            return
        full = self._busy(scope, origin)
        if full is not None:
            what, known = full
            kind = what.decode()
            busy = BusyError(
                f"as many {kind} are under way as this server takes; try again later",
                known.retry_after,
            )
            await told.error(*to_http(busy), [*more_headers(busy), *known.for_browsers])
            return
        # Ray fails on headers that are not UTF-8.
        headers = [(name, _ascii(value)) for name, value in scope["headers"] if name not in _RAYS]
        try:
            await self._app({**scope, "headers": headers}, receive, told)
        except Exception:
            log.exception("a request failed in the web server")
            if not told.begun:
                await told.error(*to_http(RuntimeError()))
            return
        if not told.begun:
            log.error(
                "the web server gave no answer to %s %s",
                scope["method"],
                quote(scope["path"][:200]),
            )
            await told.error(*to_http(RuntimeError()))

    def _remember(self, what: bytes, headers: dict[bytes, bytes], origin: bytes | None) -> None:
        if self._alone:
            for_browsers = tuple(pair for pair in headers.items() if _is_for_browsers(pair[0]))
            until = time.monotonic() + FULL_SECONDS
            self._full[what] = _Full(until, float(headers[b"retry-after"]), origin, for_browsers)

    def _busy(self, scope: Message, origin: bytes | None) -> tuple[bytes, _Full] | None:
        """Why a request that asks for an answer cannot have one now; only one that names a budget
        is known to adapt.
        """
        if scope["method"] != "POST" or scope["path"] not in _ANSWERS:
            return None
        budgets = [
            value
            for name, value in scope["headers"]
            if name in (b"compute-budget", b"x-compute-budget")
        ]
        adapts = any(value.strip().lower() != b"none" for value in budgets)
        for what in (b"requests", b"adaptations") if adapts else (b"requests",):
            full = self._full.get(what)
            if full is not None and time.monotonic() < full.until and full.origin == origin:
                return what, full
        return None


@dataclass(frozen=True)
class _Full:
    """What a replica said when it was full.

    Attributes:
        until: when it is no longer believed.
        retry_after: seconds.
        origin: of the request that was refused; pages of others may not be told the same.
        for_browsers: headers that say which pages may read the answer.
    """

    until: float
    retry_after: float
    origin: bytes | None
    for_browsers: tuple[tuple[bytes, bytes], ...]


def _ascii(value: bytes) -> bytes:
    return value if value.isascii() else value.decode("latin-1").encode("ascii", "backslashreplace")


class _Told:
    """An ASGI send that tells errors of others than Mayfly in OpenAI's shape."""

    def __init__(self, send: Send, full: Callable[[bytes, dict[bytes, bytes]], None]) -> None:
        self.begun = False
        self._send, self._is_full = send, full
        self._start: Message | None = None
        self._held = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            headers = dict(message["headers"])
            if FULL in headers:
                self._is_full(headers[FULL], headers)
            self._start = message if not _is_json(message) else None
        if self._start is None:
            self.begun = True
            await self._send(message)
        elif message["type"] == "http.response.body":
            self._held += message.get("body", b"")
            if not message.get("more_body", False):
                status = self._start["status"]
                if status >= 500:
                    log.error(
                        "the web server answered %d: %s",
                        status,
                        self._held.decode(errors="replace")[:1000],
                    )
                kept = [
                    pair
                    for pair in self._start["headers"]
                    if pair[0] in _KEPT or _is_for_browsers(pair[0])
                ]
                await self.error(
                    status, in_openais_shape(status, self._held.decode(errors="replace")), kept
                )

    async def error(
        self, status: int, content: Any, more: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """A whole answer."""
        self.begun = True
        await send_json(self._send, status, content, more)


class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol: bounded headers, one reading of every request, answers in the order of
    the requests.

    No request changes the protocol of its connection: `Upgrade` (WebSocket, h2c) is passed over, as
    RFC 9110 allows, since nothing here speaks anything but HTTP/1.1.
    """

    _headers_due: asyncio.TimerHandle | None = None
    # Of the headers so far; None while a body is read.
    _size: int | None = 0
    # What is wrong with the request whose headers are complete, for `send_400_response`.
    _fault = 400, "this is not a valid HTTP request"
    _refusal: bytes | None = None
    _running: RequestResponseCycle | None = None
    _upgrading = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._stop_waiting()
        # uvicorn tells the newest request alone, which may not have been begun.
        if self._running is not None and not self._running.response_complete:
            abandon(self._running)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request, or of several."""
        if self._refusal is not None:
            return
        if self._size is not None:
            if self._headers_due is None:
                self._wait()
            self._size += len(data)
            # What comes in one piece may hold the body, too: only a request whose headers still go
            # on is judged.
            if self._size > MAX_HEADERS and b"\r\n\r\n" not in data[: MAX_HEADERS + 4]:
                self._refuse(*TOO_LARGE)
                return
        self._unset_keepalive_if_required()
        self._feed(data)

    def on_message_begin(self) -> None:
        """The first byte of a request line."""
        super().on_message_begin()
        self._fault = LimitedHttpProtocol._fault

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; what comes after the body is a trailer, which must not be taken for one."""
        if self._size is not None:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """All headers are here."""
        self._stop_waiting()
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            # The parser takes what follows for another protocol: `_feed` has it read again.
            self._upgrading = True
            return
        self._check()
        super().on_headers_complete()
        self._size = None
        if self.scope["http_version"] == "1.0":
            self.cycle.waiting_for_100_continue = False
            self.cycle.send = UntilClose(self.cycle)  # type: ignore[method-assign]

    def on_message_complete(self) -> None:
        """The whole request is here."""
        if not self._upgrading:
            self._size = 0
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """The whole answer has left."""
        super().on_response_complete()
        if self._refusal is not None and (self._running is None or self._running.response_complete):
            self._say_refusal()

    def send_400_response(self, msg: str) -> None:
        """Not HTTP, or not such as is served here."""
        self._refuse(*self._fault)

    def _should_upgrade(self) -> bool:
        return False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            (read,) = upgrade.args
            read_as = self.parser.get_method(), self.url, self.parser.get_http_version()
            request = without_upgrade(*read_as, self.headers)
            self._upgrading = False
            # This one has stopped; what it knew of the connection lies in `self`.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._feed(request + data[read:])
        except httptools.HttpParserError:
            self.send_400_response("")

    def _check(self) -> None:
        """Refuse headers that are too large, and those that others on the way may read otherwise.

        Raises:
            ValueError: the parser ends, and calls `send_400_response`.
        """
        found = fault(self.parser.get_http_version(), self.url, self.headers)
        if found is not None:
            self._fault = found
            raise ValueError(found)

    def _wait(self) -> None:
        self._headers_due = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _too_slow(self) -> None:
        if self._running is not None and not self._running.response_complete:
            # It waits for its turn anyway; the time counts from when the answer before it has left.
            self._wait()
        elif self._size == 0:
            self.transport.close()
        else:
            self._refuse(
                408, f"the request headers were not whole after {HEADER_SECONDS:.0f} seconds"
            )

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error, after the answers to the requests before it, and close."""
        if self._refusal is not None or self.transport.is_closing():
            return
        body = json.dumps(in_openais_shape(status, message)).encode()
        lines = [
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"connection: close",
        ]
        self._refusal = STATUS_LINE[status] + b"\r\n".join(lines) + b"\r\n\r\n" + body
        self._stop_waiting()
        newest = self.cycle
        if self._size is None and not newest.response_complete:
            # Its headers were right and its body is not: this is the answer to it.
            if self.pipeline and self.pipeline[0][0] is newest:
                self.pipeline.popleft()
            else:
                abandon(newest)
                if newest.response_started:
                    self.transport.close()
                else:
                    self._say_refusal()
                return
        if self._running is None or self._running.response_complete:
            self._say_refusal()

    def _say_refusal(self) -> None:
        if self._refusal and not self.transport.is_closing():
            self.transport.write(self._refusal)
            self._refusal = b""
            # Closed at once, what the client still sends would reset the connection before it has
            # read why.
            self.loop.call_later(_LINGER_SECONDS, self.transport.close)


def _is_for_browsers(name: bytes) -> bool:
    return name == b"vary" or name.startswith(b"access-control-")


def _is_json(start: Message) -> bool:
    return any(
        name == b"content-type" and value.startswith(b"application/json")
        for name, value in start["headers"]
    )
