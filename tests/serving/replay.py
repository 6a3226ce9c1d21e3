"""A real HTTP server that plays recorded answers: for what is tested of a client, and needs no
engine.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

REPORT: dict[str, Any] = {
    "adapted": True,
    "reason": None,
    "prompt_loss": {"before": 2.2912, "after": 1.4242, "at": 4},
    "budget": {"steps": 50, "seconds": 60.0, "alpha": 0.05, "cut": []},
    "degraded": None,
    "spent": {"steps": 5, "seconds": 1.2345},
    "stop": "alpha",
    "uncertainty": [1.0, 0.8123, 0.7, 0.61, 0.55, 0.512],
    "irreducible": 0.3,
    "losses": [2.3456, 2.1, 1.9, 1.8, 1.7654],
    "prompt_losses": [[0, 2.2912], [2, 1.8], [4, 1.4242], [5, 1.5]],
    "sources": [
        {"document": "a", "name": "paths.py", "start": 0, "times": 1},
        {"document": "a", "name": "paths.py", "start": 700, "times": 2},
        {"document": "b", "name": "flow.py", "start": 0, "times": 2},
    ],
    "seconds": {
        "embed": 0.01,
        "search": 0.002,
        "select": 0.001,
        "queue": 0.1,
        "train": 1.0,
        "load": 0.03,
    },
    "corpus": "nx",
    "seed": 0,
    "adapter": "mayfly-1",
}
COMMENTS = (
    b": adapting\n\n",
    b": adapting: step 2 of 50, loss of the prompt 2.291, sigma 0.700, 58.8 seconds left\n\n",
)

Plays = tuple[bytes | float, ...]


def events(*chunks: dict[str, Any]) -> tuple[bytes, ...]:
    """Chunks as vLLM's events, which hold Unicode as it is, and the end of the stream."""
    data = (f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode() for chunk in chunks)
    return (*data, b"data: [DONE]\n\n")


def spoken(*pieces: str) -> list[dict[str, Any]]:
    """The chunks of a chat that says so."""
    return [
        {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
        for piece in pieces
    ]


FIRST = {
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}],
    "adaptation": REPORT,
}
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
CHAT = (*COMMENTS, *events(FIRST, *spoken("Hel", "lo\tthere\u2028you"), USAGE))


class Replay:
    """What it plays may be changed between requests, or depend on the body; a number in it is a
    pause in seconds.
    """

    def __init__(self) -> None:
        self.url = ""
        self.plays: Plays | Callable[[dict[str, Any]], Plays] = CHAT
        self.refuses: Response | None = None
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.keys: list[str | None] = []
        self.left = threading.Event()  # a client went before its answer had ended
        api = [
            Route("/models", self._models),
            Route("/{path:path}", self._answer, methods=["POST"]),
        ]
        places = ("/v1", "/behind/a/proxy/v1", "/plain/api")  # where the API is
        self.app = Starlette(routes=[Mount(place, routes=api) for place in places])

    async def _models(self, request: Request) -> Response:
        self.keys.append(request.headers.get("authorization"))
        return self.refuses or JSONResponse(
            {"object": "list", "data": [{"id": "nano"}, {"id": "other"}]}
        )

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append((request.path_params["path"], body))
        plays = self.plays(body) if callable(self.plays) else self.plays
        return self.refuses or StreamingResponse(self._play(plays), media_type="text/event-stream")

    async def _play(self, plays: Plays) -> AsyncIterator[bytes]:
        try:
            for part in plays:
                if isinstance(part, float):
                    await asyncio.sleep(part)
                else:
                    yield part
        except asyncio.CancelledError:
            self.left.set()
            raise


@contextmanager
def playing() -> Iterator[Replay]:
    """A replay on a free port."""
    replay = Replay()
    server = uvicorn.Server(uvicorn.Config(replay.app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    replay.url = f"http://127.0.0.1:{port}/v1"
    yield replay
    server.should_exit = True
    thread.join()
