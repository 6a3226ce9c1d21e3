"""Retokenizing: a corpus made for one base model becomes one for another, without embedding it
again.

Each sequence keeps its text, its embedding and its id, and gets the new tokenizer's tokens of its
text. It is not divided again, so it may have more tokens than the chunk length it was made with, or
fewer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selection.config import BASE_MODEL, DEFAULT
from selection.corpus.corpus import Corpus
from selection.errors import CorpusError
from selection.ingest.chunking import tokenizer_digest


def retokenize(
    corpus: Corpus,
    tokenizer: Any,
    max_tokens: int,
    on_progress: Callable[[int], None] = lambda count: None,
) -> int:
    """Replace the tokens of a corpus by another base model's, all in one transaction; does nothing
    if it has the tokens of that tokenizer.

    Args:
        corpus: not embedded with the hidden states of a base model.
        tokenizer: the new base model's tokenizer.
        max_tokens: the new base model's context.
        on_progress: called with the number of sequences just tokenized.

    Returns:
        The number of sequences that were removed, because they have fewer than two tokens.

    Raises:
        CorpusError: the corpus was embedded with a base model's hidden states, or a sequence has
            more tokens than the new model's context, or the corpus cannot be written; nothing was
            changed.
    """
    if corpus.embedder == BASE_MODEL:
        raise CorpusError(
            f"corpus {corpus.name!r} was embedded with its base model's own hidden states, which "
            f"another model does not have: run `mayfly corpus reembed {corpus.name} --embedder "
            f"{DEFAULT}` first, or add its documents to a new corpus"
        )

    digest = tokenizer_digest(tokenizer)
    if corpus.meta()["tokenizer"] == digest:
        return 0

    def tokenize(texts: list[str]) -> list[list[int]]:
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    removed = corpus.retokenization.run(digest, tokenize, max_tokens, on_progress)
    corpus.check_tokenizer(digest)
    return removed
