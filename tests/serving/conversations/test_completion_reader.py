"""CompletionReader: the same messages from a body and from a stream, however split."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.conversations.completion_reader import AssistantMessage, CompletionReader
from serving.http.body import MAX_BODY

# As vLLM 0.32 writes them.
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Grüße, 世界!\n",
                "refusal": None,
                "reasoning": None,
            },
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ],
    "usage": {"prompt_tokens": 3, "total_tokens": 9},
}
CALLS = [
    {
        "id": "call-a",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Bern"}'},
    },
    {"id": "call-b", "type": "function", "function": {"name": "time", "arguments": "{}"}},
]
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "output": [
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {
            "type": "message",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "Let me "},
                {"type": "output_text", "text": "see."},
            ],
        },
        {
            "type": "function_call",
            "call_id": "call-a",
            "name": "weather",
            "arguments": '{"city": "Bern"}',
        },
    ],
}


def body(*choices: dict[str, Any]) -> bytes:
    return json.dumps({"id": "cmpl-1", "object": "text_completion", "choices": choices}).encode()


def stream(*chunks: dict[str, Any], done: bool = True) -> bytes:
    events = [
        b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n" for chunk in chunks
    ]
    return b"".join(events) + (b"data: [DONE]\n\n" if done else b"")


def chunk(index: int = 0, finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    """An event of a chat, or, with `text`, of a completion."""
    choice = fields if "text" in fields else {"delta": fields}
    return {
        "choices": [{"index": index, "logprobs": None, "finish_reason": finish_reason, **choice}]
    }


def read(content: bytes, cuts: tuple[int, ...] = ()) -> tuple[AssistantMessage, ...]:
    """The messages of this content, split at these positions."""
    ears = CompletionReader(MAX_BODY)
    ends = [*sorted(min(cut, len(content)) for cut in cuts), len(content)]
    for start, end in zip([0, *ends], ends, strict=False):
        ears.feed(content[start:end])
    return ears.answers()


class TestBodies:
    def test_a_chat(self) -> None:
        assert read(json.dumps(CHAT).encode()) == (AssistantMessage("Grüße, 世界!\n"),)

    def test_a_completion_of_two_choices(self) -> None:
        content = body(
            {"index": 1, "text": " b", "finish_reason": "length"},
            {"index": 0, "text": " a", "finish_reason": "stop"},
        )

        assert read(content) == (AssistantMessage(" a"), AssistantMessage(" b"))

    def test_tool_calls_without_a_text(self) -> None:
        message = {"role": "assistant", "content": None, "tool_calls": CALLS}
        content = body({"index": 0, "message": message, "finish_reason": "tool_calls"})

        expected = AssistantMessage("", (("weather", '{"city": "Bern"}'), ("time", "{}")))
        assert read(content) == (expected,)

    def test_a_response(self) -> None:
        assert read(json.dumps(RESPONSE).encode()) == (
            AssistantMessage("Let me see.", (("weather", '{"city": "Bern"}'),)),
        )

    def test_reading_the_answers_twice_gives_the_same(self) -> None:
        ears = CompletionReader(MAX_BODY)
        ears.feed(json.dumps(CHAT).encode())

        assert ears.answers() == ears.answers() == (AssistantMessage("Grüße, 世界!\n"),)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b"\xff",
            b'{"error": {"message": "no"}}',
            b'{"choices": null}',
            b"[" * 100_000,
        ],
    )
    def test_an_invalid_body_has_no_messages(self, content: bytes) -> None:
        assert read(content) == ()


class TestStreams:
    def test_a_chat_with_comments_before_it_and_its_report_in_the_first_event(self) -> None:
        events = stream(
            chunk(role="assistant", content="") | {"adaptation": {"adapted": True}},
            chunk(content="Grüße, "),
            chunk(content="世界!\n"),
            chunk(finish_reason="stop"),
            {"choices": [], "usage": {"total_tokens": 9}},
        )

        assert read(b": adapting: step 1 of 2\n\n" + events) == (
            AssistantMessage("Grüße, 世界!\n"),
        )

    def test_choices_that_take_turns(self) -> None:
        events = stream(
            chunk(0, text="a"),
            chunk(1, text="x"),
            chunk(1, text="y", finish_reason="length"),
            chunk(0, text="b", finish_reason="stop"),
        )

        assert read(events) == (AssistantMessage("ab"), AssistantMessage("xy"))

    def test_tool_calls_come_in_parts(self) -> None:
        first, second = {"name": "weather", "arguments": ""}, {"name": "time", "arguments": "{}"}
        events = stream(
            chunk(role="assistant", content="Let me see."),
            chunk(tool_calls=[{"index": 0, "id": "call-a", "type": "function", "function": first}]),
            chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"city": '}}]),
            chunk(tool_calls=[{"index": 0, "function": {"arguments": '"Bern"}'}}]),
            chunk(
                tool_calls=[{"index": 1, "id": "call-b", "type": "function", "function": second}]
            ),
            chunk(finish_reason="tool_calls"),
        )

        assert read(events) == (
            AssistantMessage("Let me see.", (("weather", '{"city": "Bern"}'), ("time", "{}"))),
        )

    def test_a_streamed_response_is_whole_at_its_end(self) -> None:
        events: list[dict[str, Any]] = [
            {
                "type": "response.created",
                "response": {**RESPONSE, "status": "in_progress", "output": []},
            },
            {"type": "response.output_text.delta", "delta": "Let me "},
            {"type": "response.completed", "response": RESPONSE},
        ]
        content = [
            f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events
        ]

        assert read(b"".join(content)) == read(json.dumps(RESPONSE).encode())
        assert read(b"".join(content[:2])) == ()

    def test_a_stream_that_breaks_off_has_no_messages(self) -> None:
        whole = stream(chunk(text="a"), chunk(text="b", finish_reason="stop"))

        assert read(whole) == (AssistantMessage("ab"),)
        for length in range(len(whole) - len(b"\n\n")):
            assert read(whole[:length]) == ()

    def test_a_stream_that_fails_has_no_messages(self) -> None:
        error = {"error": {"message": "the engine died", "type": "server_error"}}

        assert read(stream(chunk(0, text="a", finish_reason="stop"), error)) == ()

    @pytest.mark.parametrize("end", ["abort", "error", None])
    def test_an_aborted_choice_is_left_out(self, end: str | None) -> None:
        events = stream(
            chunk(0, text="a", finish_reason="stop"), chunk(1, text="b", finish_reason=end)
        )

        assert read(events) == (AssistantMessage("a"),)

    def test_an_empty_choice_is_left_out(self) -> None:
        assert read(stream(chunk(role="assistant", content=""), chunk(finish_reason="stop"))) == ()


@pytest.mark.parametrize("is_stream", [True, False])
def test_nothing_is_buffered_of_a_response_beyond_the_limit(is_stream: bool) -> None:
    choice = {"index": 0, "text": "a" * 100, "finish_reason": "stop"}
    content = stream({"choices": [choice]}) if is_stream else body(choice)
    for most, expected in ((len(content), (AssistantMessage("a" * 100),)), (len(content) - 1, ())):
        ears = CompletionReader(most)

        for byte in content:
            ears.feed(bytes([byte]))

        assert ears.answers() == expected


_TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=5), min_size=1, max_size=4)


@given(
    st.lists(_TEXTS, min_size=1, max_size=3),
    st.lists(st.integers(0, 600), max_size=6),
    st.booleans(),
)
def test_a_stream_has_the_messages_of_the_body_however_it_is_split(
    answers: list[list[str]], cuts: list[int], is_chat: bool
) -> None:
    name = "content" if is_chat else "text"
    pieces = [chunk(i, **{name: text}) for i, texts in enumerate(answers) for text in texts]
    ends = [chunk(i, finish_reason="stop", **{name: ""}) for i in range(len(answers))]
    whole: list[dict[str, Any]] = [
        {"index": i, "finish_reason": "stop"}
        | ({"message": {"content": text}} if is_chat else {"text": text})
        for i, text in enumerate("".join(texts) for texts in answers)
    ]

    found = read(stream(*pieces, *ends), cuts=tuple(cuts))

    assert found == read(body(*whole))
    assert [spoken.text for spoken in found] == [
        text for texts in answers if (text := "".join(texts))
    ]
