"""Attacks in the body: JSON, fields, text and size. Each function draws one attack.

The valid parts of a request are as cheap as possible: one token, no adaptation. Invalid values of
fields are in `field_values.py`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from benchmarks.promises.attacks.attack import (
    EITHER,
    ENDPOINTS,
    NO_BUDGET,
    REFUSED,
    Attack,
    post,
    repeated,
)
from benchmarks.promises.attacks.field_values import (
    ADAPTATIONS,
    CHAT,
    COMPLETIONS,
    FIELDS,
    SEARCH,
    STORE,
    STORES,
    TOKENS,
    VALID,
    as_json,
)
from benchmarks.promises.raw_http import build_request

LARGE_BYTES = 17 << 20  # more than the server accepts


def broken_json(rng: random.Random) -> Attack:
    """Text that is not JSON, or not an object."""
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
    return post("broken JSON", rng.choice(ENDPOINTS), body)


def invalid_field(rng: random.Random) -> Attack:
    """A field with an invalid value."""
    path = rng.choice(tuple(FIELDS))
    name = rng.choice(tuple(FIELDS[path]))
    value = rng.choice(FIELDS[path][name])
    return post("fields", path, as_json({**VALID[path], name: value}), allowed=repeated(value))


def odd_field(rng: random.Random) -> Attack:
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
    return post("odd fields", path, as_json({**VALID[path], name: value}), expected=EITHER)


def invalid_adaptation(rng: random.Random) -> Attack:
    """An invalid `adaptation`."""
    path = rng.choice(ENDPOINTS)
    value = rng.choice(ADAPTATIONS)
    return post(
        "adaptation",
        path,
        as_json({**VALID[path], "adaptation": value}),
        headers=(),
        allowed=repeated(value),
    )


def unicode_text(rng: random.Random) -> Attack:
    """Text that is invalid in UTF-8 or in JSON, and valid text that is rare."""
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
    return post("unicode", path, body, expected=expected)


def long_field(rng: random.Random) -> Attack:
    """A field with very many values, or a very long one."""
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
    return post(
        "sizes", path, body, expected=REFUSED if field in ("prompt", "messages") else EITHER
    )


def large_body(rng: random.Random) -> Attack:
    """A body larger than the server accepts, some of them in chunks."""
    body = as_json({**VALID[COMPLETIONS], "prompt": "a" * LARGE_BYTES})
    path = rng.choice((COMPLETIONS, CHAT, "/v1/vector_stores"))
    if rng.random() < 0.5:
        return post("17 MB", path, body)
    parts = tuple(b"%x\r\n%s\r\n" % (len(part), part) for part in _split(body, 1 << 16))
    start = build_request(
        "POST", path.encode(), headers=((b"Transfer-Encoding", b"chunked"), *NO_BUDGET)
    )
    return Attack("17 MB", (start, *parts, b"0\r\n\r\n"))


def vector_store_request(rng: random.Random) -> Attack:
    """Requests to vector stores and files."""
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
    return post("vector stores", path, as_json({**valid, name: value}), allowed=repeated(value))


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
    return post("vector stores", "/v1/files", body, ((b"Content-Type", content_type),))


def tokenize(rng: random.Random) -> Attack:
    """Invalid input to /tokenize and /detokenize."""
    path = rng.choice(("/tokenize", "/detokenize"))
    return post("tokenize", path, as_json({"model": "nano", **rng.choice(TOKENS[path])}))


def _split(body: bytes, length: int) -> Sequence[bytes]:
    return [body[start : start + length] for start in range(0, len(body), length)]
