"""Shown sequences: how they enter each kind of body, and that they never exceed the room."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selection.corpus.sqlite_store import Source
from selection.examples.example import Example
from serving.adaptation.fallback_reasons import NoAdapterError
from serving.adaptation.shown import (
    MAX_PROMPTS,
    Body,
    PromptBuilder,
    Prompts,
    Shown,
    answer_tokens,
    parse_show,
    with_shown,
)
from serving.budget import MAX_SHOWN
from serving.engine.rendering import PromptRefusedError, PromptTooLongError
from serving.errors import RequestError
from serving.report import StopReason

CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "look_up", "arguments": '{"word": "hive"}'},
}
PASSAGES = (
    "Passages that may help, the most relevant last:\n\n"
    '<passage source="two.md">\nSecond text.\n</passage>\n\n'
    '<passage source="one.md">\nFirst text.\n</passage>'
)


def text(number: int, content: str, name: str) -> Source:
    return Source(number, number, name, 0, content)


def example(number: int, *messages: dict[str, Any]) -> Source:
    value = Example(messages)
    name = f"pairs.jsonl#{number}"
    return Source(number, number, name, 0, value.text, example=value.to_json())


def pair(number: int, prompt: str, completion: str) -> Source:
    return example(
        number,
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": completion},
    )


ONE, TWO = text(1, "First text.", "one.md"), text(2, "Second text.", "two.md")
BEES, WASPS = pair(3, "bees", "BEES"), pair(4, "wasps", "WASPS")
TALK = example(
    5,
    {"role": "system", "content": "Look words up."},
    {"role": "user", "content": "What is a hive?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "a home"},
    {"role": "assistant", "content": "A home of bees."},
)
QUESTION = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}
NO_TOKENIZER = None


def chat(*messages: dict[str, Any], **fields: Any) -> Body:
    return {"model": "m", "messages": [*messages], "tools": [{"type": "function"}], **fields}


def test_examples_are_turns_before_the_clients_own_the_most_relevant_last() -> None:
    system = {"role": "system", "content": "Answer in capitals."}

    shown = with_shown(chat(system, QUESTION), [BEES, WASPS], NO_TOKENIZER)

    assert shown == chat(
        system,
        {"role": "user", "content": "wasps"},
        {"role": "assistant", "content": "WASPS"},
        {"role": "user", "content": "bees"},
        {"role": "assistant", "content": "BEES"},
        QUESTION,
    )


def test_an_examples_own_system_message_is_left_out_and_its_tool_calls_stay() -> None:
    shown = with_shown(chat(QUESTION), [TALK], NO_TOKENIZER)

    roles = [message["role"] for message in shown["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]
    assert shown["messages"][1]["tool_calls"] == [CALL]
    assert shown["messages"][2]["tool_call_id"] == "c1"


@pytest.mark.parametrize("role", ["system", "developer"])
def test_texts_are_appended_to_the_system_message(role: str) -> None:
    system = {"role": role, "content": "Be brief."}

    shown = with_shown(chat(system, QUESTION), [ONE, BEES, TWO], NO_TOKENIZER)

    first, *rest = shown["messages"]
    assert first == {"role": role, "content": f"Be brief.\n\n{PASSAGES}"}
    assert [message["content"] for message in rest] == ["bees", "BEES", QUESTION["content"]]
    assert system["content"] == "Be brief."  # the client's body is as it was


def test_texts_are_a_system_message_of_their_own_where_there_is_none() -> None:
    shown = with_shown(chat(QUESTION), [ONE, TWO], NO_TOKENIZER)

    assert shown["messages"] == [{"role": "system", "content": PASSAGES}, QUESTION]


def test_texts_are_a_part_of_a_system_message_of_parts() -> None:
    part = {"type": "text", "text": "Be brief."}

    shown = with_shown(
        chat({"role": "system", "content": [part]}, QUESTION), [ONE, TWO], NO_TOKENIZER
    )

    assert shown["messages"][0]["content"] == [part, {"type": "text", "text": PASSAGES}]


def test_a_response_shows_texts_in_its_instructions_and_examples_as_items() -> None:
    body = {"input": "Why?", "instructions": "Be brief.", "tools": []}

    shown = with_shown(body, [ONE, TALK, TWO], NO_TOKENIZER)

    assert shown == {
        "tools": [],
        "instructions": f"Be brief.\n\n{PASSAGES}",
        "input": [
            {"role": "user", "content": "What is a hive?"},
            {
                "type": "function_call",
                "call_id": "c1",
                "name": "look_up",
                "arguments": '{"word": "hive"}',
            },
            {"type": "function_call_output", "call_id": "c1", "output": "a home"},
            {"role": "assistant", "content": "A home of bees."},
            {"role": "user", "content": "Why?"},
        ],
    }


def test_a_response_of_items_shows_texts_in_its_system_message_or_in_instructions() -> None:
    system = {"role": "system", "content": [{"type": "input_text", "text": "Be brief."}]}

    with_system = with_shown({"input": [system, QUESTION]}, [ONE, TWO], NO_TOKENIZER)
    without = with_shown({"input": [QUESTION]}, [ONE, TWO], NO_TOKENIZER)

    first, last = with_system["input"]
    assert first["content"] == [*system["content"], {"type": "input_text", "text": PASSAGES}]
    assert last == QUESTION
    assert with_system["instructions"] is None
    assert without == {"instructions": PASSAGES, "input": [QUESTION]}


def test_a_completion_shows_a_conversation_with_its_roles() -> None:
    shown = with_shown({"prompt": "ants"}, [TALK], NO_TOKENIZER)

    assert shown["prompt"].startswith("system: Look words up.\nuser: What is a hive?\n")
    assert shown["prompt"].endswith("assistant: A home of bees.\n\nants")


def test_a_completion_shows_plain_text_before_its_prompt() -> None:
    shown = with_shown({"prompt": "ants", "n": 2}, [BEES, ONE], NO_TOKENIZER)

    assert shown == {"prompt": "First text.\n\nbeesBEES\n\nants", "n": 2}


def test_each_prompt_of_a_completion_gets_what_is_shown() -> None:
    shown = with_shown({"prompt": ["ants", "flies"]}, [BEES], NO_TOKENIZER)

    assert shown["prompt"] == ["beesBEES\n\nants", "beesBEES\n\nflies"]


def test_prompts_of_tokens_get_tokens_after_the_first_token_of_texts(tokenizer: Any) -> None:
    tokens = tokenizer.encode("ants", add_special_tokens=False)
    begin = tokenizer.bos_token_id
    before = tokenizer.encode("beesBEES\n\n", add_special_tokens=False)

    one = with_shown({"prompt": [begin, *tokens]}, [BEES], tokenizer)
    several = with_shown({"prompt": [tokens, [begin, *tokens]]}, [BEES], tokenizer)

    assert one["prompt"] == [begin, *before, *tokens]
    assert several["prompt"] == [[*before, *tokens], [begin, *before, *tokens]]


def test_a_body_that_shows_nothing_is_as_it_was() -> None:
    body = {"input": "Why?"}

    assert with_shown(body, [], NO_TOKENIZER) is body


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (chat(max_tokens=7, max_completion_tokens=5), 5),
        (chat(max_tokens=7), 7),
        (chat(max_tokens="7"), 7),
        (chat(), 25),
        ({"input": "Why?", "max_output_tokens": 3}, 3),
        ({"input": "Why?"}, 25),
        ({"prompt": "ants", "max_tokens": 3}, 3),
        ({"prompt": "ants", "max_tokens": None}, 16),
    ],
)
def test_the_answer_keeps_its_limit_or_a_quarter_of_the_context(body: Body, tokens: int) -> None:
    assert answer_tokens(body, 100) == tokens


async def render_words(body: Body) -> Prompts:
    """A token for each word, up to 200; no message may be "refused"."""
    messages = [str(message["content"]) for message in body["messages"]]
    if "refused" in messages:
        raise PromptRefusedError("the template refuses the messages")
    if len(words := " ".join(messages).split()) > 200:
        raise PromptTooLongError("longer than the context")
    return (tuple(map(len, words)),)


async def show(body: Body, sequences: list[Source], *, of: int, context: int) -> tuple[Body, Shown]:
    async def choose() -> list[Source]:
        return sequences

    return await PromptBuilder(context, NO_TOKENIZER, render_words).show(body, of, choose)


@given(
    st.lists(st.integers(1, 30), max_size=12),
    st.integers(0, 60),
    st.integers(0, 100),
    st.integers(1, 150),
    st.integers(1, 12),
)
async def test_what_is_shown_never_exceeds_the_room_and_one_more_would(
    sizes: list[int], prompt: int, answer: int, context: int, of: int
) -> None:
    sequences = [pair(i, "word " * size, "answer") for i, size in enumerate(sizes)]
    body = chat({"role": "user", "content": "word " * prompt}, max_tokens=answer)

    longer, shown = await show(body, sequences, of=of, context=context)

    number = len(shown.documents)
    growth = sum(size + 1 for size in sizes[:number])
    assert shown.prompts == await render_words(longer)
    assert [*map(len, shown.prompts)] == [prompt + growth]
    assert shown.tokens == growth
    assert shown.documents == tuple(f"pairs.jsonl#{i}" for i in reversed(range(number)))
    assert number == 0 or prompt + growth + answer <= context
    most = min(len(sizes), of)
    assert number == most or prompt + growth + sizes[number] + 1 + answer > context
    assert (shown.reason is None) == (number == of)
    if number < most:
        assert str(shown.reason).startswith("no room for more")


async def test_what_the_engine_refuses_is_not_shown_and_the_reason_is_its_own() -> None:
    refused = example(
        7, {"role": "user", "content": "refused"}, {"role": "assistant", "content": "c"}
    )
    question = {"role": "user", "content": "ants"}

    longer, shown = await show(chat(question), [BEES, refused, WASPS], of=3, context=1000)

    assert [message["content"] for message in longer["messages"][:-1]] == ["bees", "BEES"]
    assert shown.as_dict() == {
        "sequences": 1,
        "of": 3,
        "tokens": 2,
        "documents": ["pairs.jsonl#3"],
        "reason": "the template refuses the messages",
    }


async def test_the_report_says_why_fewer_are_shown() -> None:
    body = chat({"role": "user", "content": "ants"}, max_tokens=4)

    _, small = await show(body, [BEES, WASPS], of=2, context=8)
    _, few = await show(body, [BEES], of=2, context=100)
    _, enough = await show(body, [BEES, WASPS], of=1, context=100)

    assert (len(small.documents), small.reason) == (
        1,
        "no room for more: of the context's 8 tokens, the prompt has 1 and the answer may have 4",
    )
    assert (len(few.documents), few.reason) == (1, "fewer different sequences were chosen: 1")
    assert (enough.documents, enough.reason) == (("pairs.jsonl#3",), None)


async def test_nothing_is_chosen_for_a_request_that_the_engine_refuses() -> None:
    async def choose() -> list[Source]:
        raise AssertionError("something was chosen")

    body = chat({"role": "user", "content": "refused"})

    same, shown = await PromptBuilder(100, NO_TOKENIZER, render_words).show(body, 2, choose)

    assert same is body
    assert (shown.documents, shown.reason) == ((), "the template refuses the messages")


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (NoAdapterError("corpus 'void' is empty", StopReason.CORPUS), "corpus 'void' is empty"),
        (OSError("the disk is broken"), "the adaptation failed; the server's log says why"),
    ],
)
async def test_why_nothing_could_be_chosen_is_the_reason(problem: Exception, reason: str) -> None:
    async def choose() -> list[Source]:
        raise problem

    body = chat({"role": "user", "content": "ants"})

    same, shown = await PromptBuilder(100, NO_TOKENIZER, render_words).show(body, 2, choose)

    assert same is body
    assert (shown.documents, shown.reason) == ((), reason)


@pytest.mark.parametrize(
    ("value", "body", "message"),
    [
        (-1, chat(), "whole number of sequences, from 0 to 64"),
        (MAX_SHOWN + 1, chat(), "whole number of sequences, from 0 to 64"),
        (True, chat(), "whole number of sequences, from 0 to 64"),
        ("8", chat(), "whole number of sequences, from 0 to 64"),
        (8, {"prompt": "ants", "echo": True}, "`echo` would return a prompt"),
        (8, {"prompt": "ants", "truncate_prompt_tokens": 5}, "would cut off what is shown"),
        (8, {"prompt": ["ants"] * (MAX_PROMPTS + 1)}, "more than 32 prompts: split it"),
    ],
)
def test_an_invalid_number_or_a_request_that_can_show_nothing_is_refused(
    value: Any, body: Body, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        parse_show(value, body, 0)


def test_the_servers_default_does_not_apply_to_requests_that_can_show_nothing() -> None:
    echoing = {"prompt": "ants", "echo": True}

    assert parse_show(None, {"prompt": "ants"}, 4) == 4
    assert parse_show(0, {"prompt": "ants"}, 4) == 0
    assert parse_show(None, echoing, 4) == 0
    assert parse_show(0, echoing, 4) == 0
    for option in ({"prompt_logprobs": 0}, {"return_token_ids": True}):
        reading = {"prompt": "ants", **option}
        assert [parse_show(value, reading, 4) for value in (None, 2)] == [0, 2]
