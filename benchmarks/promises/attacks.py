"""Malformed requests, seeded: bodies, fields, budgets, headers, text, sizes, paths, methods,
framing, slowness.

Each says what it must be met with. What is merely odd, and may be answered or refused as the server
likes, is `EITHER`: then only a 5xx, an error in another shape or no answer at all is wrong. Sound
parts of a request are as cheap as can be: one token, no adaptation.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.promises.field_values import (
    ADAPTATIONS,
    BODY_BUDGETS,
    BUDGETS,
    CHAT,
    COMPLETIONS,
    FIELDS,
    RESPONSES,
    SEARCH,
    SOUND,
    STORE,
    STORES,
    TOKENS,
    as_json,
)
from benchmarks.promises.raw_http import Headers, http

ANSWERED, REFUSED, EITHER = "answered", "refused", "either"
LARGE = 17 << 20  # bytes: more than the server takes
_LARGE_EVERY = 500  # attacks
_NO_BUDGET = ((b"Compute-Budget", b"none"),)
_ENDPOINTS = (COMPLETIONS, CHAT, RESPONSES)

FORBIDDEN = (
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/scale_elastic_ep", "/is_scaling_elastic_ep", "/invocations",
    "/inference/v1/abort_requests", "/inference/v1/generate", "/sleep", "/wake_up", "/is_sleeping", "/pause", "/resume",
    "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/collective_rpc", "/server_info", "/load",
    "/start_profile", "/stop_profile", "/openapi.json", "/docs", "/redoc", "/pooling", "/classify", "/score", "/rerank",
    "/v1/embeddings", "/v1/messages", "/v1/audio/transcriptions", "/v1/completions/render", "/update_weights",
    "/init_weight_transfer_engine", "/abort_requests", "/ping", "/static", "/.env", "/admin", "/v2/completions",
)  # fmt: skip
ODD_PATHS = (
    b"/v1/../invocations", b"/v1/%2e%2e/invocations", b"//v1/completions", b"/v1//completions", b"/v1/completions/",
    b"/v1/files/..%2f..%2f..%2fetc%2fpasswd/content", b"/v1/vector_stores/..%2f..%2fcorpora", b"/%00", b"/v1/%00",
    b"/v1/models/%ff", b"/v1/models/..%2f..", b"/v1/files/%0d%0aSet-Cookie:x", b"/v1\\completions", b"/V1/COMPLETIONS",
    b"/page/..%2f..%2fserving%2fkeys.py", b"/v1/completions%20", b"/%f0%9f%98%80", b"/v1/files/" + b"a" * 8000,
    b"/" + b"a/" * 20_000, b"/v1/vector_stores/%ed%a0%80", b"/v1/files?limit=many", b"/v1/files?limit=-1",
    b"/v1/vector_stores?limit=1000000000", b"/v1/vector_stores?order=sideways",
)  # fmt: skip


@dataclass(frozen=True)
class Attack:
    """A request and what it must be met with.

    Attributes:
        category: for the counts.
        pieces: bytes and pauses in seconds, as `benchmarks.promises.raw_http.exchange` takes them.
        expect: one for each reply.
        may_close: the server may close without a word, or the client leaves before it could speak.
        own: text of the request that an error may repeat.
        head: replies have no body.
        leave: the client closes after the last piece.
    """

    category: str
    pieces: tuple[bytes | float, ...]
    expect: tuple[str, ...] = (REFUSED,)
    may_close: bool = False
    own: tuple[str, ...] = ()
    head: bool = False
    leave: bool = False


def attacks(draw: random.Random, count: int) -> Iterator[Attack]:
    """So many, drawn by weight."""
    kinds = list(_KINDS)
    chosen = draw.choices(kinds, [_KINDS[kind] for kind in kinds], k=count)
    for number, kind in enumerate(chosen):
        yield _large(draw) if number % _LARGE_EVERY == _LARGE_EVERY // 2 else kind(draw)


def _post(
    category: str,
    path: str,
    body: bytes,
    headers: Headers = _NO_BUDGET,
    expect: str = REFUSED,
    **options: Any,
) -> Attack:
    return Attack(category, (http("POST", path.encode(), body, headers),), (expect,), **options)


def _json(draw: random.Random) -> Attack:
    sound = json.dumps(SOUND[COMPLETIONS]).encode()
    body = draw.choice(
        [
            b"", b" ", b"{", b"}", b"[]", b"null", b"5", b'"text"', b"{}{}", b"nul", b"{'model': 'nano'}",
            sound[: draw.randrange(1, len(sound))], sound + b"}", sound.replace(b":", b"=", 1), b"\x00" + sound,
            sound.replace(b"1", b"NaN"), sound.replace(b"1", b"-Infinity"), b"model=nano&prompt=a",
            bytes(draw.randrange(256) for _ in range(64)) + b"\xff", b"[" * 100_000, b'{"a":' * 50_000,
            sound.replace(b"1", b"1" * 5000), b'{"model": "nano", "prompt": ' + b"[" * 900 + b"]" * 900 + b"}",
        ]
    )  # fmt: skip
    return _post("broken JSON", draw.choice(_ENDPOINTS), body)


def _field(draw: random.Random) -> Attack:
    path = draw.choice(tuple(FIELDS))
    name = draw.choice(tuple(FIELDS[path]))
    value = draw.choice(FIELDS[path][name])
    return _post("fields", path, as_json({**SOUND[path], name: value}), own=_texts(value))


def _odd_field(draw: random.Random) -> Attack:
    """Values that OpenAI's clients may well send, and others that are only strange."""
    name, value = draw.choice(
        [
            ("max_tokens", 1 << 40), ("max_tokens", 10**9), ("user", "x" * 10_000), ("n", None), ("stop", ["a"] * 50),
            ("metadata", {"a": "b"}), ("store", True), ("service_tier", "auto"), ("logit_bias", {"5": 100}),
            ("seed", -1), ("temperature", 5e-324), ("top_p", 1e-9), ("unknown_field", {"deep": [[[[1]]]]}),
        ]
    )  # fmt: skip
    path = draw.choice((COMPLETIONS, CHAT))
    return _post("odd fields", path, as_json({**SOUND[path], name: value}), expect=EITHER)


def _adaptation(draw: random.Random) -> Attack:
    path = draw.choice(_ENDPOINTS)
    value = draw.choice(ADAPTATIONS)
    return _post(
        "adaptation",
        path,
        as_json({**SOUND[path], "adaptation": value}),
        headers=(),
        own=_texts(value),
    )


def _budget(draw: random.Random) -> Attack:
    path, value = draw.choice(_ENDPOINTS), draw.choice(BUDGETS)
    one, two = draw.sample((b"steps=1", b"steps=2", b"none", b"steps=1, seconds=9"), 2)
    ways: list[tuple[Headers, dict[str, Any]]] = [
        (((b"Compute-Budget", value),), {}),
        (((b"X-Compute-Budget", value),), {}),
        (((b"Compute-Budget", one), (b"X-Compute-Budget", two)), {}),
        (((b"Compute-Budget", one), (b"Compute-Budget", two)), {}),
        (((b"Compute-Budget", b"steps=1"),), {"compute_budget": {"steps": 2}}),
        ((), {"compute_budget": draw.choice(BODY_BUDGETS)}),
    ]
    headers, extra = draw.choice([ways[0], *ways])
    return _post(
        "budgets", path, as_json({**SOUND[path], **extra}), headers, own=(value.decode("latin-1"),)
    )


def _header(draw: random.Random) -> Attack:
    answered: list[Headers] = [
        ((b"X-Request-Timeout-Seconds", draw.choice([b"0.000001", b"0", b"-1", b"abc", b"NaN"])),),
        ((b"X-Request-Disconnect-Disabled", draw.choice([b"1", b"true", b"\xff"])),),
        ((b"Serve_Multiplexed_Model_Id", b"other"),),
        ((b"Traceparent", b"00-zz-" + b"9" * 500),),
        ((b"Accept", b"application/xml;q=oops"),),
        ((b"Expect", b"100-continue"),),
        ((b"Cookie", b"\xe4\xf6\xfc\xff" * 20),),
    ]
    either: list[Headers] = [
        ((b"X-Request-Id", draw.choice([b"\xff\xfe", b"a" * 5000, b"../../etc", b"a b c", b""])),),
        (
            (
                b"Authorization",
                draw.choice([b"Bearer", b"Basic \xff\xff", b"Bearer " + b"k" * 9000]),
            ),
        ),
        tuple((b"X-Many-%d" % number, b"v") for number in range(80)),
        ((b"Content-Encoding", b"gzip"),),
        ((b"Host", b"evil.example"),),
    ]
    refused: list[Headers] = [
        ((b"X-Large", b"a" * (1 << 20)),),
        tuple((b"X-Many-%d" % number, b"v" * 50) for number in range(20_000)),
        ((b"Compute-Budget", b"a" * (1 << 17)),),
    ]
    expect, headers = draw.choice(
        [
            (e, h)
            for e, listed in ((ANSWERED, answered), (EITHER, either), (REFUSED, refused))
            for h in listed
        ]
    )
    budget = () if any(name == b"Compute-Budget" for name, _ in headers) else _NO_BUDGET
    return _post("headers", COMPLETIONS, as_json(SOUND[COMPLETIONS]), (*budget, *headers), expect)


def _unicode(draw: random.Random) -> Attack:
    path = draw.choice((COMPLETIONS, CHAT))
    refused = [
        b'"\\ud800"', b'"a\\udfff b"', b'"\\udc00\\ud800"', b'"\xff\xfe"', b'"\xc0\xaf"', b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"', b'"raw \x00 control"', b'"\\x41"', b'"\\u12"',
    ]  # fmt: skip
    either = [
        '"\\u0000"', '"\\ud83d\\ude00"',
        '"😀\u202e\u0301\u0301"', '"\ufeff\uffff"', '"' + "\u0301" * 200 + '"', '"ﷺ İ ß ǅ"'
    ]  # fmt: skip
    text, expect = draw.choice(
        [(text, REFUSED) for text in refused] + [(text.encode(), EITHER) for text in either]
    )
    plain = as_json(SOUND[path])
    body = plain.replace(b'"def f("', text)
    if draw.random() < 0.1:
        body, expect = plain.decode().encode(draw.choice(("utf-16", "utf-32", "utf-8-sig"))), EITHER
    return _post("unicode", path, body, expect=expect)


def _content_type(draw: random.Random) -> Attack:
    path = draw.choice(_ENDPOINTS)
    kind = draw.choice(
        [
            b"text/plain",
            b"application/xml",
            b"",
            b"multipart/form-data",
            b"application/json; charset=ebcdic",
            b"\xff",
        ]
    )
    return _post(
        "content types", path, as_json(SOUND[path]), (*_NO_BUDGET, (b"Content-Type", kind)), EITHER
    )


def _size(draw: random.Random) -> Attack:
    path, field, value = draw.choice(
        [
            (COMPLETIONS, "prompt", "word " * 200_000),
            (COMPLETIONS, "prompt", [5] * 100_000),
            (COMPLETIONS, "prompt", [[5]] * 20_000),
            (CHAT, "messages", [{"role": "user", "content": "hi"}] * 20_000),
            (CHAT, "messages", [{"role": "user", "content": "word " * 100_000}]),
            (
                CHAT,
                "tools",
                [{"type": "function", "function": {"name": f"f{n}"}} for n in range(20_000)],
            ),
            (COMPLETIONS, "bad_words", ["word"] * 20_000),
            (COMPLETIONS, "stop", ["a" * 1000] * 1000),
            (COMPLETIONS, "logit_bias", {str(n): 1 for n in range(100_000)}),
        ]
    )
    body = as_json({**SOUND[path], field: value})
    return _post("sizes", path, body, expect=REFUSED if field in ("prompt", "messages") else EITHER)


def _large(draw: random.Random) -> Attack:
    body = as_json({**SOUND[COMPLETIONS], "prompt": "a" * LARGE})
    path = draw.choice((COMPLETIONS, CHAT, "/v1/vector_stores"))
    if draw.random() < 0.5:
        return _post("17 MB", path, body)
    parts = tuple(b"%x\r\n%s\r\n" % (len(part), part) for part in _cut(body, 1 << 16))
    start = http("POST", path.encode(), headers=((b"Transfer-Encoding", b"chunked"), *_NO_BUDGET))
    return Attack("17 MB", (start, *parts, b"0\r\n\r\n"))


def _path(draw: random.Random) -> Attack:
    if draw.random() < 0.6:
        path = draw.choice(FORBIDDEN)
        body = as_json(
            {
                **SOUND[COMPLETIONS],
                "lora_name": "evil",
                "lora_path": "/etc",
                "new_data_parallel_size": 2,
            }
        )
        return Attack(
            "paths", (http(draw.choice(("GET", "POST")), path.encode(), body),), own=(path,)
        )
    target = draw.choice(ODD_PATHS)
    return Attack("paths", (http("GET", target),), own=("/etc/passwd", target.decode("latin-1")))


def _method(draw: random.Random) -> Attack:
    path = draw.choice((*_ENDPOINTS, "/v1/models", "/health", "/metrics", "/v1/files", "/version"))
    methods = ("PUT", "DELETE", "PATCH", "TRACE", "FOO", "CONNECT")
    if draw.random() < 0.2:
        return Attack("methods", (http("HEAD", path.encode()),), (EITHER,), head=True)
    return Attack("methods", (http(draw.choice(methods), path.encode(), b"{}"),))


def _stores(draw: random.Random) -> Attack:
    if draw.random() < 0.3:
        listed = ("/v1/vector_stores/nowhere", "/v1/files/nowhere", "/v1/files/nowhere/content")
        return Attack(
            "vector stores", (http(draw.choice(("GET", "DELETE")), draw.choice(listed).encode()),)
        )
    if draw.random() < 0.3:
        return _upload(draw)
    path, fields = draw.choice([(STORES, STORE), ("/v1/vector_stores/web/search", SEARCH)])
    name = draw.choice(tuple(fields))
    value = draw.choice(fields[name])
    sound = {} if path == STORES else {"query": "a"}
    return _post("vector stores", path, as_json({**sound, name: value}), own=_texts(value))


def _upload(draw: random.Random) -> Attack:
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.md"\r\n\r\ntext\r\n'
    kind, body = draw.choice(
        [
            (b"multipart/form-data", form + b"--b--\r\n"),
            (b"multipart/form-data; boundary=b", form + b"--b--\r\n"),  # no purpose
            (b"multipart/form-data; boundary=other", form + b"--b--\r\n"),
            (b"multipart/form-data; boundary=b", form[:40]),
            (b"multipart/form-data; boundary=" + b"b" * 5000, form),
            (b"application/json", b'{"file": "a"}'),
            (
                b"multipart/form-data; boundary=b",
                b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n' * 2000,
            ),
        ]
    )
    return _post("vector stores", "/v1/files", body, ((b"Content-Type", kind),))


def _tokens(draw: random.Random) -> Attack:
    path = draw.choice(("/tokenize", "/detokenize"))
    return _post("tokenize", path, as_json({"model": "nano", **draw.choice(TOKENS[path])}))


def _framing(draw: random.Random) -> Attack:
    body = as_json(SOUND[COMPLETIONS])
    sound = http("POST", COMPLETIONS.encode(), body, _NO_BUDGET)
    kept = sound.replace(b"Connection: close\r\n", b"")
    lengths = (b"-5", b"five", b"1e3", b"0x10", b"%d" % (len(body) - 5))
    refused = [
        *(http("POST", COMPLETIONS.encode(), body, ((b"Content-Length", length),)) for length in lengths),
        http("POST", COMPLETIONS.encode(), b"zz\r\n" + body, ((b"Transfer-Encoding", b"chunked"),)),
        http("POST", COMPLETIONS.encode(), body, ((b"Content-Length", b"5"), (b"Content-Length", b"9"))),
        http("POST", b"v1/completions", body), http("POST", b"/v1/comp letions", body), http("GET", b"/\xff\xfe", b""),
        http("GET", b"/health", version=b"9.9"), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n\r\n\r\n", b"GET\r\n\r\n", bytes(range(256)) * 4,
        b"GET /health HTTP/1.1\r\nHost: a\r\nno colon here\r\n\r\n", b"GET /health HTTP/1.1\r\nBad\x00Name: a\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
    ]  # fmt: skip
    either = [
        http(
            "POST",
            COMPLETIONS.encode(),
            body,
            ((b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"5")),
        ),
        b"GET /health HTTP/1.1\r\nHost : a\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\nHost: a\nConnection: close\n\n",
        b"GET /health HTTP/1.1\r\nX: a\r\n folded\r\nConnection: close\r\n\r\n",
        b"GET http://evil.example/health HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ]
    broken = http("POST", COMPLETIONS.encode(), b"{")
    whole = [
        Attack(
            "framing", (http("POST", COMPLETIONS.encode(), body, _NO_BUDGET, b"1.0"),), (ANSWERED,)
        ),
        Attack("framing", (kept + broken,), (ANSWERED, REFUSED)),
        Attack("framing", (kept + kept + sound,), (ANSWERED,) * 3),
        Attack("framing", (sound[:20], 0.05, sound[20:60], 0.05, sound[60:]), (ANSWERED,)),
        Attack(
            "framing",
            (http("POST", COMPLETIONS.encode(), body, ((b"Content-Length", b"999"),)), 0.2),
            leave=True,
        ),
    ]
    listed = [Attack("framing", (raw,), may_close=True) for raw in refused]
    listed += [Attack("framing", (raw,), (EITHER,), may_close=True) for raw in either]
    attack = draw.choice(listed + whole)
    return Attack(**{**attack.__dict__, "may_close": True}) if attack.leave else attack


def _slow(draw: random.Random) -> Attack:
    """Bodies and headers that come a few bytes at a time and never end; the client gives up."""
    head = http("POST", COMPLETIONS.encode(), b"", ((b"Content-Length", b"5000"),))
    unended = head[: -draw.randrange(2, 40)]
    pieces = draw.choice(
        [
            (head, b'{"model"', 0.5, b":", 0.5),
            (unended, 0.5, b"X", 0.5),
            (head, struct.pack("!d", 1)),
        ]
    )
    return Attack("slow", pieces, (EITHER,), may_close=True, leave=True)


def _texts(value: Any) -> tuple[str, ...]:
    return (value, json.dumps(value)) if isinstance(value, str) else ()


def _cut(body: bytes, length: int) -> Sequence[bytes]:
    return [body[start : start + length] for start in range(0, len(body), length)]


_KINDS: dict[Callable[[random.Random], Attack], int] = {
    _json: 10, _field: 30, _odd_field: 2, _adaptation: 9, _budget: 12, _header: 7, _unicode: 8, _content_type: 4,
    _size: 2, _path: 9, _method: 5, _stores: 8, _tokens: 3, _framing: 7, _slow: 1,
}  # fmt: skip
