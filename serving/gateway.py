"""The HTTP door: an ASGI layer around vLLM's own OpenAI application.

In: routes by allow-list, the Compute-Budget header, the `adaptation` extension of the body. The request id
(X-Request-Id, in and out) is Ray Serve's.
Out: Compute-Spent and Server-Timing, the report as `adaptation` in the body (of a stream: in its first chunk),
comments in a stream that is slow to begin, and every error of ours in OpenAI's shape. What happens between is
`serving.adaptation`; the OpenAI protocol itself is vLLM's. Vector stores are `serving.vector_stores`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import Any, Protocol

from serving import __version__ as mayfly_version
from serving.adaptation import Adaptation, Selects, Trains
from serving.body import Message, Receive, Send, read_body
from serving.config import Config
from serving.engine import REQUEST, Engine
from serving.errors import MethodError, RouteError, is_the_clients, to_http
from serving.request import read_wish
from serving.vector_stores import Asks, VectorStores

log = logging.getLogger(__name__)

QUIET_SECONDS = 5.0  # a stream says nothing so long, so that its headers can still tell what the adaptation cost
COMMENT_SECONDS = 1.0  # then it says this often how far it is
_EVENT_END = b"\n\n"
_ADAPTED = {"/v1/chat/completions", "/v1/completions"}
_CORPORA = re.compile(r"/v1/(vector_stores|files)(/.*)?", re.DOTALL)
_PLAIN = re.compile(r"/health|/metrics|/v1/models(/.+)?")


class HasCorpora(Selects, Asks, Protocol):
    """Stage 1, and the library of the corpora that it selects from."""


class Gateway:
    """vLLM's application with adaptation, and the vector stores beside it."""

    def __init__(self, engine: Engine, selector: HasCorpora, trainer: Trains, config: Config) -> None:
        self._engine, self._selector, self._trainer, self._config = engine, selector, trainer, config
        self._vector_stores = VectorStores(selector).app
        self._discarding: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._engine.app(scope, receive, send)
            return
        answer = Answer(send)
        try:
            if scope["path"] in _ADAPTED:
                _allow(scope, "POST")
                await self._adapted(scope, receive, answer)
            elif scope["path"] == "/version":
                _allow(scope, "GET")
                await answer.json(200, {"version": mayfly_version, "vllm": self._engine.version})
            elif _CORPORA.fullmatch(scope["path"]):
                await self._vector_stores(scope, receive, answer)
            elif _PLAIN.fullmatch(scope["path"]):
                _allow(scope, "GET")
                await self._engine.app(scope, receive, answer)
            else:
                raise RouteError(f"there is no {scope['path']} here")
        except Exception as problem:
            if not is_the_clients(problem):
                log.exception("a request failed")
            await answer.fail(problem)

    async def _adapted(self, scope: Message, receive: Receive, answer: Answer) -> None:
        body = await read_body(receive)
        wish = read_wish(body, _header(scope, b"compute-budget"), self._config, self._engine.tokenizer)
        adaptation = Adaptation(wish, self._selector, self._trainer, self._engine)
        answer.adaptation = adaptation
        content = json.dumps(body).encode()
        scope = {**scope, "headers": _with_length(scope["headers"], len(content))}
        token = REQUEST.set(adaptation)
        comments = asyncio.create_task(answer.comment())
        try:
            await self._engine.app(scope, _replay(content, receive), answer)
        finally:
            REQUEST.reset(token)
            comments.cancel()
            # A task of its own: a client that leaves cancels this one.
            task = asyncio.create_task(adaptation.discard())
            self._discarding.add(task)
            task.add_done_callback(self._discarding.discard)
            await asyncio.shield(task)


class Answer:
    """The way out of one request: adds headers and the report, or puts an error in the place of vLLM's answer."""

    def __init__(self, send: Send) -> None:
        self.adaptation: Adaptation | None = None
        self._send = send
        self._start: Message | None = None
        self._held = b""
        self._state = "holding"  # then, of a slow stream, "commenting"; then "passing" or "failed"
        self._sending = asyncio.Lock()

    async def __call__(self, message: Message) -> None:
        """ASGI send. No part of the body leaves before its first whole piece: by then the report is known."""
        async with self._sending:
            await self._pass(message)

    async def comment(self) -> None:
        """While a stream has nothing else to say, tell in comments how far the adaptation is: so nobody times out."""
        await asyncio.sleep(QUIET_SECONDS)
        while self._state in ("holding", "commenting"):
            async with self._sending:
                if self._state == "holding" and self._start is not None and self._is("text/event-stream"):
                    self._state = "commenting"
                    await self._send(self._start)
                if self._state == "commenting" and self.adaptation is not None and not self._held:
                    line = f": {self.adaptation.progress}\n\n".encode()
                    await self._send({"type": "http.response.body", "body": line, "more_body": True})
            await asyncio.sleep(COMMENT_SECONDS)

    def _is(self, media: str) -> bool:
        assert self._start is not None
        return bool(dict(self._start["headers"]).get(b"content-type", b"").split(b";")[0] == media.encode())

    async def _pass(self, message: Message) -> None:
        if self._state == "failed":
            return
        if self._state == "passing" or not message["type"].startswith("http.response."):
            await self._send(message)
        elif message["type"] == "http.response.start":
            self._start = message
        elif self.adaptation is not None and self.adaptation.problem is not None:
            await self._fail(self.adaptation.problem)
        else:
            self._held += message.get("body", b"")
            await self._release(more=message.get("more_body", False))

    async def _release(self, more: bool) -> None:
        """Let go of what is held, the report in it, once it is whole: a JSON body, or the first event of a stream."""
        assert self._start is not None
        is_json, is_stream = self._is("application/json"), self._is("text/event-stream")
        if more and (is_json or (is_stream and _EVENT_END not in self._held)):
            return
        content = self._held
        report = self.adaptation.report if self.adaptation else None
        headers = [pair for pair in self._start["headers"] if pair[0] != b"content-length"]
        if report is not None:
            headers += report.headers()
            if is_stream:
                content = _report_in_first_event(content, report.as_dict())
            elif is_json and self._start["status"] == 200:
                content = json.dumps({**json.loads(content), "adaptation": report.as_dict()}).encode()
        if not more:
            headers.append((b"content-length", str(len(content)).encode()))
        begun, self._state = self._state == "commenting", "passing"
        if not begun:
            await self._send({**self._start, "headers": headers})
        await self._send({"type": "http.response.body", "body": content, "more_body": more})

    async def fail(self, problem: BaseException) -> None:
        """Answer with an error instead, if nothing of the answer has left yet; a stream that has begun ends with it."""
        async with self._sending:
            await self._fail(problem)

    async def _fail(self, problem: BaseException) -> None:
        if self._state in ("passing", "failed"):
            return
        begun, self._state = self._state == "commenting", "failed"
        status, content = to_http(problem)
        if begun:
            event = b"data: " + json.dumps(content).encode() + _EVENT_END
            await self._send({"type": "http.response.body", "body": event, "more_body": False})
        else:
            await self.json(status, content)

    async def json(self, status: int, content: dict[str, Any]) -> None:
        """A whole JSON answer of our own."""
        body = json.dumps(content).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _replay(content: bytes, receive: Receive) -> Receive:
    pending = [{"type": "http.request", "body": content, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


def _report_in_first_event(events: bytes, report: dict[str, Any]) -> bytes:
    first, separator, rest = events.partition(_EVENT_END)
    if not first.startswith(b"data: {"):
        return events
    chunk = {**json.loads(first[len(b"data: ") :]), "adaptation": report}
    return b"data: " + json.dumps(chunk).encode() + separator + rest


def _header(scope: Message, name: bytes) -> str | None:
    lines = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return ", ".join(lines) if lines else None


def _with_length(headers: Any, length: int) -> list[tuple[bytes, bytes]]:
    kept = [(k, v) for k, v in headers if k not in (b"content-length", b"transfer-encoding")]
    return [*kept, (b"content-length", str(length).encode())]


def _allow(scope: Message, method: str) -> None:
    if scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
        raise MethodError(f"{scope['path']} takes {method}, not {scope['method']}")
