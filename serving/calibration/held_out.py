"""Held-out sequences of a corpus, and the documents that resemble them.

A sequence is split into halves: the prompt, and a part that is scored.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selection.corpus.corpus import Corpus
from serving.errors import CalibrationError

# Fewest tokens of a held-out sequence.
MIN_TOKENS = 32
# Length of the n-grams by which near duplicates are found, in tokens.
NGRAM = 8


@dataclass(frozen=True)
class HeldOut:
    """A held-out sequence.

    Attributes:
        document: Id of its document.
        text: Text of the first half, which is the prompt.
        tokens: Tokens of both halves.
    """

    document: int
    text: str
    tokens: tuple[int, ...]

    @property
    def middle(self) -> int:
        """Index of the first scored token."""
        return len(self.tokens) // 2


def hold_out(corpus: Corpus, tokenizer: Any, documents: int) -> list[HeldOut]:
    """One of the longest sequences of each of `documents` documents; the same each time.

    Raises:
        CalibrationError: too few documents have a sequence of MIN_TOKENS tokens.
    """
    draw = random.Random(0)  # noqa: S311
    entries = corpus.documents()
    held_out: list[HeldOut] = []
    for entry in draw.sample(entries, len(entries)):
        # Each sequence is a string of int32 bytes.
        sequences = sorted(corpus.token_sequences(entry.name))
        longest = max(map(len, sequences), default=0)
        if longest < MIN_TOKENS * 4:
            continue
        drawn = draw.choice([sequence for sequence in sequences if len(sequence) == longest])
        tokens = tuple(np.frombuffer(drawn, np.int32).tolist())
        text = tokenizer.decode(tokens[: len(tokens) // 2])
        held_out.append(HeldOut(entry.id, text, tokens))
        if len(held_out) == documents:
            return held_out
    raise CalibrationError(
        f"corpus {corpus.name!r} has only {len(held_out)} documents with a sequence of "
        f"{MIN_TOKENS} tokens or more, and {documents} are to be held out: add documents, or "
        "hold out fewer (--documents)"
    )


def near_duplicates(held_out: HeldOut, sequences: Iterable[tuple[int, Sequence[int]]]) -> set[int]:
    """Documents that contain at least half of a held-out sequence's n-grams.

    Args:
        held_out: The held-out sequence.
        sequences: Document id and tokens of each sequence to compare.
    """
    ngrams = _ngrams(held_out.tokens)
    shared: dict[int, set[tuple[int, ...]]] = {}
    for document, tokens in sequences:
        shared.setdefault(document, set()).update(ngrams & _ngrams(tokens))
    return {document for document, found in shared.items() if 2 * len(found) >= len(ngrams)}


def _ngrams(tokens: Sequence[int]) -> set[tuple[int, ...]]:
    return {tuple(tokens[start : start + NGRAM]) for start in range(len(tokens) - NGRAM + 1)}
