"""Examples of a corpus: each is one chunk, never split, so it must fit into the model's context."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from selection.corpus.sequences import Chunk
from selection.errors import ExampleError
from selection.examples.example import Example
from selection.examples.rendering import Renderer


class ExampleChunker:
    """Makes chunks of examples, for one model.

    Args:
        tokenizer: the model's tokenizer.
        max_tokens: the model's context; None for no limit.

    Attributes:
        digest: digest of the model's chat template.
    """

    def __init__(self, tokenizer: Any, max_tokens: int | None = None) -> None:
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        self._renderer = Renderer(tokenizer)
        self.digest = self._renderer.digest

    def chunk(self, example: Example) -> Chunk:
        """The chunk of an example.

        Raises:
            ExampleError: it is longer than the model's context, or cannot be rendered.
        """
        limit = self._max_tokens
        # So that a text of many megabytes is refused before it is tokenised.
        if limit is not None and len(example.text) > limit * self._longest_token:
            raise _too_long(f"{len(example.text):,} characters", limit)
        rendered = self._renderer.render(example)
        if limit is not None and len(rendered.tokens) > limit:
            raise _too_long(f"{len(rendered.tokens):,} tokens", limit)
        return Chunk(0, example.text, rendered.tokens, example.to_json(), rendered.scored)

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self._tokenizer.get_vocab()))


def context_tokens(base_model: str) -> int:
    """The maximum number of tokens of a training sequence of a base model.

    Args:
        base_model: hub id or folder.
    """
    from transformers import AutoConfig

    # The same default as the trainer's.
    return int(getattr(AutoConfig.from_pretrained(base_model), "max_position_embeddings", 2048))


def _too_long(length: str, limit: int) -> ExampleError:
    return ExampleError(
        f"the example has {length}, and the model's context {limit:,} tokens; an example is not "
        "split: shorten it, or leave it out"
    )
