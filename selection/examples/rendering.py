"""Rendering: an example becomes the tokens that a request of its kind is served with, and those of
its answers are scored.

A chat is rendered by the model's chat template, as vLLM does for a request. An answer of the
assistant is what the template adds to the prompt of a request for it, up to its end-of-turn token.
An answer before the last is scored where the template renders it in the whole conversation as it
would render it at the end; some templates leave the reasoning out of earlier answers, and there it
is context only. For completions, and for models without a chat template, a prompt is followed by
its completion and the end-of-text token.

Prompts and answers are tokenised separately, since a model generates an answer after the tokens of
its prompt. A renderer, like its tokenizer, is for one thread at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from selection.errors import ExampleError, first_line
from selection.examples.example import Example, Message, Spans
from selection.examples.turns import for_template, joined_turns, with_known_roles

# Between two examples in plain text.
PLAIN_SEPARATOR = "\n\n"
# A text to tokenise another one after.
_BEFORE = "a\n"


@dataclass(frozen=True)
class RenderedExample:
    """The tokens of an example, up to the last one that is scored; position 0 never is."""

    tokens: tuple[int, ...]
    scored: Spans


@dataclass(frozen=True)
class _Segment:
    text: str
    scored: bool


class Renderer:
    """Renders examples for one model.

    Args:
        tokenizer: the model's tokenizer, a fast one.
        chat: whether to render chats, by the chat template, rather than plain text; None for chats
            if the tokenizer has a chat template.

    Attributes:
        chat: whether it renders chats.
        digest: 16 hex digits that two renderers share only if their chat templates and special
            tokens are equal.

    Raises:
        ExampleError: chats are to be rendered, and the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, *, chat: bool | None = None) -> None:
        template = tokenizer.chat_template
        if chat and template is None:
            raise ExampleError(
                "the model has no chat template: give each example as a `prompt` and a "
                "`completion`, for /v1/completions"
            )
        self._tokenizer = tokenizer
        self.chat = template is not None if chat is None else chat
        special = [str(tokenizer.bos_token), str(tokenizer.eos_token)]
        identity = json.dumps([template if self.chat else None, *special])
        self.digest = hashlib.sha256(identity.encode()).hexdigest()[:16]

    def render(
        self, example: Example, before: Sequence[Example] = (), *, score_before: bool = False
    ) -> RenderedExample:
        """The tokens of an example.

        Args:
            example: what to render.
            before: examples that precede it in the same conversation, without their system
                messages, or in the same text.
            score_before: whether the answers of these are scored, too.

        Raises:
            ExampleError: the chat template has no generation prompt, or does not render the answer
                after the prompt for it, or refuses the messages; or plain text is to be rendered,
                and an example is not a prompt and a completion.
        """
        segments = (self._chat if self.chat else self._plain)(example, before, score_before)
        tokens: list[int] = []
        scored: list[tuple[int, int]] = []
        for i, segment in enumerate(segments):
            if i:
                ids = self._continuation(segment.text)
            else:
                # As vLLM encodes the prompts of chats, and of completions.
                ids = self._ids(segment.text, special=not self.chat)
            # Nothing predicts a first token.
            start = max(len(tokens), 1)
            end = len(tokens) + self._end_of_turn(ids) if segment.scored else start
            if start < end:
                scored.append((start, end))
            elif i == len(segments) - 1:
                raise ExampleError("the answer has no tokens")
            tokens += ids
        return RenderedExample(tuple(tokens[: scored[-1][1]]), tuple(scored))

    def _chat(
        self, example: Example, before: Sequence[Example], score_before: bool
    ) -> list[_Segment]:
        if not self._asks_for_answers:
            raise ExampleError(
                "the chat template has no generation prompt: it ignores `add_generation_prompt`, "
                "so a model would have to generate the header of its own turn"
            )
        turns = joined_turns(example, before, score_before=score_before)
        turns = with_known_roles(turns, str(self._tokenizer.chat_template))
        conversation = [for_template(turn.message) for turn in turns]
        last = len(turns) - 1
        whole = self._apply(conversation, example.tools)
        segments: list[_Segment] = []
        position = 0
        for index in (i for i, turn in enumerate(turns) if turn.scored):
            try:
                prompt = self._apply(conversation[:index], example.tools, ask=True)
                end = self._apply(conversation[: index + 1], example.tools)
            except ExampleError:
                # A template may refuse a beginning of the conversation, such as an answer without a
                # question.
                if index == last:
                    raise
                continue
            if whole.startswith(end) and end.startswith(prompt) and position <= len(prompt):
                segments.append(_Segment(whole[position : len(prompt)], False))
                segments.append(_Segment(whole[len(prompt) : len(end)], True))
                position = len(end)
            elif index == last:
                raise ExampleError(
                    "the chat template does not render the answer after the prompt that it renders "
                    "for it"
                )
        _check_rendered(turns[last].message, segments[-1].text)
        return segments

    def _plain(
        self, example: Example, before: Sequence[Example], score_before: bool
    ) -> list[_Segment]:
        end = self._tokenizer.eos_token
        if end is None:
            raise ExampleError("the tokenizer has no end-of-text token, which ends a completion")
        segments: list[_Segment] = []
        text = ""
        for each in before:
            prompt, completion = _pair(each)
            if score_before:
                segments += [_Segment(text + prompt, False), _Segment(completion, True)]
                text = PLAIN_SEPARATOR
            else:
                text += f"{prompt}{completion}{PLAIN_SEPARATOR}"
        prompt, completion = _pair(example)
        segments.append(_Segment(text + prompt, False))
        segments.append(_Segment(f"{completion.removesuffix(end)}{end}", True))
        return segments

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self._tokenizer.added_tokens_decoder
        return frozenset(token for token, each in added.items() if each.special)

    @cached_property
    def _marks_start(self) -> bool:
        """Whether the tokenizer begins a text, but not a line of it, with a blank."""
        return self._ids(f"{_BEFORE}b") != self._ids(_BEFORE) + self._ids("b")

    @cached_property
    def _asks_for_answers(self) -> bool:
        """Whether the template begins the assistant's turn where a request asks for it."""
        question, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
        prompt = self._apply([question], (), ask=True)
        if prompt != self._apply([question], ()):
            return True
        # A template without any headers has nothing to begin a turn with.
        whole = self._apply([question, answer], ())
        return whole.removeprefix(prompt).lstrip().startswith("a")

    def _apply(
        self, conversation: list[dict[str, Any]], tools: Sequence[Any], *, ask: bool = False
    ) -> str:
        # A template is the user's program, which may raise anything.
        try:
            text: str = self._tokenizer.apply_chat_template(
                conversation, tools=list(tools) or None, tokenize=False, add_generation_prompt=ask
            )
        except Exception as problem:
            raise ExampleError(
                f"the chat template refuses the messages: {first_line(problem)}"
            ) from problem
        return text

    def _ids(self, text: str, *, special: bool = False) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=special, verbose=False)[
            "input_ids"
        ]
        return ids

    def _continuation(self, text: str) -> list[int]:
        """The tokens of a text that follows another."""
        if self._marks_start:
            before = self._ids(_BEFORE)
            ids = self._ids(_BEFORE + text)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return self._ids(text)

    def _end_of_turn(self, ids: list[int]) -> int:
        """The number of tokens of an answer up to its end-of-turn token, after which a template may
        put a line end, which no model generates.
        """
        end = max((i + 1 for i, token in enumerate(ids) if token in self._special), default=0)
        return end if end and not self._tokenizer.decode(ids[end:]).strip() else len(ids)


def _check_rendered(answer: Message, text: str) -> None:
    """Refuse an answer that the template has left out of its text."""
    # Templates may render the reasoning in a form of their own.
    content = answer.get("content", "").rpartition("</think>")[2].strip()
    calls = [call["function"]["name"] for call in answer.get("tool_calls", ())]
    if not all(part in text for part in (content, *calls)):
        what = "the tool calls of the answer" if content in text else "the answer"
        raise ExampleError(f"the chat template leaves out {what}")


def _pair(example: Example) -> tuple[str, str]:
    pair = example.prompt_and_completion
    if pair is None:
        raise ExampleError(
            "without a chat template, an example must be a `prompt` and a `completion`, each a "
            "string"
        )
    return pair
