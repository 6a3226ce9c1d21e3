"""A client's view of a server: streams in pieces of any size, what is told beside the answer, and
what goes wrong.
"""

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
    TextDelta,
    Told,
    read_events,
)
from tests.serving.replay import CHAT, FIRST, REPORT, Replay, events, spoken

_TOLD: list[Told] = [
    AdaptationProgress("adapting"),
    AdaptationProgress(
        "adapting: step 2 of 50, loss of the prompt 2.291, sigma 0.700, 58.8 seconds left"
    ),
    Report(REPORT),
    TextDelta("Hel"),
    TextDelta("lo\tthere\u2028you"),
]


def ask(url: str, key: str | None = None) -> list[Told]:
    with closing(Server(url, key)) as server:
        return list(server.ask("chat/completions", {"model": "nano"}))


@given(st.lists(st.integers(0, len(b"".join(CHAT)))))
def test_a_stream_says_the_same_wherever_it_is_cut(cuts: list[int]) -> None:
    body = b"".join(CHAT)
    edges = [0, *sorted(cuts), len(body)]

    pieces = [body[start:end] for start, end in itertools.pairwise(edges)]

    assert list(read_events(pieces)) == _TOLD


def test_lines_may_end_as_in_any_event_stream() -> None:
    assert list(read_events([b"".join(CHAT).replace(b"\n", b"\r\n")])) == _TOLD


def test_a_completion_has_its_text_elsewhere() -> None:
    body = events(
        {"choices": [{"index": 0, "text": "x = 1"}]}, {"choices": [{"index": 0, "text": ""}]}
    )

    assert list(read_events(body)) == [TextDelta("x = 1")]


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
def test_a_stream_that_fails_says_why_on_one_line(body: tuple[bytes, ...], message: str) -> None:
    with pytest.raises(AnswerError, match=message) as caught:
        list(read_events(body))

    assert str(caught.value).isprintable()


def test_an_answer_comes_over_http(replay: Replay) -> None:
    assert ask(replay.url) == _TOLD
    assert replay.asked == [("chat/completions", {"model": "nano", "stream": True})]


def test_a_slash_at_the_end_of_the_url_is_none(replay: Replay) -> None:
    assert ask(f"{replay.url}/") == _TOLD


def test_an_answer_arrives_piece_by_piece(replay: Replay) -> None:
    replay.plays = (*events(FIRST, *spoken("Hel"))[:-1], 60.0)

    with (
        closing(Server(replay.url)) as server,
        closing(server.ask("chat/completions", {})) as answer,
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
        (JSONResponse({"error": "Unauthorized"}, 401), "wants an API key .* MAYFLY_API_KEY"),
        (PlainTextResponse("secret inner", 503), "/v1/[a-z/]+ answers 503 Service Unavailable$"),
        (JSONResponse(["what"], 404), "answers 404 Not Found$"),
    ],
)
def test_a_refusal_is_one_line(replay: Replay, refusal: Response, message: str) -> None:
    replay.refuses = refusal

    with pytest.raises(AnswerError, match=message):
        ask(replay.url)
    with pytest.raises(AnswerError, match=message), closing(Server(replay.url)) as server:
        server.first_model()


@pytest.mark.parametrize(
    "reply", [PlainTextResponse("<html>"), JSONResponse({"data": []}), JSONResponse([])]
)
def test_what_is_no_openai_api_is_said_to_be_none(replay: Replay, reply: Response) -> None:
    replay.refuses = reply

    with pytest.raises(AnswerError, match="lists no model"), closing(Server(replay.url)) as server:
        server.first_model()


def test_a_server_that_is_not_there_is_to_be_started() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"

    with pytest.raises(AnswerError, match=f"no server at {url}: start one with `mayfly serve`"):
        ask(url)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", ""])
def test_what_is_no_url_is_said_to_be_none(url: str) -> None:
    with pytest.raises(AnswerError, match="is no URL"):
        ask(url)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/models", "/v1/chat/completions"])
def test_the_url_of_a_server_or_of_its_api_does(replay: Replay, path: str) -> None:
    url = f"{replay.url.removesuffix('/v1')}{path}"

    with closing(Server(url)) as server:
        assert server.first_model() == "nano"
        assert list(server.ask("chat/completions", {"model": "nano"})) == _TOLD
    assert ask(url) == _TOLD  # also where nobody asked for the model first


def test_an_api_under_a_path_of_its_own_is_found(replay: Replay) -> None:
    for url in (
        f"{replay.url.removesuffix('/v1')}/behind/a/proxy",
        f"{replay.url.removesuffix('/v1')}/plain/api",
    ):
        with closing(Server(url)) as server:
            assert server.first_model() == "nano"
            assert list(server.ask("chat/completions", {"model": "nano"})) == _TOLD


@pytest.mark.parametrize(
    "line", [b"data: {not json\n\n", b"data: 5\n\n", b'data: {"choices": [5]}\n\n']
)
def test_a_stream_that_is_none_is_said_to_be_none(line: bytes) -> None:
    with pytest.raises(AnswerError, match="no answer of OpenAI's API: check --url"):
        list(read_events([line]))


def test_what_no_request_can_hold_is_told(replay: Replay) -> None:
    with pytest.raises(AnswerError, match="the API key has characters that no header can hold"):
        Server(replay.url, "schlüssel")
    with (
        pytest.raises(AnswerError, match="not Unicode text"),
        closing(Server(replay.url)) as server,
    ):
        list(server.ask("completions", {"prompt": "half \udcff"}))
