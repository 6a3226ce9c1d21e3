"""Sequences: what is stored of a document, a chunk at a time, and what is read back.

A stored chunk is called a sequence. It is a part of a text, all of whose tokens are trained on, or
an example, of which only the answers' are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from selection.corpus.filters import Scalar
from selection.embedding import Embedder
from selection.examples.example import Example, Spans


@dataclass(frozen=True)
class Chunk:
    """A chunk of a document.

    Attributes:
        start: where it starts in the document, in characters.
        text: its text; of an example, in a form for readers.
        tokens: its tokens.
        example: the example that it is, as JSON; None for a part of a text.
        scored: the tokens to train on; None for all but the first.
    """

    start: int
    text: str
    tokens: tuple[int, ...]
    example: str | None = None
    scored: Spans | None = None


@dataclass(frozen=True)
class Source:
    """Where a sequence comes from.

    Attributes:
        sequence: id of the sequence; below 0 for one that a request brought.
        document: id of its document; that of the sequence for one that a request brought.
        name: name of its document.
        start: where it starts in the document, in characters.
        text: its text.
        metadata: metadata of its document.
        example: the example that it is, as JSON; None for a part of a text.
    """

    sequence: int
    document: int
    name: str
    start: int
    text: str
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    example: str | None = None


@dataclass(frozen=True)
class StoredSequence:
    """A sequence as a corpus stores it.

    Attributes:
        source: where it comes from.
        tokens: its tokens.
        scored: the tokens to train on; None for all but the first.
    """

    source: Source
    tokens: tuple[int, ...]
    scored: Spans | None = None


@dataclass(frozen=True)
class DocumentInfo:
    """A document as a corpus lists it; `added` is in seconds since 1970, UTC."""

    id: int
    name: str
    sequences: int
    metadata: Mapping[str, Scalar]
    added: int


def embedded_text(text: str, example: str | None, embedder: Embedder) -> str:
    """What is embedded of a sequence: its text, or the end of an example's prompt, since the
    embedding of a request for the answer is that of its prompt's end.

    Args:
        text: the sequence's text.
        example: the example that it is, as JSON; None for a part of a text.
        embedder: the corpus's embedder.
    """
    return text if example is None else embedder.windows(Example.from_json(example).prompt)[-1]
