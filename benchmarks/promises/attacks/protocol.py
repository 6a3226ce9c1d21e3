"""Attacks around the body: headers, paths, methods, framing, slowness. Each function draws one.

The bodies are valid, and as cheap as possible: one token, no adaptation.
"""

from __future__ import annotations

import random
import struct
from functools import partial
from typing import Any

from benchmarks.promises.attacks.attack import (
    ANSWERED,
    EITHER,
    ENDPOINTS,
    NO_BUDGET,
    REFUSED,
    Attack,
    post,
)
from benchmarks.promises.attacks.field_values import (
    BODY_BUDGETS,
    BUDGETS,
    COMPLETIONS,
    VALID,
    as_json,
)
from benchmarks.promises.raw_http import Headers, build_request

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


def invalid_budget(rng: random.Random) -> Attack:
    """Invalid and contradictory budgets."""
    path, value = rng.choice(ENDPOINTS), rng.choice(BUDGETS)
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
    return post(
        "budgets",
        path,
        as_json({**VALID[path], **extra}),
        headers,
        allowed=(value.decode("latin-1"),),
    )


def odd_header(rng: random.Random) -> Attack:
    """Odd, long and numerous headers."""
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
    budget = () if any(name == b"Compute-Budget" for name, _ in headers) else NO_BUDGET
    return post("headers", COMPLETIONS, as_json(VALID[COMPLETIONS]), (*budget, *headers), expected)


def odd_content_type(rng: random.Random) -> Attack:
    """Odd content types of a valid body."""
    path = rng.choice(ENDPOINTS)
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
    return post(
        "content types",
        path,
        as_json(VALID[path]),
        (*NO_BUDGET, (b"Content-Type", content_type)),
        EITHER,
    )


def wrong_path(rng: random.Random) -> Attack:
    """Paths that must not be served, or that leave the server's."""
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


def wrong_method(rng: random.Random) -> Attack:
    """Methods that a path does not have."""
    path = rng.choice((*ENDPOINTS, "/v1/models", "/health", "/metrics", "/v1/files", "/version"))
    methods = ("PUT", "DELETE", "PATCH", "TRACE", "FOO", "CONNECT")
    if rng.random() < 0.2:
        return Attack("methods", (build_request("HEAD", path.encode()),), (EITHER,), head=True)
    return Attack("methods", (build_request(rng.choice(methods), path.encode(), b"{}"),))


def broken_framing(rng: random.Random) -> Attack:
    """Bytes that are not HTTP/1.1, or only just."""
    post = partial(build_request, "POST", COMPLETIONS.encode())
    body = as_json(VALID[COMPLETIONS])
    valid = post(body, NO_BUDGET)
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
            (post(body, NO_BUDGET, b"1.0"),),
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


def slow_request(rng: random.Random) -> Attack:
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
