"""Examples: what is accepted, in which form it is kept, and what a request for it looks like."""

from __future__ import annotations

import json
from typing import Any

import pytest

from selection.embedding import Prompt
from selection.errors import ExampleError
from selection.examples.example import Example, parse_example

ASK = {"role": "user", "content": "How late is it?"}
ANSWER = {"role": "assistant", "content": "Noon."}
CALL = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": 1}'}}
TOOL = {
    "type": "function",
    "function": {"name": "clock", "description": "Tells the time.", "parameters": {"type": "x"}},
}


def calling(arguments: str) -> dict[str, Any]:
    """A call of the tool with these arguments."""
    function = {"name": "clock", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"function": function}]}


def parse(**fields: Any) -> Example:
    return parse_example(fields, "row 7")


def test_a_pair_and_messages_of_the_same_texts_are_one_example() -> None:
    pair = parse(prompt="How late is it?", completion="Noon.")

    assert pair == parse(messages=[ASK, ANSWER]) == parse(prompt=[ASK], completion=[ANSWER])
    assert pair.prompt_and_completion == ("How late is it?", "Noon.")
    assert pair.text == "user: How late is it?\nassistant: Noon."


def test_messages_are_kept_in_one_form() -> None:
    parts = [{"type": "text", "text": "How"}, {"type": "text", "text": "late?"}]
    call = {"function": {"name": "clock", "arguments": {"zone": 1}}, "id": "c1", "index": 0}
    example = parse(
        messages=[
            {"role": "system", "content": "Be brief.", "name": None},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0},
            {"role": "tool", "content": "12:00", "tool_call_id": "c1"},
            {"role": "assistant", "content": "Noon.", "reasoning_content": "12", "weight": 1},
        ],
        tools=[{"function": {"parameters": {"type": "x"}, "name": "clock"}}],
    )

    assert list(example.messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How\nlate?"},
        {"role": "assistant", "tool_calls": [CALL], "weight": 0},
        {"role": "tool", "content": "12:00", "tool_call_id": "c1"},
        {"role": "assistant", "content": "Noon.", "reasoning": "12"},
    ]
    described: dict[str, Any] = TOOL["function"] | {"description": None}  # type: ignore[operator]
    assert list(example.tools) == [{"type": "function", "function": described}]
    assert list(example.tools[0]["function"]) == ["name", "description", "parameters"]
    assert example.turns == (
        {"role": "user", "content": "How\nlate?"},
        {"role": "assistant", "tool_calls": [CALL]},
        *example.messages[3:],
    )
    assert example.text == (
        "system: Be brief.\nuser: How\nlate?\n"
        'assistant: clock({"zone": 1})\ntool: 12:00\nassistant: Noon.'
    )
    assert example.prompt_and_completion is None
    assert Example.from_json(example.to_json()) == example


@pytest.mark.parametrize(
    ("before", "prompt"),
    [
        ([ASK], Prompt("How late is it?")),
        ([{"role": "system", "content": "Be brief."}, ASK], Prompt("How late is it?", "Be brief.")),
        (
            [{"role": "user", "content": "Hello."}, {**ANSWER, "content": "Hi."}, ASK],
            Prompt("How late is it?", "Hello.\nHi."),
        ),
        (
            [
                ASK,
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "content": "12"},
            ],
            Prompt("How late is it?"),
        ),
        ([{"role": "system", "content": "Say the time."}], Prompt("Say the time.")),
    ],
)
def test_its_prompt_is_what_a_request_would_ask(
    before: list[dict[str, Any]], prompt: Prompt
) -> None:
    assert parse(messages=[*before, ANSWER]).prompt == prompt


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def calls(*ids: str | None, **more: Any) -> dict[str, Any]:
    """A message of the assistant that calls a tool once for each id."""
    made = [{"function": CALL["function"], **({"id": i} if i else {})} for i in ids]
    return {"role": "assistant", "tool_calls": made, **more}


@pytest.mark.parametrize(
    "messages",
    [
        [ASK, calls("a")],
        [ASK, calls("a", content="")],
        [ASK, calls("a"), turn("tool", "", tool_call_id="a"), ANSWER],
        [ASK, calls("a", "b"), *(turn("tool", "x", tool_call_id=i) for i in "ba"), ANSWER],
        [ASK, calls("a"), turn("tool", "x"), ANSWER],
        [ASK, calls(None), turn("tool", "x", tool_call_id="a"), ANSWER],
        [ASK, calls(None, "b"), *(turn("tool", "x", tool_call_id=i) for i in "ba"), ANSWER],
        [ASK, calls("a"), ASK, ANSWER],
        [ASK, turn("assistant", "", weight=0), ASK, ANSWER],
        [turn("assistant", "Hello."), ASK, ANSWER],
        [turn("system", ""), turn("user", ""), ASK, ANSWER],
    ],
)
def test_conversations_of_openais_are_examples(messages: list[dict[str, Any]]) -> None:
    assert len(parse(messages=messages, parallel_tool_calls=False).messages) == len(messages)


def test_a_refusal_is_an_answer() -> None:
    whole = {"role": "assistant", "content": None, "refusal": "No."}
    part = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}

    for answer in (whole, part):
        assert parse(messages=[ASK, answer]) == parse(prompt=[ASK], completion="No.")


def test_answers_in_a_prompt_are_context() -> None:
    greeting = turn("assistant", "Hello.")

    assert parse(prompt=[greeting, ASK], completion=[ANSWER]) == parse(
        messages=[{**greeting, "weight": 0}, ASK, ANSWER]
    )


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([ASK, turn("assistant", "")], "the answer has neither text nor tool calls"),
        ([ASK, turn("assistant", " \n")], "complete it, or leave the example out"),
        ([ASK, turn("assistant", "", tool_calls=[])], "the answer has neither"),
        ([ASK, turn("assistant", "", reasoning="12.")], "the answer has neither"),
        ([ASK, turn("assistant", ""), ASK, ANSWER], "message 2, an answer, .* give it `weight` 0"),
        ([turn("tool", "12:00"), ANSWER], "message 1 is a tool's and answers no call: put it"),
        ([turn("tool", "12:00"), ASK, ANSWER], "message 1 is a tool's"),
        ([ASK, turn("tool", "x", tool_call_id="a"), ANSWER], "message 2 is a tool's"),
        ([ASK, ANSWER, turn("tool", "x"), ANSWER], "message 3 is a tool's"),
        ([ASK, calls("a"), turn("tool", "x", tool_call_id="b"), ANSWER], "message 3 is a tool's"),
        ([ASK, calls("a"), ASK, turn("tool", "x", tool_call_id="a"), ANSWER], "message 4 is a"),
        ([ASK, calls("a"), *(turn("tool", "x"),) * 2, ANSWER], "message 4 is a tool's"),
        ([ASK, ANSWER, ASK], "leave out what follows its last answer"),
        ([ASK, ANSWER, ASK, {**ANSWER, "weight": 0}], "leave out its weight, or the answer and"),
    ],
)
def test_a_conversation_that_cannot_be_learnt_is_refused(
    messages: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ExampleError, match=f"^row 7: .*{message}"):
        parse(messages=messages)
    with pytest.raises(ExampleError, match=f"^row 7: .*{message}"):
        parse(prompt=messages[:1], completion=messages[1:])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"^row 7: expected an object with `messages`, or a `prompt` and a `completion`"),
        ({"text": "x"}, "unknown field `text`"),
        ({}, "and got nothing"),
        ({"prompt": "x"}, "and got `prompt`"),
        ({"messages": [ASK, ANSWER], "prompt": "x"}, "and got `messages`, `prompt`"),
        ({"messages": []}, "`messages` must be a list of messages"),
        ({"messages": "x"}, "`messages` must be a list of messages"),
        ({"prompt": 5, "completion": "x"}, "`prompt` must be a list of messages"),
        ({"messages": [ASK]}, "the last message must be the assistant's"),
        ({"messages": [ANSWER]}, "with at least one before it"),
        ({"messages": [ASK, ANSWER, ASK]}, "the last message must be the assistant's"),
        ({"messages": [ASK, {**ANSWER, "weight": 0}]}, "the last answer has weight 0"),
        ({"messages": [ASK, {**ANSWER, "weight": 0.5}]}, "`weight` must be 0 or 1"),
        ({"messages": [{**ASK, "weight": 0}, ANSWER]}, "unknown field `weight` in a message of"),
        ({"messages": [{"role": "bot", "content": "x"}, ANSWER]}, r"`messages`\[0\] must be an ob"),
        ({"messages": [{"role": []}, ANSWER]}, "whose `role` is one of system, developer, user"),
        ({"messages": [ASK, {"role": "assistant"}]}, r"`messages`\[1\] has no `content`"),
        ({"messages": [ASK, {**ANSWER, "audio": {}}]}, "unknown field `audio` in a message"),
        ({"messages": [{"role": "user", "content": 5}, ANSWER]}, "a list of text parts"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "text part"),
        ({"messages": [ASK, {**ANSWER, "tool_calls": [{}]}]}, "a call of a function"),
        ({"messages": [ASK, calling("{")]}, "`arguments` is not JSON"),
        ({"messages": [ASK, calling("[]")]}, "`arguments` must be an object"),
        ({"messages": [ASK, ANSWER], "tools": {}}, "`tools` must be a list"),
        ({"messages": [ASK, ANSWER], "tools": [{}]}, "`tools` must be a list"),
        ({"prompt": " \n", "completion": "x"}, "there is no text before the answer"),
        ({"prompt": "x", "completion": ""}, "neither text nor tool calls"),
        ({"prompt": "\ud800", "completion": "x"}, "not JSON in Unicode"),
        ({"prompt": "x", "completion": "x", "tools": [
            {"function": {"name": "f", "parameters": {"a": b"x"}}}]}, "not JSON in Unicode"),
    ],
)  # fmt: skip
def test_an_invalid_example_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ExampleError, match=message) as caught:
        parse_example(value, "row 7")

    assert str(caught.value).startswith("row 7: ")
    assert json.dumps(str(caught.value))
