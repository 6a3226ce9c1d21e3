"""Browser policy: the Host and Origin that a request may have, and the origins whose pages may read
responses.

A server without keys serves everyone who can reach it, and a web page can make its visitor's
browser reach servers on the visitor's own machine: under a host name that resolves to 127.0.0.1
(DNS rebinding), or across origins by a request that needs no permission. The browser names both in
`Host` and `Origin`, which no page can forge. A server with keys checks neither, since no page knows
a key.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import HostError, MediaTypeError, OriginError, SettingsError
from serving.http.routing import JSON

ANY = "*"
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_EXPOSED_HEADERS = (
    "Compute-Spent",
    "Server-Timing",
    "X-Request-Id",
    "Retry-After",
    "X-Should-Retry",
)
_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^][:/?#@\s,]+)(?::([0-9]{0,5}))?", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


@dataclass(frozen=True)
class BrowserPolicy:
    """The rules of one server.

    Attributes:
        bind_address: address that the server listens on.
        hosts: further host names of the server.
        origins: origins of the web pages that may use the server; "*" for any.
        has_keys: whether requests need an API key.
    """

    bind_address: str
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    has_keys: bool = False

    def check(self, method: str, host: str | None, origin: str | None) -> None:
        """Refuse a request that an unknown web page may have made.

        Args:
            method: HTTP method.
            host, origin: values of the headers; None without the header, which every browser sends.

        Raises:
            HostError: the host is not one of the server's own.
            OriginError: the method is unsafe and the origin is not allowed.
        """
        if self.has_keys:
            return
        if host and not self._is_own_host(host):
            raise HostError(
                f"host {host[:100]!r} is not allowed, since this server has no API keys; start "
                "it with --allowed-host and that name, or with keys"
            )
        if (
            origin is None
            or method in _SAFE_METHODS
            or self.allows(origin)
            or _is_same_origin(origin, host or "")
        ):
            return
        raise OriginError(
            f"pages of {origin[:100]!r} may not send this request, because this server has no API "
            "keys; start it with --allowed-origin and that origin, or with keys"
        )

    def allows(self, origin: str | None) -> bool:
        """Whether pages of this origin may read responses."""
        return origin is not None and (ANY in self.origins or origin in self.origins)

    def with_cors(self, app: ASGIApp) -> ASGIApp:
        """The application with CORS for pages of the allowed origins, preflight requests included.

        Args:
            app: answers every other request, an OPTIONS request of another origin among them.
        """
        if not self.origins:
            return app
        cors = CORSMiddleware(
            app,
            allow_origins=self.origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=_EXPOSED_HEADERS,
            # An allowed page may be on the internet and the server on its visitor's machine.
            allow_private_network=True,
        )

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            allowed = scope["method"] != "OPTIONS" or self.allows(
                Headers(scope=scope).get("origin", "")
            )
            await (cors if allowed else app)(scope, receive, send)

        return answer

    def _is_own_host(self, host: str) -> bool:
        match = _AUTHORITY.fullmatch(host.strip())
        if match is None:
            return False
        name = match[1].lower().removesuffix(".")
        if name in self.hosts or name == self.bind_address.lower():
            return True
        address = _address(name)
        if address is not None:
            return (
                address.is_loopback
                or self._listens_on_any_address
                or address == _address(self.bind_address)
            )
        if name == "localhost" or name.endswith(".localhost"):
            return True
        return not _is_loopback(self.bind_address) and name in _machine_names()

    @property
    def _listens_on_any_address(self) -> bool:
        """Whether every address in `Host` is the server's own. An address, unlike a name, cannot be
        rebound.
        """
        address = _address(self.bind_address)
        return address.is_unspecified if address else not _is_loopback(self.bind_address)


def parse_hosts(values: Iterable[str]) -> tuple[str, ...]:
    """Values of the setting `allowed-host`, normalised for comparison.

    Raises:
        SettingsError: a value is not a host name or address.
    """
    names = []
    for value in values:
        is_bare_ipv6 = value[:1] != "[" and ":" in value and _address(value) is not None
        match = _AUTHORITY.fullmatch(f"[{value}]" if is_bare_ipv6 else value)
        if match is None or match[2] is not None or ANY in value:
            raise SettingsError(
                f"invalid allowed-host {value!r}: give a name or an address without a port, such "
                "as gpu.example"
            )
        names.append(match[1].lower().removesuffix("."))
    return tuple(dict.fromkeys(names))


def parse_origins(values: Iterable[str], has_keys: bool) -> tuple[str, ...]:
    """Values of the setting `allowed-origin`, as browsers write them.

    Raises:
        SettingsError: a value is not an origin, or it is "*" on a server without keys.
    """
    origins = []
    for value in values:
        if value == ANY:
            if not has_keys:
                raise SettingsError(
                    "allowed-origin * lets every web page that is opened in this network use this "
                    "server; name the origins, or also set api-key or api-key-file"
                )
            origins.append(ANY)
            continue
        parts = urlsplit(value.lower())
        match = _AUTHORITY.fullmatch(parts.netloc)
        if (
            match is None
            or not _SCHEME.fullmatch(parts.scheme)
            or parts.path.strip("/")
            or parts.query
            or parts.fragment
        ):
            raise SettingsError(
                f"invalid allowed-origin {value!r}: give the scheme, host and port of a page, such "
                "as https://app.example or http://localhost:3000"
            )
        port = f":{int(match[2])}" if match[2] and int(match[2]) != _PORTS.get(parts.scheme) else ""
        origins.append(f"{parts.scheme}://{match[1]}{port}")
    return tuple(dict.fromkeys(origins))


def has_body(headers: Headers) -> bool:
    """Whether a request with these headers has a body."""
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def check_media_type(headers: Headers, expected: str) -> None:
    """Refuse a body of another media type. Any page may send a form or plain text to any server,
    but JSON only to a server that permits it.

    Args:
        headers: headers of a request.
        expected: `serving.http.routing.JSON` or `FORM`.

    Raises:
        MediaTypeError: the request has a body and names another media type.
    """
    content_type = headers.get("content-type", "")
    media_type = content_type.split(";")[0].strip().lower()
    matches = media_type == expected or (expected == JSON and media_type.endswith("+json"))
    if has_body(headers) and media_type and not matches:
        raise MediaTypeError(
            f"Unsupported Media Type: Only {expected!r} is allowed, not {content_type[:100]!r}"
        )


def _is_same_origin(origin: str, host: str) -> bool:
    """Whether a page of this origin came from this host: the same name and port, whatever the
    scheme, since TLS may end at a proxy.
    """
    page = urlsplit(origin.lower())
    match, own = _AUTHORITY.fullmatch(page.netloc), _AUTHORITY.fullmatch(host.strip().lower())
    if match is None or own is None or page.scheme not in _PORTS:
        return False
    default = _PORTS[page.scheme]
    return match[1] == own[1] and int(match[2] or default) == int(own[2] or default)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _machine_names() -> set[str]:
    name = socket.gethostname().lower()
    short = name.split(".")[0]
    return {name, short, f"{short}.local"}
