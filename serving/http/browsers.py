"""Browsers: which Host and which Origin a request may name, and what a page of another site may
read.

A server without keys serves everyone who can reach it, and a web page can have its reader's browser
reach what listens on the reader's own machine: under a name of its own that it points at 127.0.0.1
(DNS rebinding), or across origins by a request that needs no permission. The browser says so in
`Host` and `Origin`, which no page can forge. A server with keys looks at neither, since no page
knows a key. This knows headers, nothing of routes.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from serving.errors import HostError, MediaTypeError, OriginError, SettingsError

ANY = "*"
_SAFE = {"GET", "HEAD", "OPTIONS"}
_READABLE = ("Compute-Spent", "Server-Timing", "X-Request-Id", "Retry-After", "X-Should-Retry")
_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^][:/?#@\s,]+)(?::([0-9]{0,5}))?", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


@dataclass(frozen=True)
class Browsers:
    """The rules of one server.

    Attributes:
        bound: the address that it is bound to.
        hosts: further names that it goes by.
        origins: of the web pages that may use it; "*" for any.
        has_keys: whether requests need an API key.
    """

    bound: str
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    has_keys: bool = False

    def check(self, method: str, host: str | None, origin: str | None) -> None:
        """Whether a request may be answered.

        Args:
            method: of HTTP.
            host, origin: the headers; None where the request has none, as no browser's has.

        Raises:
            HostError, OriginError: it comes from a page that this server does not know.
        """
        if self.has_keys:
            return
        if host and not self._goes_by(host):
            raise HostError(
                f"this server has no API keys and is not known as {host[:100]!r}; start it with --allowed-host and "
                "that name, or with keys"
            )
        if origin is None or method in _SAFE or self.allows(origin) or _is_of(origin, host or ""):
            return
        raise OriginError(
            f"this server has no API keys and pages of {origin[:100]!r} may not change it; start it with "
            "--allowed-origin and that origin"
        )

    def allows(self, origin: str | None) -> bool:
        """Whether pages of this origin may read what is answered."""
        return origin is not None and (ANY in self.origins or origin in self.origins)

    def readable(self, app: ASGIApp) -> ASGIApp:
        """The application, its answers readable by pages of the allowed origins, which are asked
        about beforehand, too.

        Args:
            app: answers every other request, an OPTIONS of other pages among them.
        """
        if not self.origins:
            return app
        told = CORSMiddleware(
            app,
            allow_origins=self.origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=_READABLE,
            # From a page of the internet to a server on this machine: whoever allows the origin
            # means that, too.
            allow_private_network=True,
        )

        async def answer(scope: Any, receive: Any, send: Any) -> None:
            passes = scope["method"] != "OPTIONS" or self.allows(
                dict(scope["headers"]).get(b"origin", b"").decode("latin-1")
            )
            await (told if passes else app)(scope, receive, send)

        return answer

    def _goes_by(self, host: str) -> bool:
        match = _AUTHORITY.fullmatch(host.strip())
        if match is None:
            return False
        name = match[1].lower().removesuffix(".")
        if name in self.hosts or name == self.bound.lower():
            return True
        address = _address(name)
        if address is not None:
            return address.is_loopback or self._is_open or address == _address(self.bound)
        if name == "localhost" or name.endswith(".localhost"):
            return True
        return not _is_loopback(self.bound) and name in _own_names()

    @property
    def _is_open(self) -> bool:
        """Whether it is bound to addresses that are not said one by one. An address cannot be
        rebound as a name can.
        """
        bound = _address(self.bound)
        return bound.is_unspecified if bound is not None else not _is_loopback(self.bound)


def host_names(said: Iterable[str]) -> tuple[str, ...]:
    """Values of the setting `allowed-host`, as they are compared.

    Raises:
        SettingsError: one is not a host name or address.
    """
    names = []
    for each in said:
        match = _AUTHORITY.fullmatch(
            f"[{each}]" if each[:1] != "[" and _address(each) and ":" in each else each
        )
        if match is None or match[2] is not None or ANY in each:
            raise SettingsError(
                f"allowed-host is {each!r}; it needs to be a name or an address without a port, such as gpu.example"
            )
        names.append(match[1].lower().removesuffix("."))
    return tuple(dict.fromkeys(names))


def origins(said: Iterable[str], has_keys: bool) -> tuple[str, ...]:
    """Values of the setting `allowed-origin`, as browsers write them.

    Raises:
        SettingsError: one is not an origin, or it is "*" on a server without keys.
    """
    found = []
    for each in said:
        if each == ANY:
            if not has_keys:
                raise SettingsError(
                    "allowed-origin is *, which lets every web page that somebody here opens use this server; "
                    "name the origins, or use api-key or api-key-file, too"
                )
            found.append(ANY)
            continue
        parts = urlsplit(each.lower())
        match = _AUTHORITY.fullmatch(parts.netloc)
        if (
            match is None
            or not _SCHEME.fullmatch(parts.scheme)
            or parts.path.strip("/")
            or parts.query
            or parts.fragment
        ):
            raise SettingsError(
                f"allowed-origin is {each!r}; it needs to be the scheme, the host and the port of a page, such as "
                "https://app.example or http://localhost:3000"
            )
        port = f":{int(match[2])}" if match[2] and int(match[2]) != _PORTS.get(parts.scheme) else ""
        found.append(f"{parts.scheme}://{match[1]}{port}")
    return tuple(dict.fromkeys(found))


def check_media_type(headers: Mapping[bytes, bytes], form: bool = False) -> None:
    """A page may send a form or plain text to any server unasked, but JSON only to one that lets
    it.

    Args:
        headers: of a request.
        form: whether a form is wanted in place of JSON.

    Raises:
        MediaTypeError: the request has a body that is said to be something else.
    """
    said = headers.get(b"content-type", b"")
    media = said.split(b";")[0].strip().lower()
    has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
    is_json = media == b"application/json" or media.endswith(b"+json")
    if not has_body or not media or (media == b"multipart/form-data" if form else is_json):
        return
    wanted, shown = (
        "multipart/form-data" if form else "application/json",
        said[:100].decode("latin-1"),
    )
    raise MediaTypeError(f"Unsupported Media Type: Only {wanted!r} is allowed, not {shown!r}")


def _is_of(origin: str, host: str) -> bool:
    """Whether a page of this origin came from this host: the same name and port, whatever the
    scheme on the way.
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


def _is_loopback(bound: str) -> bool:
    address = _address(bound)
    return bound.lower() == "localhost" if address is None else address.is_loopback


def _own_names() -> set[str]:
    name = socket.gethostname().lower()
    short = name.split(".")[0]
    return {name, short, f"{short}.local"}
