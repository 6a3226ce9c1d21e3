"""Search: the sequences of a corpus that are most similar to a query, as a reader wants them.

A trainer learns as much from what is opposed to its prompt, so a corpus ranks by absolute
similarity; here only what is alike counts.

Shapes: K candidates, T targets, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selection.corpus.corpus import Corpus
from selection.corpus.filters import Filter, Scalar, to_sql
from selection.embedding import Embeddings
from selection.library.uploads import LibraryError

_QUERIES, _QUERY = 16, 1 << 15  # queries of one search, characters of one


@dataclass(frozen=True)
class SearchResult:
    """A sequence that a search found.

    Attributes:
        file: id of the file it comes from (`attachments`).
        name: the file's.
        attributes: its document's metadata.
        score: its cosine similarity to the nearest target, no less than 0.
        text: its own.
    """

    file: str
    name: str
    attributes: Mapping[str, Scalar]
    score: float
    text: str


def check_query(queries: Sequence[str], only: Filter | None) -> None:
    """Refuse what cannot be searched for, before anything is embedded.

    Raises:
        LibraryError: too many queries, one that is empty or too long, or an invalid filter.
    """
    if not 1 <= len(queries) <= _QUERIES or not all(0 < len(query) <= _QUERY for query in queries):
        raise LibraryError(
            f"`query` is a text of 1 to {_QUERY} characters, or a list of 1 to {_QUERIES} of them"
        )
    if only is not None:
        try:
            to_sql(only)
        except ValueError as problem:
            raise LibraryError(f"`filters`: {problem}") from problem


def most_similar(
    corpus: Corpus, targets_TD: Embeddings, limit: int, only: Filter | None = None
) -> list[SearchResult]:
    """The sequences of largest similarity to any target, most similar first.

    Args:
        corpus: to search in.
        targets_TD: unit vectors.
        limit: how many, at most.
        only: a filter on the documents' metadata (`selection.corpus.filters`).

    Raises:
        ValueError: not a filter.
    """
    k = limit
    while True:
        ids_K, vectors_KD = corpus.nearest(targets_TD, k, only)
        if not len(ids_K):
            return []
        cosine_TK = targets_TD @ vectors_KD.T
        score_K = cosine_TK.max(axis=0)
        # These are the nearest by absolute value: no other is nearer than the last of them.
        others = np.abs(cosine_TK).max(axis=0).min()
        if len(ids_K) < k or np.count_nonzero(score_K >= others) >= limit:
            break
        k *= 4
    best = np.argsort(-score_K, kind="stable")[:limit]
    read = corpus.read(ids_K[best].tolist())
    files = corpus.attachments.holding(source.document for source, _ in read.values())
    found = []
    for sequence, score in zip(ids_K[best].tolist(), score_K[best].tolist(), strict=True):
        source = read[sequence][0] if sequence in read else None
        if source is not None and source.document in files:  # else it was deleted just now
            file, name = files[source.document]
            found.append(
                SearchResult(file, name, source.metadata, min(max(score, 0.0), 1.0), source.text)
            )
    return found
