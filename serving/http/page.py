"""The web page at `/`: its files, read once and served unchanged, under a policy that lets a
browser load nothing else.

Starlette's `StaticFiles` is not used: it derives entity tags from file times and sizes, which
differ between machines and may agree between versions, and it takes media types from the machine's
tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from serving.http.routing import Route

FOLDER = Path(__file__).resolve().parent / "page"
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# The page shows model output and documents of others: even if it had a mistake, nothing of theirs
# may run or be fetched.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_routes(folder: Path = FOLDER) -> list[Route]:
    """Routes to the files of a folder: `index.html` is `/`, every other file `/page/PATH`.

    They need no API key: the page asks for one itself.
    """
    return [
        Route(
            "GET",
            "/" if file.name == "index.html" else f"/page/{file.relative_to(folder).as_posix()}",
            _endpoint(file),
            needs_key=False,
        )
        for file in sorted(folder.rglob("*"))
        if file.suffix in _TYPES
    ]


def _endpoint(file: Path) -> Callable[[Request], Awaitable[Response]]:
    content, media_type = file.read_bytes(), _TYPES[file.suffix]
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {
        "etag": etag,
        "cache-control": "no-cache",
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }

    async def endpoint(request: Request) -> Response:
        if _is_current(request, etag):
            return Response(status_code=304, headers=headers, media_type=media_type)
        # Also for HEAD: the web server sends only the headers, and takes the length from here.
        return Response(content, headers=headers, media_type=media_type)

    return endpoint


def _is_current(request: Request, etag: str) -> bool:
    """Whether the client already has this version of the file."""
    tags = ",".join(request.headers.getlist("if-none-match")).split(",")
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in tags)
