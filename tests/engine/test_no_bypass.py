"""No form of the Host header or of the path gets around the keys: every route, over bytes on a real
socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from serving.api_keys import digest
from tests.engine.conftest import Server

SECRET = "the-operator"
BODY = b'{"model": "nano", "prompt": "x", "messages": [], "input": "x", "tokens": [1], "max_tokens": 1}'
GUARDED = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/metrics"),
    ("GET", "/ready"),
    ("GET", "/version"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/nano"),
    ("GET", "/v1/vector_stores"),
    ("POST", "/v1/vector_stores"),
    ("GET", "/v1/vector_stores/web"),
    ("GET", "/v1/files"),
    ("GET", "/-/routes"),  # Ray's
    ("POST", "/v1/load_lora_adapter"),  # vLLM's own, which are never served
    ("POST", "/reset_prefix_cache"),
    ("GET", "/server_info"),
    ("GET", "/openapi.json"),
    ("POST", "/invocations"),
]
OPEN = [("GET", "/health"), ("GET", "/")]
HOSTS = [
    ["Host: x"],
    [],
    ["Host:"],
    ["Host: 127.0.0.1"],
    ["Host: localhost:8000"],
    ["Host: evil.example/health"],
    ["Host: evil.example?x=/health"],
    ["Host: user@127.0.0.1"],
    ["Host: [::1]:80"],
    ["Host: x:notaport"],
    ["Host: a, b"],
    ["Host: \xff\xfe"],
    ["Host: " + "a" * 5000],
    ["Host: a", "Host: b"],
    [
        "Host: x",
        "X-Forwarded-Host: 127.0.0.1",
        "X-Forwarded-For: 127.0.0.1",
        "Forwarded: for=127.0.0.1",
    ],
    ["Host: x", "X-Original-URL: /health", "X-Rewrite-URL: /health", "X-Forwarded-Prefix: /health"],
    ["Host: x", "X-HTTP-Method-Override: GET", "Connection: Authorization"],
    ["Host: x", "Root-Path: /v1", "X-Script-Name: /health", "Script-Name: /health"],
]
PATHS: dict[str, Callable[[str], str]] = {
    "itself": lambda path: path,
    "an absolute form": lambda path: f"http://127.0.0.1{path}",
    "of another host": lambda path: f"http://evil.example:1{path}",
    "a slash more before": lambda path: f"/{path}",
    "a slash more after": lambda path: f"{path}/",
    "an open one before": lambda path: f"/health/..{path}",
    "the page before": lambda path: f"/page/..{path}",
    "dots": lambda path: f"/.{path}",
    "a semicolon": lambda path: f"{path};/health",
    "a query": lambda path: f"{path}?path=/health&key=x",
    "percent": lambda path: "/" + "".join(f"%{ord(each):02x}" for each in path[1:]),
}
_WRONG = [
    "",
    "Authorization: Bearer wrong",
    f"Authorization: Basic {SECRET}",
    f"X-Api-Key: {SECRET}",
]


def test_there_are_about_two_hundred_forms() -> None:
    assert len(HOSTS) * len(PATHS) >= 190


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_nobody_gets_in_without_a_key(server: Server, method: str, path: str) -> None:
    async with server.door(key_digests=(digest(SECRET),)) as url:
        forms = [(host, name) for host in HOSTS for name in PATHS]
        statuses = await asyncio.gather(
            *(
                ask(url, method, PATHS[name](path), [*host, _WRONG[number % len(_WRONG)]])
                for number, (host, name) in enumerate(forms)
            )
        )

    passed = {
        str((host, name)): status for (host, name), status in zip(forms, statuses, strict=True)
    }
    assert {
        form: status for form, status in passed.items() if status not in (400, 401, 404, 405)
    } == {}
    plain = statuses[forms.index((HOSTS[0], "itself"))]
    assert plain in (401, 404)


@pytest.mark.parametrize(
    ("method", "path"), [route for route in GUARDED if route[1] in ("/version", "/v1/models")]
)
async def test_whoever_has_one_gets_in_whatever_the_host(
    server: Server, method: str, path: str
) -> None:
    async with server.door(key_digests=(digest(SECRET),)) as url:
        statuses = [
            await ask(url, method, path, [*host, f"Authorization: Bearer {SECRET}"])
            for host in HOSTS
        ]

    assert set(statuses) <= {200, 400}
    assert statuses[0] == 200


@pytest.mark.parametrize(("method", "path"), OPEN)
async def test_what_is_open_stays_open(server: Server, method: str, path: str) -> None:
    async with server.door(key_digests=(digest(SECRET),)) as url:
        assert await ask(url, method, path, ["Host: x"]) == 200


@pytest.mark.parametrize(
    ("method", "path"), [route for route in GUARDED if route[1].startswith("/v1/")]
)
async def test_an_open_server_answers_only_to_its_own_names(
    server: Server, method: str, path: str
) -> None:
    own = [["Host: 127.0.0.1"], ["Host: localhost:8000"], ["Host: [::1]:80"]]
    others = [host for host in HOSTS if host and host not in (*own, ["Host:"])]
    async with server.door() as url:
        refused = {str(host): await ask(url, method, path, host) for host in others}
        answered = [await ask(url, method, path, host) for host in own]

    assert {host: status for host, status in refused.items() if status not in (400, 403)} == {}
    assert refused["['Host: x']"] == 403
    assert 403 not in answered


async def ask(url: str, method: str, target: str, lines: list[str]) -> int:
    """The status of a request that is sent as it stands."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = [f"{method} {target} HTTP/1.1", *(line for line in lines if line), "Connection: close"]
    body = BODY if method == "POST" else b""
    head += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
    writer.write("\r\n".join(head).encode("latin-1") + body)
    status = (await asyncio.wait_for(reader.readline(), 30)).split()[1]
    writer.close()
    return int(status)
