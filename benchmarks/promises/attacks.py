"""Malformed requests, seeded: bodies, fields, headers, text, sizes, paths, framing, slowness.

Each states the response it must get. A request that is merely odd, and may be answered or refused,
expects `EITHER`: then only a 5xx, an error in another shape or no response is wrong. The valid
parts of a request are as cheap as possible: one token, no adaptation.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
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
    STORE,
    STORES,
    TOKENS,
    VALID,
    as_json,
)
from benchmarks.promises.raw_http import Headers, build_request

ANSWERED, REFUSED, EITHER = "answered", "refused", "either"
LARGE_BYTES = 17 << 20  # more than the server accepts
_LARGE_EVERY = 500  # attacks
_NO_BUDGET = ((b"Compute-Budget", b"none"),)
_ENDPOINTS = (COMPLETIONS, CHAT, RESPONSES)

FORBIDDEN = (
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/scale_elastic_ep",
    "/is_scaling_elastic_ep", "/invocations", "/inference/v1/abort_requests",
    "/inference/v1/generate", "/sleep", "/wake_up", "/is_sleeping", "/pause", "/resume",
    "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/collective_rpc",
    "/server_info", "/load", "/start_profile", "/stop_profile", "/openapi.json", "/docs", "/redoc",
    "/pooling", "/classify", "/score", "/rerank", "/v1/embeddings", "/v1/messages",
    "/v1/audio/transcriptions", "/v1/completions/render", "/update_weights",
    "/init_weight_transfer_engine", "/abort_requests", "/ping", "/static", "/.env", "/admin",
    "/v2/completions",
)  # fmt: skip
ODD_PATHS = (
    b"/v1/../invocations", b"/v1/%2e%2e/invocations", b"//v1/completions", b"/v1//completions",
    b"/v1/completions/", b"/v1/files/..%2f..%2f..%2fetc%2fpasswd/content",
    b"/v1/vector_stores/..%2f..%2fcorpora", b"/%00", b"/v1/%00", b"/v1/models/%ff",
    b"/v1/models/..%2f..", b"/v1/files/%0d%0aSet-Cookie:x", b"/v1\\completions", b"/V1/COMPLETIONS",
    b"/page/..%2f..%2fserving%2fkeys.py", b"/v1/completions%20", b"/%f0%9f%98%80",
    b"/v1/files/" + b"a" * 8000, b"/" + b"a/" * 20_000, b"/v1/vector_stores/%ed%a0%80",
    b"/v1/files?limit=many", b"/v1/files?limit=-1", b"/v1/vector_stores?limit=1000000000",
    b"/v1/vector_stores?order=sideways",
)  # fmt: skip


@dataclass(frozen=True)
class Attack:
    """A request and the response it must get.

    Attributes:
        category: category in the counts.
        parts: bytes and pauses in seconds, as `benchmarks.promises.raw_http.send_raw` takes them.
        expected: expectation of each response.
        may_close: the server may close without a response, or the client disconnects first.
        allowed: text of the request that an error may repeat.
        head: responses have no body.
        disconnect: the client closes the connection after the last part.
    """

    category: str
    parts: tuple[bytes | float, ...]
    expected: tuple[str, ...] = (REFUSED,)
    may_close: bool = False
    allowed: tuple[str, ...] = ()
    head: bool = False
    disconnect: bool = False


def attacks(rng: random.Random, count: int) -> Iterator[Attack]:
    """Yield `count` attacks, drawn by weight."""
    builders = list(_WEIGHTS)
    drawn = rng.choices(builders, [_WEIGHTS[build] for build in builders], k=count)
    for number, build in enumerate(drawn):
        yield _large(rng) if number % _LARGE_EVERY == _LARGE_EVERY // 2 else build(rng)


def _post(
    category: str,
    path: str,
    body: bytes,
    headers: Headers = _NO_BUDGET,
    expected: str = REFUSED,
    **options: Any,
) -> Attack:
    return Attack(
        category, (build_request("POST", path.encode(), body, headers),), (expected,), **options
    )


def _json(rng: random.Random) -> Attack:
    valid = json.dumps(VALID[COMPLETIONS]).encode()
    body = rng.choice(
        [
            b"", b" ", b"{", b"}", b"[]", b"null", b"5", b'"text"', b"{}{}", b"nul",
            b"{'model': 'nano'}", valid[: rng.randrange(1, len(valid))], valid + b"}",
            valid.replace(b":", b"=", 1), b"\x00" + valid, valid.replace(b"1", b"NaN"),
            valid.replace(b"1", b"-Infinity"), b"model=nano&prompt=a",
            bytes(rng.randrange(256) for _ in range(64)) + b"\xff", b"[" * 100_000,
            b'{"a":' * 50_000, valid.replace(b"1", b"1" * 5000),
            b'{"model": "nano", "prompt": ' + b"[" * 900 + b"]" * 900 + b"}",
        ]
    )  # fmt: skip
    return _post("broken JSON", rng.choice(_ENDPOINTS), body)


def _field(rng: random.Random) -> Attack:
    path = rng.choice(tuple(FIELDS))
    name = rng.choice(tuple(FIELDS[path]))
    value = rng.choice(FIELDS[path][name])
    return _post("fields", path, as_json({**VALID[path], name: value}), allowed=_repeated(value))


def _odd_field(rng: random.Random) -> Attack:
    """Values that OpenAI's clients may send, and others that are merely strange."""
    name, value = rng.choice(
        [
            ("max_tokens", 1 << 40), ("max_tokens", 10**9), ("user", "x" * 10_000), ("n", None),
            ("stop", ["a"] * 50), ("metadata", {"a": "b"}), ("store", True),
            ("service_tier", "auto"), ("logit_bias", {"5": 100}), ("seed", -1),
            ("temperature", 5e-324), ("top_p", 1e-9), ("unknown_field", {"deep": [[[[1]]]]}),
        ]
    )  # fmt: skip
    path = rng.choice((COMPLETIONS, CHAT))
    return _post("odd fields", path, as_json({**VALID[path], name: value}), expected=EITHER)


def _adaptation(rng: random.Random) -> Attack:
    path = rng.choice(_ENDPOINTS)
    value = rng.choice(ADAPTATIONS)
    return _post(
        "adaptation",
        path,
        as_json({**VALID[path], "adaptation": value}),
        headers=(),
        allowed=_repeated(value),
    )


def _budget(rng: random.Random) -> Attack:
    path, value = rng.choice(_ENDPOINTS), rng.choice(BUDGETS)
    one, two = rng.sample((b"steps=1", b"steps=2", b"none", b"steps=1, seconds=9"), 2)
    variants: list[tuple[Headers, dict[str, Any]]] = [
        (((b"Compute-Budget", value),), {}),
        (((b"X-Compute-Budget", value),), {}),
        (((b"Compute-Budget", one), (b"X-Compute-Budget", two)), {}),
        (((b"Compute-Budget", one), (b"Compute-Budget", two)), {}),
        (((b"Compute-Budget", b"steps=1"),), {"compute_budget": {"steps": 2}}),
        ((), {"compute_budget": rng.choice(BODY_BUDGETS)}),
    ]
    headers, extra = rng.choice([variants[0], *variants])
    return _post(
        "budgets",
        path,
        as_json({**VALID[path], **extra}),
        headers,
        allowed=(value.decode("latin-1"),),
    )


def _header(rng: random.Random) -> Attack:
    answered: list[Headers] = [
        ((b"X-Request-Timeout-Seconds", rng.choice([b"0.000001", b"0", b"-1", b"abc", b"NaN"])),),
        ((b"X-Request-Disconnect-Disabled", rng.choice([b"1", b"true", b"\xff"])),),
        ((b"Serve_Multiplexed_Model_Id", b"other"),),
        ((b"Traceparent", b"00-zz-" + b"9" * 500),),
        ((b"Accept", b"application/xml;q=oops"),),
        ((b"Expect", b"100-continue"),),
        ((b"Cookie", b"\xe4\xf6\xfc\xff" * 20),),
    ]
    either: list[Headers] = [
        ((b"X-Request-Id", rng.choice([b"\xff\xfe", b"a" * 5000, b"../../etc", b"a b c", b""])),),
        (
            (
                b"Authorization",
                rng.choice([b"Bearer", b"Basic \xff\xff", b"Bearer " + b"k" * 9000]),
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
    expected, headers = rng.choice(
        [
            (e, h)
            for e, options in ((ANSWERED, answered), (EITHER, either), (REFUSED, refused))
            for h in options
        ]
    )
    budget = () if any(name == b"Compute-Budget" for name, _ in headers) else _NO_BUDGET
    return _post("headers", COMPLETIONS, as_json(VALID[COMPLETIONS]), (*budget, *headers), expected)


def _unicode(rng: random.Random) -> Attack:
    path = rng.choice((COMPLETIONS, CHAT))
    refused = [
        b'"\\ud800"', b'"a\\udfff b"', b'"\\udc00\\ud800"', b'"\xff\xfe"', b'"\xc0\xaf"',
        b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b'"raw \x00 control"', b'"\\x41"', b'"\\u12"',
    ]  # fmt: skip
    either = [
        '"\\u0000"', '"\\ud83d\\ude00"',
        '"😀\u202e\u0301\u0301"', '"\ufeff\uffff"', '"' + "\u0301" * 200 + '"', '"ﷺ İ ß ǅ"'
    ]  # fmt: skip
    text, expected = rng.choice(
        [(text, REFUSED) for text in refused] + [(text.encode(), EITHER) for text in either]
    )
    plain = as_json(VALID[path])
    body = plain.replace(b'"def f("', text)
    if rng.random() < 0.1:
        body, expected = (
            plain.decode().encode(rng.choice(("utf-16", "utf-32", "utf-8-sig"))),
            EITHER,
        )
    return _post("unicode", path, body, expected=expected)


def _content_type(rng: random.Random) -> Attack:
    path = rng.choice(_ENDPOINTS)
    content_type = rng.choice(
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
        "content types",
        path,
        as_json(VALID[path]),
        (*_NO_BUDGET, (b"Content-Type", content_type)),
        EITHER,
    )


def _size(rng: random.Random) -> Attack:
    path, field, value = rng.choice(
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
    body = as_json({**VALID[path], field: value})
    return _post(
        "sizes", path, body, expected=REFUSED if field in ("prompt", "messages") else EITHER
    )


def _large(rng: random.Random) -> Attack:
    body = as_json({**VALID[COMPLETIONS], "prompt": "a" * LARGE_BYTES})
    path = rng.choice((COMPLETIONS, CHAT, "/v1/vector_stores"))
    if rng.random() < 0.5:
        return _post("17 MB", path, body)
    parts = tuple(b"%x\r\n%s\r\n" % (len(part), part) for part in _split(body, 1 << 16))
    start = build_request(
        "POST", path.encode(), headers=((b"Transfer-Encoding", b"chunked"), *_NO_BUDGET)
    )
    return Attack("17 MB", (start, *parts, b"0\r\n\r\n"))


def _path(rng: random.Random) -> Attack:
    if rng.random() < 0.6:
        path = rng.choice(FORBIDDEN)
        body = as_json(
            {
                **VALID[COMPLETIONS],
                "lora_name": "evil",
                "lora_path": "/etc",
                "new_data_parallel_size": 2,
            }
        )
        return Attack(
            "paths",
            (build_request(rng.choice(("GET", "POST")), path.encode(), body),),
            allowed=(path,),
        )
    target = rng.choice(ODD_PATHS)
    return Attack(
        "paths", (build_request("GET", target),), allowed=("/etc/passwd", target.decode("latin-1"))
    )


def _method(rng: random.Random) -> Attack:
    path = rng.choice((*_ENDPOINTS, "/v1/models", "/health", "/metrics", "/v1/files", "/version"))
    methods = ("PUT", "DELETE", "PATCH", "TRACE", "FOO", "CONNECT")
    if rng.random() < 0.2:
        return Attack("methods", (build_request("HEAD", path.encode()),), (EITHER,), head=True)
    return Attack("methods", (build_request(rng.choice(methods), path.encode(), b"{}"),))


def _stores(rng: random.Random) -> Attack:
    if rng.random() < 0.3:
        options = ("/v1/vector_stores/nowhere", "/v1/files/nowhere", "/v1/files/nowhere/content")
        return Attack(
            "vector stores",
            (build_request(rng.choice(("GET", "DELETE")), rng.choice(options).encode()),),
        )
    if rng.random() < 0.3:
        return _upload(rng)
    path, fields = rng.choice([(STORES, STORE), ("/v1/vector_stores/web/search", SEARCH)])
    name = rng.choice(tuple(fields))
    value = rng.choice(fields[name])
    valid = {} if path == STORES else {"query": "a"}
    return _post("vector stores", path, as_json({**valid, name: value}), allowed=_repeated(value))


def _upload(rng: random.Random) -> Attack:
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.md"\r\n\r\ntext\r\n'
    content_type, body = rng.choice(
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
    return _post("vector stores", "/v1/files", body, ((b"Content-Type", content_type),))


def _tokens(rng: random.Random) -> Attack:
    path = rng.choice(("/tokenize", "/detokenize"))
    return _post("tokenize", path, as_json({"model": "nano", **rng.choice(TOKENS[path])}))


def _framing(rng: random.Random) -> Attack:
    post = partial(build_request, "POST", COMPLETIONS.encode())
    body = as_json(VALID[COMPLETIONS])
    valid = post(body, _NO_BUDGET)
    keep_alive = valid.replace(b"Connection: close\r\n", b"")
    lengths = (b"-5", b"five", b"1e3", b"0x10", b"%d" % (len(body) - 5))
    refused = [
        *(post(body, ((b"Content-Length", length),)) for length in lengths),
        post(b"zz\r\n" + body, ((b"Transfer-Encoding", b"chunked"),)),
        post(body, ((b"Content-Length", b"5"), (b"Content-Length", b"9"))),
        build_request("POST", b"v1/completions", body),
        build_request("POST", b"/v1/comp letions", body), build_request("GET", b"/\xff\xfe", b""),
        build_request("GET", b"/health", version=b"9.9"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n\r\n\r\n", b"GET\r\n\r\n", bytes(range(256)) * 4,
        b"GET /health HTTP/1.1\r\nHost: a\r\nno colon here\r\n\r\n",
        b"GET /health HTTP/1.1\r\nBad\x00Name: a\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
    ]  # fmt: skip
    either = [
        post(
            body,
            ((b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"5")),
        ),
        b"GET /health HTTP/1.1\r\nHost : a\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\nHost: a\nConnection: close\n\n",
        b"GET /health HTTP/1.1\r\nX: a\r\n folded\r\nConnection: close\r\n\r\n",
        b"GET http://evil.example/health HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ]
    broken = post(b"{")
    valid_framing = [
        Attack(
            "framing",
            (post(body, _NO_BUDGET, b"1.0"),),
            (ANSWERED,),
        ),
        Attack("framing", (keep_alive + broken,), (ANSWERED, REFUSED)),
        Attack("framing", (keep_alive + keep_alive + valid,), (ANSWERED,) * 3),
        Attack("framing", (valid[:20], 0.05, valid[20:60], 0.05, valid[60:]), (ANSWERED,)),
        Attack(
            "framing",
            (
                post(body, ((b"Content-Length", b"999"),)),
                0.2,
            ),
            disconnect=True,
        ),
    ]
    options = [Attack("framing", (request,), may_close=True) for request in refused]
    options += [Attack("framing", (request,), (EITHER,), may_close=True) for request in either]
    attack = rng.choice(options + valid_framing)
    return Attack(**{**attack.__dict__, "may_close": True}) if attack.disconnect else attack


def _slow(rng: random.Random) -> Attack:
    """Bodies and headers that arrive a few bytes at a time and never end; the client gives up."""
    head = build_request("POST", COMPLETIONS.encode(), b"", ((b"Content-Length", b"5000"),))
    unended = head[: -rng.randrange(2, 40)]
    parts = rng.choice(
        [
            (head, b'{"model"', 0.5, b":", 0.5),
            (unended, 0.5, b"X", 0.5),
            (head, struct.pack("!d", 1)),
        ]
    )
    return Attack("slow", parts, (EITHER,), may_close=True, disconnect=True)


def _repeated(value: Any) -> tuple[str, ...]:
    return (value, json.dumps(value)) if isinstance(value, str) else ()


def _split(body: bytes, length: int) -> Sequence[bytes]:
    return [body[start : start + length] for start in range(0, len(body), length)]


_WEIGHTS: dict[Callable[[random.Random], Attack], int] = {
    _json: 10, _field: 30, _odd_field: 2, _adaptation: 9, _budget: 12, _header: 7, _unicode: 8,
    _content_type: 4, _size: 2, _path: 9, _method: 5, _stores: 8, _tokens: 3, _framing: 7, _slow: 1,
}  # fmt: skip
