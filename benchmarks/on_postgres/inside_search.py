"""Search inside the database by pgvector's HNSW index, beside FAISS in the selector.

Both return the 200 sequences of largest absolute similarity with their vectors, as SIFT needs them.
The index is made for this measurement, on the table that Mayfly has; inserts are measured into a
table with an index and without one. Mayfly does not search in this way.

Shapes: Q queries, K candidates, D embedding dimensions.
"""

from __future__ import annotations

import statistics
from contextlib import closing
from typing import Any, LiteralString

import numpy as np
import psycopg
from pgvector.psycopg import register_vector
from psycopg import sql

from benchmarks.harness.measures import timed
from benchmarks.on_postgres.speed import NAME, NoEmbedder, fill
from benchmarks.selection.growth import CANDIDATES, DIMENSION, draw_embeddings, nearest_of_all
from selection.corpus.corpus import Corpus
from selection.embedding import Embeddings
from selection.location import DatabaseLocation

# Twice as many as are wanted: with as many, recall is lower.
_EF_SEARCH = 2 * CANDIDATES
_ROWS = 1000  # inserted with the index and without
_INDEX: LiteralString = (
    "CREATE INDEX inside ON mayfly.embeddings USING hnsw ((embedding::vector({dimension})) "
    "vector_ip_ops) WHERE corpus = {corpus}"
)
# Large negative products are as informative as positive ones.
_SEARCH: LiteralString = (
    "(SELECT sequence, embedding FROM mayfly.embeddings WHERE corpus = {corpus} "
    "ORDER BY (embedding::vector({dimension})) <#> %(query)s LIMIT {count}) UNION ALL "
    "(SELECT sequence, embedding FROM mayfly.embeddings WHERE corpus = {corpus} "
    "ORDER BY (embedding::vector({dimension})) <#> %(opposite)s LIMIT {count})"
)


def measure_inside(location: DatabaseLocation, size: int, queries: int) -> dict[str, Any]:
    """Seconds and recall of both searches, and what the index costs."""
    vectors_ND, queries_QD = draw_embeddings(size + 2 * _ROWS, queries)
    stored_ND, plain_ND, indexed_ND = np.split(vectors_ND, [size, size + _ROWS])
    true_QK = nearest_of_all(stored_ND, queries_QD)
    with closing(Corpus.create(location, NAME, NoEmbedder(), "none")) as corpus:
        fill(corpus, stored_ND)
        corpus.nearest(queries_QD[:1], CANDIDATES)
        faiss = _measure(queries_QD, true_QK, lambda query: corpus.nearest(query, CANDIDATES)[0])
        with psycopg.connect(location.url, autocommit=True) as connection:
            corpus_id = _prepare(connection)
            build_seconds, _ = timed(connection.execute, _named(_INDEX, corpus_id))
            search = _named(_SEARCH, corpus_id)
            _check_plan(connection, search, queries_QD[:1])
            inside = _measure(queries_QD, true_QK, lambda query: _search(connection, search, query))
            indexed_seconds, _ = timed(fill, corpus, indexed_ND, "indexed ")
            connection.execute("DROP INDEX mayfly.inside")
        plain_seconds, _ = timed(fill, corpus, plain_ND, "plain ")
        corpus.remove()
    return {
        "faiss": faiss,
        "hnsw": inside,
        "hnsw_build_seconds": build_seconds,
        "ingest_rows_per_second": _ROWS / plain_seconds,
        "ingest_rows_per_second_with_hnsw": _ROWS / indexed_seconds,
    }


def _prepare(connection: psycopg.Connection[Any]) -> int:
    """The number of the corpus."""
    connection.execute("SET search_path TO mayfly, public")
    register_vector(connection)
    connection.execute(sql.SQL("SET hnsw.ef_search = {}").format(sql.Literal(_EF_SEARCH)))
    connection.execute("SET maintenance_work_mem = '1GB'")
    # A small table would be read whole and sorted, which is not what is measured.
    connection.execute("SET enable_seqscan = off")
    connection.execute("SET enable_sort = off")
    connection.execute("ANALYZE embeddings")
    row = connection.execute("SELECT id FROM corpora WHERE name = %s", (NAME,)).fetchone()
    assert row is not None
    return int(row[0])


def _named(query: LiteralString, corpus: int) -> sql.Composed:
    return sql.SQL(query).format(
        dimension=sql.Literal(DIMENSION), corpus=sql.Literal(corpus), count=sql.Literal(CANDIDATES)
    )


def _check_plan(
    connection: psycopg.Connection[Any], search: sql.Composed, query_1D: Embeddings
) -> None:
    """Check that the index is used."""
    values = {"query": query_1D[0], "opposite": -query_1D[0]}
    plan = connection.execute(sql.SQL("EXPLAIN ") + search, values).fetchall()
    scans = [line for (line,) in plan if "using inside" in line]
    assert len(scans) == 2, plan


def _measure(queries_QD: Embeddings, true_QK: Any, search: Any) -> dict[str, float]:
    seconds, recalls = [], []
    for query_D, true_K in zip(queries_QD, true_QK, strict=True):
        taken, ids_K = timed(search, query_D[None])
        seconds.append(taken)
        # Ids begin with 1.
        recalls.append(np.isin(true_K + 1, ids_K).mean())
    return {
        "p50": statistics.median(seconds),
        "p99": float(np.quantile(seconds, 0.99)),
        "recall": float(np.mean(recalls)),
    }


def _search(connection: psycopg.Connection[Any], search: sql.Composed, query_1D: Any) -> Any:
    values = {"query": query_1D[0], "opposite": -query_1D[0]}
    rows = connection.execute(search, values, binary=True).fetchall()
    ids = np.array([row[0] for row in rows])
    vectors = np.stack([row[1].to_numpy() for row in rows])
    return ids[np.argsort(-np.abs(vectors @ query_1D[0]))[:CANDIDATES]]
