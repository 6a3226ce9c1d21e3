"""What a corpus costs in a folder and in PostgreSQL, by its number of sequences; and whether both
give the same picks.

Embeddings are synthetic (`benchmarks.selection.growth`), documents have twenty sequences of a
hundred characters and 64 tokens, and each document is one durable change, as in `corpus add`. A
selection is what the selector does for one prompt that is embedded already: it opens the corpus in
the pool, searches the nearest sequences, chooses among them, and reads those that it has chosen.

Shapes: N sequences, Q queries, K candidates, D embedding dimensions.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from benchmarks.harness.measures import timed
from benchmarks.selection.growth import (
    CANDIDATES,
    DIMENSION,
    REGULARISATION,
    STEPS,
    draw_embeddings,
    nearest_of_all,
)
from selection.corpus.corpus import Corpus
from selection.corpus.index.faiss_index import FLAT_LIMIT
from selection.corpus.pool import CorpusPool
from selection.corpus.sequences import Chunk
from selection.embedding import Embeddings, Prompt
from selection.location import Location
from selection.strategies.sift import sift

NAME = "measured"
_PER_DOCUMENT = 20
_TOKENS = tuple(range(64))
_TEXT = "A sentence of about a hundred characters, as they are found in prose, one after another. 0"


class NoEmbedder:
    """An embedder that is never asked: the embeddings are synthetic."""

    name, revision, dimension = "synthetic", "1", DIMENSION

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Not used."""
        raise AssertionError("the embeddings are synthetic")

    def windows(self, prompt: Prompt) -> list[str]:
        """Not used."""
        raise AssertionError("the embeddings are synthetic")


def measure(stores: dict[str, Location], sizes: Sequence[int], queries: int) -> dict[str, Any]:
    """Costs of each store by size, and what they have in common.

    Args:
        stores: where each store's corpora are; they are empty.
        sizes: numbers of sequences.
        queries: number of prompts.
    """
    costs: dict[str, dict[str, Any]] = {name: {} for name in stores}
    same, exact = 0, 0
    for size in sizes:
        vectors_ND, queries_QD = draw_embeddings(size, queries)
        true_QK = nearest_of_all(vectors_ND, queries_QD)
        picks = {}
        for name, root in stores.items():
            costs[name][str(size)], picks[name] = _measure(root, vectors_ND, queries_QD, true_QK)
        if size <= FLAT_LIMIT:
            exact += queries
            first, *others = picks.values()
            same += sum(
                all(mine == each for each in theirs)
                for mine, *theirs in zip(first, *others, strict=True)
            )
    return {"stores": costs, "same_picks": same / exact if exact else None}


def _measure(
    root: Location, vectors_ND: Embeddings, queries_QD: Embeddings, true_QK: Any
) -> tuple[dict[str, Any], list[tuple[int, ...]]]:
    """The costs of one corpus, and the picks for each query."""
    with closing(Corpus.create(root, NAME, NoEmbedder(), "none")) as corpus:
        ingest_seconds, _ = timed(fill, corpus, vectors_ND)
        disk = _disk_bytes(root, corpus)
    pool = CorpusPool(root, None, None)
    index_seconds, _ = timed(_select, pool, queries_QD[0])
    seconds, recalls, picks = [], [], []
    for query_D, true_K in zip(queries_QD, true_QK, strict=True):
        taken, (ids_K, chosen) = timed(_select, pool, query_D)
        seconds.append(taken)
        # Ids begin with 1.
        recalls.append(np.isin(true_K + 1, ids_K).mean())
        picks.append(chosen)
    pool.close()
    with closing(Corpus.open(root, NAME)) as corpus:
        corpus.remove()
    return {
        "ingest_rows_per_second": len(vectors_ND) / ingest_seconds,
        "index_seconds": index_seconds,
        "select_seconds": {
            "p50": statistics.median(seconds),
            "p99": float(np.quantile(seconds, 0.99)),
        },
        "recall": float(np.mean(recalls)),
        "disk_bytes": disk,
    }, picks


def fill(corpus: Corpus, vectors_ND: Embeddings, prefix: str = "") -> None:
    """Add documents with these embeddings, whose names begin with a prefix."""
    for start in range(0, len(vectors_ND), _PER_DOCUMENT):
        part_ND = vectors_ND[start : start + _PER_DOCUMENT]
        chunks = [Chunk(100 * i, _TEXT, _TOKENS) for i in range(len(part_ND))]
        corpus.add(f"{prefix}{start}", str(start), chunks, part_ND, {"part": start % 7})


def _select(pool: CorpusPool, query_D: Any) -> tuple[Any, tuple[int, ...]]:
    """The ids of the candidates and of those that are chosen, in order."""
    with pool.open(NAME) as corpus:
        ids_K, candidates_KD = corpus.nearest(query_D[None], CANDIDATES)
    choice = sift(candidates_KD, query_D[None], steps=STEPS, regularisation=REGULARISATION)
    chosen = tuple(int(ids_K[pick]) for pick in choice.picks)
    with pool.open(NAME) as corpus:
        assert corpus.read(chosen).keys() == {*chosen}
    return ids_K, chosen


def _disk_bytes(root: Location, corpus: Corpus) -> int:
    """The size of what is stored, without the index that is derived from it."""
    if isinstance(root, Path):
        return corpus.size()
    with psycopg.connect(root.url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = 'mayfly' AND c.relkind = 'r'"
        ).fetchone()
    assert row is not None
    return int(row[0])
