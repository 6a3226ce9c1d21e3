"""Example: a conversation that ends with the answer it should get, in OpenAI's format.

An example is given as `messages`, the format of OpenAI's fine-tuning files, or as a `prompt` and a
`completion`, TRL's. It is kept as messages in one form: a content is a string, the arguments of a
tool call are JSON in a string, and a null is an absent key. An answer of `weight` 0 is part of the
conversation only; any other has text or calls a tool. A tool's message answers a call.

This module does not know tokens (see `rendering`) or where an example comes from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from selection.embedding import Prompt
from selection.errors import ExampleError

# Half-open ranges of token positions, ascending and disjoint.
Spans: TypeAlias = tuple[tuple[int, int], ...]
Message: TypeAlias = Mapping[str, Any]

FIELDS = ("messages", "tools", "prompt", "completion")
# A field of OpenAI's that no chat template knows.
_IGNORED_FIELD = "parallel_tool_calls"
_ROLES = ("system", "developer", "user", "assistant", "tool")
# What a message of a role may have beside `role`, `content` and `name`.
_ROLE_FIELDS: Mapping[str, tuple[str, ...]] = {
    "assistant": ("tool_calls", "reasoning", "reasoning_content", "refusal", "weight"),
    "tool": ("tool_call_id",),
}


@dataclass(frozen=True)
class Example:
    """A conversation and the answer it should get. `parse_example` creates it from what users give.

    Attributes:
        messages: OpenAI's messages; the last one is the assistant's, and another one precedes it.
        tools: OpenAI's definitions of tools.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def prompt(self) -> Prompt:
        """What a request looks like that should get this answer: the last turn of the user, after
        the turns before it.
        """
        asked = self.messages[:-1]
        last = max(
            (i for i, message in enumerate(asked) if message["role"] == "user"),
            default=len(asked) - 1,
        )
        before = filter(None, (message.get("content", "") for message in asked[:last]))
        return Prompt(asked[last].get("content", ""), "\n".join(before))

    @property
    def prompt_and_completion(self) -> tuple[str, str] | None:
        """The two texts of an example that consists of a question and an answer in plain text; None
        for any other.
        """
        if [message.keys() for message in self.messages] != [{"role", "content"}] * 2:
            return None
        if self.tools or self.messages[0]["role"] != "user":
            return None
        return self.messages[0]["content"], self.messages[1]["content"]

    @property
    def turns(self) -> tuple[Message, ...]:
        """Its messages as the earlier turns of another conversation: without those of the system,
        and without `weight`.
        """
        return tuple(
            {key: value for key, value in message.items() if key != "weight"}
            for message in self.messages
            if not is_system(message)
        )

    @property
    def text(self) -> str:
        """The conversation in plain text, for readers and searches."""
        lines = []
        for message in self.messages:
            calls = (call["function"] for call in message.get("tool_calls", ()))
            parts = [message.get("content", "")]
            parts += [f"{call['name']}({call['arguments']})" for call in calls]
            lines.append(f"{message['role']}: {' '.join(filter(None, parts))}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The example as one line of JSON."""
        fields = {"messages": self.messages, **({"tools": self.tools} if self.tools else {})}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Example:
        """The example that `to_json` gave this text."""
        fields = json.loads(text)
        return cls(tuple(fields["messages"]), tuple(fields.get("tools", ())))


def is_system(message: Message) -> bool:
    """Whether a message instructs the assistant, rather than being a turn of the conversation."""
    return message["role"] in ("system", "developer")


def parse_example(value: Any, where: str) -> Example:
    """Parse an example.

    Args:
        value: an object with `messages`, or with `prompt` and `completion`, each a string or a list
            of messages; and optionally `tools`. JSON values.
        where: what an error message begins with.

    Raises:
        ExampleError: it is invalid.
    """
    expected = "`messages`, or a `prompt` and a `completion`"
    if not isinstance(value, dict):
        raise ExampleError(f"{where}: expected an object with {expected}")
    given = _without_nulls(value)
    given.pop(_IGNORED_FIELD, None)
    if unknown := given.keys() - set(FIELDS):
        raise ExampleError(f"{where}: unknown field `{min(unknown)}` in an example")
    pair = {"prompt", "completion"} & given.keys()
    if ("messages" in given) is bool(pair) or len(pair) == 1:
        names = ", ".join(f"`{name}`" for name in given) or "nothing"
        raise ExampleError(f"{where}: expected {expected}, and got {names}")
    if pair:
        prompt = _side(given["prompt"], "user", f"{where}: `prompt`")
        messages = [
            # As in TRL, only the completion is learnt.
            *({**each, "weight": 0} if each["role"] == "assistant" else each for each in prompt),
            *_side(given["completion"], "assistant", f"{where}: `completion`"),
        ]
    else:
        messages = _messages(given["messages"], f"{where}: `messages`")
    tools = given.get("tools", [])
    if not isinstance(tools, list):
        raise ExampleError(f"{where}: `tools` must be a list of OpenAI's function definitions")
    example = Example(tuple(messages), tuple(_tool(tool, where) for tool in tools))
    _check(example, where)
    return example


def _check(example: Example, where: str) -> None:
    """Refuse a conversation that nothing can be learned from, and values that JSON cannot hold."""
    if len(example.messages) < 2 or example.messages[-1]["role"] != "assistant":
        raise ExampleError(
            f"{where}: the last message must be the assistant's, with at least one before it: "
            "leave out what follows its last answer"
        )
    if example.messages[-1].get("weight") == 0:
        raise ExampleError(
            f"{where}: the last answer has weight 0: leave out its weight, or the answer and the "
            "messages since the answer before it"
        )
    _check_answers(example, where)
    _check_tool_messages(example, where)
    if not f"{example.prompt.text}{example.prompt.context}".strip():
        raise ExampleError(f"{where}: there is no text before the answer; use `text` for such data")
    try:
        example.to_json().encode()
    except (TypeError, UnicodeEncodeError, RecursionError) as problem:
        raise ExampleError(f"{where}: the example is not JSON in Unicode ({problem})") from problem


def _check_answers(example: Example, where: str) -> None:
    """Refuse an answer to learn that has nothing in it; of an earlier one that may be meant."""
    for position, message in enumerate(example.messages, 1):
        is_learnt = message["role"] == "assistant" and message.get("weight") != 0
        if not is_learnt or message.get("tool_calls") or message["content"].strip():
            continue
        if position == len(example.messages):
            raise ExampleError(
                f"{where}: the answer has neither text nor tool calls, so there is nothing to "
                "learn: complete it, or leave the example out"
            )
        raise ExampleError(
            f"{where}: message {position}, an answer, has neither text nor tool calls: complete "
            "it, or give it `weight` 0, so that it is not learnt"
        )


def _check_tool_messages(example: Example, where: str) -> None:
    """Refuse a tool's message that answers no call of the assistant's message before it. Calls and
    messages without an id, as some data sets have them, answer each other in their order.
    """
    unanswered: list[str | None] = []
    for position, message in enumerate(example.messages, 1):
        if message["role"] != "tool":
            unanswered = [call.get("id") for call in message.get("tool_calls", ())]
            continue
        named = message.get("tool_call_id")
        fitting = [call for call in unanswered if named is None or call in (None, named)]
        if not fitting:
            raise ExampleError(
                f"{where}: message {position} is a tool's and answers no call: put it after the "
                "assistant's message whose `tool_calls` it answers, with the `id` of the call in "
                "`tool_call_id`"
            )
        unanswered.remove(named if named in fitting else fitting[0])


def _side(value: Any, role: str, where: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return _messages(value, where)


def _messages(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ExampleError(f"{where} must be a list of messages")
    return [_message(each, f"{where}[{i}]") for i, each in enumerate(value)]


def _message(value: Any, where: str) -> Message:
    """A message in the form that examples keep."""
    if not isinstance(value, dict) or value.get("role") not in _ROLES:
        raise ExampleError(f"{where} must be an object whose `role` is one of {', '.join(_ROLES)}")
    given = _without_nulls(value)
    role = given["role"]
    allowed = {"role", "content", "name", *_ROLE_FIELDS.get(role, ())}
    if unknown := given.keys() - allowed:
        raise ExampleError(f"{where}: unknown field `{min(unknown)}` in a message of role {role}")
    message: dict[str, Any] = {"role": role}
    content = given.get("content", given.get("refusal"))
    if content is not None:
        message["content"] = _content(content, where)
    elif not given.get("tool_calls"):
        raise ExampleError(f"{where} has no `content`")
    for field in ("name", "tool_call_id", "reasoning", "reasoning_content"):
        if field in given:
            if not isinstance(given[field], str):
                raise ExampleError(f"{where}: `{field}` must be a string")
            message["reasoning" if field == "reasoning_content" else field] = given[field]
    calls = given.get("tool_calls", [])
    if not isinstance(calls, list):
        raise ExampleError(f"{where}: `tool_calls` must be a list")
    if calls:
        message["tool_calls"] = [
            _tool_call(call, f"{where}: `tool_calls[{i}]`") for i, call in enumerate(calls)
        ]
    weight = given.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise ExampleError(f"{where}: `weight` must be 0 or 1")
    return message if weight else {**message, "weight": 0}


def _content(value: Any, where: str) -> str:
    """A content as one string; vLLM, too, joins the text parts of a content by line ends, and
    takes a refusal as text.
    """
    if isinstance(value, str):
        return value
    texts = []
    for part in value if isinstance(value, list) else [value]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "refusal"):
            raise ExampleError(f"{where}: `content` must be a string or a list of text parts")
        if not isinstance(part.get(kind), str):
            raise ExampleError(f"{where}: a {kind} part of `content` needs a string `{kind}`")
        texts.append(part[kind])
    return "\n".join(texts)


def _tool_call(value: Any, where: str) -> dict[str, Any]:
    """A tool call, its arguments as JSON in a string."""
    function = value.get("function") if isinstance(value, dict) else None
    if (
        not isinstance(function, dict)
        or not isinstance(function.get("name"), str)
        or value.get("type") not in (None, "function")
    ):
        raise ExampleError(f"{where} must be a call of a function, with its `name`")
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as problem:
            raise ExampleError(f"{where}: `arguments` is not JSON ({problem})") from problem
    if not isinstance(arguments, dict):
        raise ExampleError(f"{where}: `arguments` must be an object, as JSON in a string")
    call = {key: value[key] for key in ("id",) if isinstance(value.get(key), str)}
    as_json = json.dumps(arguments, ensure_ascii=False)
    return {
        **call,
        "type": "function",
        "function": {"name": function["name"], "arguments": as_json},
    }


def _tool(value: Any, where: str) -> dict[str, Any]:
    """The definition of a function, with the fields and in the order in which vLLM passes it to a
    chat template.
    """
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ExampleError(f"{where}: `tools` must be a list of OpenAI's function definitions")
    definition = {key: function.get(key) for key in ("name", "description", "parameters")}
    if function.get("strict") is not None:
        definition["strict"] = function["strict"]
    return {"type": "function", "function": definition}


def _without_nulls(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in value.items() if each is not None}
