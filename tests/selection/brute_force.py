"""The expected result of every corpus: brute force over a dict of the documents added to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from selection.corpus.corpus import Corpus
from selection.corpus.filters import Scalar
from selection.corpus.sqlite_store import Chunk, SQLiteStore
from selection.corpus.tables.database import Database
from selection.embedding import Embedder


@dataclass(frozen=True)
class Document:
    """A document: one text per sequence, and metadata with a `group` to filter by."""

    texts: tuple[str, ...]
    group: int = 0

    @property
    def metadata(self) -> Mapping[str, Scalar]:
        return {"group": self.group}


def add(corpus: Corpus, embedder: Embedder, name: str, *texts: str, group: int = 0) -> int:
    """Add a document of one sequence per text, whose tokens are code points."""
    chunks = [Chunk(10 * i, text, tuple(ord(c) for c in text)) for i, text in enumerate(texts)]
    return corpus.add(name, f"digest of {texts}", chunks, embedder.embed(texts), {"group": group})


def database_of(corpus: Corpus) -> Database:
    """The SQLite database of a corpus."""
    assert isinstance(corpus._store, SQLiteStore)
    return corpus._store.database


def texts_near(corpus: Corpus, embedder: Embedder, prompt: str, k: int | None = None) -> list[str]:
    """Texts of the sequences nearest to a prompt, nearest first."""
    found, _ = corpus.nearest(embedder.embed([prompt]), k)
    read = corpus.read(found.tolist())
    return [read[i].source.text for i in found.tolist()]


def assert_equals_brute_force(
    corpus: Corpus,
    embedder: Embedder,
    model: Mapping[str, Document],
    prompt: str,
    k: int | None = None,
    group: int | None = None,
) -> None:
    """`nearest` and `read` return what brute force over `model` does, in any order among equals."""
    rows = [
        (name, 10 * i, text)
        for name, document in model.items()
        if group is None or document.group == group
        for i, text in enumerate(document.texts)
    ]
    target_1D = embedder.embed([prompt])
    vectors_ND = embedder.embed([text for _, _, text in rows]).reshape(-1, embedder.dimension)
    similarity_N = np.abs(vectors_ND @ target_1D[0])
    expected_K = np.sort(similarity_N)[::-1][:k]

    found, embeddings_KD = corpus.nearest(
        target_1D, k, None if group is None else {"type": "eq", "key": "group", "value": group}
    )

    read = corpus.read(found.tolist())
    sources = [read[i].source for i in found.tolist()]
    got = [(source.name, source.start, source.text) for source in sources]
    assert len(set(got)) == len(got) == len(expected_K)
    assert set(got) <= set(rows)
    assert all(source.metadata == model[source.name].metadata for source in sources)
    own_KD = embedder.embed([source.text for source in sources]).reshape(-1, embedder.dimension)
    np.testing.assert_array_equal(embeddings_KD, own_KD)
    np.testing.assert_allclose(np.abs(embeddings_KD @ target_1D[0]), expected_K, atol=1e-6)
