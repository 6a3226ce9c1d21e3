"""Turns: the messages of one conversation, made of one or more examples, as vLLM would pass them to
a chat template.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from selection.examples.example import Example, Message, is_system


@dataclass(frozen=True)
class Turn:
    """A message, and whether it is an answer to learn."""

    message: Message
    scored: bool


def joined_turns(
    example: Example, before: Sequence[Example] = (), *, score_before: bool = False
) -> list[Turn]:
    """The turns of one conversation: the system's messages that open the example, the turns of the
    examples before it, and the rest of the example.

    Args:
        example: the last one.
        before: the earlier ones, in order.
        score_before: whether to learn the answers of these, too.
    """

    def turn(message: Message, may_be_scored: bool = True) -> Turn:
        is_answer = message["role"] == "assistant" and message.get("weight") != 0
        return Turn(message, may_be_scored and is_answer)

    opening = list(takewhile(is_system, example.messages))
    earlier = [message for each in before for message in each.messages if not is_system(message)]
    return [
        *(turn(message) for message in opening),
        *(turn(message, score_before) for message in earlier),
        *(turn(message) for message in example.messages[len(opening) :]),
    ]


def with_known_roles(turns: list[Turn], template: str) -> list[Turn]:
    """The turns for a template that may not know the developer: then the developer's messages
    become the system's, and all of the system's become one.
    """
    if "'developer'" in template or '"developer"' in template:
        return turns
    if all(turn.message["role"] != "developer" for turn in turns):
        return turns
    system = [turn.message["content"] for turn in turns if is_system(turn.message)]
    content = "\n\n".join(filter(None, system))
    rest = [turn for turn in turns if not is_system(turn.message)]
    return [Turn({"role": "system", "content": content}, False), *rest]


def for_template(message: Message) -> dict[str, Any]:
    """A message for a template: arguments of tool calls as objects, reasoning under both of its
    names, and an empty content for none.
    """
    given = {key: value for key, value in message.items() if key != "weight"}
    given.setdefault("content", "")
    if "reasoning" in given:
        given["reasoning_content"] = given["reasoning"]
    if "tool_calls" in given:
        given["tool_calls"] = [_with_parsed_arguments(call) for call in given["tool_calls"]]
    return given


def _with_parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
