"""Sequences: what is stored of a document, a chunk at a time, and what is read back.

A stored chunk is called a sequence. It is a part of a text, all of whose tokens are trained on, or
an example, of which only the answers' are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from selection.corpus.filters import Scalar
from selection.embedding import Embedder
from selection.errors import CorpusError
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


def check_addition(
    corpus: str,
    document: str,
    meta: Mapping[str, str],
    chunks: Sequence[Chunk],
    *,
    embedding_uuid: str,
    tokenizer: str | None,
    template: str | None,
) -> dict[str, str]:
    """Refuse to add a document to a corpus that has changed since its chunks were made.

    Args:
        corpus: name of the corpus.
        document: name of the document.
        meta: metadata of the corpus.
        chunks: the document's sequences.
        embedding_uuid: the corpus's `uuid` when they were embedded.
        tokenizer: digest of their tokenizer; None skips its check.
        template: digest of the template that rendered the examples among them.

    Returns:
        Metadata that the addition changes.

    Raises:
        CorpusError: the corpus was re-embedded or retokenized since, or has examples of another
            template.
    """
    if meta["uuid"] != embedding_uuid:
        raise CorpusError(
            f"corpus {corpus!r} was re-embedded in the meantime: add {document!r} again"
        )
    if tokenizer not in (None, meta["tokenizer"]):
        raise CorpusError(
            f"corpus {corpus!r} was retokenized for another model in the meantime: {document!r} "
            "was not added"
        )
    if all(chunk.example is None for chunk in chunks):
        return {}
    assert template is not None, "examples need a template"
    if meta.get("template", template) != template:
        raise CorpusError(
            f"corpus {corpus!r} has examples of another chat template: {document!r} was not added"
        )
    return {"template": template}


def embedded_text(text: str, example: str | None, embedder: Embedder) -> str:
    """What is embedded of a sequence: its text, or the end of an example's prompt, since the
    embedding of a request for the answer is that of its prompt's end.

    Args:
        text: the sequence's text.
        example: the example that it is, as JSON; None for a part of a text.
        embedder: the corpus's embedder.
    """
    return text if example is None else embedder.windows(Example.from_json(example).prompt)[-1]
