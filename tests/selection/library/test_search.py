"""Searches: the best by comparing with everything, within score and attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from selection.embedding import Embedder
from selection.library.library import Library
from selection.library.records import AttachmentRequest
from selection.library.uploads import LibraryError
from tests.selection.libraries import ALL, CATS, SHIPS, attached, settled


def test_a_search_ranks_as_comparing_with_every_sequence_does(
    library: Library, words: Embedder
) -> None:
    library.create_store("notes")
    texts = [
        f"{a} {b} {c}"
        for a in ["red", "green", "blue"]
        for b in ["cat", "dog"]
        for c in ["runs", "sits"]
    ]
    for i, text in enumerate(texts):
        library.attach(
            "notes", AttachmentRequest(library.upload(f"{i}.txt", text.encode()).id, {"n": i})
        )
    for attached_file in library.files("notes", ALL).items:
        settled(library, "notes", attached_file.file.id)

    for queries in (["red cat"], ["blue", "a dog that sits"], ["nothing of that"]):
        cosine = (words.embed(queries) @ words.embed(texts).T).max(axis=0)
        for limit in (1, 3, len(texts), 50):
            found = library.search("notes", queries, limit=limit)

            best = np.sort(np.clip(cosine, 0, 1))[::-1][:limit]
            np.testing.assert_allclose([f.score for f in found], best, atol=1e-5)
            assert len(found) == min(limit, len(texts))
            for each in found:
                np.testing.assert_allclose(
                    each.score, max(cosine[texts.index(each.text)], 0), atol=1e-5
                )


def test_a_search_is_bounded_by_score_and_by_attributes(library: Library) -> None:
    library.create_store("notes")
    cats = attached(library, "notes", "cats.md", CATS, attributes={"kind": "pet"})
    attached(library, "notes", "ships.md", SHIPS, attributes={"kind": "vessel"})

    pets = library.search(
        "notes", ["the ship"], only={"type": "ne", "key": "kind", "value": "vessel"}
    )
    exact = library.search("notes", [CATS], threshold=0.99)

    assert [(found.file, found.name) for found in pets] == [(cats, "cats.md")]
    assert [(found.file, round(found.score, 4)) for found in exact] == [(cats, 1.0)]


@pytest.mark.parametrize("queries", [[], [""], ["x" * 40_000], ["x"] * 17])
def test_queries_that_are_none_are_refused(library: Library, queries: list[str]) -> None:
    library.create_store("notes")

    with pytest.raises(LibraryError, match="`query` is a text"):
        library.search("notes", queries)


@pytest.mark.parametrize(
    "only", [{}, {"type": "like", "key": "a", "value": "b"}, "eq", {"type": "and", "filters": []}]
)
def test_a_filter_that_is_none_is_refused(library: Library, only: Any) -> None:
    library.create_store("notes")

    with pytest.raises(LibraryError, match=r"^`filters`: "):
        library.search("notes", ["x"], only=only)
