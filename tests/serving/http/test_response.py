"""ResponseWriter: the report in the first event, chunks conformed, the rest unchanged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.types import Message

from serving.errors import AdaptationFailedError, DownError, RequestError
from serving.http import response
from serving.http.response import ResponseWriter
from serving.report import AdaptationReport, Stage
from tests.serving.reports import REPORT

LOGPROBS = {"content": [{"token": "ü", "logprob": -0.5, "bytes": [195, 188], "top_logprobs": []}]}


@dataclass
class Adapted:
    """A request's adaptation, ended."""

    report: AdaptationReport | None = REPORT
    problem: Exception | None = None
    progress: str = "adapting"
    stage: Stage = Stage.ANSWER


def chunk(
    logprobs: dict[str, Any] | None = None, of: str = "chat.completion.chunk"
) -> dict[str, Any]:
    return {
        "object": of,
        "choices": [{"index": 0, "delta": {"content": "ü"}, "logprobs": logprobs}],
    }


def event(data: dict[str, Any]) -> bytes:
    """As vLLM writes it, which holds Unicode as it is."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


async def answered(
    pieces: Sequence[bytes], conforms_chunks: bool, model: str | None = None
) -> list[bytes]:
    """What leaves of a stream that comes in these pieces."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    answer = ResponseWriter(
        send, adaptation=Adapted(), conforms_chunks=conforms_chunks, model=model
    )
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await answer({"type": "http.response.start", "status": 200, "headers": headers})
    for piece in pieces:
        await answer({"type": "http.response.body", "body": piece, "more_body": True})
    await answer({"type": "http.response.body", "body": b""})
    return [message["body"] for message in sent[1:]]


def read(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]


class TestComments:
    """Comments of a stream while its adaptation is under way."""

    @pytest.fixture(autouse=True)
    def at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(response, "QUIET_SECONDS", 0.0)
        monkeypatch.setattr(response, "COMMENT_SECONDS", 0.0)

    @staticmethod
    async def sent_after_comments(
        stage: Stage, *messages: Message, is_stream: bool = True
    ) -> list[Message]:
        """What leaves of a response that begins after some comments could be sent."""
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        adapted = Adapted(None, progress="adapting: comparing", stage=stage)
        writer = ResponseWriter(send, adaptation=adapted, is_stream=is_stream)
        commenting = asyncio.create_task(writer.comment())
        for _ in range(8):
            await asyncio.sleep(0)
        adapted.report = REPORT
        commenting.cancel()
        for message in messages:
            await writer(message)
        return sent

    async def test_they_begin_before_the_engine_gets_the_request(self) -> None:
        start = {"type": "http.response.start", **STREAM}
        body = {"type": "http.response.body", "body": event(chunk()), "more_body": True}

        begun, comment, *rest = await self.sent_after_comments(Stage.COMPARE, start, body)

        assert (begun["type"], begun["status"]) == ("http.response.start", 200)
        assert (b"content-type", b"text/event-stream; charset=utf-8") in begun["headers"]
        assert comment["body"] == b": adapting: comparing\n\n"
        assert [message["type"] for message in rest] == ["http.response.body"] * len(rest)
        assert read(rest[-1]["body"])[0]["adaptation"]["stop"] == REPORT.stop

    @pytest.mark.parametrize(("stage", "is_stream"), [(Stage.ANSWER, True), (Stage.COMPARE, False)])
    async def test_a_request_that_may_be_refused_and_a_whole_body_have_none(
        self, stage: Stage, is_stream: bool
    ) -> None:
        assert await self.sent_after_comments(stage, is_stream=is_stream) == []

    async def test_an_error_of_the_engine_after_them_is_an_event(self) -> None:
        start = {"type": "http.response.start", **WHOLE, "status": 400}
        body = {"type": "http.response.body", "body": b'{"error": {"message": "too cold"}}'}

        *_, last = await self.sent_after_comments(Stage.COMPARE, start, body)

        (error,) = read(last["body"])
        assert error["error"]["message"] == "too cold"
        assert not last["more_body"]


async def test_log_probabilities_of_every_chunk_have_a_refusal_of_null() -> None:
    pieces = [
        event(chunk()),
        event(chunk(LOGPROBS)),
        event(chunk(LOGPROBS)) * 2,
        b"data: [DONE]\n\n",
    ]

    body = b"".join(await answered(pieces, conforms_chunks=True))

    first, *rest = read(body)
    assert first == {**chunk(), "adaptation": json.loads(json.dumps(REPORT.as_dict()))}
    assert rest == [chunk({**LOGPROBS, "refusal": None})] * 3
    assert body.endswith(b"\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize("conforms_chunks", [True, False])
async def test_events_sent_together_have_one_report(conforms_chunks: bool) -> None:
    body = b"".join(
        await answered([event(chunk()) + event(chunk()), event(chunk())], conforms_chunks)
    )

    assert [("adaptation" in one) for one in read(body)] == [True, False, False]


async def test_events_that_need_no_change_pass_unchanged() -> None:
    pieces = [event(chunk()), event(chunk(LOGPROBS)), b": a comment\n\n", b"data: [DONE]\n\n"]

    assert (await answered(pieces, conforms_chunks=False))[1:-1] == pieces[1:]


async def test_event_names_and_incomplete_events_pass_unchanged() -> None:
    begun, half = b"event: response.created\n", event(chunk(LOGPROBS))[:20]

    body = b"".join(
        await answered([begun + event({"type": "response.created"}), half], conforms_chunks=True)
    )

    assert body.startswith(begun + b'data: {"type": "response.created", "adaptation": {')
    assert body.endswith(b"\n\n" + half)


async def test_every_chunk_names_the_model_as_the_request_did() -> None:
    created = {"type": "response.created", "response": {"model": "nano", "output": []}}
    pieces = [event({**chunk(), "model": "nano"}), event(created), event(chunk())]

    body = b"".join(await answered(pieces, conforms_chunks=False, model="nano:web"))

    first, second, third = read(body)
    assert (first["model"], second["response"]["model"]) == ("nano:web", "nano:web")
    assert third == chunk()


async def test_a_whole_body_names_the_model_as_the_request_did() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    answer = ResponseWriter(send, adaptation=Adapted(), model="nano:web")
    headers = [(b"content-type", b"application/json")]
    await answer({"type": "http.response.start", "status": 200, "headers": headers})
    await answer({"type": "http.response.body", "body": b'{"model": "nano", "choices": []}'})

    assert json.loads(sent[1]["body"])["model"] == "nano:web"


@pytest.mark.parametrize("status", [500, 503])
async def test_an_error_after_the_engine_has_ended_is_a_503(status: int) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    answer = ResponseWriter(send, lambda: DownError("the engine has ended"))
    await answer(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", b"application/json")],
        }
    )
    await answer(
        {"type": "http.response.body", "body": b'{"error": {"message": "EngineDeadError"}}'}
    )

    assert sent[0]["status"] == 503
    assert (b"retry-after", b"5") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["error"]["message"] == "the engine has ended"


async def test_a_client_error_stays_one_while_the_engine_is_replaced() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await ResponseWriter(send, lambda: DownError("the engine has ended")).fail(
        RequestError("no prompt")
    )

    assert (sent[0]["status"], json.loads(sent[1]["body"])["error"]["message"]) == (
        400,
        "no prompt",
    )


async def sent_of(
    start: Message, *pieces: bytes, problem: Exception | None = None
) -> list[Message]:
    """What leaves of an answer of vLLM's that comes in these pieces."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    answer = ResponseWriter(send, adaptation=Adapted(report=None, problem=problem))
    await answer({"type": "http.response.start", **start})
    for piece in pieces:
        await answer({"type": "http.response.body", "body": piece, "more_body": True})
    await answer({"type": "http.response.body", "body": b""})
    return sent


STREAM = {"status": 200, "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}
WHOLE = {"status": 500, "headers": [(b"content-type", b"application/json")]}


@pytest.mark.parametrize(
    ("code", "message"), [(400, "the grammar cannot be compiled"), (500, "its log says why")]
)
async def test_a_stream_that_begins_with_an_error_has_its_status(code: int, message: str) -> None:
    error = {
        "error": {
            "message": "the grammar cannot be compiled",
            "type": "BadRequestError",
            "code": code,
        }
    }

    start, body = await sent_of(STREAM, event(error), b"data: [DONE]\n\n")

    assert start["status"] == code
    assert dict(start["headers"])[b"content-type"] == b"application/json"
    assert message in json.loads(body["body"])["error"]["message"]


@pytest.mark.parametrize(
    ("start", "pieces"),
    [
        (WHOLE, [b'{"error": {"message": "the grammar', b' was refused", "code": 500}}']),
        (STREAM, [event({"error": {"message": "the grammar was refused", "code": 500}})]),
        (
            STREAM,
            [event(chunk()), event({"error": {"message": "the grammar was refused", "code": 500}})],
        ),
    ],
)
async def test_details_of_a_server_error_are_logged_but_not_sent(
    start: Message, pieces: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    await sent_of(start, *pieces)

    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "the grammar was refused" in caplog.text


async def test_why_an_adaptation_failed_is_sent_and_left_to_it_to_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    problem = AdaptationFailedError("no step could end in time")

    _, body = await sent_of(WHOLE, b"{}", problem=problem)

    assert json.loads(body["body"])["error"]["message"] == "no step could end in time"
    assert caplog.text == ""
