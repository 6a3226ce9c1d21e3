"""Held-out prompts with others shown: the same as a server's requests, as far as there is room."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from selection.corpus.sequences import Source
from selection.embedding import Prompt
from selection.examples.example import Example, parse_example
from selection.examples.rendering import Renderer
from serving.adaptation.shown import with_shown
from serving.calibration.held_out import HeldOut
from serving.calibration.shown_prompts import ShownPrompts

_QUESTION = parse_example(
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is 2 + 3?"},
            {"role": "assistant", "content": "five"},
        ]
    },
    "the example",
)


def shown_pair(number: int, question: str, answer: str) -> Source:
    example = parse_example({"prompt": question, "completion": answer}, "the example")
    return Source(number, number, f"{number}", 0, example.text, example=example.to_json())


_SHOWN = [shown_pair(1, "What is 2 + 4?", "six"), shown_pair(2, "What is 1 + 1?", "two")]


def held_out_example(example: Example, renderer: Renderer) -> HeldOut:
    rendered = renderer.render(example)
    return HeldOut(1, example.prompt, rendered.tokens, rendered.scored[-1][0], example)


def test_examples_are_earlier_turns_of_the_chat_and_the_last_answer_is_scored(
    tokenizer: Any,
) -> None:
    held_out = held_out_example(_QUESTION, Renderer(tokenizer))

    tokens, middle = ShownPrompts(tokenizer, 1000).scored(held_out, _SHOWN, 2)

    request = with_shown({"messages": list(_QUESTION.messages[:-1])}, _SHOWN, tokenizer)
    prompt = tokenizer.apply_chat_template(
        request["messages"], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(tokens[:middle]) == prompt
    assert prompt.index("Be brief.") < prompt.index("1 + 1") < prompt.index("2 + 4")
    assert tokens[middle:] == held_out.tokens[held_out.middle :]


def test_an_example_without_anything_shown_is_what_the_corpus_has(tokenizer: Any) -> None:
    held_out = held_out_example(_QUESTION, Renderer(tokenizer))
    prompts = ShownPrompts(tokenizer, 1000)

    assert prompts.scored(held_out, [], 2) == prompts.scored(held_out, _SHOWN, 0)
    assert prompts.scored(held_out, [], 2) == (held_out.tokens, held_out.middle)


@pytest.mark.parametrize("room", [True, False])
def test_a_text_follows_what_is_shown_as_far_as_there_is_room(tokenizer: Any, room: bool) -> None:
    tokens = tuple(tokenizer.encode("The hive is a home of bees, and the bees make honey in it."))
    held_out = HeldOut(1, Prompt(""), tokens, 7)
    texts = [Source(1, 1, "one", 0, "Bees dance."), Source(2, 2, "two", 0, "Wasps do not dance.")]
    before = tokenizer.encode("Bees dance.\n\n")
    context = len(before) + len(tokens)

    prompt, middle = ShownPrompts(tokenizer, 1000 if room else context).scored(held_out, texts, 2)

    assert prompt[middle:] == tokens[7:]
    expected = "Bees dance.\n\n" + tokenizer.decode(tokens[:7])
    if room:
        expected = f"Wasps do not dance.\n\n{expected}"
    assert tokenizer.decode(prompt[:middle]) == expected


def test_without_a_chat_template_examples_are_plain_text(tokenizer: Any) -> None:
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    held_out = held_out_example(
        parse_example({"prompt": "2 + 3 =", "completion": " five"}, "the example"), Renderer(plain)
    )

    tokens, middle = ShownPrompts(plain, 1000).scored(held_out, _SHOWN[:1], 2)

    assert plain.decode(tokens[:middle]) == "What is 2 + 4?six\n\n2 + 3 ="
    assert tokens[middle:] == held_out.tokens[held_out.middle :]
