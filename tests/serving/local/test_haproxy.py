"""A real HAProxy: what it forwards, and its own responses when no replica is available."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from starlette.types import Message, Receive, Send

from serving.errors import StartError
from serving.http.limited_protocol import LimitedHttpProtocol
from serving.local import haproxy_config
from serving.local.haproxy import free_ports, running_haproxy

# Paths of requests that have reached a replica, and of those whose client has disconnected.
RECEIVED: list[str] = []
DISCONNECTED: list[str] = []


async def replica_app(scope: Message, receive: Receive, send: Send) -> None:
    """A replica's application: streams two chunks, or waits until its client disconnects."""
    path = scope["path"]
    await receive()
    RECEIVED.append(path)
    if path == "/waits":
        assert (await receive())["type"] == "http.disconnect"
        DISCONNECTED.append(path)
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    if path == "/streams":
        assert (await receive())["type"] == "http.disconnect"
        DISCONNECTED.append(path)
        return
    if path == "/floods":
        left = asyncio.ensure_future(receive())
        while not left.done():
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
        DISCONNECTED.append(path)
        return
    if path == "/large":
        await send({"type": "http.response.body", "body": bytes(1 << 24), "more_body": True})
    if path in ("/slow", "/slower"):
        await asyncio.sleep(0.5 if path == "/slow" else 2)
    await send({"type": "http.response.body", "body": b"two"})


@pytest.fixture(scope="module")
def ports() -> range:
    return free_ports(4)


@pytest.fixture(scope="module")
def port(ports: range) -> Iterator[int]:
    public = free_ports(1).start
    with running_haproxy("127.0.0.1", public, ports):
        yield public


class Replica:
    """An ASGI server that runs on one of the ports within an `async with` block."""

    def __init__(self, port: int) -> None:
        self._web = uvicorn.Server(
            uvicorn.Config(
                replica_app,
                http=LimitedHttpProtocol,
                host="127.0.0.1",
                port=port,
                log_level="critical",
                lifespan="off",
            )
        )

    async def __aenter__(self) -> None:
        self._serving = asyncio.create_task(self._web.serve())
        while not self._web.started:  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(0.02)

    async def __aexit__(self, *_: Any) -> None:
        self._web.should_exit = True
        await self._serving


async def get_until(
    port: int, path: str = "/", status: int = 200, **request: Any
) -> httpx.Response:
    """GET the path until the status is `status`: HAProxy checks replicas a few times a second."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(100):
            response = await client.request("GET", path, **request)
            if response.status_code == status:
                return response
            await asyncio.sleep(0.05)
    raise AssertionError(response)


def error(body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


async def appears(path: str, paths: list[str]) -> None:
    """Wait until a path is in one of the lists."""
    async with asyncio.timeout(20):
        while path not in paths:  # noqa: ASYNC110  the application runs in another task
            await asyncio.sleep(0.02)


async def send_bytes(port: int, request: bytes) -> tuple[int, bytes]:
    """Send a request as it is; returns the status and the body of the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).lower()
    length = int(head.partition(b"content-length: ")[2].split()[0])
    body = await asyncio.wait_for(reader.readexactly(length), 10)
    writer.close()
    return int(head.split()[1]), body


async def test_without_a_replica_the_status_is_503_with_retry_after(port: int) -> None:
    found = await get_until(port, status=503)
    assert found.headers["content-type"] == "application/json"
    assert found.headers["retry-after"] == "5"
    assert error(found.content)["type"] == "server_error"


async def test_a_replica_is_found_on_any_port(port: int, ports: range) -> None:
    for each in (ports[0], ports[-1]):
        async with Replica(each):
            assert (await get_until(port)).text == "onetwo"
        assert (await get_until(port, status=503)).status_code == 503


async def test_a_disconnect_reaches_the_replica_at_once(port: int, ports: range) -> None:
    async with Replica(ports[0]):
        await get_until(port)
        chunked = "Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n"
        for path, lines in (("/waits", ""), ("/streams", ""), ("/waits", chunked)):
            RECEIVED.clear()
            DISCONNECTED.clear()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                f"{'POST' if lines else 'GET'} {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()
            )
            await appears(path, RECEIVED)
            if path == "/streams":
                await reader.readuntil(b"one")
            writer.close()
            await appears(path, DISCONNECTED)


async def test_malformed_and_oversized_requests_are_rejected_in_openais_shape(
    port: int, ports: range
) -> None:
    async with Replica(ports[2]):
        await get_until(port)
        head = b"POST / HTTP/1.1\r\nHost: x\r\n"
        for request, expected in (
            (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400),
            (head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
            (head + b"Content-Length: 5\r\nContent-Length: 9\r\n\r\n123456789", 400),
            (b"HELLO\r\n\r\n", 400),
            (b"GET / HTTP/1.0\r\nContent-Length: 1\r\n\r\na", 400),
            (b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", 431),
            (b"GET / HTTP/1.1\r\nX: " + b"a" * 50_000 + b"\r\n\r\n", 431),
            (b"GET / HTTP/1.1\r\nX: " + b"a" * 2_000_000 + b"\r\n\r\n", 431),
        ):
            status, body = await send_bytes(port, request)
            assert status == expected
            assert error(body)["type"] == "invalid_request_error"


async def test_a_client_that_closes_its_sending_side_counts_as_disconnected(
    port: int, ports: range
) -> None:
    async with Replica(ports[2]):
        await get_until(port)
        RECEIVED.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /waits HTTP/1.1\r\nHost: x\r\n\r\n")
        # HAProxy answers nothing if the client closes before a replica has the request.
        await appears("/waits", RECEIVED)
        writer.write_eof()
        response = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert b" 400 " in response.split(b"\r\n")[0]
    assert "was closed before its answer" in error(response.partition(b"\r\n\r\n")[2])["message"]


async def test_incomplete_headers_time_out(ports: range, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(haproxy_config, "_HEADER_SECONDS", 1)
    public = free_ports(1).start
    with running_haproxy("127.0.0.1", public, ports):
        assert (await get_until(public, status=503)).status_code == 503
        status, body = await send_bytes(public, b"GET / HTTP/1.1\r\nHost:")
    assert status == 408
    assert "incomplete" in error(body)["message"]


async def test_a_rejection_waits_for_the_body(port: int) -> None:
    # A rejection that crosses the body on its way would be lost, and its client disconnected.
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.5)
    writer.write(b"body")
    response = await asyncio.wait_for(reader.read(), 10)
    writer.close()

    assert response.startswith(b"HTTP/1.1 503 ")
    assert "no engine is ready" in error(response.partition(b"\r\n\r\n")[2])["message"]


async def test_an_incomplete_body_times_out(ports: range, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(haproxy_config, "_BODY_SECONDS", 1)
    public = free_ports(1).start
    with running_haproxy("127.0.0.1", public, ports):
        status, body = await send_bytes(
            public, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo"
        )
    assert status == 408
    assert "or the request body after" in error(body)["message"]


async def test_an_allowed_page_can_read_that_no_engine_is_ready(ports: range) -> None:
    public = free_ports(1).start
    with running_haproxy("127.0.0.1", public, ports, ["https://app.example"]):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{public}") as client:
            known = await client.get("/", headers={"origin": "https://app.example"})
            other = await client.get("/", headers={"origin": "https://evil.example"})
            none = await client.get("/")

    assert {each.status_code for each in (known, other, none)} == {503}
    assert known.headers["access-control-allow-origin"] == "https://app.example"
    assert known.headers["access-control-expose-headers"] == "retry-after"
    assert "access-control-allow-origin" not in {*other.headers, *none.headers}


async def test_a_replica_that_dies_during_a_request_is_a_502(port: int, ports: range) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", ports[0]):
        found = await get_until(port, status=502)
    assert "stopped while it worked" in error(found.content)["message"]


async def test_a_killed_haproxy_is_restarted(port: int, ports: range) -> None:
    async with Replica(ports[1]):
        await get_until(port)
        (process,) = (each for each in psutil.Process().children() if each.name() == "haproxy")
        # Some systems delete files below /tmp after days.
        shutil.rmtree(Path(process.cmdline()[-1]).parent, ignore_errors=True)
        os.kill(process.pid, signal.SIGKILL)
        for _ in range(100):
            try:
                assert (await get_until(port)).text == "onetwo"
                break
            except httpx.TransportError:
                await asyncio.sleep(0.05)
        (other,) = (each for each in psutil.Process().children() if each.name() == "haproxy")
        assert other.pid != process.pid


async def _chunks() -> AsyncIterator[bytes]:
    """A body of unknown length, which is sent in chunks."""
    yield b"body"


async def test_a_client_that_does_not_read_is_disconnected_and_one_that_waits_is_not(
    ports: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(haproxy_config, "_UNREAD_SECONDS", 1)
    public = free_ports(1).start
    with running_haproxy("127.0.0.1", public, ports):
        async with Replica(ports[0]):
            assert (await get_until(public, "/slower")).text == "onetwo"
            async with httpx.AsyncClient(timeout=30) as client:
                assert (
                    await client.post(f"http://127.0.0.1:{public}/slower", content=_chunks())
                ).text == "onetwo"
            _, writer = await asyncio.open_connection("127.0.0.1", public, limit=1 << 10)
            writer.write(b"GET /floods HTTP/1.1\r\nHost: x\r\n\r\n")
            await appears("/floods", DISCONNECTED)
            writer.close()


def test_an_address_of_another_machine_is_a_start_error() -> None:
    expected = pytest.raises(StartError, match=r"HAProxy did not start: .*cannot bind")
    with expected, running_haproxy("192.0.2.254", free_ports(1).start, free_ports(1)):
        pass


async def test_it_serves_ipv6_and_leaves_no_process_behind(ports: range) -> None:
    public = free_ports(1).start
    before = {each.pid for each in psutil.Process().children()}
    with running_haproxy("::1", public, ports):
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://[::1]:{public}/")).status_code == 503
    assert {each.pid for each in psutil.Process().children()} == before


async def test_while_draining_open_requests_finish_and_new_ones_are_rejected() -> None:
    public, ports = free_ports(1).start, free_ports(2)
    with running_haproxy("127.0.0.1", public, ports) as drain:
        async with (
            Replica(ports[0]),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{public}") as idle,
        ):
            await get_until(public)
            await idle.get("/")
            # It neither uses nor closes its connection.
            _, forgotten = await asyncio.open_connection("127.0.0.1", public)
            forgotten.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            started = asyncio.create_task(get_until(public, "/slow"))
            await asyncio.sleep(0.2)
            drained = asyncio.create_task(asyncio.to_thread(drain, 60.0))
            await asyncio.sleep(0.1)
            with pytest.raises(httpx.TransportError):
                await idle.get("/")
            assert not drained.done()
            assert (await started).text == "onetwo"
            await asyncio.wait_for(drained, 30)
            forgotten.close()


async def test_draining_waits_for_a_client_that_reads_slowly() -> None:
    public, ports = free_ports(1).start, free_ports(2)
    with running_haproxy("127.0.0.1", public, ports) as drain:
        async with Replica(ports[0]):
            await get_until(public)
            reader, writer = await asyncio.open_connection("127.0.0.1", public, limit=1 << 16)
            writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await asyncio.sleep(0.2)
            drained = asyncio.create_task(asyncio.to_thread(drain, 60.0))
            await asyncio.sleep(1)
            assert not drained.done()
            response = await asyncio.wait_for(reader.read(), 20)
            await asyncio.wait_for(drained, 30)
            writer.close()

    assert response.endswith(b"two\r\n0\r\n\r\n")


async def test_draining_ends_after_its_time_limit() -> None:
    public, ports = free_ports(1).start, free_ports(2)
    with running_haproxy("127.0.0.1", public, ports) as drain:
        async with Replica(ports[0]):
            await get_until(public)
            _, writer = await asyncio.open_connection("127.0.0.1", public)
            writer.write(b"GET /waits HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.sleep(0.2)
            await asyncio.wait_for(asyncio.to_thread(drain, 0.2), 30)
            writer.close()


async def test_a_response_is_whole_although_its_headers_come_with_the_100(
    port: int, ports: range
) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            asked = b"HTTP/1.1 100 Continue\r\n\r\n" if b"100-continue" in head.lower() else b""
            writer.write(asked + b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n")
            await asyncio.sleep(0.1)
            writer.write(b"two")
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", ports.start):
        response = await get_until(port, headers={"Expect": "100-continue"}, content=b"body")

    assert response.content == b"two"


async def test_a_client_that_waits_for_100_continue_is_asked_for_its_body_once(
    port: int, ports: range
) -> None:
    async with Replica(ports.start):
        await get_until(port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        )
        asked = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        writer.write(b"body")
        answered = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        writer.close()

    assert asked == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answered.startswith(b"HTTP/1.1 200 ")
