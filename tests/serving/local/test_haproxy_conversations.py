"""Requests that share a connection get the same responses as on connections of their own, with and
without HAProxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.types import Message, Receive, Send

from serving.http.body import send_json
from serving.http.hardening import ErrorShapeMiddleware
from serving.http.limited_protocol import LimitedHttpProtocol
from serving.local.haproxy import free_ports, running_haproxy

TIMEOUT = 20.0
# HAProxy's buffer holds 64 KiB.
BUFFER_BYTES = 48 << 10
KEY = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
H2C = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
)
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + KEY
HOP_BY_HOP = (b"connection", b"keep-alive")


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """Respond with the request as it has arrived.

    The path "/rejects" responds with 413 without reading the body, "/streams" with two chunks.
    """
    if scope["path"] == "/rejects":
        await send_json(
            send, 413, {"error": {"message": "unread", "type": "t", "param": None, "code": None}}
        )
        return
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message.get("body", b""), message.get("more_body", False)
    headers = sorted(
        [name.decode(), value.decode()]
        for name, value in scope["headers"]
        if name not in HOP_BY_HOP
    )
    found = json.dumps([scope["method"], scope["path"], body.decode("latin-1"), headers]).encode()
    length = [] if scope["path"] == "/streams" else [(b"content-length", b"%d" % len(found))]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    if scope["path"] == "/streams":
        await send({"type": "http.response.body", "body": found[:5], "more_body": True})
        found = found[5:]
    await send({"type": "http.response.body", "body": found})


@dataclass(frozen=True)
class Ports:
    """Ports where the same application answers.

    Attributes:
        haproxy: port of HAProxy.
        replica: port of the replica behind it.
    """

    haproxy: int
    replica: int


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    """HAProxy, with a uvicorn server in a thread behind it."""
    public, replicas = free_ports(1).start, free_ports(1)
    config = uvicorn.Config(
        ErrorShapeMiddleware(echo),
        http=LimitedHttpProtocol,
        host="127.0.0.1",
        port=replicas.start,
        log_level="critical",
        lifespan="off",
    )
    web = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(web.serve()))
    thread.start()
    with running_haproxy("127.0.0.1", public, replicas):
        deadline = time.monotonic() + TIMEOUT
        while Connection(public).exchange(request(b"GET"), "GET").status == 503:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield Ports(public, replicas.start)
    web.should_exit = True
    thread.join()


def request(
    method: bytes,
    path: bytes = b"/",
    lines: bytes = b"",
    body: bytes = b"",
    version: bytes = b"1.1",
) -> bytes:
    return b"%s %s HTTP/%s\r\nHost: localhost\r\n%s\r\n%s" % (method, path, version, lines, body)


def sized(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n" % len(body)


def chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    return (
        b"".join(b"%x;of=it\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
        + b"0\r\n"
        + trailer
        + b"\r\n"
    )


CHUNKED = b"Transfer-Encoding: chunked\r\n"
REQUESTS = {
    "plain": request(b"GET"),
    "with a body": request(b"POST", b"/a", sized(b"body"), b"body"),
    "without a body": request(b"POST", b"/empty", sized(b"")),
    "HEAD": request(b"HEAD", b"/b"),
    "chunked": request(b"POST", b"/c", CHUNKED, chunked(b"one", b"two" * 500)),
    "trailers": request(
        b"POST", b"/d", CHUNKED, chunked(b"one", trailer=b"Compute-Budget: none\r\n")
    ),
    "streamed": request(b"POST", b"/streams", CHUNKED, chunked(b"one")),
    "HEAD of a stream": request(b"HEAD", b"/streams"),
    "expecting": request(b"POST", b"/e", b"Expect: 100-continue\r\n" + sized(b"body"), b"body"),
    "h2c": request(b"GET", b"/f", H2C),
    "h2c with a body": request(b"POST", b"/g", H2C + sized(b"body"), b"body"),
    "h2c chunked": request(b"POST", b"/h", H2C + CHUNKED, chunked(b"one", b"two")),
    "websocket": request(b"GET", b"/i", WEBSOCKET),
    "websocket chunked": request(b"POST", b"/j", WEBSOCKET + CHUNKED, chunked(b"one", b"two")),
    "another protocol": request(
        b"POST", b"/k", b"Connection: Upgrade\r\nUpgrade: foo/2\r\n" + CHUNKED, chunked(b"a")
    ),
    "upgrade without connection": request(
        b"POST", b"/l", b"Upgrade: websocket\r\n" + CHUNKED, chunked(b"a")
    ),
    "last": request(b"GET", b"/m", b"Connection: close\r\n"),
    "old": request(b"GET", b"/n", version=b"1.0"),
    "old and kept": request(b"GET", b"/o", b"Connection: keep-alive\r\n", version=b"1.0"),
    "old with a body": request(
        b"POST", b"/p", b"Connection: keep-alive\r\n" + sized(b"b"), b"b", b"1.0"
    ),
    "old and streamed": request(b"GET", b"/streams", b"Connection: keep-alive\r\n", version=b"1.0"),
    "rejected unread": request(b"POST", b"/rejects", sized(b"body"), b"body"),
    "too large": request(b"GET", b"/q", b"X: " + b"a" * 40_000 + b"\r\n"),
    "no host": b"GET /r HTTP/1.1\r\n\r\n",
    "two hosts": request(b"GET", b"/s", b"Host: elsewhere\r\n"),
    "of another version": request(b"GET", b"/t", version=b"9.9"),
    "two lengths": request(b"POST", b"/u", sized(b"body") + sized(b"bodies"), b"body"),
    "two framings": request(b"POST", b"/v", sized(b"body") + CHUNKED, chunked(b"one")),
    "another coding": request(
        b"POST", b"/w", b"Transfer-Encoding: gzip, chunked\r\n", chunked(b"one")
    ),
    "a chunk of no size": request(b"POST", b"/x", CHUNKED, b"zz\r\n"),
    "a later chunk of no size": request(b"POST", b"/y", CHUNKED, b"3\r\none\r\nzz\r\n"),
    "no HTTP": b"HELLO\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}
ENDED_EARLY = {
    "ended in its headers": request(b"GET")[:20],
    "ended in its body": request(b"POST", b"/", sized(b"body"), b"bo"),
    "ended in a chunk": request(b"POST", b"/", CHUNKED, b"5\r\non"),
}


@dataclass(frozen=True)
class Response:
    """The response to one request; its status is 0 if there was none."""

    status: int = 0
    body: bytes = b""
    kind: str = ""
    last: bool = True


class _OpenReader(io.BufferedReader):
    """A reader that stays open after `http.client` has read a response."""

    def close(self) -> None: ...


class Connection:
    """One connection to a server."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        self._file = _OpenReader(self._socket.makefile("rb", buffering=0))

    def makefile(self, *_: Any) -> Any:
        """As `socket.socket.makefile`, for `http.client`."""
        return self._file

    def exchange(self, request: bytes, method: str) -> Response:
        """Send a request and read its response."""
        self.send(request)
        return self.read(method)

    def send(self, data: bytes, end: bool = False) -> None:
        """Send data, then close the sending side if `end`."""
        with contextlib.suppress(ConnectionError):
            self._socket.sendall(data)
            if end:
                # HAProxy answers nothing if the client closes before a replica has the request.
                time.sleep(0.005)
                self._socket.shutdown(socket.SHUT_WR)

    def read(self, method: str) -> Response:
        """Read the next response."""
        response = http.client.HTTPResponse(self, method=method)  # type: ignore[arg-type]
        try:
            response.begin()
            body = response.read()
        except (http.client.BadStatusLine, ConnectionError):
            return Response()
        kind = response.headers.get("content-type", "")
        return Response(response.status, body, kind, response.will_close)

    def close(self) -> None:
        self._socket.close()


def method_of(request: bytes) -> str:
    first = request.split(b"\r\n")[0]
    return "OLD" if first.endswith(b"/1.0") else first.split(b" ")[0].decode()


@functools.cache
def alone(port: int, request: bytes, end: bool = False) -> Response:
    """The response on a connection of its own."""
    connection = Connection(port)
    connection.send(request, end)
    response = connection.read(method_of(request))
    connection.close()
    return response


def together(
    port: int, requests: Sequence[bytes], pipelined: bool, early: bytes | None
) -> list[Response]:
    """The responses on one connection until it ends."""
    connection, responses = Connection(port), []
    if pipelined:
        connection.send(b"".join(requests))
    for each in requests:
        method = method_of(each)
        responses.append(
            connection.read(method) if pipelined else connection.exchange(each, method)
        )
        if responses[-1].last:
            break
    else:
        if early is not None:
            connection.send(early, end=True)
            responses.append(connection.read(method_of(early)))
    connection.close()
    return responses


def check(port: int, names: Sequence[str], pipelined: bool, early: str | None) -> None:
    requests = [REQUESTS[name] for name in names]
    expected = []
    for each in requests:
        expected.append(alone(port, each))
        if expected[-1].last:
            # A client that sends more than a buffer behind its last request may lose the response.
            while len(requests) > len(expected) and len(b"".join(requests)) > BUFFER_BYTES:
                requests.pop()
            break
    else:
        if early is not None:
            expected.append(alone(port, ENDED_EARLY[early], end=True))

    responses = together(port, requests, pipelined, None if early is None else ENDED_EARLY[early])

    assert responses == expected


# Requests after which the connection stays open: most examples consist of these.
LASTING = [
    *(
        "plain",
        "with a body",
        "without a body",
        "HEAD",
        "chunked",
        "trailers",
        "streamed",
        "HEAD of a stream",
    ),
    *(
        "expecting",
        "h2c",
        "h2c with a body",
        "h2c chunked",
        "websocket",
        "websocket chunked",
        "another protocol",
    ),
    *(
        "upgrade without connection",
        "old and kept",
        "old with a body",
        "rejected unread",
        "too large",
    ),
]
conversations = given(
    names=st.lists(st.sampled_from([*LASTING * 4, *sorted(REQUESTS)]), min_size=1, max_size=6),
    pipelined=st.booleans(),
    early=st.none() | st.sampled_from(sorted(ENDED_EARLY)),
)
often = functools.partial(
    settings, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@often(max_examples=500)
@conversations
@example(names=["expecting"] * 3, pipelined=True, early="ended in a chunk")
def test_requests_through_haproxy_do_not_depend_on_each_other(
    ports: Ports, names: list[str], pipelined: bool, early: str | None
) -> None:
    check(ports.haproxy, names, pipelined, early)


@often(max_examples=200)
@conversations
def test_requests_to_a_replica_do_not_depend_on_each_other(
    ports: Ports, names: list[str], pipelined: bool, early: str | None
) -> None:
    check(ports.replica, names, pipelined, early)


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_each_request_alone_gets_the_right_response(ports: Ports, name: str) -> None:
    expected = {
        "rejected unread": {413},
        "too large": {431},
        # HAProxy reads the chunks, as RFC 9112 allows, and closes; a replica rejects the request.
        "two framings": {200, 400},
    }
    invalid = [
        "no host",
        "two hosts",
        "of another version",
        "two lengths",
        "another coding",
        "no HTTP",
        "HTTP/2",
    ]
    invalid += ["a chunk of no size", "a later chunk of no size"]

    for port in (ports.haproxy, ports.replica):
        response = alone(port, REQUESTS[name])

        assert response.status in expected.get(name, {400} if name in invalid else {200})
        if response.status >= 400:
            assert response.kind == "application/json"
            assert set(json.loads(response.body)["error"]) == {"message", "type", "param", "code"}
        elif not name.startswith("HEAD"):
            headers = [header for header, _ in json.loads(response.body)[3]]
            assert not {"upgrade", "http2-settings", "compute-budget"}.intersection(headers) or (
                name == "upgrade without connection" and port == ports.replica
            )


@pytest.mark.parametrize("name", ["old", "old and kept", "old and streamed", "old with a body"])
def test_a_client_of_http_1_0_gets_no_chunks(ports: Ports, name: str) -> None:
    for port in (ports.haproxy, ports.replica):
        connection = Connection(port)
        connection.send(REQUESTS[name])
        response = http.client.HTTPResponse(connection)  # type: ignore[arg-type]
        response.begin()
        assert response.headers.get("transfer-encoding") is None
        assert json.loads(response.read())
        connection.close()
