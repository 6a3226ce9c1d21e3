"""ShownPrompts: held-out sequences with others shown before them, as a server shows them.

What is shown, in which form and how much of it fits are those of `serving.adaptation.shown`. A part
of a text is the prompt of a completion and what follows it. An example is a chat, or for a model
without a chat template a completion.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from selection.corpus.sequences import Source
from selection.errors import ExampleError
from selection.examples.example import Example
from selection.examples.rendering import RenderedExample, Renderer
from serving.adaptation.shown import Body, PromptBuilder, Prompts
from serving.calibration.held_out import HeldOut
from serving.engine.rendering import PromptRefusedError


class ShownPrompts:
    """Renders held-out sequences for one model.

    Args:
        tokenizer: The model's tokenizer, with the chat template of the corpus.
        context: The model's context, in tokens.
    """

    def __init__(self, tokenizer: Any, context: int) -> None:
        self._tokenizer, self._context = tokenizer, context
        self._renderer = Renderer(tokenizer)

    def scored(
        self, held_out: HeldOut, sequences: Sequence[Source], show: int
    ) -> tuple[tuple[int, ...], int]:
        """The tokens of a held-out sequence after up to `show` others, and the index of the first
        scored one.

        Args:
            held_out: The held-out sequence.
            sequences: Different sequences, the most relevant first.
            show: Maximum number of these to show, as far as the context has room.
        """
        if show == 0:
            return held_out.tokens, held_out.middle

        async def render(body: Body) -> Prompts:
            tokens, length = self._tokens(held_out, body)
            return (tokens[:length],)

        async def choose() -> Sequence[Source]:
            return sequences

        builder = PromptBuilder(self._context, self._tokenizer, render)
        body, _ = asyncio.run(builder.show(self._body(held_out), show, choose))
        return self._tokens(held_out, body)

    def _body(self, held_out: HeldOut) -> Body:
        """The request whose answer is the scored part."""
        limit, example = {"max_tokens": len(held_out.tokens) - held_out.middle}, held_out.example
        if example is None:
            return {"prompt": list(held_out.tokens[: held_out.middle]), **limit}
        if self._renderer.chat:
            return {"messages": list(example.messages[:-1]), **limit}
        return {"prompt": example.messages[0]["content"], **limit}

    def _tokens(self, held_out: HeldOut, body: Body) -> tuple[tuple[int, ...], int]:
        """The tokens of a request and its answer, and the length of its prompt.

        Raises:
            PromptRefusedError: the chat template refuses the messages.
        """
        if held_out.example is None:
            prompt = body["prompt"]
            return (*prompt, *held_out.tokens[held_out.middle :]), len(prompt)
        try:
            rendered = self._render(held_out.example, body)
        except ExampleError as problem:
            raise PromptRefusedError(str(problem)) from problem
        return rendered.tokens, rendered.scored[-1][0]

    def _render(self, example: Example, body: Body) -> RenderedExample:
        prompt = body.get("messages") or [{"role": "user", "content": body["prompt"]}]
        return self._renderer.render(replace(example, messages=(*prompt, example.messages[-1])))
