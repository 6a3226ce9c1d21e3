"""Routing: an allow-list of Starlette routes. A path that no route matches completely is refused,
so that vLLM's application is reached by the routes of this list and by nothing else.

A request with the method OPTIONS is answered here, without `admit` and so without a key.

Starlette's `Router` is not used: it redirects paths that end in a slash, names in `Allow` the
methods of one route only, answers in plain text, and accepts a newline after a path.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import starlette.routing
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from serving.errors import MethodError, RouteError

JSON, FORM = "application/json", "multipart/form-data"


class Route(starlette.routing.Route):
    """One method of a path.

    Args:
        method: HTTP method; GET includes HEAD.
        path: path pattern of Starlette.
        endpoint: function from a request to a response.
        asgi: ASGI application to use in place of an endpoint.
        needs_key: whether a server that has API keys requires one.
        media_type: media type of request bodies.

    Attributes:
        method, needs_key, media_type: as given.
    """

    def __init__(
        self,
        method: str,
        path: str,
        endpoint: Callable[..., Any] | None = None,
        *,
        asgi: Callable[..., Any] | None = None,
        needs_key: bool = True,
        media_type: str = JSON,
    ) -> None:
        application = endpoint or asgi
        assert application is not None
        super().__init__(path, application, methods=[method])
        if asgi is not None:
            # Starlette would wrap a bound method as a request handler, not as an ASGI application.
            self.app = asgi
        self.method, self.needs_key, self.media_type = method, needs_key, media_type

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether this route answers a request, in full or for another method."""
        # The `$` at the end of Starlette's pattern also matches before a newline.
        if self.path_regex.fullmatch(scope["path"]) is None:
            return Match.NONE, {}
        return super().matches(scope)


class RouteTable:
    """ASGI application of an allow-list of routes.

    Args:
        routes: the first that matches a request answers it.
        admit: awaited with the route and the request before the route is called; returns what is
            added to the `state` of the request, or raises.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        admit: Callable[[Route, Scope], Awaitable[dict[str, Any]]],
    ) -> None:
        self._routes, self._admit = routes, admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI, for HTTP requests.

        Raises:
            RouteError: no route has this path.
            MethodError: no route of this path has this method.
        """
        path, method = scope["path"], scope["method"]
        found = [(route, *route.matches(scope)) for route in self._routes]
        methods = [route.method for route, match, _ in found if match is not Match.NONE]
        if not methods:
            raise RouteError(f"unknown path {path}")
        allowed = (*(["HEAD"] if "GET" in methods else []), *methods, "OPTIONS")
        if method == "OPTIONS":
            response = Response(status_code=204, headers={"allow": ", ".join(allowed)})
            await response(scope, receive, send)
            return
        for route, match, child_scope in found:
            if match is Match.FULL:
                state = {**scope.get("state", {}), **await self._admit(route, scope)}
                await route.app({**scope, **child_scope, "state": state}, receive, send)
                return
        raise MethodError(f"{path} takes {', '.join(allowed)}, not {method}", allowed)


def header(scope: Scope, name: bytes) -> str | None:
    """All lines of a header, joined; Starlette's `Headers.get` returns the first line alone."""
    lines = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return ", ".join(lines) if lines else None
