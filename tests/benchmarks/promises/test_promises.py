"""What the runs against a real server decide by themselves: replies on the wire, errors' shapes,
attacks, ties.
"""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from benchmarks.harness.violations import MEMORY_BYTES, Verdict
from benchmarks.promises.attacks import ANSWERED, EITHER, REFUSED, attacks
from benchmarks.promises.isolation import Said, differs, lessons, tenants
from benchmarks.promises.raw_http import exchange, fault, http, replies

ERROR = {"message": "no", "type": "invalid_request_error", "param": None, "code": None}


def error(**members: object) -> bytes:
    return json.dumps({"error": {**ERROR, **members}}).encode()


def test_replies_are_told_apart_whatever_ends_them() -> None:
    counted = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    chunked = b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
    until_the_end = b"HTTP/1.0 500 Oops\r\nServer: x\r\n\r\nlast words"

    found = replies(b"HTTP/1.1 100 Continue\r\n\r\n" + counted + chunked + until_the_end)

    assert [(reply.status, reply.body) for reply in found] == [
        (200, b"hi"),
        (400, b"abcde"),
        (500, b"last words"),
    ]


@pytest.mark.parametrize("length", range(0, 60, 3))
def test_a_reply_that_is_cut_off_is_none(length: int) -> None:
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert replies(whole[:length]) == []


def test_an_answer_to_head_has_no_body() -> None:
    (reply,) = replies(b"HTTP/1.1 404 Not Found\r\nContent-Length: 99\r\n\r\n", head=True)
    assert reply.status == 404


async def test_an_exchange_is_bytes_and_pauses_on_a_real_socket() -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        request = http("GET", b"/", headers=((b"Host", b"other"),))
        came = await exchange(port, (request[:10], 0.01, request[10:]), patience=5)

    assert replies(came)[0].status == 204
    assert heard[0].count(b"Host:") == 1


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
def test_an_error_in_another_shape_or_that_tells_of_insides_is_at_fault(body: bytes) -> None:
    assert fault(body)


def test_an_error_may_repeat_what_the_request_said() -> None:
    assert fault(error()) is None
    assert fault(error(message="there is no /tmp/x here"), own=("/tmp/x",)) is None


def test_attacks_are_seeded_and_of_every_kind() -> None:
    drawn = list(attacks(random.Random(3), 1001))

    assert drawn == list(attacks(random.Random(3), 1001))
    assert {attack.category for attack in drawn} == {
        "17 MB", "adaptation", "broken JSON", "budgets", "content types", "fields", "framing", "headers", "methods",
        "odd fields", "paths", "sizes", "slow", "tokenize", "unicode", "vector stores",
    }  # fmt: skip
    assert {expected for attack in drawn for expected in attack.expect} == {
        ANSWERED,
        REFUSED,
        EITHER,
    }


def test_every_tenant_has_a_secret_that_no_other_corpus_teaches() -> None:
    everyone = tenants(random.Random(0))
    for tenant in everyone:
        taught = "".join(document.text for document in lessons(tenant))
        assert [other.secret in taught for other in everyone] == [
            other is tenant for other in everyone
        ]


def test_tokens_may_differ_only_where_two_were_equally_likely() -> None:
    truth = Said("abc", ("a", "b", "c"), (5.0, 0.001, 5.0))

    assert differs(truth, truth) is None
    assert differs(truth, Said("axy", ("a", "x", "y"), (5.0, 5.0, 5.0))) == "tie"
    assert differs(truth, Said("xbc", ("x", "b", "c"), (5.0, 5.0, 5.0))) == "tokens"
    assert differs(truth, Said("ab", ("a", "b"), (5.0, 5.0))) == "tokens"


def test_a_verdict_counts_what_was_broken_by_category() -> None:
    verdict = Verdict()

    verdict.check(True, "wrong", "sound", "unseen")
    verdict.blame("leaked", "connections", "3 after 30 s", 3)
    verdict.check_memory(10**9, 10**9 + MEMORY_BYTES)
    assert verdict.counts()["wrong"] == 0
    assert verdict.counts()["leaked"] == 3

    verdict.check_memory(10**9, 10**9 + MEMORY_BYTES + 1)
    assert verdict.counts()["by_category"]["leaked"] == {"connections": 3, "memory": 1}
    assert verdict.examples == [
        "leaked, connections: 3 after 30 s",
        "leaked, memory: 134 MB more, 134 are allowed",
    ]
