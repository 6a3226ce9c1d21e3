"""Several requests on one connection are answered as each is on a connection of its own, with
HAProxy and without.
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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import Message, Receive, Send

from serving.http.body import send_json
from serving.http.hardening import ErrorShapeMiddleware
from serving.http.limited_protocol import LimitedHttpProtocol
from serving.local.haproxy import free_ports, running_haproxy

PATIENCE = 20.0
KEY = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + KEY
HOP_BY_HOP = (b"connection", b"keep-alive")


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """Tells what of a request has arrived; refuses without reading, or in pieces, where the path
    says so.
    """
    if scope["path"] == "/refuses":
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
    told = json.dumps([scope["method"], scope["path"], body.decode("latin-1"), headers]).encode()
    length = [] if scope["path"] == "/streams" else [(b"content-length", b"%d" % len(told))]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    if scope["path"] == "/streams":
        await send({"type": "http.response.body", "body": told[:5], "more_body": True})
        told = told[5:]
    await send({"type": "http.response.body", "body": told})


@dataclass(frozen=True)
class Doors:
    """Ports where the same application answers."""

    through_haproxy: int
    replica: int


@pytest.fixture(scope="module")
def doors() -> Iterator[Doors]:
    """HAProxy, and behind it a uvicorn in a thread of its own."""
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
        until = time.monotonic() + PATIENCE
        while Transcript(public).say(request(b"GET"), "GET").status == 503:
            assert time.monotonic() < until
            time.sleep(0.05)
        yield Doors(public, replicas.start)
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
    "a wish without a connection": request(
        b"POST", b"/l", b"Upgrade: websocket\r\n" + CHUNKED, chunked(b"a")
    ),
    "last": request(b"GET", b"/m", b"Connection: close\r\n"),
    "old": request(b"GET", b"/n", version=b"1.0"),
    "old and kept": request(b"GET", b"/o", b"Connection: keep-alive\r\n", version=b"1.0"),
    "old with a body": request(
        b"POST", b"/p", b"Connection: keep-alive\r\n" + sized(b"b"), b"b", b"1.0"
    ),
    "old and streamed": request(b"GET", b"/streams", b"Connection: keep-alive\r\n", version=b"1.0"),
    "refused unread": request(b"POST", b"/refuses", sized(b"body"), b"body"),
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
class Answer:
    """What came back for one request; status 0 where nothing did."""

    status: int = 0
    body: bytes = b""
    kind: str = ""
    last: bool = True


class _Kept(io.BufferedReader):
    """Stays open when `http.client` has read one answer."""

    def close(self) -> None: ...


class Transcript:
    """One connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._file = _Kept(self._socket.makefile("rb", buffering=0))

    def makefile(self, *_: Any) -> Any:
        """For `http.client`, as a socket's."""
        return self._file

    def say(self, said: bytes, method: str) -> Answer:
        """One request and its answer."""
        self.send(said)
        return self.hear(method)

    def send(self, said: bytes, end: bool = False) -> None:
        with contextlib.suppress(ConnectionError):
            self._socket.sendall(said)
            if end:
                self._socket.shutdown(socket.SHUT_WR)

    def hear(self, method: str) -> Answer:
        """The next answer."""
        response = http.client.HTTPResponse(self, method=method)  # type: ignore[arg-type]
        try:
            response.begin()
            body = response.read()
        except (http.client.BadStatusLine, ConnectionError):
            return Answer()
        kind = response.headers.get("content-type", "")
        return Answer(response.status, body, kind, response.will_close)

    def close(self) -> None:
        self._socket.close()


def method_of(said: bytes) -> str:
    first = said.split(b"\r\n")[0]
    return "OLD" if first.endswith(b"/1.0") else first.split(b" ")[0].decode()


@functools.cache
def alone(port: int, said: bytes, end: bool = False) -> Answer:
    """What is answered on a connection of its own."""
    talk = Transcript(port)
    talk.send(said, end)
    answer = talk.hear(method_of(said))
    talk.close()
    return answer


def together(
    port: int, requests: Sequence[bytes], pipelined: bool, early: bytes | None
) -> list[Answer]:
    """What is answered on one connection, until it ends."""
    talk, answers = Transcript(port), []
    if pipelined:
        talk.send(b"".join(requests))
    for said in requests:
        answers.append(talk.hear(method_of(said)) if pipelined else talk.say(said, method_of(said)))
        if answers[-1].last:
            break
    else:
        if early is not None:
            talk.send(early, end=True)
            answers.append(talk.hear(method_of(early)))
    talk.close()
    return answers


def check(port: int, names: Sequence[str], pipelined: bool, early: str | None) -> None:
    requests = [REQUESTS[name] for name in names]
    expected = []
    for said in requests:
        expected.append(alone(port, said))
        if expected[-1].last:
            break
    else:
        if early is not None:
            expected.append(alone(port, ENDED_EARLY[early], end=True))

    answers = together(port, requests, pipelined, None if early is None else ENDED_EARLY[early])

    assert answers == expected


# Most conversations shall go on to their end.
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
        "a wish without a connection",
        "old and kept",
        "old with a body",
        "refused unread",
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
def test_through_haproxy_each_request_stands_for_itself(
    doors: Doors, names: list[str], pipelined: bool, early: str | None
) -> None:
    check(doors.through_haproxy, names, pipelined, early)


@often(max_examples=200)
@conversations
def test_a_replica_alone_answers_each_request_for_itself(
    doors: Doors, names: list[str], pipelined: bool, early: str | None
) -> None:
    check(doors.replica, names, pipelined, early)


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_each_is_answered_rightly_on_a_connection_of_its_own(doors: Doors, name: str) -> None:
    expected = {
        "refused unread": {413},
        "too large": {431},
        # HAProxy reads it as RFC 9112 has it, by its chunks, and closes; a replica refuses it.
        "two framings": {200, 400},
    }
    refused = [
        "no host",
        "two hosts",
        "of another version",
        "two lengths",
        "another coding",
        "no HTTP",
        "HTTP/2",
    ]
    refused += ["a chunk of no size", "a later chunk of no size"]

    for port in (doors.through_haproxy, doors.replica):
        answer = alone(port, REQUESTS[name])

        assert answer.status in expected.get(name, {400} if name in refused else {200})
        if answer.status >= 400:
            assert answer.kind == "application/json"
            assert set(json.loads(answer.body)["error"]) == {"message", "type", "param", "code"}
        elif not name.startswith("HEAD"):
            headers = [header for header, _ in json.loads(answer.body)[3]]
            assert not {"upgrade", "http2-settings", "compute-budget"}.intersection(headers) or (
                name == "a wish without a connection" and port == doors.replica
            )


@pytest.mark.parametrize("name", ["old", "old and kept", "old and streamed", "old with a body"])
def test_a_client_of_http_1_0_gets_no_chunks(doors: Doors, name: str) -> None:
    for port in (doors.through_haproxy, doors.replica):
        talk = Transcript(port)
        talk.send(REQUESTS[name])
        response = http.client.HTTPResponse(talk)  # type: ignore[arg-type]
        response.begin()
        assert response.headers.get("transfer-encoding") is None
        assert json.loads(response.read())
        talk.close()
