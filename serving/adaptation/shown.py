"""Shown sequences: what was chosen for a request, put into its prompt.

In a chat or a response, examples become turns before the client's own, and texts a part of the
system message. In a completion, both are text before the prompt. Whatever the client sent stays as
it is. The sequence that was chosen first, which tells most about the prompt, comes last.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeAlias

from selection.corpus.sqlite_store import Source
from selection.examples.example import Example
from serving.adaptation.fallback_reasons import FAILED, NoAdapterError
from serving.budget import MAX_SHOWN
from serving.engine.rendering import PromptRefusedError, PromptTooLongError
from serving.errors import RequestError

# Largest number of prompts of a request that shows something: each of them gets all of it.
MAX_PROMPTS = 32
# Share of the context that is left for an answer whose length the request does not limit.
ANSWER_SHARE = 0.25
# `max_tokens` of a completion that has none.
_COMPLETION_TOKENS = 16
_INTRODUCTION = "Passages that may help, the most relevant last:"
# Roles of the messages before which no turn can stand.
_SYSTEM = ("system", "developer")

Body: TypeAlias = dict[str, Any]
# Tokens of each prompt of a body.
Prompts: TypeAlias = tuple[tuple[int, ...], ...]
# The prompts of a body as the engine will see them; raises PromptRefusedError.
Render: TypeAlias = Callable[[Body], Awaitable[Prompts]]


@dataclass(frozen=True)
class Shown:
    """What was put into the prompt of a request.

    Attributes:
        asked: number of sequences that the request asked for.
        sequences: the sequences shown, the most relevant first.
        tokens: number of tokens by which the prompts of the request grew.
        reason: why fewer were shown than were asked for; None if all were.
        prompts: the prompts with the sequences; empty if they are not known.
    """

    asked: int
    sequences: tuple[Source, ...] = ()
    tokens: int = 0
    reason: str | None = None
    prompts: Prompts = ()

    @property
    def documents(self) -> tuple[str, ...]:
        """Names of the documents of the sequences shown, in their order in the prompt."""
        return tuple(each.name for each in reversed(self.sequences))

    def as_dict(self) -> dict[str, Any]:
        """The object `shown` of the report."""
        return {
            "sequences": len(self.sequences),
            "of": self.asked,
            "tokens": self.tokens,
            "documents": list(self.documents),
            "reason": self.reason,
        }


@dataclass(frozen=True)
class PromptBuilder:
    """Puts sequences into the prompts of one API, as many as their context has room for.

    Attributes:
        context: number of tokens that a prompt and its answer may have together.
        tokenizer: the model's, for prompts of tokens.
        render: gives the prompts of a body.
    """

    context: int
    tokenizer: Any
    render: Render

    async def show(
        self,
        body: Body,
        asked: int,
        choose: Callable[[], Awaitable[Sequence[Source]]],
        before: Prompts | None = None,
    ) -> tuple[Body, Shown]:
        """The body with up to `asked` sequences in its prompts, and what it shows.

        Args:
            body: body of the request.
            asked: number of sequences to show.
            choose: chooses different sequences, the most relevant first, for a body that the engine
                accepts. An exception means that nothing is shown.
            before: the body's prompts; None if they are not known yet.
        """
        try:
            before = before or await self.render(body)
        except PromptRefusedError as problem:
            return body, Shown(asked, reason=str(problem))
        try:
            sequences = await choose()
        except NoAdapterError as problem:
            return body, Shown(asked, reason=problem.reason)
        # The adaptation asks for the same choice, and reports or raises its error.
        except Exception:
            return body, Shown(asked, reason=FAILED)
        return await self._build(body, before, sequences[:asked], asked)

    def tokens(self, shown: Shown) -> tuple[int, ...]:
        """The tokens of what is shown, as text before the prompt of a completion."""
        text = text_before(shown.sequences)
        return tuple(self.tokenizer.encode(text, add_special_tokens=False)) if text else ()

    async def _build(
        self, body: Body, before: Prompts, sequences: Sequence[Source], asked: int
    ) -> tuple[Body, Shown]:
        """The body with the first of these sequences that fit; `before` are its prompts without
        them.
        """
        answer = answer_tokens(body, self.context)
        after, obstacle = before, f"fewer different sequences were chosen: {len(sequences)}"
        fits, too_many, number = 0, len(sequences) + 1, len(sequences)
        while fits + 1 < too_many:
            try:
                longer = await self.render(with_shown(body, sequences[:number], self.tokenizer))
            except PromptTooLongError:
                too_many, obstacle = number, self._no_room(before, answer)
            except PromptRefusedError as problem:
                too_many, obstacle = number, str(problem)
            else:
                if max(map(len, longer)) + answer <= self.context:
                    fits, after = number, longer
                else:
                    too_many, obstacle = number, self._no_room(before, answer)
            number = (fits + too_many) // 2
        shown = sequences[:fits]
        return with_shown(body, shown, self.tokenizer), Shown(
            asked,
            tuple(shown),
            sum(map(len, after)) - sum(map(len, before)),
            None if fits == asked else obstacle,
            after,
        )

    def _no_room(self, before: Prompts, answer: int) -> str:
        return (
            f"no room for more: of the context's {self.context} tokens, the prompt has "
            f"{max(map(len, before))} and the answer may have {answer}"
        )


def parse_show(value: Any, body: Body, default: int | None) -> int | None:
    """The number of sequences to show.

    Args:
        value: what the request asks for; None for the server's default, which does not apply to
            requests in which nothing can be shown, or which ask for the tokens of their prompt or
            its scores.
        body: body of the request.
        default: the server's default; None to leave it to the corpus.

    Raises:
        RequestError: an invalid number, or nothing can be shown in this request.
    """
    obstacle = _obstacle(body)
    if value is None:
        reads_prompt = body.get("prompt_logprobs") is not None or body.get("return_token_ids")
        return 0 if obstacle or reads_prompt else default
    if type(value) is not int or not 0 <= value <= MAX_SHOWN:
        raise RequestError(
            f"`adaptation.show` is a whole number of sequences, from 0 to {MAX_SHOWN}"
        )
    if value > 0 and obstacle:
        raise RequestError(f"`adaptation.show`: {obstacle}")
    return value


def _obstacle(body: Body) -> str | None:
    """Why nothing can be shown in this request, in words; None if something can."""
    if body.get("echo"):
        return "`echo` would return a prompt that the client did not send"
    if body.get("truncate_prompt_tokens") is not None:
        return "`truncate_prompt_tokens` would cut off what is shown"
    if len(_prompts(body.get("prompt"))) > MAX_PROMPTS:
        return f"the request has more than {MAX_PROMPTS} prompts: split it"
    return None


def answer_tokens(body: Body, context: int) -> int:
    """The number of tokens that an answer may have: the request's limit, or a share of the context
    without one.
    """
    if "messages" in body:
        limits = [body.get("max_completion_tokens"), body.get("max_tokens")]
    elif "input" in body:
        limits = [body.get("max_output_tokens")]
    else:
        limits = [body.get("max_tokens"), _COMPLETION_TOKENS]
    for limit in limits:
        if limit is not None:
            # vLLM accepts texts of numbers, too.
            return int(float(limit))
    return int(ANSWER_SHARE * context)


def with_shown(body: Body, sequences: Sequence[Source], tokenizer: Any) -> Body:
    """The body with sequences in its prompt, the last of them first.

    Args:
        body: body of a chat, a response or a completion.
        sequences: the sequences, the most relevant first.
        tokenizer: the model's, for prompts of tokens.
    """
    in_order = sequences[::-1]
    if not in_order:
        return body
    if "messages" in body:
        return _in_chat(body, in_order)
    if "input" in body:
        return _in_response(body, in_order)
    text, prompt = text_before(sequences), body["prompt"]
    longer = [_after(text, each, tokenizer) for each in _prompts(prompt)]
    return {**body, "prompt": longer if _is_several(prompt) else longer[0]}


def text_before(sequences: Sequence[Source]) -> str:
    """The sequences as text before the prompt of a completion.

    Args:
        sequences: the sequences, the most relevant first.
    """
    return "".join(f"{_plain(sequence)}\n\n" for sequence in reversed(sequences))


def _in_chat(body: Body, sequences: Sequence[Source]) -> Body:
    system, rest = _without_system(body["messages"])
    if passages := _passages(sequences):
        *before, last = system or [{"role": "system"}]
        system = [*before, _with_text(last, passages, "text")]
    return {**body, "messages": [*system, *_turns(sequences), *rest]}


def _in_response(body: Body, sequences: Sequence[Source]) -> Body:
    items, instructions = body["input"], body.get("instructions")
    if not isinstance(items, list):
        items = [{"role": "user", "content": items}]
    system, rest = _without_system(items)
    passages = _passages(sequences)
    if passages and system and not instructions:
        # The instructions would be a second system message, which many templates refuse.
        system = [*system[:-1], _with_text(system[-1], passages, "input_text")]
    elif passages:
        instructions = f"{instructions}\n\n{passages}" if instructions else passages
    turns = [item for turn in _turns(sequences) for item in _items(turn)]
    return {**body, "instructions": instructions, "input": [*system, *turns, *rest]}


def _without_system(messages: list[Body]) -> tuple[list[Body], list[Body]]:
    """The system messages at the beginning, and the rest."""
    system = [*takewhile(lambda message: message.get("role") in _SYSTEM, messages)]
    return system, messages[len(system) :]


def _with_text(message: Body, text: str, part: str) -> Body:
    """A message with a text at its end; `part` is the type of a text among its parts."""
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [*content, {"type": part, "text": text}]}
    return {**message, "content": f"{content}\n\n{text}" if content else text}


def _passages(sequences: Sequence[Source]) -> str:
    """The texts among the sequences in the form of the system message; "" without one."""
    passages = [
        f'<passage source="{sequence.name}">\n{sequence.text}\n</passage>'
        for sequence in sequences
        if sequence.example is None
    ]
    return "\n\n".join([_INTRODUCTION, *passages]) if passages else ""


def _turns(sequences: Sequence[Source]) -> list[Body]:
    """The messages of the examples among the sequences, without their own system messages."""
    return [
        dict(turn)
        for sequence in sequences
        if sequence.example is not None
        for turn in Example.from_json(sequence.example).turns
    ]


def _items(turn: Body) -> list[Body]:
    """An example's message as the items of a response."""
    content = turn.get("content")
    if turn["role"] == "tool":
        call = turn.get("tool_call_id", "")
        return [{"type": "function_call_output", "call_id": call, "output": content}]
    calls = [
        {"type": "function_call", "call_id": call.get("id", ""), **call["function"]}
        for call in turn.get("tool_calls", ())
    ]
    return [*([{"role": turn["role"], "content": content}] if content else []), *calls]


def _plain(sequence: Source) -> str:
    """A sequence as the text of a completion."""
    if sequence.example is None:
        return sequence.text
    pair = Example.from_json(sequence.example).prompt_and_completion
    return sequence.text if pair is None else "".join(pair)


def _is_several(prompt: Any) -> bool:
    """Whether a completion's `prompt` is a list of prompts, rather than a text or tokens."""
    return isinstance(prompt, list) and not all(type(each) is int for each in prompt)


def _prompts(prompt: Any) -> list[Any]:
    return prompt if _is_several(prompt) else [prompt]


def _after(text: str, prompt: str | list[int], tokenizer: Any) -> str | list[int]:
    """A prompt after a text; a token that begins texts stays the first."""
    if isinstance(prompt, str):
        return text + prompt
    start = int(prompt[:1] == [tokenizer.bos_token_id])
    shown = tokenizer.encode(text, add_special_tokens=False)
    return [*prompt[:start], *shown, *prompt[start:]]
