"""Client of a running server: one response as it streams in, as progress, report and text.

It knows of OpenAI's protocol what the stream of a chat or a completion needs, and what Mayfly adds
to it. It does not know the terminal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.errors import MayflyError
from serving.sse import Comment, Event, EventParser

if TYPE_CHECKING:
    import httpx

# Seconds. An adaptation may send nothing for a minute and more.
_READ_TIMEOUT, _CONNECT_TIMEOUT = 600.0, 10.0
_ROUTE = re.compile(r"/(models|chat/completions|completions|responses)/*$")


class AnswerError(MayflyError):
    """No response, or an incomplete one; the message says what to do."""


@dataclass(frozen=True)
class AdaptationProgress:
    """Progress of the adaptation.

    Attributes:
        text: the server's description.
    """

    text: str


@dataclass(frozen=True)
class Report:
    """The report of the adaptation.

    Attributes:
        fields: `serving.report.AdaptationReport.as_dict`.
    """

    fields: dict[str, Any]


@dataclass(frozen=True)
class TextDelta:
    """The next part of the text."""

    text: str


StreamItem = AdaptationProgress | Report | TextDelta


class Server:
    """A server. Close it after use.

    Args:
        url: URL of the server or of its API, which ends in /v1.
        key: API key.

    Raises:
        AnswerError: the key has characters that no header may contain.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        import httpx

        headers = {"Authorization": f"Bearer {key.strip()}"} if key else {}
        if not "".join(headers.values()).isascii():
            raise AnswerError(
                "the API key has characters that no header may contain: check MAYFLY_API_KEY, or "
                "--key"
            )
        self._base_url = _ROUTE.sub("", url.strip()).rstrip("/")
        # URL of the API, once it is known.
        self._api_url = self._base_url if self._base_url.endswith("/v1") else None
        self._http = httpx.Client(
            headers=headers, timeout=httpx.Timeout(_READ_TIMEOUT, connect=_CONNECT_TIMEOUT)
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def first_model(self) -> str:
        """Id of the first model that the server lists.

        Raises:
            AnswerError: no server answers, or it lists no model.
        """
        response = self._models()
        if response.status_code != 200:
            raise _refusal(response)
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as problem:
            raise AnswerError(
                f"{self._url} lists no model: is it the URL of an OpenAI API, ending in /v1?"
            ) from problem

    @property
    def _url(self) -> str:
        return self._api_url or self._base_url

    def _models(self) -> httpx.Response:
        """The list of models. Where the URL does not end in /v1, that is tried first, and then the
        URL itself.
        """
        import httpx

        response = None
        for url in [self._api_url] if self._api_url else [f"{self._base_url}/v1", self._base_url]:
            try:
                response = self._http.get(f"{url}/models")
            except (httpx.HTTPError, httpx.InvalidURL) as problem:
                raise self._failure(problem) from problem
            if response.status_code not in (404, 405):
                self._api_url = url
                break
        assert response is not None, "at least one URL is tried"
        return response

    def stream(self, path: str, body: dict[str, Any]) -> Generator[StreamItem, None, None]:
        """Stream the response to a request.

        Args:
            path: path below the API's URL, such as "chat/completions".
            body: body of the request.

        Raises:
            AnswerError: no server answers, or it refuses the request, or the response breaks off.
        """
        import httpx

        if self._api_url is None:
            self._models()
        try:
            content = json.dumps({**body, "stream": True}, ensure_ascii=False).encode()
        except UnicodeEncodeError as problem:
            raise AnswerError(
                "the prompt is not Unicode text: it contains bytes that are not UTF-8"
            ) from problem
        headers = {"Content-Type": "application/json"}
        try:
            with self._http.stream(
                "POST", f"{self._url}/{path}", content=content, headers=headers
            ) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refusal(response)
                yield from read_stream(response.iter_bytes())
        except (httpx.HTTPError, httpx.InvalidURL) as problem:
            raise self._failure(problem) from problem

    def _failure(self, problem: Exception) -> AnswerError:
        import httpx

        if isinstance(problem, (httpx.ConnectError, httpx.ConnectTimeout)):
            return AnswerError(
                f"no server at {self._url}: start one with `mayfly serve`, or name another with "
                "--url"
            )
        if isinstance(problem, (httpx.InvalidURL, httpx.UnsupportedProtocol)):
            return AnswerError(
                f"invalid URL {self._url!r}: --url takes a URL such as http://127.0.0.1:8000/v1"
            )
        return AnswerError(f"the response broke off: {problem}")


def read_stream(body: Iterable[bytes]) -> Iterator[StreamItem]:
    """The content of a streamed chat or completion.

    Args:
        body: the body, in parts.

    Raises:
        AnswerError: the stream contains an error, or ends early.
    """
    parser = EventParser()
    for content in body:
        for event in parser.feed(content):
            if isinstance(event, Comment):
                yield AdaptationProgress(event.text)
            elif event.data == b"[DONE]":
                return
            else:
                yield from _read_event(event)
    raise AnswerError("the response broke off; the server's log may say why")


def _read_event(event: Event) -> list[Report | TextDelta]:
    try:
        return list(_read_chunk(json.loads(event.data)))
    except (ValueError, TypeError, LookupError, AttributeError) as problem:
        raise AnswerError(
            "the server's stream is not one of OpenAI's API: check --url"
        ) from problem


def _read_chunk(chunk: dict[str, Any]) -> Iterator[Report | TextDelta]:
    if "error" in chunk:
        raise AnswerError(_message(chunk) or "the server failed to answer; its log says why")
    if "adaptation" in chunk:
        yield Report(chunk["adaptation"])
    for choice in chunk.get("choices", []):
        text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
        if text:
            yield TextDelta(text)


def _refusal(response: httpx.Response) -> AnswerError:
    if response.status_code == 401:
        return AnswerError("the server requires an API key: set MAYFLY_API_KEY, or give --key")
    try:
        message = _message(response.json())
    except ValueError:
        message = None
    return AnswerError(
        message or f"{response.url} answers {response.status_code} {response.reason_phrase}"
    )


def _message(body: Any) -> str | None:
    """Message of OpenAI's error object, on one line and without terminal control characters."""
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    if not isinstance(message, str):
        return None
    return "".join(filter(str.isprintable, " ".join(message.split())))
