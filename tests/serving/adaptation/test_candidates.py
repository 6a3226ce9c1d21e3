"""What a request brings as training sequences: rendered, bounded, each example after the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from selection.embedding import Prompt
from selection.examples.example import Example
from selection.request import Candidate
from serving.adaptation import candidates
from serving.adaptation.candidates import CandidateRenderer, example_sources
from serving.adaptation.request import AdaptationRequest
from serving.budget import Budget, ExampleLimits, ExamplesAs
from serving.errors import RequestError

CONTEXT = 64


def pair(question: str, answer: str) -> Example:
    return Example(
        ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    )


ANIMALS = (pair("cat", "meow"), pair("dog", "woof"), pair("cow", "moo"))


def request(*examples: Example, texts: tuple[str, ...] = (), **options: Any) -> AdaptationRequest:
    defaults: dict[str, Any] = {"budget": Budget(steps=50), "corpus": None}
    return AdaptationRequest(
        (Prompt("bird"),),
        clamped=(),
        examples=examples,
        texts=texts,
        **(defaults | options),
    )


@pytest.fixture
def renderer(tokenizer: Any) -> CandidateRenderer:
    return CandidateRenderer(tokenizer, CONTEXT, ExampleLimits(count=8, tokens=200))


def scored_texts(candidate: Candidate, tokenizer: Any) -> list[str]:
    assert candidate.scored is not None
    return [
        str(tokenizer.decode(candidate.tokens[start:end])).strip()
        for start, end in candidate.scored
    ]


@pytest.mark.parametrize("is_chat", [True, False])
async def test_an_example_is_rendered_and_its_answer_scored(
    renderer: CandidateRenderer, tokenizer: Any, is_chat: bool
) -> None:
    (cat, dog) = (await renderer.render(request(*ANIMALS[:2]), is_chat=is_chat)).candidates

    assert (cat.name, dog.name) == ("example 1 of the request", "example 2 of the request")
    assert (cat.prompt, dog.prompt) == (Prompt("cat"), Prompt("dog"))
    assert tokenizer.decode(cat.tokens).startswith("cat")
    assert (dog.tokens[-1] == tokenizer.eos_token_id) is not is_chat
    (answer,) = scored_texts(cat, tokenizer)
    assert answer.removesuffix(tokenizer.eos_token) == "meow"
    assert cat.example is not None
    assert Example.from_json(cat.example) == ANIMALS[0]


async def test_a_text_is_split_as_a_document_is(
    renderer: CandidateRenderer, tokenizer: Any
) -> None:
    text = "The ship leaves the harbour.\n" * 12

    brought = (await renderer.render(request(texts=(text, "Two words.")), is_chat=True)).candidates

    *parts, last = brought
    assert len(parts) > 1
    assert {(part.name, part.scored, part.example) for part in parts} == {
        ("text 1 of the request", None, None)
    }
    assert [text[part.start :].startswith(part.text) for part in parts] == [True] * len(parts)
    assert "".join(str(tokenizer.decode(part.tokens)) for part in parts) == text
    assert all(len(part.tokens) <= CONTEXT for part in parts)
    assert (last.name, last.text) == ("text 2 of the request", "Two words.")


@pytest.mark.parametrize(
    ("brought", "message"),
    [
        ({"examples": (ANIMALS[0], pair("cat", "meow " * 70))}, "^example 2 .*more than the 64"),
        ({"examples": (pair("cat", "meow " * 20),) * 8}, "tokens; this server takes 200"),
        ({"texts": ("word " * 300,)}, "tokens; this server takes 200"),
        ({"texts": ("word " * 3000,)}, "15000 characters; this server takes at most 3200"),
        ({"examples": (pair("x" * 4000, "y"),)}, "characters; this server takes at most 3200"),
        ({"texts": ("Two words.", "a")}, "text 2 of `adaptation.texts` has one token"),
    ],
)
async def test_what_is_too_long_or_too_short_is_refused(
    renderer: CandidateRenderer, brought: dict[str, Any], message: str
) -> None:
    examples = brought.get("examples", ())

    with pytest.raises(RequestError, match=message):
        await renderer.render(request(*examples, texts=brought.get("texts", ())), is_chat=True)


async def test_completions_take_pairs_of_texts(renderer: CandidateRenderer) -> None:
    chat = Example(({"role": "system", "content": "Be an animal."}, *ANIMALS[0].messages))

    with pytest.raises(RequestError, match=r"^example 2 .*send other examples to /v1/chat"):
        await renderer.render(request(ANIMALS[0], chat), is_chat=False)
    assert (await renderer.render(request(ANIMALS[0], chat), is_chat=True)).candidates


async def test_a_template_that_refuses_the_messages_is_the_clients_error(tokenizer: Any) -> None:
    picky = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    picky.chat_template = "{{ raise_exception('no cows') if messages[0].content == 'cow' }}x"
    renderer = CandidateRenderer(picky, CONTEXT, ExampleLimits())

    with pytest.raises(RequestError, match=r"^example 1 of `adaptation\.examples`: "):
        await renderer.render(request(ANIMALS[2]), is_chat=True)


class TestLeaveOneOut:
    @staticmethod
    async def sequences(
        renderer: CandidateRenderer, *examples: Example, is_chat: bool = True, seed: int = 0
    ) -> tuple[Candidate, ...]:
        form: ExamplesAs = "leave-one-out"
        brought = request(*examples, examples_as=form, seed=seed)
        return (await renderer.render(brought, is_chat=is_chat)).candidates

    @pytest.mark.parametrize("is_chat", [True, False])
    async def test_each_example_comes_after_the_others(
        self, renderer: CandidateRenderer, tokenizer: Any, is_chat: bool
    ) -> None:
        sequences = await self.sequences(renderer, *ANIMALS, is_chat=is_chat)

        answers = ["meow", "woof", "moo"]
        for answer, sequence in zip(answers, sequences, strict=True):
            scored = [
                text.removesuffix(tokenizer.eos_token) for text in scored_texts(sequence, tokenizer)
            ]
            assert scored[-1] == answer
            assert sorted(scored) == sorted(answers)
        assert [sequence.prompt.text for sequence in sequences] == ["cat", "dog", "cow"]

    async def test_an_example_comes_after_the_others_in_several_orders(
        self, renderer: CandidateRenderer, tokenizer: Any
    ) -> None:
        more = [pair(name, f"the {name}") for name in ("ant", "bee", "elk")]
        sequences = await self.sequences(renderer, *ANIMALS, *more)

        for sequence in sequences:
            orders = [
                scored_texts(replace(sequence, tokens=tokens, scored=scored), tokenizer)
                for tokens, scored in sequence.forms
            ]
            assert len({tuple(order) for order in orders}) == len(orders) == 3
            assert len({order[-1] for order in orders}) == 1

    async def test_there_are_no_more_orders_than_the_steps_need(
        self, renderer: CandidateRenderer
    ) -> None:
        orders = []
        for steps in (0, 3, 4, 50):
            brought = request(*ANIMALS, examples_as="leave-one-out", budget=Budget(steps))
            rendered = await renderer.render(brought, is_chat=True)
            orders.append([len(each.forms) for each in rendered.candidates])

        assert orders == [[1] * 3, [1] * 3, [2] * 3, [3] * 3]

    async def test_the_seed_decides_the_order(self, renderer: CandidateRenderer) -> None:
        first = await self.sequences(renderer, *ANIMALS)

        assert await self.sequences(renderer, *ANIMALS) == first
        assert any(
            [await self.sequences(renderer, *ANIMALS, seed=seed) != first for seed in (1, 2, 3)]
        )

    async def test_the_same_example_never_comes_before_itself(
        self, renderer: CandidateRenderer, tokenizer: Any
    ) -> None:
        twice = await self.sequences(renderer, ANIMALS[0], ANIMALS[1], ANIMALS[0])

        assert [scored_texts(each, tokenizer) for each in twice] == [
            ["woof", "meow"],
            ["meow", "meow", "woof"],
            ["woof", "meow"],
        ]

    async def test_others_are_left_out_beyond_the_bound(
        self, renderer: CandidateRenderer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        single = (await renderer.render(request(*ANIMALS), is_chat=True)).candidates
        longest = sorted(len(each.tokens) for each in single)[1:]
        monkeypatch.setattr(candidates, "LEAVE_ONE_OUT_TOKENS", sum(longest))

        sequences = await self.sequences(renderer, *ANIMALS)

        assert all(len(each.tokens) <= sum(longest) for each in sequences)
        assert all(len(each.scored or ()) == 2 for each in sequences)


async def test_a_budget_with_a_gain_takes_three_steps_for_each_example(
    renderer: CandidateRenderer,
) -> None:
    auto = Budget(steps=50, seconds=20.0, gain=0.25)

    capped = await renderer.render(request(*ANIMALS, budget=auto), is_chat=True)
    explicit = await renderer.render(request(*ANIMALS, budget=Budget(steps=40)), is_chat=True)
    small = await renderer.render(request(*ANIMALS, budget=Budget(4, gain=0.1)), is_chat=True)
    texts = await renderer.render(request(texts=("Two words.",), budget=auto), is_chat=True)

    assert capped.budget == Budget(steps=9, seconds=20.0)
    assert (explicit.budget.steps, small.budget.steps) == (40, 4)
    assert texts.budget == auto


async def test_an_adapter_of_examples_alone_or_to_be_used_again_is_made_for_them(
    renderer: CandidateRenderer,
) -> None:
    again = request(*ANIMALS, reuse="examples", corpus="zoo")
    alone, beside = request(*ANIMALS), request(*ANIMALS, corpus="zoo")
    shown, text = request(*ANIMALS, budget=Budget(0)), request(texts=("Two words.",))

    prompts = [
        [prompt.text for prompt in (await renderer.render(each, is_chat=True)).prompts]
        for each in (again, alone, beside, shown, text)
    ]

    assert prompts == [["cat", "dog", "cow"]] * 2 + [["bird"]] * 3


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"plan": "batched"},
        {"strategy": "nn"},
        {"budget": Budget(steps=49)},
        {"budget": Budget(steps=50, prefers_corpus=True)},
        {"examples": ANIMALS[::-1]},
        {"examples_as": "leave-one-out"},
        {"texts": ("Two words.",)},
        {"is_chat": False},
    ],
)
def test_the_digest_tells_requests_apart_whose_adapters_differ(change: dict[str, Any]) -> None:
    def digest(
        examples: tuple[Example, ...] = ANIMALS, is_chat: bool = True, **options: Any
    ) -> bytes:
        return request(*examples, **options).examples_digest(is_chat)

    assert digest() == digest()
    assert digest(**change) != digest()


async def test_examples_that_are_shown_are_named_as_the_candidates(
    renderer: CandidateRenderer,
) -> None:
    rendered = await renderer.render(request(*ANIMALS), is_chat=True)

    shown = [(each.name, each.text, each.example) for each in example_sources(ANIMALS)]

    candidates = [(each.name, each.text, each.example) for each in rendered.candidates]
    assert shown == candidates[::-1]


def test_a_request_with_an_adapter_is_rendered_only_to_choose_what_is_shown() -> None:
    again = request(*ANIMALS, reuse="examples")

    assert again.needs_candidates(is_trained=False)
    assert not again.needs_candidates(is_trained=True)
    assert replace(again, show=2).needs_candidates(is_trained=True)
    assert not replace(again, show=3, shows_chosen=False).needs_candidates(is_trained=True)
