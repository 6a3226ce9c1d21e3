"""Retokenizing: a corpus made for one base model becomes one for another, without embedding it
again.

Each sequence keeps its text, its embedding and its id, and gets the new tokenizer's tokens of its
text. It is not divided again, so it may have more tokens than the chunk length it was made with, or
fewer. An example is rendered again by the new model's chat template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from selection.config import BASE_MODEL, DEFAULT
from selection.corpus.corpus import Corpus
from selection.errors import CorpusError, ExampleError
from selection.examples.example import Example, Spans
from selection.ingest.chunking import tokenizer_digest
from selection.ingest.examples import ExampleChunker


def retokenize(
    corpus: Corpus,
    tokenizer: Any,
    max_tokens: int,
    on_progress: Callable[[int], None] = lambda count: None,
) -> int:
    """Replace the tokens of a corpus by another base model's, all in one transaction; does nothing
    if it has the tokens of that tokenizer and chat template.

    Args:
        corpus: not embedded with the hidden states of a base model.
        tokenizer: the new base model's tokenizer.
        max_tokens: the new base model's context.
        on_progress: called with the number of sequences just tokenized.

    Returns:
        The number of sequences that were removed, because they have fewer than two tokens.

    Raises:
        CorpusError: the corpus was embedded with a base model's hidden states, or a sequence has
            more tokens than the new model's context, or an example cannot be rendered for it, or
            the corpus cannot be written; nothing was changed.
    """
    if corpus.embedder == BASE_MODEL:
        raise CorpusError(
            f"corpus {corpus.name!r} was embedded with its base model's own hidden states, which "
            f"another model does not have: run `mayfly corpus reembed {corpus.name} --embedder "
            f"{DEFAULT}` first, or add its documents to a new corpus"
        )

    digest, examples, meta = tokenizer_digest(tokenizer), ExampleChunker(tokenizer), corpus.meta()
    if meta["tokenizer"] == digest and meta.get("template") in (None, examples.digest):
        return 0

    def tokenize(
        sequences: list[tuple[str, str | None]],
    ) -> list[tuple[Sequence[int], Spans | None]]:
        texts = [text for text, example in sequences if example is None]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False) if texts else {}
        ids = iter(encoded.get("input_ids", ()))
        chunks = [
            None if example is None else examples.chunk(Example.from_json(example))
            for _, example in sequences
        ]
        return [
            (next(ids), None) if chunk is None else (chunk.tokens, chunk.scored) for chunk in chunks
        ]

    try:
        removed = corpus.retokenization.run(
            digest, examples.digest, tokenize, max_tokens, on_progress
        )
    except ExampleError as problem:
        raise CorpusError(
            f"corpus {corpus.name!r} was not changed: an example of it cannot be rendered for this "
            f"model: {problem}"
        ) from problem
    corpus.check_tokenizer(digest, examples.digest)
    return removed
