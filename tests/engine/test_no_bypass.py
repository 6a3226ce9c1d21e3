"""No form of the Host header or the path bypasses the keys: every route, over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from serving.api_keys.key import digest
from tests.engine.conftest import Server

SECRET = "the-operator"
BODY = (
    b'{"model": "nano", "prompt": "x", "messages": [], "input": "x", "tokens": [1], '
    b'"max_tokens": 1}'
)
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
    # A route of Ray, and routes of vLLM that are never served.
    ("GET", "/-/routes"),
    ("POST", "/v1/load_lora_adapter"),
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
    "plain": lambda path: path,
    "absolute form": lambda path: f"http://127.0.0.1{path}",
    "absolute form of another host": lambda path: f"http://evil.example:1{path}",
    "leading slash": lambda path: f"/{path}",
    "trailing slash": lambda path: f"{path}/",
    "after an open path": lambda path: f"/health/..{path}",
    "after the page": lambda path: f"/page/..{path}",
    "dots": lambda path: f"/.{path}",
    "semicolon": lambda path: f"{path};/health",
    "query": lambda path: f"{path}?path=/health&key=x",
    "percent-encoded": lambda path: "/" + "".join(f"%{ord(each):02x}" for each in path[1:]),
    "trailing newline": lambda path: f"{path}%0a",
}
_INVALID = [
    "",
    "Authorization: Bearer wrong",
    f"Authorization: Basic {SECRET}",
    f"X-Api-Key: {SECRET}",
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_every_form_of_a_request_needs_a_key(server: Server, method: str, path: str) -> None:
    async with server.gateway(key_digests=(digest(SECRET),)) as url:
        forms = [(host, name) for host in HOSTS for name in PATHS]
        statuses = await asyncio.gather(
            *(
                status_of(url, method, PATHS[name](path), [*host, _INVALID[number % len(_INVALID)]])
                for number, (host, name) in enumerate(forms)
            )
        )

    by_form = {
        str((host, name)): status for (host, name), status in zip(forms, statuses, strict=True)
    }
    assert {
        form: status for form, status in by_form.items() if status not in (400, 401, 404, 405)
    } == {}
    plain = statuses[forms.index((HOSTS[0], "plain"))]
    assert plain in (401, 404)


@pytest.mark.parametrize(
    ("method", "path"), [route for route in GUARDED if route[1] in ("/version", "/v1/models")]
)
async def test_a_key_is_accepted_with_any_host(server: Server, method: str, path: str) -> None:
    async with server.gateway(key_digests=(digest(SECRET),)) as url:
        statuses = [
            await status_of(url, method, path, [*host, f"Authorization: Bearer {SECRET}"])
            for host in HOSTS
        ]

    assert set(statuses) <= {200, 400}
    assert statuses[0] == 200


@pytest.mark.parametrize(("method", "path"), OPEN)
async def test_open_routes_need_no_key(server: Server, method: str, path: str) -> None:
    async with server.gateway(key_digests=(digest(SECRET),)) as url:
        assert await status_of(url, method, path, ["Host: x"]) == 200


@pytest.mark.parametrize(
    ("method", "path"), [route for route in GUARDED if route[1].startswith("/v1/")]
)
async def test_a_server_without_keys_accepts_its_own_hosts_only(
    server: Server, method: str, path: str
) -> None:
    own = [["Host: 127.0.0.1"], ["Host: localhost:8000"], ["Host: [::1]:80"]]
    others = [host for host in HOSTS if host and host not in (*own, ["Host:"])]
    async with server.gateway() as url:
        refused = {str(host): await status_of(url, method, path, host) for host in others}
        answered = [await status_of(url, method, path, host) for host in own]

    assert {host: status for host, status in refused.items() if status not in (400, 403)} == {}
    assert refused["['Host: x']"] == 403
    assert 403 not in answered


async def status_of(url: str, method: str, target: str, lines: list[str]) -> int:
    """The status of the response to a request that is sent unchanged."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = [f"{method} {target} HTTP/1.1", *(line for line in lines if line), "Connection: close"]
    body = BODY if method == "POST" else b""
    # What is accepted costs no adaptation.
    head += ["Content-Type: application/json", "Compute-Budget: none"]
    head += [f"Content-Length: {len(body)}", "", ""]
    writer.write("\r\n".join(head).encode("latin-1") + body)
    status = (await asyncio.wait_for(reader.readline(), 30)).split()[1]
    writer.close()
    return int(status)
