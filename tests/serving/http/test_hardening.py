"""The hardened web server on a real socket: what it stops, and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import uvicorn
from starlette.types import Receive, Scope, Send

from serving.errors import FULL
from serving.http import hardening, limited_protocol
from serving.http.body import send_json
from serving.http.hardening import FULL_SECONDS, ErrorShapeMiddleware
from serving.http.http1 import MAX_HEADERS
from serving.http.limited_protocol import LimitedHttpProtocol

STAYING, LEFT = asyncio.Event(), asyncio.Event()
# Budgets of the completion requests that have passed the middleware.
PASSED: list[bytes] = []


class Clock:
    """A clock that the tests set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


async def ray(scope: Scope, receive: Receive, send: Send) -> None:
    """In the place of Ray's router: returns the headers it was sent, or fails as Ray does."""
    path, headers = scope["path"], dict(scope["headers"])
    if path == "/raises":
        raise RuntimeError("in /some/folder")
    if path == "/silent":
        return
    if path == "/stays":
        STAYING.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        LEFT.set()
        return
    if path == "/waits":
        await asyncio.sleep(0.3)
        await send_json(send, 200, "waited")
        return
    if path == "/v1/completions":
        PASSED.append(headers.get(b"compute-budget", b""))
        more = [(b"retry-after", b"7"), (FULL, headers[b"x-is-full"])]
        if b"origin" in headers:
            more += [(b"access-control-allow-origin", headers[b"origin"]), (b"vary", b"Origin")]
        await send_json(send, 429, {"error": {"code": "server_busy"}}, more)
        return
    received = json.dumps([[n.decode(), v.decode()] for n, v in scope["headers"]]).encode()
    status, media_type, body = {
        "/busy": (503, b"text/plain", b"Service /app/x is busy at 10.0.0.1"),
        "/gone": (408, b"text/plain", b"Request 123 timed out"),
        "/ours": (400, b"application/json", b'{"error": {"message": "no"}}'),
    }.get(path, (200, b"application/json", received))
    sent = [(b"content-type", media_type), (b"retry-after", b"7"), (b"x-elsewhere", b"1")]
    sent.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": body})


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def port() -> AsyncIterator[int]:
    server = uvicorn.Server(
        uvicorn.Config(
            ErrorShapeMiddleware(ray, clock=CLOCK),
            http=LimitedHttpProtocol,
            host="127.0.0.1",
            port=0,
            log_level="critical",
            lifespan="off",
        )
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
        await asyncio.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


async def exchange(port: int, *parts: bytes) -> tuple[int, dict[str, str], Any]:
    """Send bytes unchanged; status, headers and JSON of the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), 10)
    writer.close()
    return int(head[0].split()[1]), headers, json.loads(body)


def get(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode("latin-1")


async def test_rays_own_headers_are_removed_and_others_pass(port: int) -> None:
    _, _, seen = await exchange(
        port,
        get(
            "/",
            "X-Request-Disconnect-Disabled: ?1",
            "X-Request-Timeout-Seconds: 0",
            "Compute-Budget: none",
        ),
    )
    assert ["compute-budget", "none"] in seen
    assert not [name for name, _ in seen if name.startswith("x-request-")]


async def test_a_header_that_is_not_ascii_arrives_escaped(
    port: int,
) -> None:
    status, _, seen = await exchange(port, get("/", "Compute-Budget: st\xe9ps=3"))
    assert status == 200
    assert ["compute-budget", r"st\xe9ps=3"] in seen


@pytest.mark.parametrize(
    ("path", "status"), [("/busy", 503), ("/gone", 408), ("/raises", 500), ("/silent", 500)]
)
async def test_errors_of_others_have_openais_shape_and_no_internals(
    port: int, path: str, status: int
) -> None:
    found, headers, body = await exchange(port, get(path))
    assert found == status
    assert headers["content-type"] == "application/json"
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "/some" not in str(body)
    assert "10.0.0.1" not in str(body)
    assert "x-elsewhere" not in headers
    assert path != "/busy" or headers["retry-after"] == "7"


async def test_our_own_errors_pass_unchanged(port: int) -> None:
    assert (await exchange(port, get("/ours")))[::2] == (400, {"error": {"message": "no"}})


async def test_rays_own_routes_are_not_found(port: int) -> None:
    assert (await exchange(port, get("/-/routes")))[0] == 404
    assert (await exchange(port, get("/-/healthz/more")))[0] == 404


async def test_a_cluster_may_check_the_health_of_a_proxy(port: int) -> None:
    assert (await exchange(port, get("/-/healthz")))[0] == 200


async def test_too_large_headers_are_refused_however_they_arrive(port: int) -> None:
    line = b"X-Much: " + b"a" * MAX_HEADERS + b"\r\n"
    status, _, body = await exchange(port, b"GET / HTTP/1.1\r\nHost: x\r\n" + line)
    assert (status, body["error"]["type"]) == (431, "invalid_request_error")
    parts = [b"GET / HTTP/1.1\r\nHost: x\r\n"] + [b"X-Much: " + b"a" * 1000 + b"\r\n"] * 40
    assert (await exchange(port, *parts))[0] == 431


async def test_a_large_body_is_not_a_large_header(port: int) -> None:
    body = b"a" * (MAX_HEADERS * 2)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert (await exchange(port, head + body))[0] == 200
    assert (await exchange(port, head, body[:9], body[9:]))[0] == 200


async def test_bytes_that_are_not_http_are_refused(port: int) -> None:
    status, headers, body = await exchange(port, b"HELLO\r\n\r\n")
    assert status == 400
    assert headers["connection"] == "close"
    assert body["error"]["message"] == "this is not a valid HTTP request"


async def test_a_half_sent_header_times_out(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_protocol, "HEADER_SECONDS", 0.2)
    status, _, body = await exchange(port, b"GET / HTTP/1.1\r\nHost:")
    assert status == 408
    assert "incomplete" in body["error"]["message"]


async def test_a_connection_may_be_idle_between_requests(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limited_protocol, "HEADER_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(get("/ours"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 400 " in head
        await reader.readexactly(len(b'{"error": {"message": "no"}}'))
        await asyncio.sleep(0.3)
    writer.close()


def test_ray_gets_the_middleware_and_uvicorn_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn.protocols.http.auto as auto
    from ray.serve._private.http_util import validate_http_proxy_callback_return

    monkeypatch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)
    (middleware,) = validate_http_proxy_callback_return(hardening.middlewares())
    assert middleware.cls is ErrorShapeMiddleware
    config = uvicorn.Config(ray)
    config.load()
    assert config.http_protocol_class is LimitedHttpProtocol


def complete(full: str, budget: str = "", origin: str = "") -> bytes:
    """A completion request to a replica that is full of something."""
    lines = ["POST /v1/completions HTTP/1.1", "Host: x", "Content-Length: 0", f"X-Is-Full: {full}"]
    lines += [f"Compute-Budget: {budget}"] if budget else []
    lines += [f"Origin: {origin}"] if origin else []
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.fixture
def not_full() -> None:
    """No refusal of an earlier test is repeated."""
    CLOCK.now += 1000
    PASSED.clear()


@pytest.mark.usefixtures("not_full")
async def test_the_refusal_of_a_full_replica_is_repeated_for_a_moment(port: int) -> None:
    answers = [
        await exchange(port, complete("requests", budget))
        for budget in ("steps=1", "none", "steps=2", "")
    ]
    other, _, _ = await exchange(port, get("/"))
    CLOCK.now += FULL_SECONDS
    await exchange(port, complete("adaptations"))

    assert PASSED == [b"steps=1", b""]
    assert other == 200
    for status, headers, body in answers:
        assert (status, headers["retry-after"], body["error"]["code"]) == (429, "7", "server_busy")


@pytest.mark.usefixtures("not_full")
async def test_requests_without_adaptation_pass_a_replica_full_of_adaptations(port: int) -> None:
    for budget in ("steps=1", "none", "", "steps=2", "auto"):
        await exchange(port, complete("adaptations", budget))

    assert PASSED == [b"steps=1", b"none", b""]


@pytest.mark.usefixtures("not_full")
async def test_a_repeated_refusal_can_be_read_by_pages_of_its_origin(port: int) -> None:
    a, b = "https://a.example", "https://b.example"

    answers = [await exchange(port, complete("requests", origin=origin)) for origin in (a, a, b)]

    assert len(PASSED) == 2, "the second of the three is a repetition"
    for (status, headers, _), origin in zip(answers, (a, a, b), strict=True):
        assert (status, headers["access-control-allow-origin"]) == (429, origin)


async def read_all(port: int, *parts: bytes) -> bytes:
    """Send bytes in parts; everything that is received until the connection closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.05)
    received = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return received


async def test_a_malformed_request_is_refused_after_earlier_responses(port: int) -> None:
    received = await read_all(port, get("/waits"), b"HELLO\r\n\r\n", get("/"))

    assert received.count(b"HTTP/1.1 ") == 2
    assert (
        received.index(b"HTTP/1.1 200 OK")
        < received.index(b'"waited"')
        < received.index(b"HTTP/1.1 400 Bad Request")
    )


async def test_a_client_that_leaves_disconnects_its_running_request(
    port: int,
) -> None:
    STAYING.clear()
    LEFT.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(get("/stays") + get("/"))
    await asyncio.wait_for(STAYING.wait(), 10)
    writer.close()

    await asyncio.wait_for(LEFT.wait(), 10)


async def test_trailers_are_not_taken_for_headers(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    _, _, seen = await exchange(
        port, head + b"1\r\na\r\n0\r\nAuthorization: Bearer a\r\nCompute-Budget: none\r\n\r\n"
    )

    assert {name for name, _ in seen} == {"host", "transfer-encoding"}
