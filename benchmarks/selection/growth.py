"""Growth: what an index over N sequences costs to build, keep and open, and how fast and how right
it is.

The part of `benchmarks/selection/main.py` about corpus size. Vectors are synthetic, since a million real
sequences would take hours to embed: a topic, a document of that topic, and the sequence's own part
are added, each Gaussian with a spectrum that falls as 1 / sqrt(i), and the sum is brought to unit
length. The shares were set so that 12,000 of them look to a search like 12,615 real embeddings of
Python source by all-MiniLM-L6-v2 (similarity by rank, recall by number of lists read). Queries are
drawn from the same documents and are not in the index.

Each size is built in one process and opened in another, so that memory is that of the index alone;
`mapped_bytes` of it are pages of the file of raw vectors, which the system drops when it needs
them. Files were just written, so opening reads them from memory. SQLite is not part of it, but for
the time to read all embeddings from it.

Shapes: N sequences, Q queries, K candidates, D embedding dimensions.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from selection.corpus import index_files
from selection.corpus.faiss_index import Ids, Index
from selection.corpus.sqlite_store import Chunk, SQLiteStore
from selection.embedding import Embeddings
from selection.strategies.sift import sift

DIMENSION = 384
CANDIDATES, STEPS, REGULARISATION = 200, 50, 0.1
_QUERIES = 100
_TOPICS = 100
_SEQUENCES_PER_DOCUMENT = 20
_SHARES = (0.25, 0.35, 0.4)  # of the squared length: topic, document, sequence
_STORED = 100_000  # sequences read back from SQLite
_CHUNK = 1 << 16

Result = TypeVar("Result")


def grow(sizes: list[int], threads: int) -> dict[str, dict[str, Any]]:
    """What each corpus size costs, by size."""
    growth = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            built = alone(threads, _build, Path(folder), size)
            growth[str(size)] = built | alone(threads, _use, Path(folder))
    return growth


def alone(threads: int, work: Callable[..., Result], *arguments: Any) -> Result:
    """Do some work in a fresh process; libraries read how many threads they may use when they are
    loaded.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(work, *arguments).result()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def draw(count: int, queries: int, seed: int = 0) -> tuple[Embeddings, Embeddings]:
    """Unit vectors [N, D] and queries [Q, D] of the same topics and documents."""
    generator = np.random.default_rng(seed)
    spectrum_D = (1.0 + np.arange(DIMENSION)) ** -0.5
    spectrum_D /= np.linalg.norm(spectrum_D)
    of_topic, of_document, of_sequence = np.sqrt(_SHARES)

    def parts(number: int) -> Embeddings:
        return generator.standard_normal((number, DIMENSION), np.float32) * spectrum_D.astype(
            np.float32
        )

    documents = max(count // _SEQUENCES_PER_DOCUMENT, 1)
    topics = parts(_TOPICS)[generator.integers(0, _TOPICS, documents)]
    centres = np.float32(of_topic) * topics + np.float32(of_document) * parts(documents)

    def some(number: int) -> Embeddings:
        vectors = np.empty((number, DIMENSION), np.float32)
        for start in range(0, number, _CHUNK):
            chunk = vectors[start : start + _CHUNK]
            chunk[:] = centres[generator.integers(0, documents, len(chunk))]
            chunk += np.float32(of_sequence) * parts(len(chunk))
            chunk /= np.linalg.norm(chunk, axis=1, keepdims=True)
        return vectors

    return some(count), some(queries)


def read_store(count: int = _STORED) -> float:
    """Seconds to read `count` embeddings from the database."""
    vectors_ND, _ = draw(count, 0)
    piece = Chunk(0, "", ())
    with tempfile.TemporaryDirectory() as folder:
        store = SQLiteStore(Path(folder))
        store.initialise({"dimension": str(DIMENSION)})
        made_for = store.meta()["uuid"]
        for start in range(0, count, 1000):
            part_ND = vectors_ND[start : start + 1000]
            store.add(str(start), "", [piece] * len(part_ND), part_ND, {}, made_for)
        seconds, (_, read_ND) = timed(store.embeddings)
        store.close()
    assert np.array_equal(read_ND, vectors_ND)
    return seconds


def timed(work: Callable[..., Result], *arguments: Any, **options: Any) -> tuple[float, Result]:
    """Seconds that some work took, and its result."""
    started = time.perf_counter()
    result = work(*arguments, **options)
    return time.perf_counter() - started, result


def _build(folder: Path, size: int) -> dict[str, Any]:
    vectors_ND, queries_QD = draw(size, _QUERIES)
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


def _use(folder: Path) -> dict[str, Any]:
    asked = np.load(folder / "queries.npz")
    queries_QD, nearest_QK = asked["queries"], asked["nearest"]
    process = psutil.Process()
    before = process.memory_info()
    open_seconds, loaded = timed(index_files.load, folder / "index", "growth", DIMENSION)
    assert loaded is not None
    index = loaded[1]
    search_seconds, select_seconds, recalls = [], [], []
    for query_D, true_K in zip(queries_QD, nearest_QK, strict=True):
        searched, (ids_K, found_KD, _) = timed(index.nearest, query_D[None], CANDIDATES)
        chosen, _ = timed(sift, found_KD, query_D[None], steps=STEPS, regularisation=REGULARISATION)
        search_seconds.append(searched)
        select_seconds.append(searched + chosen)
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
