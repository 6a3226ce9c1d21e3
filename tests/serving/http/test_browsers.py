"""Which Host and which Origin an open server takes, and how the settings for them are read."""

from __future__ import annotations

import socket

import pytest

from serving.errors import HostError, MediaTypeError, OriginError
from serving.http.browsers import Browsers, check_media_type, host_names, origins

ON_LOOPBACK = Browsers("127.0.0.1", hosts=("gpu.example",), origins=("https://app.example",))
EVERYWHERE = Browsers("0.0.0.0")
WITH_KEYS = Browsers("0.0.0.0", has_keys=True)


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
def test_an_open_server_on_loopback_is_reached_by_names_that_no_page_can_take(
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
def test_it_answers_to_no_other_name_and_says_how_it_would(host: str, method: str) -> None:
    with pytest.raises(HostError, match="--allowed-host") as refused:
        ON_LOOPBACK.check(method, host, None)
    assert repr(host) in str(refused.value)


@pytest.mark.parametrize(
    "host", ["10.1.2.3:8000", "[2001:db8::1]", "localhost", socket.gethostname(), "0.0.0.0:8000"]
)
def test_one_bound_to_every_address_is_reached_by_any_and_by_the_machines_name(host: str) -> None:
    EVERYWHERE.check("POST", host, None)


def test_not_by_a_name_that_dns_may_point_at_it() -> None:
    with pytest.raises(HostError):
        EVERYWHERE.check("GET", "evil.example:8000", None)


@pytest.mark.parametrize(
    ("bound", "host"), [("192.168.1.5", "192.168.1.5:8000"), ("fd00::1", "[FD00:0::1]:8000")]
)
def test_the_address_that_it_is_bound_to_is_its_own(bound: str, host: str) -> None:
    Browsers(bound).check("GET", host, None)
    with pytest.raises(HostError):
        Browsers(bound).check("GET", "192.168.1.6:8000", None)


def test_a_name_that_it_is_bound_to_is_its_own() -> None:
    Browsers("gpu.example").check("GET", "gpu.example:8000", None)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:9999", "http://localhost:9999"),  # through a tunnel
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost:80"),
        ("localhost", "https://localhost"),  # TLS is somebody else's before it
        ("[::1]:8000", "http://[::1]:8000"),
        ("localhost:8000", "https://app.example"),
    ],
)
def test_its_own_page_may_change_it_and_those_of_allowed_origins(host: str, origin: str) -> None:
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
def test_a_page_of_another_may_only_look_without_being_shown(origin: str) -> None:
    for method in ("POST", "DELETE", "PUT", "PATCH", "FOO"):
        with pytest.raises(OriginError, match="--allowed-origin"):
            ON_LOOPBACK.check(method, "localhost:8000", origin)
    for method in ("GET", "HEAD", "OPTIONS"):
        ON_LOOPBACK.check(method, "localhost:8000", origin)
    assert not ON_LOOPBACK.allows(origin)


def test_a_server_with_keys_looks_at_neither() -> None:
    WITH_KEYS.check("POST", "evil.example", "http://evil.example")
    assert not WITH_KEYS.allows("http://evil.example")


def test_names_and_origins_are_compared_as_browsers_write_them() -> None:
    assert host_names(["GPU.example.", "10.0.0.1", "::1", "[fd00::1]", "gpu.example"]) == (
        "gpu.example",
        "10.0.0.1",
        "[::1]",
        "[fd00::1]",
    )
    said = [
        "HTTPS://App.example/",
        "http://localhost:3000",
        "https://a.example:443",
        "http://a.example:80",
        "tauri://x",
    ]
    assert origins(said, has_keys=False) == (
        "https://app.example",
        "http://localhost:3000",
        "https://a.example",
        "http://a.example",
        "tauri://x",
    )
    assert origins(["*"], has_keys=True) == ("*",)


@pytest.mark.parametrize(
    "said", ["", "gpu.example:8000", "http://gpu.example", "*", "*.example", "a b", "a/b", "a,b"]
)
def test_a_name_that_is_not_one_is_told(said: str) -> None:
    with pytest.raises(ValueError, match="allowed-host is"):
        host_names([said])


@pytest.mark.parametrize(
    "said",
    ["", "null", "app.example", "https://", "https://a/b", "https://a?b", "https://u@a", "*"],
)
def test_an_origin_that_is_not_one_is_told(said: str) -> None:
    with pytest.raises(ValueError, match="allowed-origin is"):
        origins([said], has_keys=False)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (b"application/json", True),
        (b"Application/JSON; charset=utf-8", True),
        (b"application/vnd.api+json", True),
        (b"", True),
        (b"text/plain", False),
        (b"application/x-www-form-urlencoded", False),
        (b"multipart/form-data; boundary=x", False),
        (b"application/jsonp", False),
        (b"text/plain; application/json", False),
        (b"\xff", False),
    ],
)
def test_a_body_is_json_where_it_does_not_say_otherwise(said: bytes, right: bool) -> None:
    for framing in ({b"content-length": b"5"}, {b"transfer-encoding": b"chunked"}):
        headers = {b"content-type": said, **framing}
        if right:
            check_media_type(headers)
        else:
            with pytest.raises(MediaTypeError, match="Only 'application/json' is allowed"):
                check_media_type(headers)
    check_media_type({b"content-type": said, b"content-length": b"0"})
    check_media_type({b"content-type": said})


def test_an_upload_is_a_form() -> None:
    check_media_type(
        {b"content-type": b"Multipart/form-data; boundary=x", b"content-length": b"5"}, form=True
    )
    with pytest.raises(
        MediaTypeError, match="Only 'multipart/form-data' is allowed, not 'application/json'"
    ):
        check_media_type({b"content-type": b"application/json", b"content-length": b"5"}, form=True)
