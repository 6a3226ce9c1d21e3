"""Searches: the results of brute force, bounded by score and filtered by attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from selection.embedding import Embedder
from selection.errors import LibraryError
from selection.library.library import Library
from selection.library.records import AttachmentRequest
from tests.selection.library_helpers import ALL, CATS, SHIPS, attach_and_wait, wait_until_ingested


def test_a_search_ranks_like_brute_force(library: Library, words: Embedder) -> None:
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
    for attached in library.files("notes", ALL).items:
        wait_until_ingested(library, "notes", attached.file.id)

    for queries in (["red cat"], ["blue", "a dog that sits"], ["nothing of that"]):
        cosine = (words.embed(queries) @ words.embed(texts).T).max(axis=0)
        for limit in (1, 3, len(texts), 50):
            found = library.search("notes", queries, max_results=limit)

            best = np.sort(np.clip(cosine, 0, 1))[::-1][:limit]
            np.testing.assert_allclose([f.score for f in found], best, atol=1e-5)
            assert len(found) == min(limit, len(texts))
            for each in found:
                np.testing.assert_allclose(
                    each.score, max(cosine[texts.index(each.text)], 0), atol=1e-5
                )


def test_a_search_is_bounded_by_score_and_by_attributes(library: Library) -> None:
    library.create_store("notes")
    cats = attach_and_wait(library, "notes", "cats.md", CATS, attributes={"kind": "pet"})
    attach_and_wait(library, "notes", "ships.md", SHIPS, attributes={"kind": "vessel"})

    pets = library.search(
        "notes", ["the ship"], filter={"type": "ne", "key": "kind", "value": "vessel"}
    )
    exact = library.search("notes", [CATS], threshold=0.99)

    assert [(found.file, found.name) for found in pets] == [(cats, "cats.md")]
    assert [(found.file, round(found.score, 4)) for found in exact] == [(cats, 1.0)]


@pytest.mark.parametrize("queries", [[], [""], ["x" * 40_000], ["x"] * 17])
def test_invalid_queries_are_refused(library: Library, queries: list[str]) -> None:
    library.create_store("notes")

    with pytest.raises(LibraryError, match="`query` must be a text"):
        library.search("notes", queries)


@pytest.mark.parametrize(
    "filter",
    [
        {},
        {"type": "like", "key": "a", "value": "b"},
        "eq",
        {"type": "and", "filters": []},
        {"type": "eq", "key": "a", "value": "\0"},
    ],
)
def test_an_invalid_filter_is_refused(library: Library, filter: Any) -> None:
    library.create_store("notes")

    with pytest.raises(LibraryError, match=r"^`filters`: "):
        library.search("notes", ["x"], filter=filter)
