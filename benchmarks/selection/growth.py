"""Growth: what an index over N sequences costs to build, store, open and search.

Vectors are synthetic, since a million real sequences would take hours to embed: the sum of a topic,
a document of that topic, and the sequence's own part, each Gaussian with a spectrum that falls as
1 / sqrt(i), is normalised. The shares were set so that a search over 12,000 of them behaves as over
12,615 real embeddings of Python source by all-MiniLM-L6-v2 (similarity by rank, recall by number of
lists read). Queries are drawn from the same documents and are not in the index.

Each size is built in one process and opened in another, so that memory is that of the index alone;
`mapped_bytes` of it are pages of the file of raw vectors, which the system drops when it needs
them. Files were just written, so opening reads them from memory. SQLite is not part of it, except
for the time to read all embeddings from it.

Shapes: N sequences, Q queries, K candidates, D embedding dimensions.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.harness.measures import timed
from benchmarks.harness.processes import in_fresh_process
from selection.corpus.index import files as index_files
from selection.corpus.index.faiss_index import Ids, Index
from selection.corpus.sqlite_store import Chunk, SQLiteStore
from selection.embedding import Embeddings
from selection.strategies.sift import sift

DIMENSION = 384
CANDIDATES, STEPS, REGULARISATION = 200, 50, 0.1
_QUERIES = 100
_TOPICS = 100
_SEQUENCES_PER_DOCUMENT = 20
# Of the squared length: topic, document, sequence.
_SHARES = (0.25, 0.35, 0.4)
_STORED = 100_000  # sequences read back from SQLite
_BATCH = 1 << 16


def grow(sizes: list[int], threads: int) -> dict[str, dict[str, Any]]:
    """Costs of an index, by size."""
    growth = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            built = in_fresh_process(threads, _build, Path(folder), size)
            growth[str(size)] = built | in_fresh_process(threads, _search, Path(folder))
    return growth


def draw_embeddings(count: int, queries: int, seed: int = 0) -> tuple[Embeddings, Embeddings]:
    """Synthetic unit vectors [N, D], and queries [Q, D] of the same topics and documents."""
    generator = np.random.default_rng(seed)
    spectrum_D = (1.0 + np.arange(DIMENSION)) ** -0.5
    spectrum_D /= np.linalg.norm(spectrum_D)
    topic_share, document_share, sequence_share = np.sqrt(_SHARES)

    def gaussians(number: int) -> Embeddings:
        return generator.standard_normal((number, DIMENSION), np.float32) * spectrum_D.astype(
            np.float32
        )

    documents = max(count // _SEQUENCES_PER_DOCUMENT, 1)
    topics = gaussians(_TOPICS)[generator.integers(0, _TOPICS, documents)]
    centres = np.float32(topic_share) * topics + np.float32(document_share) * gaussians(documents)

    def draw_near(number: int) -> Embeddings:
        vectors = np.empty((number, DIMENSION), np.float32)
        for start in range(0, number, _BATCH):
            rows = vectors[start : start + _BATCH]
            rows[:] = centres[generator.integers(0, documents, len(rows))]
            rows += np.float32(sequence_share) * gaussians(len(rows))
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return vectors

    return draw_near(count), draw_near(queries)


def read_store(count: int = _STORED) -> float:
    """Seconds to read `count` embeddings from SQLite."""
    vectors_ND, _ = draw_embeddings(count, 0)
    chunk = Chunk(0, "", ())
    with tempfile.TemporaryDirectory() as folder:
        store = SQLiteStore(Path(folder))
        store.initialise({"dimension": str(DIMENSION)})
        uuid = store.meta()["uuid"]
        for start in range(0, count, 1000):
            part_ND = vectors_ND[start : start + 1000]
            store.add(str(start), "", [chunk] * len(part_ND), part_ND, {}, uuid)
        seconds, (_, read_ND) = timed(store.embeddings)
        store.close()
    assert np.array_equal(read_ND, vectors_ND)
    return seconds


def _build(folder: Path, size: int) -> dict[str, Any]:
    vectors_ND, queries_QD = draw_embeddings(size, _QUERIES)
    build_seconds, index = timed(Index.build, np.arange(size), vectors_ND)
    (folder / "index").mkdir()
    version = index_files.CorpusVersion("growth", 1)
    save_seconds, _ = timed(index_files.save, index, folder / "index", version)
    np.savez(
        folder / "queries.npz", queries=queries_QD, nearest=nearest_of_all(vectors_ND, queries_QD)
    )
    return {
        "build_seconds": build_seconds,
        "save_seconds": save_seconds,
        "bytes": sum(
            file.stat().st_size for file in (folder / "index").rglob("*") if file.is_file()
        ),
    }


def _search(folder: Path) -> dict[str, Any]:
    arrays = np.load(folder / "queries.npz")
    queries_QD, nearest_QK = arrays["queries"], arrays["nearest"]
    process = psutil.Process()
    before = process.memory_info()
    open_seconds, loaded = timed(index_files.load, folder / "index", "growth", DIMENSION)
    assert loaded is not None
    index = loaded[1]
    search_seconds, select_seconds, recalls = [], [], []
    for query_D, true_K in zip(queries_QD, nearest_QK, strict=True):
        search_time, (ids_K, candidates_KD, _) = timed(index.nearest, query_D[None], CANDIDATES)
        select_time, _ = timed(
            sift, candidates_KD, query_D[None], steps=STEPS, regularisation=REGULARISATION
        )
        search_seconds.append(search_time)
        select_seconds.append(search_time + select_time)
        recalls.append(np.isin(true_K, ids_K).mean())
    after = process.memory_info()
    return {
        "open_seconds": open_seconds,
        "resident_bytes": after.rss - before.rss,
        "mapped_bytes": after.shared - before.shared,
        "search_milliseconds": 1e3 * statistics.median(search_seconds),
        "select_milliseconds": 1e3 * statistics.median(select_seconds),
        "recall": float(np.mean(recalls)),
    }


def nearest_of_all(vectors_ND: Embeddings, queries_QD: Embeddings) -> Ids:
    """The true nearest CANDIDATES of each query by absolute similarity: rows [Q, K]."""
    nearest = [
        np.argpartition(-np.abs(vectors_ND @ query_D), CANDIDATES - 1) for query_D in queries_QD
    ]
    return np.stack([rows_N[:CANDIDATES] for rows_N in nearest])
