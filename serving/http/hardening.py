"""Hardening of the web server that Ray Serve runs: an ASGI layer around everything it answers, and
a stricter HTTP protocol (`serving.http.limited_protocol`).

That server is uvicorn, in each engine replica (behind `serving.local.haproxy`) or in the HTTP
proxies of a cluster. By itself it accepts headers of any size, waits for half-sent ones without
end, lets a client switch off timeouts and disconnects by header, and reports errors of Ray in plain
text. Ray calls `middlewares` when such a process starts, if `IMPORT_PATH` is in its environment.
This module does not know Mayfly's routes.

Seams into Ray Serve 2.60 and uvicorn, each with a test: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH,
and the class that uvicorn uses for its "auto" protocol.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import uvicorn.protocols.http.auto
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import FULL, BusyError, RouteError, in_openais_shape, more_headers, to_http
from serving.http.body import send_json
from serving.http.limited_protocol import LimitedHttpProtocol

log = logging.getLogger(__name__)

IMPORT_PATH = "serving.http.hardening:middlewares"
# Seconds for which the refusal of a full replica answers further requests, too.
FULL_SECONDS = 0.2
_COMPLETION_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_PROXY_HEALTH = "/-/healthz"
_PASSED_HEADERS = (b"retry-after", b"x-request-id", b"allow")
_RAY_HEADERS = (b"x-request-disconnect-disabled", b"x-request-timeout-seconds")


def middlewares() -> list[Middleware]:
    """The middleware for Ray Serve. Also replaces uvicorn's protocol in this process."""
    uvicorn.protocols.http.auto.AutoHTTPProtocol = LimitedHttpProtocol
    single_replica = os.environ.get("RAY_SERVE_ENABLE_DIRECT_INGRESS") == "1"
    return [Middleware(ErrorShapeMiddleware, single_replica=single_replica)]


class ErrorShapeMiddleware:
    """ASGI middleware that stops Ray's own headers and routes, and turns every error into OpenAI's
    error object.

    Args:
        app: Ray Serve's application.
        single_replica: whether one replica answers all requests, so that its refusal speaks for
            the whole server.
        clock: monotonic clock, seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        single_replica: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._single_replica, self._clock = app, single_replica, clock
        # By resource: b"requests" or b"adaptations".
        self._refusals: dict[bytes, _Refusal] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = Headers(scope=scope).get("origin")
        response = _ErrorShapingSend(
            send, lambda resource, headers: self._remember(resource, headers, origin)
        )
        # Ray lists its applications there. A cluster needs the health route of its proxies.
        if scope["path"].startswith("/-/") and scope["path"] != _PROXY_HEALTH:
            await response.error(*to_http(RouteError(f"unknown path {scope['path']}")))
            return
        found = self._refusal(scope, origin)
        if found is not None:
            resource, refusal = found
            busy = BusyError(
                f"the limit of concurrent {resource.decode()} is reached; try again later",
                refusal.retry_after,
            )
            headers = [*more_headers(busy), *refusal.browser_headers]
            await response.error(*to_http(busy), headers)
            return
        # Ray fails on headers that are not UTF-8.
        headers = [
            (name, _ascii(value)) for name, value in scope["headers"] if name not in _RAY_HEADERS
        ]
        try:
            await self._app({**scope, "headers": headers}, receive, response)
        except Exception:
            log.exception("a request failed in the web server")
            if not response.started:
                await response.error(*to_http(RuntimeError()))
            return
        if not response.started:
            path = quote(scope["path"][:200])
            log.error("the web server did not answer %s %s", scope["method"], path)
            await response.error(*to_http(RuntimeError()))

    def _remember(self, resource: bytes, headers: dict[bytes, bytes], origin: str | None) -> None:
        if self._single_replica:
            self._refusals[resource] = _Refusal(
                until=self._clock() + FULL_SECONDS,
                retry_after=float(headers[b"retry-after"]),
                origin=origin,
                browser_headers=tuple(
                    pair for pair in headers.items() if _is_for_browsers(pair[0])
                ),
            )

    def _refusal(self, scope: Scope, origin: str | None) -> tuple[bytes, _Refusal] | None:
        """The exhausted resource and the refusal for a completion request. Only a request that
        names a budget is known to adapt.
        """
        if scope["method"] != "POST" or scope["path"] not in _COMPLETION_PATHS:
            return None
        budgets = [
            value
            for name, value in scope["headers"]
            if name in (b"compute-budget", b"x-compute-budget")
        ]
        adapts = any(value.strip().lower() != b"none" for value in budgets)
        for resource in (b"requests", b"adaptations") if adapts else (b"requests",):
            refusal = self._refusals.get(resource)
            if refusal and self._clock() < refusal.until and refusal.origin == origin:
                return resource, refusal
        return None


@dataclass(frozen=True)
class _Refusal:
    """The refusal of a full replica.

    Attributes:
        until: monotonic time until which it is repeated.
        retry_after: seconds.
        origin: origin of the refused request. Requests of other origins may need other headers.
        browser_headers: headers that say which pages may read the response.
    """

    until: float
    retry_after: float
    origin: str | None
    browser_headers: tuple[tuple[bytes, bytes], ...]


def _ascii(value: bytes) -> bytes:
    return value if value.isascii() else value.decode("latin-1").encode("ascii", "backslashreplace")


class _ErrorShapingSend:
    """An ASGI send that turns errors other than Mayfly's own into OpenAI's error object.

    Args:
        send: ASGI's.
        on_full: called with the exhausted resource and the headers of a full replica's refusal.

    Attributes:
        started: whether a response has been started.
    """

    def __init__(self, send: Send, on_full: Callable[[bytes, dict[bytes, bytes]], None]) -> None:
        self.started = False
        self._send, self._on_full = send, on_full
        # Start and body of an error that is to be replaced.
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            headers = dict(message["headers"])
            if FULL in headers:
                self._on_full(headers[FULL], headers)
            is_json = headers.get(b"content-type", b"").startswith(b"application/json")
            self._start = None if is_json else message
        if self._start is None:
            self.started = True
            await self._send(message)
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._replace(self._start, self._body.decode(errors="replace"))

    async def error(
        self, status: int, content: Any, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Send a whole error response."""
        self.started = True
        await send_json(self._send, status, content, headers)

    async def _replace(self, start: Message, text: str) -> None:
        status = start["status"]
        if status >= 500:
            log.error("the web server answered %d: %s", status, text[:1000])
        passed = [
            (name, value)
            for name, value in start["headers"]
            if name in _PASSED_HEADERS or _is_for_browsers(name)
        ]
        await self.error(status, in_openais_shape(status, text), passed)


def _is_for_browsers(name: bytes) -> bool:
    return name == b"vary" or name.startswith(b"access-control-")
