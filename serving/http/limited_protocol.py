"""The HTTP/1.1 protocol of the web server: uvicorn's, with bounded headers, a single reading of
every request, and responses in the order of the requests.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from serving.errors import in_openais_shape
from serving.http.http1 import (
    MAX_HEADERS,
    TOO_LARGE,
    CloseDelimitedSend,
    abandon,
    find_fault,
    without_upgrade,
)

# Seconds for all headers of a request to arrive.
HEADER_SECONDS = 10.0
# Seconds between the refusal of a request and the end of its connection.
_LINGER_SECONDS = 1.0


class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, limited.

    No request changes the protocol of its connection: `Upgrade` (WebSocket, h2c) is ignored, as RFC
    9110 allows, since this server uses nothing but HTTP/1.1.
    """

    _header_timer: asyncio.TimerHandle | None = None
    # Bytes of the headers received so far; None while a body is read.
    _header_bytes: int | None = 0
    # Status and message that `send_400_response` answers with.
    _fault = 400, "this is not a valid HTTP request"
    # The response to an invalid request: None before, empty once it is written.
    _refusal: bytes | None = None
    # The request that is being answered.
    _running: RequestResponseCycle | None = None
    # Whether the parser took the current request for a change of protocol.
    _upgrading = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Handle a new connection."""
        super().connection_made(transport)
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of the connection."""
        self._stop_header_timer()
        # uvicorn notifies only the newest request, which may not have been started.
        if self._running is not None and not self._running.response_complete:
            abandon(self._running)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle bytes of one or several requests."""
        if self._refusal is not None:
            return
        if self._header_bytes is not None:
            if self._header_timer is None:
                self._start_header_timer()
            self._header_bytes += len(data)
            # The bytes may contain the body, too: only headers that are still incomplete count.
            if self._header_bytes > MAX_HEADERS and b"\r\n\r\n" not in data[: MAX_HEADERS + 4]:
                self._refuse(*TOO_LARGE)
                return
        self._unset_keepalive_if_required()
        self._feed(data)

    def on_message_begin(self) -> None:
        """Handle the first byte of a request line."""
        super().on_message_begin()
        self._fault = LimitedHttpProtocol._fault

    def on_header(self, name: bytes, value: bytes) -> None:
        """Handle a header. A trailer, which follows the body, must not be taken for one."""
        if self._header_bytes is not None:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Handle the end of the headers."""
        self._stop_header_timer()
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            # The parser takes the rest for another protocol: `_feed` parses the request again.
            self._upgrading = True
            return
        self._check_headers()
        super().on_headers_complete()
        self._header_bytes = None
        if self.scope["http_version"] == "1.0":
            self.cycle.waiting_for_100_continue = False
            self.cycle.send = CloseDelimitedSend(self.cycle)  # type: ignore[method-assign]

    def on_message_complete(self) -> None:
        """Handle the end of a request."""
        if not self._upgrading:
            self._header_bytes = 0
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Handle the end of a response."""
        super().on_response_complete()
        if self._refusal is not None and (self._running is None or self._running.response_complete):
            self._write_refusal()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is not HTTP, or not served here."""
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
            (parsed,) = upgrade.args
            request = without_upgrade(
                self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers
            )
            self._upgrading = False
            # A parser that has met an upgrade has stopped; the connection's state is in `self`.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._feed(request + data[parsed:])
        except httptools.HttpParserError:
            self.send_400_response("")

    def _check_headers(self) -> None:
        """Refuse headers that are too large, or that a proxy may read differently.

        Raises:
            ValueError: the headers are refused. It ends the parser, which leads to
                `send_400_response`.
        """
        fault = find_fault(self.parser.get_http_version(), self.url, self.headers)
        if fault is not None:
            self._fault = fault
            raise ValueError(fault)

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_SECONDS, self._on_header_timeout)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_header_timeout(self) -> None:
        if self._running is not None and not self._running.response_complete:
            # The next request waits for its turn anyway: its time starts after this response.
            self._start_header_timer()
        elif self._header_bytes == 0:
            self.transport.close()
        else:
            self._refuse(
                408, f"the request headers were incomplete after {HEADER_SECONDS:.0f} seconds"
            )

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error after the responses to earlier requests, and close."""
        if self._refusal is not None or self.transport.is_closing():
            return
        body = json.dumps(in_openais_shape(status, message)).encode()
        lines = [
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"connection: close",
        ]
        self._refusal = STATUS_LINE[status] + b"\r\n".join(lines) + b"\r\n\r\n" + body
        self._stop_header_timer()
        newest = self.cycle
        if self._header_bytes is None and not newest.response_complete:
            # The headers were valid and the body is not: the refusal is the response to this
            # request.
            if self.pipeline and self.pipeline[0][0] is newest:
                self.pipeline.popleft()
            else:
                abandon(newest)
                if newest.response_started:
                    self.transport.close()
                else:
                    self._write_refusal()
                return
        if self._running is None or self._running.response_complete:
            self._write_refusal()

    def _write_refusal(self) -> None:
        if self._refusal and not self.transport.is_closing():
            self.transport.write(self._refusal)
            self._refusal = b""
            # If the connection closed at once, bytes that the client still sends would reset it
            # before the client has read the response.
            self.loop.call_later(_LINGER_SECONDS, self.transport.close)
