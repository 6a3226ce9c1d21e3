"""The page at `/`: its files, read once and served as they are, under a policy that lets them load
nothing else.

An ASGI application for `GET /` and `GET /page/NAME`. It knows files and types, nothing of what the
page does; which methods a path takes is the door's to judge.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from serving.errors import RouteError
from serving.http.body import Message, Receive, Send

FOLDER = Path(__file__).resolve().parent / "page"
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
# The page shows model output and strangers' documents: even a mistake of its own must run and fetch
# nothing of theirs.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class _File:
    content: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    etag: bytes


class PageFiles:
    """The files of a folder; `index.html` is `/`, every other is `/page/` and its name.

    Args:
        folder: read once, here.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._files = {
            "/" if file.name == "index.html" else f"/page/{file.name}": _read(file)
            for file in folder.iterdir()
            if file.suffix in _TYPES
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI, for GET and HEAD.

        Raises:
            RouteError: there is no such file.
        """
        file = self._files.get(scope["path"])
        if file is None:
            raise RouteError(f"there is no {scope['path']} here")
        if _has(scope, file.etag):
            await send(
                {"type": "http.response.start", "status": 304, "headers": list(file.headers)}
            )
            await send({"type": "http.response.body", "body": b""})
            return
        headers = [*file.headers, (b"content-length", str(len(file.content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        # Also of a HEAD: the web server leaves the body out, and has its length from here.
        await send({"type": "http.response.body", "body": file.content})


def _read(file: Path) -> _File:
    content = file.read_bytes()
    etag = b'"%s"' % hashlib.sha256(content).hexdigest()[:32].encode()
    headers = (
        (b"content-type", _TYPES[file.suffix]),
        (b"etag", etag),
        (b"cache-control", b"no-cache"),
        (b"content-security-policy", _POLICY),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    )
    return _File(content, headers, etag)


def _has(scope: Message, etag: bytes) -> bool:
    """Whether the client says that it has this version."""
    told = b",".join(value for name, value in scope["headers"] if name == b"if-none-match").split(
        b","
    )
    return any(each.strip().removeprefix(b"W/") in (etag, b"*") for each in told)
