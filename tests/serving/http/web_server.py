"""A web server on loopback for the tests of one part of the gateway."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from selection.access import OPERATOR
from serving.http.response import ResponseWriter
from serving.http.routing import Route, RouteTable


async def admit_operator(route: Route, scope: Scope) -> dict[str, Any]:
    """The state of every request on a server without keys."""
    return {"principal": OPERATOR}


def application(
    routes: Sequence[Route],
    admit: Callable[[Route, Scope], Awaitable[dict[str, Any]]] = admit_operator,
) -> ASGIApp:
    """Some routes, and errors in OpenAI's shape, as in the gateway."""
    table = RouteTable(routes, admit)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        writer = ResponseWriter(send)
        try:
            await table(scope, receive, writer)
        except Exception as problem:
            await writer.fail(problem)

    return app


@contextmanager
def serve(app: ASGIApp) -> Iterator[str]:
    """URL of a server of this application, which runs in a thread."""
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
