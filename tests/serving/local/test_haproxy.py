"""The entrance, a real HAProxy: what it hands on, and what it says by itself when nobody is there."""

from __future__ import annotations

import asyncio
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
from serving.local import haproxy as entrance_module
from serving.local.haproxy import entrance, free_ports

ENDED: list[str] = []  # paths of requests whose client has left


async def behind(scope: Message, receive: Receive, send: Send) -> None:
    """Stands where a replica does: streams two pieces, or waits for ever."""
    path = scope["path"]
    await receive()
    if path == "/waits":
        assert (await receive())["type"] == "http.disconnect"
        ENDED.append(path)
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    if path == "/streams":
        assert (await receive())["type"] == "http.disconnect"
        ENDED.append(path)
        return
    if path == "/floods":
        left = asyncio.ensure_future(receive())
        while not left.done():
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
        ENDED.append(path)
        return
    if path in ("/slow", "/slower"):
        await asyncio.sleep(0.5 if path == "/slow" else 2)
    await send({"type": "http.response.body", "body": b"two"})


@pytest.fixture(scope="module")
def ports() -> range:
    return free_ports(4)


@pytest.fixture(scope="module")
def port(ports: range) -> Iterator[int]:
    public = free_ports(1).start
    with entrance("127.0.0.1", public, ports):
        yield public


class Replica:
    """An ASGI server on one of the ports, for the length of a `with`."""

    def __init__(self, port: int) -> None:
        self._web = uvicorn.Server(
            uvicorn.Config(
                behind,
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


async def answered(port: int, path: str = "/", status: int = 200) -> httpx.Response:
    """What is answered, once it is this status: HAProxy looks for a replica some times a second."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(100):
            found = await client.get(path)
            if found.status_code == status:
                return found
            await asyncio.sleep(0.05)
    raise AssertionError(found)


def error(body: bytes) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(body)["error"]
    assert set(told) == {"message", "type", "param", "code"}
    return told


async def tell(port: int, said: bytes) -> tuple[int, bytes]:
    """Send bytes as they are; status and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said)
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).lower()
    length = int(head.partition(b"content-length: ")[2].split()[0])
    body = await asyncio.wait_for(reader.readexactly(length), 10)
    writer.close()
    return int(head.split()[1]), body


async def test_without_a_replica_it_says_so_and_when_to_try_again(port: int) -> None:
    found = await answered(port, status=503)
    assert found.headers["content-type"] == "application/json"
    assert found.headers["retry-after"] == "5"
    assert error(found.content)["type"] == "server_error"


async def test_a_replica_is_found_at_whichever_port_it_listens(port: int, ports: range) -> None:
    for each in (ports[0], ports[-1]):
        async with Replica(each):
            assert (await answered(port)).text == "onetwo"
        assert (await answered(port, status=503)).status_code == 503


async def test_a_client_that_leaves_is_told_to_the_replica_at_once(port: int, ports: range) -> None:
    async with Replica(ports[0]):
        await answered(port)
        chunked = "Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n"
        for path, lines in (("/waits", ""), ("/streams", ""), ("/waits", chunked)):
            ENDED.clear()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                f"{'POST' if lines else 'GET'} {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()
            )
            if path == "/streams":
                await reader.readuntil(b"one")
            else:
                await asyncio.sleep(0.2)
            writer.close()
            for _ in range(100):
                if path in ENDED:
                    break
                await asyncio.sleep(0.02)
            assert path in ENDED


async def test_what_is_not_http_or_too_long_is_refused_in_openais_shape(
    port: int, ports: range
) -> None:
    async with Replica(ports[2]):
        await answered(port)
        head = b"POST / HTTP/1.1\r\nHost: x\r\n"
        for said, refused in (
            (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400),
            (head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
            (head + b"Content-Length: 5\r\nContent-Length: 9\r\n\r\n123456789", 400),
            (b"HELLO\r\n\r\n", 400),
            (b"GET / HTTP/1.0\r\nContent-Length: 1\r\n\r\na", 400),
            (b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", 431),
            (b"GET / HTTP/1.1\r\nX: " + b"a" * 50_000 + b"\r\n\r\n", 431),
            (b"GET / HTTP/1.1\r\nX: " + b"a" * 2_000_000 + b"\r\n\r\n", 431),
        ):
            status, body = await tell(port, said)
            assert status == refused
            assert error(body)["type"] == "invalid_request_error"


async def test_a_client_that_closes_its_side_is_taken_to_have_left_and_told_so(
    port: int, ports: range
) -> None:
    async with Replica(ports[2]):
        await answered(port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /waits HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.write_eof()
        said = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert b" 400 " in said.split(b"\r\n")[0]
    assert "was closed before its answer" in error(said.partition(b"\r\n\r\n")[2])["message"]


async def test_half_a_header_is_not_waited_for(
    ports: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrance_module, "_HEADER_SECONDS", 1)
    public = free_ports(1).start
    with entrance("127.0.0.1", public, ports):
        assert (await answered(public, status=503)).status_code == 503
        status, body = await tell(public, b"GET / HTTP/1.1\r\nHost:")
    assert status == 408
    assert "not whole" in error(body)["message"]


async def test_a_page_that_may_read_answers_reads_that_no_engine_is_ready(ports: range) -> None:
    public = free_ports(1).start
    with entrance("127.0.0.1", public, ports, ["https://app.example"]):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{public}") as client:
            known = await client.get("/", headers={"origin": "https://app.example"})
            other = await client.get("/", headers={"origin": "https://evil.example"})
            none = await client.get("/")

    assert {each.status_code for each in (known, other, none)} == {503}
    assert known.headers["access-control-allow-origin"] == "https://app.example"
    assert known.headers["access-control-expose-headers"] == "retry-after"
    assert "access-control-allow-origin" not in {*other.headers, *none.headers}


async def test_a_replica_that_dies_at_work_is_told(port: int, ports: range) -> None:
    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(hangs_up, "127.0.0.1", ports[0]):
        found = await answered(port, status=502)
    assert "ended while it worked" in error(found.content)["message"]


async def test_it_comes_back_when_it_is_killed(port: int, ports: range) -> None:
    async with Replica(ports[1]):
        await answered(port)
        (process,) = (each for each in psutil.Process().children() if each.name() == "haproxy")
        shutil.rmtree(
            Path(process.cmdline()[-1]).parent, ignore_errors=True
        )  # some systems delete what lies below /tmp for days
        os.kill(process.pid, signal.SIGKILL)
        for _ in range(100):
            try:
                assert (await answered(port)).text == "onetwo"
                break
            except httpx.TransportError:
                await asyncio.sleep(0.05)
        (other,) = (each for each in psutil.Process().children() if each.name() == "haproxy")
        assert other.pid != process.pid


async def _pieces() -> AsyncIterator[bytes]:
    """A body of unknown length, which comes in chunks."""
    yield b"body"


async def test_who_does_not_read_is_cut_off_and_who_waits_is_not(
    ports: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrance_module, "_UNREAD_SECONDS", 1)
    public = free_ports(1).start
    with entrance("127.0.0.1", public, ports):
        async with Replica(ports[0]):
            assert (await answered(public, "/slower")).text == "onetwo"
            async with httpx.AsyncClient(timeout=30) as client:
                assert (
                    await client.post(f"http://127.0.0.1:{public}/slower", content=_pieces())
                ).text == "onetwo"
            _, writer = await asyncio.open_connection("127.0.0.1", public, limit=1 << 10)
            writer.write(b"GET /floods HTTP/1.1\r\nHost: x\r\n\r\n")
            for _ in range(500):
                if "/floods" in ENDED:
                    break
                await asyncio.sleep(0.02)
            assert "/floods" in ENDED
            writer.close()


def test_an_address_that_is_not_this_machines_is_said() -> None:
    expected = pytest.raises(StartError, match=r"HAProxy did not start: .*cannot bind")
    with expected, entrance("192.0.2.254", free_ports(1).start, free_ports(1)):
        pass


async def test_it_serves_ipv6_and_leaves_nothing_behind(ports: range) -> None:
    public = free_ports(1).start
    before = {each.pid for each in psutil.Process().children()}
    with entrance("::1", public, ports):
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://[::1]:{public}/")).status_code == 503
    assert {each.pid for each in psutil.Process().children()} == before


async def test_when_the_door_is_shut_those_inside_finish_and_nobody_else_is_let_in() -> None:
    public, ports = free_ports(1).start, free_ports(2)
    with entrance("127.0.0.1", public, ports) as drain:
        async with (
            Replica(ports[0]),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{public}") as idle,
        ):
            await answered(public)
            await idle.get("/")  # and keeps its connection
            begun = asyncio.create_task(answered(public, "/slow"))
            await asyncio.sleep(0.2)
            drained = asyncio.create_task(asyncio.to_thread(drain, 60.0))
            await asyncio.sleep(0.1)
            with pytest.raises(httpx.TransportError):
                await idle.get("/")
            assert not drained.done()
            assert (await begun).text == "onetwo"
            await asyncio.wait_for(drained, 30)


async def test_the_door_waits_no_longer_than_it_was_told() -> None:
    public, ports = free_ports(1).start, free_ports(2)
    with entrance("127.0.0.1", public, ports) as drain:
        async with Replica(ports[0]):
            await answered(public)
            _, writer = await asyncio.open_connection("127.0.0.1", public)
            writer.write(b"GET /waits HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.sleep(0.2)
            await asyncio.wait_for(asyncio.to_thread(drain, 0.2), 30)
            writer.close()
