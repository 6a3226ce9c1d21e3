"""Search: the sequences of a corpus that are most similar to a query.

Training benefits as much from sequences opposite to the prompt, so a corpus ranks by absolute
similarity; here only positive similarity counts.

Shapes: K candidates, T targets, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selection.corpus.corpus import Corpus
from selection.corpus.filters import Filter, Scalar, to_sql
from selection.embedding import Embeddings
from selection.errors import LibraryError

# Maximum number of queries of one search, and of characters of one query.
_QUERIES, _QUERY = 16, 1 << 15


@dataclass(frozen=True)
class SearchResult:
    """A sequence that a search found.

    Attributes:
        file: id of the file it comes from (`selection.corpus.tables.attachment`).
        name: name of that file.
        attributes: metadata of its document.
        score: cosine similarity to the nearest target, at least 0.
        text: text of the sequence.
    """

    file: str
    name: str
    attributes: Mapping[str, Scalar]
    score: float
    text: str


def check_query(queries: Sequence[str], filter: Filter | None) -> None:
    """Refuse an invalid search before anything is embedded.

    Raises:
        LibraryError: too many queries, one that is empty or too long, or an invalid filter.
    """
    if not 1 <= len(queries) <= _QUERIES or not all(0 < len(query) <= _QUERY for query in queries):
        raise LibraryError(
            f"`query` must be a text of 1 to {_QUERY} characters, or a list of 1 to {_QUERIES} of "
            "them"
        )
    if filter is not None:
        try:
            to_sql(filter)
        except ValueError as problem:
            raise LibraryError(f"`filters`: {problem}") from problem


def most_similar(
    corpus: Corpus, targets_TD: Embeddings, max_results: int, filter: Filter | None = None
) -> list[SearchResult]:
    """The sequences of largest similarity to any target, most similar first.

    Args:
        corpus: to search in.
        targets_TD: unit vectors.
        max_results: largest number of results.
        filter: a filter on the documents' metadata (`selection.corpus.filters`).

    Raises:
        ValueError: an invalid filter.
    """
    k = max_results
    while True:
        ids_K, vectors_KD = corpus.nearest(targets_TD, k, filter)
        if not len(ids_K):
            return []
        cosine_TK = targets_TD @ vectors_KD.T
        score_K = cosine_TK.max(axis=0)
        # These are the nearest by absolute value, which bounds the score of all other sequences.
        bound = np.abs(cosine_TK).max(axis=0).min()
        if len(ids_K) < k or np.count_nonzero(score_K >= bound) >= max_results:
            break
        k *= 4
    best = np.argsort(-score_K, kind="stable")[:max_results]
    read = corpus.read(ids_K[best].tolist())
    files = corpus.attachments.files_of(sequence.source.document for sequence in read.values())
    found = []
    for sequence, score in zip(ids_K[best].tolist(), score_K[best].tolist(), strict=True):
        source = read[sequence].source if sequence in read else None
        # A sequence that was deleted since it was found is left out.
        if source is not None and source.document in files:
            file, name = files[source.document]
            found.append(
                SearchResult(file, name, source.metadata, min(max(score, 0.0), 1.0), source.text)
            )
    return found
