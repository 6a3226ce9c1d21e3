"""Transcript: a request begins with the turn before it, in whatever form a client sends it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage

from serving.conversations.completion_reader import AssistantMessage
from serving.conversations.transcript import Transcript, parse_transcript

QUESTION = {"role": "user", "content": "How do I ask for leave?"}
ANSWER = AssistantMessage("In the yellow book.")
THANKS = {"role": "user", "content": "And how much?"}
ARGUMENTS = '{"days": 2, "half": false}'
CALLED = [
    {"id": "call-1", "type": "function", "function": {"name": "leave", "arguments": ARGUMENTS}}
]
CALL = AssistantMessage("", (("leave", ARGUMENTS),))
RESULT = {"role": "tool", "tool_call_id": "call-1", "content": "granted"}


def transcript_of(body: dict[str, Any]) -> Transcript:
    found = parse_transcript(body)
    assert found is not None
    return found


def chat(*messages: dict[str, Any]) -> Transcript:
    return transcript_of({"messages": list(messages)})


def response(*items: Any, instructions: str | None = "Be brief.") -> Transcript:
    return transcript_of({"input": list(items), "instructions": instructions})


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def follows(later: Transcript, earlier: Transcript, answer: AssistantMessage = ANSWER) -> bool:
    return later.text.startswith(earlier.with_answer(answer))


class TestChats:
    @pytest.mark.parametrize(
        "message",
        [
            assistant("In the yellow book."),
            assistant([{"type": "text", "text": "In the yellow book."}]),
            assistant(
                [{"type": "text", "text": "In the "}, {"type": "text", "text": "yellow book."}]
            ),
            assistant(
                "In the yellow book.\n",
                refusal=None,
                audio=None,
                tool_calls=None,
                name=None,
                reasoning="Hm.",
            ),
            assistant("In the yellow book.", tool_calls=[], annotations=[]),
        ],
    )
    @pytest.mark.parametrize(
        "question",
        [
            QUESTION,
            {
                "role": "user",
                "content": [{"type": "text", "text": QUESTION["content"], "cache_control": {}}],
            },
        ],
    )
    def test_the_same_text(self, question: dict[str, Any], message: dict[str, Any]) -> None:
        assert follows(chat(question, message, THANKS), chat(QUESTION))

    @pytest.mark.parametrize(
        "calls",
        [
            CALLED,
            [{"function": {"name": "leave", "arguments": '{"half":false,"days":2}'}}],
            [{**CALLED[0], "id": "another", "index": 0}],
        ],
    )
    @pytest.mark.parametrize("content", [None, "", []])
    def test_the_same_calls(self, content: Any, calls: list[dict[str, Any]]) -> None:
        assert follows(
            chat(QUESTION, assistant(content, tool_calls=calls), RESULT), chat(QUESTION), CALL
        )

    @pytest.mark.parametrize(
        ("answer", "message"),
        [(ANSWER, assistant(ANSWER.text)), (CALL, assistant(None, tool_calls=CALLED))],
    )
    def test_as_openai_python_gives_a_message_back(
        self, answer: AssistantMessage, message: dict[str, Any]
    ) -> None:
        given = ChatCompletionMessage.model_validate(message)

        for sent in (given.model_dump(), given.to_dict(), json.loads(given.model_dump_json())):
            assert follows(chat(QUESTION, sent, THANKS), chat(QUESTION), answer)

    @pytest.mark.parametrize(
        "message",
        [
            assistant("In the Yellow book."),
            assistant("In the yellow book.", tool_calls=CALLED),
            {"role": "user", "content": "In the yellow book."},
            assistant(
                [
                    {"type": "text", "text": ANSWER.text},
                    {"type": "image_url", "image_url": {"url": "x"}},
                ]
            ),
            assistant(None),
        ],
    )
    def test_another_answer(self, message: dict[str, Any]) -> None:
        assert not follows(chat(QUESTION, message, THANKS), chat(QUESTION))

    @pytest.mark.parametrize("arguments", ["", "{", "[" * 100_000, "NaN", None, 3, {"days": 2}])
    def test_invalid_calls_are_compared_as_they_are(self, arguments: Any) -> None:
        odd = assistant(
            None,
            tool_calls=[{"function": {"name": "leave", "arguments": arguments}}, "odd", {"id": 3}],
        )

        assert follows(chat(QUESTION, odd, assistant(ANSWER.text)), chat(QUESTION, odd))
        assert not follows(chat(QUESTION, odd, assistant(ANSWER.text)), chat(QUESTION))


class TestResponses:
    def test_a_text_as_openai_python_gives_it_back(self) -> None:
        item = {
            "id": "msg-1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": ANSWER.text, "annotations": [], "logprobs": None}
            ],
        }
        given = ResponseOutputMessage.model_validate(item)
        thought = {
            "type": "reasoning",
            "id": "rs-1",
            "summary": [{"type": "summary_text", "text": "Hm"}],
        }
        question = {
            "role": "user",
            "content": [{"type": "input_text", "text": QUESTION["content"]}],
        }

        for sent in (given.model_dump(), given.to_dict()):
            assert follows(response(question, thought, sent, THANKS), response(QUESTION))
        asked = transcript_of({"input": QUESTION["content"], "instructions": "Be brief."})
        assert follows(response(QUESTION, item, THANKS), asked)
        assert not follows(response(QUESTION, item, THANKS, instructions="Be long."), asked)

    def test_calls_are_items_of_their_own(self) -> None:
        call = ResponseFunctionToolCall(
            type="function_call", call_id="call-1", name="leave", arguments=ARGUMENTS
        )
        granted = {"type": "function_call_output", "call_id": "call-1", "output": "granted"}
        text = {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I ask."}],
        }

        alone = response(QUESTION, call.model_dump(), granted)
        twice = response(QUESTION, text, call.to_dict(), call.to_dict(), granted, THANKS)

        assert follows(alone, response(QUESTION), CALL)
        assert follows(twice, response(QUESTION), AssistantMessage("I ask.", CALL.calls * 2))
        assert not follows(twice, response(QUESTION), AssistantMessage("I ask.", CALL.calls))

    @pytest.mark.parametrize(
        "items",
        [
            [{"type": "function_call"}],
            [
                {"role": "assistant", "tool_calls": 3},
                {"type": "function_call", "name": 3, "arguments": []},
            ],
            [{"type": ["message"], "role": {}, "content": 3}, {"type": "function_call_output"}],
        ],
    )
    def test_unknown_items_are_compared_as_they_are(self, items: list[Any]) -> None:
        assert follows(response(*items, assistant(ANSWER.text)), response(*items))


class TestCompletions:
    @pytest.mark.parametrize(
        "prompt", ["Once upon a time", "Once upon a time, ünd", ["Once upon a time there was"]]
    )
    def test_a_prompt_that_continues(self, prompt: Any) -> None:
        assert follows(
            transcript_of({"prompt": prompt}),
            transcript_of({"prompt": "Once upon"}),
            AssistantMessage(" a time"),
        )

    @pytest.mark.parametrize(
        "prompt", ["Once upon", "Once upon a tim", "once upon a time", " Once upon a time"]
    )
    def test_another_prompt(self, prompt: Any) -> None:
        assert not follows(
            transcript_of({"prompt": prompt}),
            transcript_of({"prompt": "Once upon"}),
            AssistantMessage(" a time"),
        )

    def test_a_prompt_with_the_canonical_text_of_a_chat_is_not_a_chat(self) -> None:
        spelling = chat(QUESTION).with_answer(ANSWER).decode()

        for prompt in (spelling, spelling.removeprefix("chat\n")):
            assert not follows(transcript_of({"prompt": prompt}), chat(QUESTION))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": "hello"},
        {"messages": [QUESTION, "hello"]},
        {"input": [QUESTION, ["hello"]]},
        {"prompt": ["one", "two"]},
        {"prompt": [1, 2, 3]},
        {"prompt": [[1, 2, 3]]},
        {"prompt": []},
        {"prompt": "one", "echo": True},
        {"prompt": None},
    ],
)
def test_requests_that_none_can_follow(body: dict[str, Any]) -> None:
    assert parse_transcript(body) is None


_TEXTS = st.sampled_from(["a", "b", "ab", "a\n", '", "', "[]", ""])
_MESSAGES = st.lists(
    st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from("ux"), _TEXTS)
)


@given(_MESSAGES, _MESSAGES)
def test_one_chat_begins_with_another_if_its_messages_do(
    earlier: list[dict[str, str]], later: list[dict[str, str]]
) -> None:
    plain = [
        [(message["role"], message["content"].strip()) for message in messages]
        for messages in (earlier, later)
    ]

    begins = chat(*later).text.startswith(chat(*earlier).text)

    assert begins == (plain[1][: len(plain[0])] == plain[0])
    assert chat(*earlier, *later).text.startswith(chat(*earlier).text)
