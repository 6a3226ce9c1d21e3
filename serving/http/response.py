"""The way out of one request: headers and report are added, errors told in OpenAI's shape, streams
say their progress.

An ASGI `send`. It knows what an answer looks like (a JSON body, or a stream of events), not what is
in it, and nothing of what an adaptation is but its report, its progress and its problem.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from starlette.types import Message, Send

from serving.errors import in_full, in_openais_shape, is_the_clients, more_headers, to_http
from serving.http.body import send_json
from serving.http.openai_compat import conform
from serving.report import AdaptationReport

# A stream says nothing so long, so that its headers can still tell what the adaptation cost.
QUIET_SECONDS = 1.0
COMMENT_SECONDS = 0.5  # then it says this often how far it is
_EVENT_END = b"\n\n"
_ERROR_EVENT = b'data: {"error"'
_MOST_WORDS = 1000  # of vLLM's, in the log

log = logging.getLogger(__name__)


class Adapting(Protocol):
    """What can be told of a request's adaptation."""

    report: AdaptationReport | None
    problem: Exception | None
    progress: str


class ResponseWriter:
    """Passes vLLM's answer on, the report in it, or puts an error in its place.

    Args:
        send: ASGI's.
        trouble: why anything fails now, told in place of a server's error.
    """

    def __init__(self, send: Send, trouble: Callable[[], Exception | None] = lambda: None) -> None:
        self.adaptation: Adapting | None = None
        # Is given the body of a 200 as vLLM wrote it.
        self.hear: Callable[[bytes], None] | None = None
        self.conforms_chunks = False  # whether those of a stream must be conformed, too
        self.status = 0  # of the answer, once it is known
        self._send, self._trouble = send, trouble
        self._start: Message | None = None
        self._held = b""
        self._state = "holding"  # then, of a slow stream, "commenting"; then "passing" or "failed"
        self._told = False  # the report
        self._sending = asyncio.Lock()

    async def __call__(self, message: Message) -> None:
        """ASGI send. No part of the body leaves before its first whole piece: by then the report is
        mostly known.
        """
        async with self._sending:
            await self._pass(message)

    async def comment(self) -> None:
        """While a stream waits for its adaptation, tell in comments how far that is."""
        await asyncio.sleep(QUIET_SECONDS)
        while self._state != "failed" and not self._told:
            async with self._sending:
                if (
                    self._state == "holding"
                    and self._start is not None
                    and self._is("text/event-stream")
                ):
                    self._state = "commenting"
                    await self._begin(self._start["headers"])
                open_stream = self._state == "commenting" or (
                    self._state == "passing" and self._is("text/event-stream")
                )
                if (
                    open_stream
                    and self.adaptation is not None
                    and not self._held
                    and not self._told
                ):
                    line = f": {self.adaptation.progress}\n\n".encode()
                    await self._send(
                        {"type": "http.response.body", "body": line, "more_body": True}
                    )
            await asyncio.sleep(COMMENT_SECONDS)

    async def fail(self, problem: BaseException) -> None:
        """Answer with an error instead, if nothing of the answer has left yet; a stream that has
        begun ends with it.
        """
        async with self._sending:
            await self._fail(problem)

    async def json(
        self, status: int, content: Any, more: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """A whole JSON answer of our own."""
        self.status = status
        await send_json(self._send, status, content, more)

    async def _pass(self, message: Message) -> None:
        if self._state == "failed":
            return
        if not message["type"].startswith("http.response."):
            await self._send(message)
        elif message["type"] == "http.response.start":
            self._start, self.status = message, message["status"]
        elif self._state == "passing":
            body = message.get("body", b"")
            self._listen(body)
            if _ERROR_EVENT in body and self._is("text/event-stream"):
                log.error(
                    "vLLM ended a stream with an error: %s",
                    _words(body[body.index(_ERROR_EVENT) :]),
                )
            retold = self._retold(body)
            await self._send(message if retold is body else {**message, "body": retold})
        elif self.adaptation is not None and (problem := self.adaptation.problem) is not None:
            if not is_the_clients(problem):
                log.error("the request failed: %s", in_full(problem))
            await self._fail(problem)
        else:
            self._held += message.get("body", b"")
            await self._release(more=message.get("more_body", False))

    async def _release(self, more: bool) -> None:
        """Let go of what is held, the report in it, once it is whole: a JSON body, or the first
        event of a stream.
        """
        assert self._start is not None
        is_json, is_stream = self._is("application/json"), self._is("text/event-stream")
        if is_stream and self._held.startswith(_ERROR_EVENT) and _EVENT_END in self._held:
            await self._fail_first(self._held)
            return
        is_error = self.status >= 400
        if more and (is_json or is_error or (is_stream and _EVENT_END not in self._held)):
            return
        if self.status >= 500:
            log.error("vLLM answered %d: %s", self.status, _words(self._held))
            if trouble := self._trouble():
                await self._fail(trouble)
                return
        content, self._held = self._held, b""
        headers = [pair for pair in self._start["headers"] if pair[0] != b"content-length"]
        if is_error:
            headers = [pair for pair in headers if pair[0] != b"content-type"]
            headers.append((b"content-type", b"application/json"))
            content = json.dumps(in_openais_shape(self.status, _decoded(content))).encode()
        else:
            self._listen(content)
        report = self.adaptation.report if self.adaptation else None
        if report is not None:
            headers += report.headers()
            if is_json and self.status == 200:
                content = json.dumps(
                    {**conform(json.loads(content)), "adaptation": report.as_dict()}
                ).encode()
                self._told = True
        if is_stream:
            content = self._retold(content)
        if not more and self.status not in (204, 304):
            headers.append((b"content-length", str(len(content)).encode()))
        begun, self._state = self._state == "commenting", "passing"
        if not begun:
            await self._begin(headers)
        await self._send({"type": "http.response.body", "body": content, "more_body": more})

    async def _fail_first(self, events: bytes) -> None:
        """A stream whose first event is an error is one from its status on, as long as that has not
        left.
        """
        assert self._start is not None
        error = _decoded(events.partition(_EVENT_END)[0].removeprefix(b"data: "))
        code = (
            error["error"].get("code")
            if isinstance(error, dict) and isinstance(error["error"], dict)
            else None
        )
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
        if status >= 500:
            log.error("vLLM answered %d: %s", status, _words(events))
            if trouble := self._trouble():
                await self._fail(trouble)
                return
        content = in_openais_shape(status, error)
        begun, self._state = self._state == "commenting", "failed"
        if begun:
            event = b"data: " + json.dumps(content).encode() + _EVENT_END
            await self._send({"type": "http.response.body", "body": event, "more_body": False})
        else:
            await self.json(status, content)

    async def _begin(self, headers: Any) -> None:
        assert self._start is not None
        await self._send({**self._start, "headers": headers})

    async def _fail(self, problem: BaseException) -> None:
        if self._state in ("passing", "failed"):
            return
        begun, self._state = self._state == "commenting", "failed"
        status, content = to_http(problem)
        if status >= 500 and (trouble := self._trouble()):
            problem = trouble
            status, content = to_http(problem)
        if begun:
            event = b"data: " + json.dumps(content).encode() + _EVENT_END
            await self._send({"type": "http.response.body", "body": event, "more_body": False})
        else:
            await self.json(status, content, more_headers(problem))

    def _is(self, media: str) -> bool:
        assert self._start is not None
        return bool(
            dict(self._start["headers"]).get(b"content-type", b"").split(b";")[0] == media.encode()
        )

    def _listen(self, body: bytes) -> None:
        if self.hear is not None and self.status == 200:
            self.hear(body)

    def _retold(self, events: bytes) -> bytes:
        """These events of a stream, conformed where that must be, the report in the first after it
        is known.
        """
        report = self.adaptation.report if self.adaptation and not self._told else None
        if (report is None and not self.conforms_chunks) or not self._is("text/event-stream"):
            return events
        lines = events.split(b"\n")
        for i, line in enumerate(lines):
            if not line.startswith(b"data: {"):
                continue
            try:
                chunk = json.loads(line.removeprefix(b"data: "))
            except ValueError:  # not a whole event: for the report a later one will do
                continue
            if self.conforms_chunks:
                conform(chunk)
            if report is not None:
                chunk["adaptation"] = report.as_dict()
                report, self._told = None, True
            lines[i] = b"data: " + json.dumps(chunk).encode()
        return b"\n".join(lines)


def _words(content: bytes) -> str:
    return content.decode(errors="replace")[:_MOST_WORDS]


def _decoded(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")
