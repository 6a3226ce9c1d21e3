"""A running server, asked: one answer as it streams in, as progress, report and pieces of text.

Knows as much of the OpenAI protocol as the stream of a chat or a completion needs, and what Mayfly
adds to it. Knows no terminal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.errors import MayflyError

if TYPE_CHECKING:
    import httpx

_PATIENCE, _TO_CONNECT = 600.0, 10.0  # seconds; an adaptation may be silent for a minute and more
_ROUTE = re.compile(r"/(models|chat/completions|completions|responses)/*$")


class AnswerError(MayflyError):
    """No answer, or not all of it; the message says what to do."""


@dataclass(frozen=True)
class AdaptationProgress:
    """How far the adaptation is, in the server's words."""

    words: str


@dataclass(frozen=True)
class Report:
    """What the adaptation was, as `serving.report.AdaptationReport.as_dict` tells it."""

    facts: dict[str, Any]


@dataclass(frozen=True)
class TextDelta:
    """Some of the answer."""

    text: str


Told = AdaptationProgress | Report | TextDelta


class Server:
    """A server, by its URL or that of its API, which ends in /v1; close it after use.

    Raises:
        AnswerError: a key that no header can hold.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        import httpx

        headers = {"Authorization": f"Bearer {key.strip()}"} if key else {}
        if not "".join(headers.values()).isascii():
            raise AnswerError(
                "the API key has characters that no header can hold: check MAYFLY_API_KEY, or --key"
            )
        self._given = _ROUTE.sub("", url.strip()).rstrip("/")
        self._api = self._given if self._given.endswith("/v1") else None
        self._http = httpx.Client(
            headers=headers, timeout=httpx.Timeout(_PATIENCE, connect=_TO_CONNECT)
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def first_model(self) -> str:
        """The first of the models that the server lists.

        Raises:
            AnswerError: no server there, or none that lists a model.
        """
        reply = self._models()
        if reply.status_code != 200:
            raise _refused(reply)
        try:
            return str(reply.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as problem:
            raise AnswerError(
                f"{self._url} lists no model: is it the URL of an OpenAI API, ending in /v1?"
            ) from problem

    @property
    def _url(self) -> str:
        return self._api or self._given

    def _models(self) -> httpx.Response:
        """The list of models; where the URL does not end in /v1, that is tried first, and then the
        URL as it is.
        """
        import httpx

        reply = None
        for base in [self._api] if self._api else [f"{self._given}/v1", self._given]:
            try:
                reply = self._http.get(f"{base}/models")
            except (httpx.HTTPError, httpx.InvalidURL) as problem:
                raise self._unanswered(problem) from problem
            if reply.status_code not in (404, 405):
                self._api = base
                break
        assert reply is not None, "there is a URL at least"
        return reply

    def ask(self, path: str, body: dict[str, Any]) -> Generator[Told, None, None]:
        """Stream the answer to a body that goes to a path such as "chat/completions".

        Raises:
            AnswerError: no server there, a refusal, or an answer that broke off.
        """
        import httpx

        if self._api is None:
            self._models()
        try:
            content = json.dumps({**body, "stream": True}, ensure_ascii=False).encode()
        except UnicodeEncodeError as problem:
            raise AnswerError(
                "the prompt is not Unicode text: it holds bytes that are not UTF-8"
            ) from problem
        headers = {"Content-Type": "application/json"}
        try:
            with self._http.stream(
                "POST", f"{self._url}/{path}", content=content, headers=headers
            ) as reply:
                if reply.status_code != 200:
                    reply.read()
                    raise _refused(reply)
                yield from read_events(reply.iter_bytes())
        except (httpx.HTTPError, httpx.InvalidURL) as problem:
            raise self._unanswered(problem) from problem

    def _unanswered(self, problem: Exception) -> AnswerError:
        import httpx

        if isinstance(problem, (httpx.ConnectError, httpx.ConnectTimeout)):
            return AnswerError(
                f"no server at {self._url}: start one with `mayfly serve`, or name another with --url"
            )
        if isinstance(problem, (httpx.InvalidURL, httpx.UnsupportedProtocol)):
            return AnswerError(
                f"{self._url!r} is no URL: --url takes one such as http://127.0.0.1:8000/v1"
            )
        return AnswerError(f"the answer broke off: {problem}")


def read_events(body: Iterable[bytes]) -> Iterator[Told]:
    """What the stream of a chat or a completion says, from the pieces of its body.

    Raises:
        AnswerError: the stream tells an error, or stops before its end.
    """
    for line in _lines(body):
        if line.startswith(":"):
            yield AdaptationProgress(line[1:].strip())
        elif line == "data: [DONE]":
            return
        elif line.startswith("data:"):
            try:
                said = list(_read_chunk(json.loads(line[5:])))
            except (ValueError, TypeError, LookupError, AttributeError) as problem:
                raise AnswerError(
                    "the server streams what is no answer of OpenAI's API: check --url"
                ) from problem
            yield from said
    raise AnswerError("the answer broke off; the server's log may say why")


def _lines(body: Iterable[bytes]) -> Iterator[str]:
    # Not httpx's iter_lines: it breaks lines at characters that JSON may hold as they are, such as
    # U+2028.
    held = b""
    for piece in body:
        *lines, held = (held + piece).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r").decode(errors="replace")


def _read_chunk(chunk: dict[str, Any]) -> Iterator[Report | TextDelta]:
    if "error" in chunk:
        raise AnswerError(_message(chunk) or "the server failed to answer; its log says why")
    if "adaptation" in chunk:
        yield Report(chunk["adaptation"])
    for choice in chunk.get("choices", []):
        text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
        if text:
            yield TextDelta(text)


def _refused(reply: httpx.Response) -> AnswerError:
    if reply.status_code == 401:
        return AnswerError(
            "the server wants an API key that it knows: set MAYFLY_API_KEY, or give --key"
        )
    try:
        message = _message(reply.json())
    except ValueError:
        message = None
    return AnswerError(message or f"{reply.url} answers {reply.status_code} {reply.reason_phrase}")


def _message(told: Any) -> str | None:
    """Of OpenAI's error object, on one line, without what could steer a terminal."""
    error = told.get("error") if isinstance(told, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return (
        "".join(filter(str.isprintable, " ".join(message.split())))
        if isinstance(message, str)
        else None
    )
