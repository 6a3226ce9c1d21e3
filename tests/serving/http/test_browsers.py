"""Hosts and origins that a server without keys accepts, and the settings for them."""

from __future__ import annotations

import socket

import pytest
from starlette.datastructures import Headers

from serving.errors import HostError, MediaTypeError, OriginError
from serving.http.browsers import (
    BrowserPolicy,
    check_media_type,
    parse_hosts,
    parse_origins,
)
from serving.http.routing import FORM, JSON

ON_LOOPBACK = BrowserPolicy("127.0.0.1", hosts=("gpu.example",), origins=("https://app.example",))
EVERYWHERE = BrowserPolicy("0.0.0.0")
WITH_KEYS = BrowserPolicy("0.0.0.0", has_keys=True)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8000",
        "127.1.2.3:9",
        "localhost",
        "LocalHost:8000",
        "localhost.:8000",
        "app.localhost:8000",
        "[::1]:8000",
        "[::ffff:127.0.0.1]",
        "gpu.example:8000",
        "GPU.Example",
        "",
        None,
    ],
)
def test_an_open_server_on_loopback_accepts_hosts_that_no_page_can_have(
    host: str | None,
) -> None:
    ON_LOOPBACK.check("POST", host, None)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8000",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil-localhost",
        "gpu.example.evil.example",
        "192.168.1.5:8000",
        "8.8.8.8",
        "0.0.0.0:8000",
        "[2001:db8::1]:8000",
        "user@127.0.0.1",
        "127.0.0.1:8000:9",
        "127.0.0.1/evil.example",
        "127.0.0.1, evil.example",
        "[::1",
        " ",
        "\xff",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_other_hosts_are_refused_with_what_to_do(host: str, method: str) -> None:
    with pytest.raises(HostError, match="--allowed-host") as refused:
        ON_LOOPBACK.check(method, host, None)
    assert repr(host) in str(refused.value)


@pytest.mark.parametrize(
    "host", ["10.1.2.3:8000", "[2001:db8::1]", "localhost", socket.gethostname(), "0.0.0.0:8000"]
)
def test_a_server_on_every_address_accepts_any_address_and_the_machines_name(host: str) -> None:
    EVERYWHERE.check("POST", host, None)


def test_a_server_on_every_address_refuses_other_names() -> None:
    with pytest.raises(HostError):
        EVERYWHERE.check("GET", "evil.example:8000", None)


@pytest.mark.parametrize(
    ("bound", "host"), [("192.168.1.5", "192.168.1.5:8000"), ("fd00::1", "[FD00:0::1]:8000")]
)
def test_the_bound_address_is_accepted(bound: str, host: str) -> None:
    BrowserPolicy(bound).check("GET", host, None)
    with pytest.raises(HostError):
        BrowserPolicy(bound).check("GET", "192.168.1.6:8000", None)


def test_the_bound_name_is_accepted() -> None:
    BrowserPolicy("gpu.example").check("GET", "gpu.example:8000", None)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        # Through a tunnel.
        ("localhost:9999", "http://localhost:9999"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost:80"),
        # Behind a proxy that ends TLS.
        ("localhost", "https://localhost"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("localhost:8000", "https://app.example"),
    ],
)
def test_the_servers_own_page_and_allowed_origins_may_send_any_request(
    host: str, origin: str
) -> None:
    ON_LOOPBACK.check("POST", host, origin)


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://localhost:3000",
        "http://127.0.0.1:8000",
        "null",
        "",
        "http://app.example",
        "https://app.example:444",
        "https://app.example.evil.example",
        "chrome-extension://localhost:8000",
        "http://localhost:8000, http://evil.example",
        "http://localhost:99999999",
    ],
)
def test_pages_of_other_origins_may_send_safe_requests_only(origin: str) -> None:
    for method in ("POST", "DELETE", "PUT", "PATCH", "FOO"):
        with pytest.raises(OriginError, match="--allowed-origin"):
            ON_LOOPBACK.check(method, "localhost:8000", origin)
    for method in ("GET", "HEAD", "OPTIONS"):
        ON_LOOPBACK.check(method, "localhost:8000", origin)
    assert not ON_LOOPBACK.allows(origin)


def test_a_server_with_keys_checks_neither() -> None:
    WITH_KEYS.check("POST", "evil.example", "http://evil.example")
    assert not WITH_KEYS.allows("http://evil.example")


def test_hosts_and_origins_are_normalised() -> None:
    assert parse_hosts(["GPU.example.", "10.0.0.1", "::1", "[fd00::1]", "gpu.example"]) == (
        "gpu.example",
        "10.0.0.1",
        "[::1]",
        "[fd00::1]",
    )
    values = [
        "HTTPS://App.example/",
        "http://localhost:3000",
        "https://a.example:443",
        "http://a.example:80",
        "tauri://x",
    ]
    assert parse_origins(values, has_keys=False) == (
        "https://app.example",
        "http://localhost:3000",
        "https://a.example",
        "http://a.example",
        "tauri://x",
    )
    assert parse_origins(["*"], has_keys=True) == ("*",)


@pytest.mark.parametrize(
    "value", ["", "gpu.example:8000", "http://gpu.example", "*", "*.example", "a b", "a/b", "a,b"]
)
def test_an_invalid_host_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="invalid allowed-host"):
        parse_hosts([value])


@pytest.mark.parametrize(
    "value",
    ["", "null", "app.example", "https://", "https://a/b", "https://a?b", "https://u@a", "*"],
)
def test_an_invalid_origin_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="allowed-origin"):
        parse_origins([value], has_keys=False)


@pytest.mark.parametrize(
    ("content_type", "is_json"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/vnd.api+json", True),
        ("", True),
        ("text/plain", False),
        ("application/x-www-form-urlencoded", False),
        ("multipart/form-data; boundary=x", False),
        ("application/jsonp", False),
        ("text/plain; application/json", False),
        ("\xff", False),
    ],
)
def test_a_body_of_another_media_type_is_refused(content_type: str, is_json: bool) -> None:
    for framing in ({"content-length": "5"}, {"transfer-encoding": "chunked"}):
        headers = Headers({"content-type": content_type, **framing})
        if is_json:
            check_media_type(headers, JSON)
        else:
            with pytest.raises(MediaTypeError, match="Only 'application/json' is allowed"):
                check_media_type(headers, JSON)
    check_media_type(Headers({"content-type": content_type, "content-length": "0"}), JSON)
    check_media_type(Headers({"content-type": content_type}), JSON)


def test_an_upload_must_be_a_form() -> None:
    length = {"content-length": "5"}
    form = {"content-type": "Multipart/form-data; boundary=x", **length}
    check_media_type(Headers(form), FORM)
    with pytest.raises(
        MediaTypeError, match="Only 'multipart/form-data' is allowed, not 'application/json'"
    ):
        check_media_type(Headers({"content-type": "application/json", **length}), FORM)
