"""Held-out sequences of a corpus, and the documents that resemble them.

A part of a text is split into halves: the prompt, and a part that is scored. An example's prompt is
the conversation up to its last answer, which is scored.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from selection.corpus.corpus import Corpus
from selection.corpus.sequences import StoredSequence
from selection.embedding import Prompt
from selection.examples.example import Example
from serving.errors import CalibrationError

# Fewest tokens of a held-out part of a text.
MIN_TOKENS = 32
# Length of the n-grams by which near duplicates are found, in tokens.
NGRAM = 8


@dataclass(frozen=True)
class HeldOut:
    """A held-out sequence.

    Attributes:
        document: Id of its document.
        prompt: The prompt, for the selection.
        tokens: Tokens of the prompt and of the scored part.
        middle: Index of the first scored token.
        example: The example that it is; None for a part of a text.
    """

    document: int
    prompt: Prompt
    tokens: tuple[int, ...]
    middle: int
    example: Example | None = None


def check_documents(corpus: Corpus, documents: int) -> None:
    """Check that a corpus may have `documents` documents to hold out, without reading them.

    Raises:
        CalibrationError: it has fewer documents in all.
    """
    count, _ = corpus.counts()
    if count < documents:
        raise CalibrationError(
            f"corpus {corpus.name!r} has only {count} documents, and {documents} are to be held "
            "out: add documents, or hold out fewer (--documents)"
        )


def hold_out(corpus: Corpus, tokenizer: Any, documents: int) -> list[HeldOut]:
    """One of the longest sequences of each of `documents` documents; the same each time.

    Raises:
        CalibrationError: too few documents are an example, or have a sequence of MIN_TOKENS tokens.
    """
    draw = random.Random(0)  # noqa: S311
    entries = corpus.documents()
    held_out: list[HeldOut] = []
    for entry in draw.sample(entries, len(entries)):
        sequences = corpus.sequences_of(entry.id)
        longest = max((len(sequence.tokens) for sequence in sequences), default=0)
        choices = [sequence for sequence in sequences if len(sequence.tokens) == longest]
        split = _split(draw.choice(choices), tokenizer) if choices else None
        if split is not None:
            held_out.append(split)
        if len(held_out) == documents:
            return held_out
    raise CalibrationError(
        f"corpus {corpus.name!r} has only {len(held_out)} documents that are an example or have a "
        f"sequence of {MIN_TOKENS} tokens or more, and {documents} are to be held out: add "
        "documents, or hold out fewer (--documents)"
    )


def _split(sequence: StoredSequence, tokenizer: Any) -> HeldOut | None:
    """A held-out sequence; None if it is too short."""
    document, tokens = sequence.source.document, sequence.tokens
    if sequence.source.example is None or sequence.scored is None:
        middle = len(tokens) // 2
        prompt = Prompt(tokenizer.decode(tokens[:middle]))
        return HeldOut(document, prompt, tokens, middle) if len(tokens) >= MIN_TOKENS else None
    middle, end = sequence.scored[-1]
    example = Example.from_json(sequence.source.example)
    # The loss of a prompt of one token is not defined.
    return HeldOut(document, example.prompt, tokens[:end], middle, example) if middle > 1 else None


def near_duplicates(held_out: HeldOut, sequences: Iterable[StoredSequence]) -> set[int]:
    """Documents that contain at least half of a held-out sequence's n-grams.

    Examples have instructions and a form in common: one is a duplicate of another if what the user
    asks, and what was said before, is the same.
    """
    ngrams = _ngrams(held_out.tokens)
    duplicates: set[int] = set()
    shared: dict[int, set[tuple[int, ...]]] = {}
    for sequence in sequences:
        example, document = sequence.source.example, sequence.source.document
        if held_out.example is None or example is None:
            shared.setdefault(document, set()).update(ngrams & _ngrams(sequence.tokens))
        elif Example.from_json(example).prompt == held_out.prompt:
            duplicates.add(document)
    return duplicates | {
        document for document, found in shared.items() if found and 2 * len(found) >= len(ngrams)
    }


def _ngrams(tokens: Sequence[int]) -> set[tuple[int, ...]]:
    return {tuple(tokens[start : start + NGRAM]) for start in range(len(tokens) - NGRAM + 1)}
