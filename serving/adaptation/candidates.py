"""CandidateRenderer: the examples and texts of a request as training sequences.

An example is rendered as the model will see a request: by the chat template, or for completions as
plain text. By itself, or, as "leave-one-out", after the other examples: so an adapter learns to
answer as it will be asked when the examples stand in the prompt (Akyürek et al., "The Surprising
Effectiveness of Test-Time Training for Few-Shot Learning"). A text is split as a document of a
corpus is.
"""

from __future__ import annotations

import asyncio
import copy
import math
import random
from collections.abc import Sequence
from typing import Any

from selection.corpus.sequences import Source
from selection.embedding import Prompt
from selection.errors import ExampleError
from selection.examples.example import Example
from selection.examples.rendering import RenderedExample, Renderer
from selection.ingest.chunking import Chunking, split
from selection.request import Candidate
from serving.adaptation.request import STEPS_PER_CANDIDATE, AdaptationRequest
from serving.budget import ExampleLimits
from serving.errors import RequestError

# Length of a leave-one-out sequence, as far as other examples are put before one: a step's time and
# memory grow with it.
LEAVE_ONE_OUT_TOKENS = 1024
# A leave-one-out sequence also teaches the answers of the examples before the last: a step then
# learns more at the same cost.
SCORE_EARLIER_ANSWERS = True
# Largest number of orders of the other examples before one, for the times that it is chosen.
LEAVE_ONE_OUT_ORDERS = STEPS_PER_CANDIDATE
# More than a token of any text has on average.
_CHARACTERS_PER_TOKEN = 16


def example_sources(examples: Sequence[Example]) -> list[Source]:
    """The examples of a request as they are shown, the last one first."""
    return [
        Source(-i, -i, _name(i), 0, each.text, example=each.to_json())
        for i, each in reversed([*enumerate(examples, 1)])
    ]


def _name(position: int) -> str:
    return f"example {position} of the request"


class CandidateRenderer:
    """Renders what requests bring, one request at a time, in a thread.

    Args:
        tokenizer: the served model's; copied, since a tokenizer fails when two threads use it.
        context: the model's context, in tokens.
        limits: limits on the examples and texts of a request.
    """

    def __init__(self, tokenizer: Any, context: int, limits: ExampleLimits) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._context, self._limits = context, limits
        self._chat, self._plain = Renderer(self._tokenizer), Renderer(self._tokenizer, chat=False)
        self._turn = asyncio.Lock()

    async def render(self, request: AdaptationRequest, *, is_chat: bool) -> AdaptationRequest:
        """The request with its candidates.

        Args:
            request: a request that brings data.
            is_chat: whether its examples are rendered by the chat template.

        Raises:
            RequestError: an example cannot be rendered, is too long or no pair of texts, or all
                together have too many tokens.
        """
        async with self._turn:
            return request.with_candidates(
                await asyncio.to_thread(self._candidates, request, is_chat)
            )

    def _candidates(self, request: AdaptationRequest, is_chat: bool) -> tuple[Candidate, ...]:
        self._check_characters(request)
        renderer = self._chat if is_chat else self._plain
        rendered = [
            self._render(renderer, example, position)
            for position, example in enumerate(request.examples, 1)
        ]
        texts = [
            candidate
            for position, text in enumerate(request.texts, 1)
            for candidate in self._split(text, position)
        ]
        total = sum(len(each.tokens) for each in rendered) + sum(len(each.tokens) for each in texts)
        if total > self._limits.tokens:
            raise RequestError(
                f"the examples and texts in `adaptation` have {total} tokens; this server takes "
                f"{self._limits.tokens} in a request (--max-example-tokens): add them to a corpus"
            )
        forms = [[each] for each in rendered]
        # Nothing is trained without a step.
        if request.examples_as == "leave-one-out" and request.budget.steps > 0:
            forms = self._leave_one_out(renderer, request, rendered)
        examples = (
            Candidate(
                example.prompt,
                first.tokens,
                first.scored,
                _name(position),
                0,
                example.text,
                example.to_json(),
                tuple((each.tokens, each.scored) for each in further),
            )
            for position, (example, (first, *further)) in enumerate(
                zip(request.examples, forms, strict=True), 1
            )
        )
        return (*examples, *texts)

    def _check_characters(self, request: AdaptationRequest) -> None:
        """Refuse what is far too long before it is tokenised."""
        characters = sum(map(len, request.texts))
        characters += sum(len(example.to_json()) for example in request.examples)
        if characters > (most := _CHARACTERS_PER_TOKEN * self._limits.tokens):
            raise RequestError(
                f"the examples and texts in `adaptation` have {characters} characters; this server "
                f"takes at most {most}, and {self._limits.tokens} tokens (--max-example-tokens): "
                "add them to a corpus"
            )

    def _render(
        self,
        renderer: Renderer,
        example: Example,
        position: int,
        before: Sequence[Example] = (),
    ) -> RenderedExample:
        where = f"example {position} of `adaptation.examples`"
        if renderer is self._plain and example.prompt_and_completion is None:
            raise RequestError(
                f'{where}: /v1/completions takes {{"prompt": "...", "completion": "..."}}, '
                "both texts; send other examples to /v1/chat/completions"
            )
        try:
            rendered = renderer.render(example, before, score_before=SCORE_EARLIER_ANSWERS)
        except ExampleError as problem:
            raise RequestError(f"{where}: {problem}") from problem
        if len(rendered.tokens) > self._context:
            raise RequestError(
                f"{where} has {len(rendered.tokens)} tokens, more than the {self._context} of the "
                "model's context"
            )
        return rendered

    def _split(self, text: str, position: int) -> list[Candidate]:
        chunking = Chunking(max_length=min(Chunking.max_length, self._context))
        name = f"text {position} of the request"
        candidates = [
            Candidate(Prompt(chunk.text), chunk.tokens, None, name, chunk.start, chunk.text)
            for chunk in split(text, self._tokenizer, chunking)
        ]
        if not candidates:
            raise RequestError(
                f"text {position} of `adaptation.texts` has one token: there is nothing to predict"
            )
        return candidates

    def _leave_one_out(
        self, renderer: Renderer, request: AdaptationRequest, single: Sequence[RenderedExample]
    ) -> list[list[RenderedExample]]:
        """Each example after the others, in orders that the request's seed gives: as many as there
        are steps for each example, up to LEAVE_ONE_OUT_ORDERS.
        """
        count = math.ceil(request.budget.steps / len(request.examples))
        shuffled = random.Random(request.seed)  # noqa: S311
        sequences: list[list[RenderedExample]] = []
        for position, example in enumerate(request.examples, 1):
            others = [
                (other, len(each.tokens))
                for other, each in zip(request.examples, single, strict=True)
                # Its own answer in front of it would teach copying.
                if other != example
            ]
            room = min(LEAVE_ONE_OUT_TOKENS, self._context) - len(single[position - 1].tokens)
            orders = []
            for _ in range(min(count, LEAVE_ONE_OUT_ORDERS)):
                shuffled.shuffle(others)
                before, left = [], room
                for other, tokens in others:
                    if tokens <= left:
                        before.append(other)
                        left -= tokens
                orders.append(self._render(renderer, example, position, before))
            sequences.append(orders)
        return sequences
