"""HTTP on bare sockets, and the check of errors."""

from __future__ import annotations

import asyncio
import json

import pytest

from benchmarks.promises.raw_http import build_request, error_defect, parse_responses, send_raw

ERROR = {"message": "no", "type": "invalid_request_error", "param": None, "code": None}


def error(**members: object) -> bytes:
    return json.dumps({"error": {**ERROR, **members}}).encode()


def test_responses_are_parsed_by_length_by_chunks_and_until_the_end() -> None:
    counted = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    chunked = b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
    until_the_end = b"HTTP/1.0 500 Oops\r\nServer: x\r\n\r\nlast words"

    found = parse_responses(b"HTTP/1.1 100 Continue\r\n\r\n" + counted + chunked + until_the_end)

    assert [(response.status, response.body) for response in found] == [
        (200, b"hi"),
        (400, b"abcde"),
        (500, b"last words"),
    ]


@pytest.mark.parametrize("length", range(0, 60, 3))
def test_an_incomplete_response_is_not_parsed(length: int) -> None:
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert parse_responses(whole[:length]) == []


def test_a_response_to_head_has_no_body() -> None:
    (response,) = parse_responses(
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 99\r\n\r\n", head=True
    )
    assert response.status == 404


async def test_bytes_and_pauses_are_sent_on_a_real_socket() -> None:
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        request = build_request("GET", b"/", headers=((b"Host", b"other"),))
        received = await send_raw(port, (request[:10], 0.01, request[10:]), wait_seconds=5)

    assert parse_responses(received)[0].status == 204
    assert requests[0].count(b"Host:") == 1


@pytest.mark.parametrize(
    "body",
    [
        b"Bad Request",
        b"[]",
        b'{"error": "Unauthorized"}',
        b'{"error": {"message": "no"}}',
        json.dumps({"error": ERROR, "more": 1}).encode(),
        error(message=""),
        error(code=400),
        error(message="cannot open /home/someone/model"),
        error(message='File "a.py", line 3'),
        error(message="<object at 0x7f00aa11bb22>"),
        error(message="cannot reach 10.0.0.7:8000"),
    ],
)
def test_an_error_in_another_shape_or_that_tells_of_insides_is_at_error_defect(body: bytes) -> None:
    assert error_defect(body)


def test_an_error_may_repeat_text_of_the_request() -> None:
    assert error_defect(error()) is None
    assert error_defect(error(message="there is no /tmp/x here"), allowed=("/tmp/x",)) is None
