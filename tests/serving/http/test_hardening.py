"""The front door on a real socket: what does not pass, and errors of others told as OpenAI tells
them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import uvicorn

from serving.errors import FULL
from serving.http import hardening
from serving.http.body import Message, Receive, Send, send_json
from serving.http.hardening import ErrorShapeMiddleware, LimitedHttpProtocol
from serving.http.http1 import MAX_HEADERS

LEFT = asyncio.Event()
SEEN: list[bytes] = []  # budgets of the requests for answers that have come through


async def behind(scope: Message, receive: Receive, send: Send) -> None:
    """Stands where Ray's router does: tells the headers it saw, or answers as Ray does."""
    path = scope["path"]
    if path == "/raises":
        raise RuntimeError("in /some/folder")
    if path == "/silent":
        return
    if path == "/stays":
        while (await receive())["type"] != "http.disconnect":
            pass
        LEFT.set()
        return
    if path == "/waits":
        await asyncio.sleep(0.3)
        await send_json(send, 200, "waited")
        return
    if path == "/v1/completions":
        SEEN.append(dict(scope["headers"]).get(b"compute-budget", b""))
        full = dict(scope["headers"])[b"x-is-full"]
        origin = dict(scope["headers"]).get(b"origin")
        more = (
            []
            if origin is None
            else [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]
        )
        await send_json(
            send,
            429,
            {"error": {"code": "server_busy"}},
            [(b"retry-after", b"7"), (FULL, full), *more],
        )
        return
    status, media, body = {
        "/busy": (503, b"text/plain", b"Service /app/x is busy at 10.0.0.1"),
        "/gone": (408, b"text/plain", b"Request 123 timed out"),
        "/ours": (400, b"application/json", b'{"error": {"message": "no"}}'),
    }.get(
        path,
        (
            200,
            b"application/json",
            json.dumps([[n.decode(), v.decode()] for n, v in scope["headers"]]).encode(),
        ),
    )
    headers = [(b"content-type", media), (b"retry-after", b"7"), (b"x-elsewhere", b"1")]
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def port() -> AsyncIterator[int]:
    web = uvicorn.Server(
        uvicorn.Config(
            ErrorShapeMiddleware(behind),
            http=LimitedHttpProtocol,
            host="127.0.0.1",
            port=0,
            log_level="critical",
            lifespan="off",
        )
    )
    serving = asyncio.create_task(web.serve())
    while not web.started:  # noqa: ASYNC110  uvicorn has no event for it
        await asyncio.sleep(0.02)
    yield web.servers[0].sockets[0].getsockname()[1]
    web.should_exit = True
    await serving


async def tell(port: int, *pieces: bytes) -> tuple[int, dict[str, str], Any]:
    """Send bytes as they are; status, headers and JSON of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), 10)
    writer.close()
    return int(head[0].split()[1]), headers, json.loads(body)


def asked(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode("latin-1")


async def test_rays_own_headers_do_not_pass_and_others_do(port: int) -> None:
    _, _, seen = await tell(
        port,
        asked(
            "/",
            "X-Request-Disconnect-Disabled: ?1",
            "X-Request-Timeout-Seconds: 0",
            "Compute-Budget: none",
        ),
    )
    assert ["compute-budget", "none"] in seen
    assert not [name for name, _ in seen if name.startswith("x-request-")]


async def test_a_header_that_is_not_utf8_arrives_as_something_that_cannot_be_right(
    port: int,
) -> None:
    status, _, seen = await tell(port, asked("/", "Compute-Budget: st\xe9ps=3"))
    assert status == 200
    assert ["compute-budget", r"st\xe9ps=3"] in seen


@pytest.mark.parametrize(
    ("path", "status"), [("/busy", 503), ("/gone", 408), ("/raises", 500), ("/silent", 500)]
)
async def test_errors_of_others_are_told_in_openais_shape_and_tell_nothing_of_the_inside(
    port: int, path: str, status: int
) -> None:
    found, headers, body = await tell(port, asked(path))
    assert found == status
    assert headers["content-type"] == "application/json"
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "/some" not in str(body)
    assert "10.0.0.1" not in str(body)
    assert "x-elsewhere" not in headers
    assert path != "/busy" or headers["retry-after"] == "7"


async def test_our_own_errors_pass_as_they_are(port: int) -> None:
    assert (await tell(port, asked("/ours")))[::2] == (400, {"error": {"message": "no"}})


async def test_rays_own_routes_are_not_there(port: int) -> None:
    assert (await tell(port, asked("/-/routes")))[0] == 404
    assert (await tell(port, asked("/-/healthz/more")))[0] == 404


async def test_a_cluster_may_ask_whether_a_proxy_is_there(port: int) -> None:
    assert (await tell(port, asked("/-/healthz")))[0] == 200


async def test_headers_beyond_the_bound_are_refused_in_one_piece_or_in_many(port: int) -> None:
    line = b"X-Much: " + b"a" * MAX_HEADERS + b"\r\n"
    status, _, body = await tell(port, b"GET / HTTP/1.1\r\nHost: x\r\n" + line)
    assert (status, body["error"]["type"]) == (431, "invalid_request_error")
    pieces = [b"GET / HTTP/1.1\r\nHost: x\r\n"] + [b"X-Much: " + b"a" * 1000 + b"\r\n"] * 40
    assert (await tell(port, *pieces))[0] == 431


async def test_a_large_body_is_not_a_large_header(port: int) -> None:
    body = b"a" * (MAX_HEADERS * 2)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert (await tell(port, head + body))[0] == 200
    assert (await tell(port, head, body[:9], body[9:]))[0] == 200


async def test_what_is_not_http_is_told_so(port: int) -> None:
    status, headers, body = await tell(port, b"HELLO\r\n\r\n")
    assert status == 400
    assert headers["connection"] == "close"
    assert body["error"]["message"] == "this is not a valid HTTP request"


async def test_a_half_sent_header_is_not_waited_for(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardening, "HEADER_SECONDS", 0.2)
    status, _, body = await tell(port, b"GET / HTTP/1.1\r\nHost:")
    assert status == 408
    assert "not whole" in body["error"]["message"]


async def test_a_second_request_on_the_same_connection_is_answered_too(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardening, "HEADER_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(asked("/ours"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 400 " in head
        await reader.readexactly(len(b'{"error": {"message": "no"}}'))
        await asyncio.sleep(0.3)
    writer.close()


def test_ray_is_given_the_layer_and_uvicorn_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn.protocols.http.auto as auto
    from ray.serve._private.http_util import validate_http_proxy_callback_return

    monkeypatch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)
    (layer,) = validate_http_proxy_callback_return(hardening.middlewares())
    assert layer.cls is ErrorShapeMiddleware
    config = uvicorn.Config(behind)
    config.load()
    assert config.http_protocol_class is LimitedHttpProtocol


def wanted(full: str, budget: str = "") -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", "Host: x", "Content-Length: 0", f"X-Is-Full: {full}"]
    return "\r\n".join(
        [*lines, *([f"Compute-Budget: {budget}"] if budget else []), "", ""]
    ).encode()


async def test_who_would_find_a_replica_full_is_refused_here_for_a_moment(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardening, "FULL_SECONDS", 0.5)
    SEEN.clear()

    answers = [
        await tell(port, wanted("requests", budget))
        for budget in ("steps=1", "none", "steps=2", "")
    ]
    others, _, _ = await tell(port, asked("/"))
    await asyncio.sleep(0.6)
    await tell(port, wanted("adaptations"))

    assert SEEN == [b"steps=1", b""]
    assert others == 200
    for status, headers, body in answers:
        assert (status, headers["retry-after"], body["error"]["code"]) == (429, "7", "server_busy")
    await asyncio.sleep(0.6)


async def test_who_asks_for_no_adaptation_is_let_through_while_only_those_are_too_many(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardening, "FULL_SECONDS", 0.5)
    SEEN.clear()

    for budget in ("steps=1", "none", "", "steps=2", "auto"):
        await tell(port, wanted("adaptations", budget))

    assert SEEN == [b"steps=1", b"none", b""]


async def test_a_page_that_may_read_answers_reads_that_a_replica_is_full(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardening, "FULL_SECONDS", 0.5)
    SEEN.clear()
    pages = {"a": "https://a.example", "b": "https://b.example"}

    first, again = [
        await tell(
            port,
            wanted("requests").replace(b"\r\n\r\n", f"\r\nOrigin: {pages['a']}\r\n\r\n".encode()),
        )
        for _ in range(2)
    ]
    other = await tell(
        port, wanted("requests").replace(b"\r\n\r\n", f"\r\nOrigin: {pages['b']}\r\n\r\n".encode())
    )

    assert len(SEEN) == 2  # the second of the three was answered here
    for (status, headers, _), page in ((first, "a"), (again, "a"), (other, "b")):
        assert (status, headers["access-control-allow-origin"]) == (429, pages[page])
    await asyncio.sleep(0.6)


async def _all_of(port: int, *pieces: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.05)
    said = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return said


async def test_what_is_malformed_is_refused_after_the_answers_before_it(port: int) -> None:
    said = await _all_of(port, asked("/waits"), b"HELLO\r\n\r\n", asked("/"))

    assert said.count(b"HTTP/1.1 ") == 2
    assert (
        said.index(b"HTTP/1.1 200 OK")
        < said.index(b'"waited"')
        < said.index(b"HTTP/1.1 400 Bad Request")
    )


async def test_a_client_that_leaves_with_a_request_waiting_is_told_to_the_one_that_runs(
    port: int,
) -> None:
    LEFT.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(asked("/stays") + asked("/"))
    await asyncio.sleep(0.2)
    writer.close()

    await asyncio.wait_for(LEFT.wait(), 10)


async def test_trailers_are_no_headers(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    _, _, seen = await tell(
        port, head + b"1\r\na\r\n0\r\nAuthorization: Bearer a\r\nCompute-Budget: none\r\n\r\n"
    )

    assert {name for name, _ in seen} == {"host", "transfer-encoding"}
