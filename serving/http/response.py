"""ResponseWriter: the response of one request: the report and headers added, errors in OpenAI's
shape, progress in the comments of a stream.

It is an ASGI `send`. It knows the form of a response (a JSON body, or a stream of events), not its
content, and of an adaptation only the report, the progress and the problem.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any, Protocol

from starlette.types import Message, Send

from serving.errors import in_openais_shape, more_headers, to_http
from serving.http.body import send_json
from serving.http.openai_compat import conform, with_model
from serving.report import AdaptationReport, Stage

# Seconds before a stream's first comment, which fixes its headers: until then they can still show
# what the adaptation cost.
QUIET_SECONDS = 1.0
# Seconds between comments.
COMMENT_SECONDS = 0.5
# The beginning of a stream that vLLM has not begun yet.
_STREAM: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}
_EVENT_END = b"\n\n"
_ERROR_EVENT = b'data: {"error"'
# Characters of vLLM's own errors in the log.
_MOST_LOGGED = 1000

log = logging.getLogger(__name__)


class Adapting(Protocol):
    """The adaptation of a request, as a response shows it."""

    @property
    def report(self) -> AdaptationReport | None:
        """The report, once the adaptation has ended."""

    @property
    def problem(self) -> Exception | None:
        """Why the request fails; None while it does not."""

    @property
    def progress(self) -> str:
        """The progress, in words."""

    @property
    def stage(self) -> Stage:
        """Where the request is."""


class _State(Enum):
    """How much of the response has been sent."""

    HOLDING = auto()  # nothing
    COMMENTING = auto()  # the headers of a stream, and comments
    PASSING = auto()  # the beginning of vLLM's body
    FAILED = auto()  # an error in its place


class ResponseWriter:
    """Passes vLLM's response on with the report in it, or sends an error in its place.

    Args:
        send: ASGI's.
        failure: why everything fails at present, which is sent in place of any server error.
        adaptation: adaptation of the request; None for a request that has none.
        on_body: called with each part of the body of a response with status 200, as vLLM wrote it.
        is_stream: whether the request asks for a stream. Then its comments need not wait for vLLM,
            which gets the request once it is clear what is shown in its prompt.
        conforms_chunks: whether the chunks of a stream must be conformed to OpenAI's.
        model: name of the model in the request, where vLLM knows it by another one; else None.
    """

    def __init__(
        self,
        send: Send,
        failure: Callable[[], Exception | None] = lambda: None,
        adaptation: Adapting | None = None,
        on_body: Callable[[bytes], None] = lambda body: None,
        is_stream: bool = False,
        conforms_chunks: bool = False,
        model: str | None = None,
    ) -> None:
        self._send, self._failure = send, failure
        self._adaptation, self._on_body = adaptation, on_body
        self._is_stream, self._conforms_chunks, self._model = is_stream, conforms_chunks, model
        self._start: Message | None = None
        self._held = b""
        self._state = _State.HOLDING
        self._has_report = False
        self._sending = asyncio.Lock()

    def with_adaptation(
        self,
        adaptation: Adapting,
        on_body: Callable[[bytes], None] = lambda body: None,
        is_stream: bool = False,
        conforms_chunks: bool = False,
        model: str | None = None,
    ) -> ResponseWriter:
        """A writer for the same response, of which nothing has been sent, with an adaptation."""
        return ResponseWriter(
            self._send, self._failure, adaptation, on_body, is_stream, conforms_chunks, model
        )

    async def __call__(self, message: Message) -> None:
        """ASGI send. The body is held until its first event, or its end, is there: by then the
        report is usually known.
        """
        async with self._sending:
            await self._pass(message)

    async def comment(self) -> None:
        """Report the progress in comments while a stream waits for its adaptation."""
        await asyncio.sleep(QUIET_SECONDS)
        while self._state is not _State.FAILED and not self._has_report:
            async with self._sending:
                await self._comment_once()
            await asyncio.sleep(COMMENT_SECONDS)

    async def fail(self, problem: BaseException) -> None:
        """Send an error in place of the response, unless its beginning has been sent; after
        comments the error ends the stream.
        """
        async with self._sending:
            await self._fail(problem)

    async def json(
        self, status: int, content: Any, more: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Send a whole JSON response that is not vLLM's."""
        await send_json(self._send, status, content, more)

    @property
    def _status(self) -> int:
        assert self._start is not None
        status: int = self._start["status"]
        return status

    async def _comment_once(self) -> None:
        if self._adaptation is None:
            return
        if self._start is None:
            # A stage begins once the engine has accepted the prompt.
            if not self._is_stream or self._adaptation.stage is Stage.ANSWER:
                return
        elif not self._is("text/event-stream"):
            return
        if self._state is _State.HOLDING:
            self._state = _State.COMMENTING
            await self._send(self._start or _STREAM)
        if self._state is not _State.FAILED and not self._held and not self._has_report:
            await self._send_body(f": {self._adaptation.progress}\n\n".encode(), more=True)

    async def _pass(self, message: Message) -> None:
        if self._state is _State.FAILED:
            return
        if not message["type"].startswith("http.response."):
            await self._send(message)
        elif message["type"] == "http.response.start":
            self._start = message
        elif self._state is _State.PASSING:
            body = message.get("body", b"")
            self._feed_on_body(body)
            if _ERROR_EVENT in body and self._is("text/event-stream"):
                error = _excerpt(body[body.index(_ERROR_EVENT) :])
                log.error("vLLM ended a stream with an error: %s", error)
            edited = self._edit_events(body)
            await self._send(message if edited is body else {**message, "body": edited})
        elif self._adaptation is not None and (problem := self._adaptation.problem) is not None:
            await self._fail(problem)
        else:
            self._held += message.get("body", b"")
            await self._release(more=message.get("more_body", False))

    async def _release(self, more: bool) -> None:
        """Send what is held with the report in it, once it is a whole JSON body or the first event
        of a stream.
        """
        assert self._start is not None
        is_json, is_stream = self._is("application/json"), self._is("text/event-stream")
        if is_stream and self._held.startswith(_ERROR_EVENT) and _EVENT_END in self._held:
            await self._fail_first(self._held)
            return
        is_error = self._status >= 400
        if more and (is_json or is_error or (is_stream and _EVENT_END not in self._held)):
            return
        if self._status >= 500:
            log.error("vLLM answered %d: %s", self._status, _excerpt(self._held))
            if failure := self._failure():
                await self._fail(failure)
                return
        if is_error and self._state is _State.COMMENTING:
            await self._send_error(
                self._status, in_openais_shape(self._status, _decode(self._held))
            )
            return
        content, self._held = self._held, b""
        headers = [pair for pair in self._start["headers"] if pair[0] != b"content-length"]
        if is_error:
            headers = [pair for pair in headers if pair[0] != b"content-type"]
            headers.append((b"content-type", b"application/json"))
            content = json.dumps(in_openais_shape(self._status, _decode(content))).encode()
        else:
            self._feed_on_body(content)
        report = self._adaptation.report if self._adaptation else None
        if report is not None:
            headers += report.headers()
            if is_json and self._status == 200:
                body = {**conform(json.loads(content)), "adaptation": report.as_dict()}
                content = json.dumps(with_model(body, self._model)).encode()
                self._has_report = True
        if is_stream:
            content = self._edit_events(content)
        if not more and self._status not in (204, 304):
            headers.append((b"content-length", str(len(content)).encode()))
        has_begun, self._state = self._state is _State.COMMENTING, _State.PASSING
        if not has_begun:
            await self._begin(headers)
        await self._send_body(content, more)

    async def _fail_first(self, events: bytes) -> None:
        """Send an error for a stream whose first event is one, with its status if the headers have
        not been sent.
        """
        error = _decode(events.partition(_EVENT_END)[0].removeprefix(b"data: "))
        inner = error.get("error") if isinstance(error, dict) else None
        code = inner.get("code") if isinstance(inner, dict) else None
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
        if status >= 500:
            log.error("vLLM answered %d: %s", status, _excerpt(events))
            if failure := self._failure():
                await self._fail(failure)
                return
        await self._send_error(status, in_openais_shape(status, error))

    async def _fail(self, problem: BaseException) -> None:
        if self._state in (_State.PASSING, _State.FAILED):
            return
        status, content = to_http(problem)
        if status >= 500 and (failure := self._failure()):
            problem = failure
            status, content = to_http(problem)
        await self._send_error(status, content, more_headers(problem))

    async def _send_error(
        self, status: int, content: Any, more: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        has_begun, self._state = self._state is _State.COMMENTING, _State.FAILED
        if has_begun:
            event = b"data: " + json.dumps(content).encode() + _EVENT_END
            await self._send_body(event, more=False)
        else:
            await self.json(status, content, more)

    async def _begin(self, headers: Any) -> None:
        assert self._start is not None
        await self._send({**self._start, "headers": headers})

    async def _send_body(self, body: bytes, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    def _is(self, media: str) -> bool:
        assert self._start is not None
        return bool(
            dict(self._start["headers"]).get(b"content-type", b"").split(b";")[0] == media.encode()
        )

    def _feed_on_body(self, body: bytes) -> None:
        if self._status == 200:
            self._on_body(body)

    def _edit_events(self, events: bytes) -> bytes:
        """Conform and rename the chunks where that is needed, and add the report to the first one
        after it is known.
        """
        report = self._adaptation.report if self._adaptation and not self._has_report else None
        edits_all = self._conforms_chunks or self._model is not None
        if (report is None and not edits_all) or not self._is("text/event-stream"):
            return events
        lines = events.split(b"\n")
        for i, line in enumerate(lines):
            if not line.startswith(b"data: {"):
                continue
            try:
                chunk = json.loads(line.removeprefix(b"data: "))
            # A part of an event: a later event takes the report.
            except ValueError:
                continue
            if self._conforms_chunks:
                conform(chunk)
            if report is not None:
                chunk["adaptation"] = report.as_dict()
                report, self._has_report = None, True
            lines[i] = b"data: " + json.dumps(with_model(chunk, self._model)).encode()
        return b"\n".join(lines)


def _excerpt(content: bytes) -> str:
    return content.decode(errors="replace")[:_MOST_LOGGED]


def _decode(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")
