"""The client: streams split anywhere, progress and report beside the text, and errors."""

from __future__ import annotations

import itertools
import socket
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse, PlainTextResponse, Response

from serving.client import (
    AdaptationProgress,
    AnswerError,
    Report,
    Server,
    StreamItem,
    TextDelta,
    read_stream,
)
from tests.serving.replay import CHAT, FIRST, REPORT, Replay, events, spoken

_ITEMS: list[StreamItem] = [
    AdaptationProgress("adapting"),
    AdaptationProgress(
        "adapting: step 2 of 50, loss of the prompt 2.291, sigma 0.700, 58.8 seconds left"
    ),
    Report(REPORT),
    TextDelta("Hel"),
    TextDelta("lo\tthere\u2028you"),
]


def stream(url: str, key: str | None = None) -> list[StreamItem]:
    with closing(Server(url, key)) as server:
        return list(server.stream("chat/completions", {"model": "nano"}))


@given(st.lists(st.integers(0, len(b"".join(CHAT)))))
def test_a_stream_may_be_split_anywhere(cuts: list[int]) -> None:
    body = b"".join(CHAT)
    edges = [0, *sorted(cuts), len(body)]

    parts = [body[start:end] for start, end in itertools.pairwise(edges)]

    assert list(read_stream(parts)) == _ITEMS


def test_lines_may_end_with_a_carriage_return() -> None:
    assert list(read_stream([b"".join(CHAT).replace(b"\n", b"\r\n")])) == _ITEMS


def test_the_text_of_a_completion_is_read() -> None:
    body = events(
        {"choices": [{"index": 0, "text": "x = 1"}]}, {"choices": [{"index": 0, "text": ""}]}
    )

    assert list(read_stream(body)) == [TextDelta("x = 1")]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (CHAT[:-1], "broke off"),
        ((), "broke off"),
        (
            (
                b": adapting\n\n",
                b'data: {"error": {"message": "an adapter was\\nrequired \\u001b[2J"}}\n\n',
            ),
            "r was required",
        ),
        ((b'data: {"error": {}}\n\n',), "failed to answer"),
        ((b'data: {"error": "Unauthorized"}\n\n',), "Unauthorized"),
    ],
)
def test_a_failing_stream_gives_the_reason_on_one_line(
    body: tuple[bytes, ...], message: str
) -> None:
    with pytest.raises(AnswerError, match=message) as caught:
        list(read_stream(body))

    assert str(caught.value).isprintable()


def test_a_response_is_streamed_over_http(replay: Replay) -> None:
    assert stream(replay.url) == _ITEMS
    assert replay.asked == [("chat/completions", {"model": "nano", "stream": True})]


def test_a_slash_at_the_end_of_the_url_is_ignored(replay: Replay) -> None:
    assert stream(f"{replay.url}/") == _ITEMS


def test_text_arrives_before_the_response_is_complete(replay: Replay) -> None:
    replay.plays = (*events(FIRST, *spoken("Hel"))[:-1], 60.0)

    with (
        closing(Server(replay.url)) as server,
        closing(server.stream("chat/completions", {})) as answer,
    ):
        assert [next(answer), next(answer)] == [Report(REPORT), TextDelta("Hel")]

    assert replay.left.wait(10)


def test_the_first_model_and_the_key(replay: Replay) -> None:
    for key in ("mf-secret\n", None):
        with closing(Server(replay.url, key)) as server:
            assert server.first_model() == "nano"

    assert replay.keys[-2:] == ["Bearer mf-secret", None]


_ERROR: dict[str, Any] = {
    "message": "compute_budget: steps is a\nwhole number",
    "type": "t",
    "param": None,
    "code": None,
}


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (JSONResponse({"error": _ERROR}, 400), "^compute_budget: steps is a whole number$"),
        (JSONResponse({"error": "Unauthorized"}, 401), "requires an API key: .* MAYFLY_API_KEY"),
        (PlainTextResponse("secret inner", 503), "/v1/[a-z/]+ answers 503 Service Unavailable$"),
        (JSONResponse(["what"], 404), "answers 404 Not Found$"),
    ],
)
def test_a_refusal_is_one_line(replay: Replay, refusal: Response, message: str) -> None:
    replay.refuses = refusal

    with pytest.raises(AnswerError, match=message):
        stream(replay.url)
    with pytest.raises(AnswerError, match=message), closing(Server(replay.url)) as server:
        server.first_model()


@pytest.mark.parametrize(
    "reply", [PlainTextResponse("<html>"), JSONResponse({"data": []}), JSONResponse([])]
)
def test_a_server_without_models_is_refused(replay: Replay, reply: Response) -> None:
    replay.refuses = reply

    with pytest.raises(AnswerError, match="lists no model"), closing(Server(replay.url)) as server:
        server.first_model()


def test_a_missing_server_is_reported_with_how_to_start_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"

    with pytest.raises(AnswerError, match=f"no server at {url}: start one with `mayfly serve`"):
        stream(url)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", ""])
def test_an_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(AnswerError, match="invalid URL"):
        stream(url)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/models", "/v1/chat/completions"])
def test_the_url_may_be_that_of_the_server_or_of_its_api(replay: Replay, path: str) -> None:
    url = f"{replay.url.removesuffix('/v1')}{path}"

    with closing(Server(url)) as server:
        assert server.first_model() == "nano"
        assert list(server.stream("chat/completions", {"model": "nano"})) == _ITEMS
    assert stream(url) == _ITEMS


def test_an_api_below_another_path_is_found(replay: Replay) -> None:
    for url in (
        f"{replay.url.removesuffix('/v1')}/behind/a/proxy",
        f"{replay.url.removesuffix('/v1')}/plain/api",
    ):
        with closing(Server(url)) as server:
            assert server.first_model() == "nano"
            assert list(server.stream("chat/completions", {"model": "nano"})) == _ITEMS


@pytest.mark.parametrize(
    "line", [b"data: {not json\n\n", b"data: 5\n\n", b'data: {"choices": [5]}\n\n']
)
def test_a_stream_of_another_format_is_refused(line: bytes) -> None:
    with pytest.raises(AnswerError, match="not one of OpenAI's API: check --url"):
        list(read_stream([line]))


def test_a_key_or_prompt_that_cannot_be_sent_is_refused(replay: Replay) -> None:
    with pytest.raises(AnswerError, match="the API key has characters that no header may contain"):
        Server(replay.url, "schlüssel")
    with (
        pytest.raises(AnswerError, match="not Unicode text"),
        closing(Server(replay.url)) as server,
    ):
        list(server.stream("completions", {"prompt": "half \udcff"}))
