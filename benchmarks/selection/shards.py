"""Shards: what a search over N sequences costs in one, two and four processes with a part each.

Vectors and queries are those of `benchmarks/selection/growth.py`. Each shard is a process with one
thread and an index over its part; a query goes to all of them at once, and the results are merged
as in `selection/corpus/shards.py`. Memory is that of the largest process. Calls between machines,
which take a millisecond or two more with Ray, are not part of it.

    python -m benchmarks.selection.shards [--sequences 1000000] [--json]
    [--out benchmarks/results/shards.json]

Shapes: N sequences, Q queries, K candidates, D embedding dimensions.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.harness.command_line import argument_parser, progress, write_result
from benchmarks.harness.processes import openmp_threads
from benchmarks.harness.provenance import provenance
from benchmarks.selection.growth import CANDIDATES, draw_embeddings, nearest_of_all
from selection.corpus.index.faiss_index import Ids, Index, Ranked
from selection.embedding import Embeddings

SHARDS = (1, 2, 4)
_QUERIES = 100

# Each process has one shard, which only a global variable can hold.
_index: Index | None = None


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--sequences", type=int, default=1_000_000, help="number (default: %(default)s)"
    )
    options, facts = parser.parse_args(), provenance()
    vectors_ND, queries_QD = draw_embeddings(options.sequences, _QUERIES)
    nearest_QK = nearest_of_all(vectors_ND, queries_QD)
    results = {}
    for shards in SHARDS:
        progress(f"{shards} shards")
        results[str(shards)] = measure(shards, vectors_ND, queries_QD, nearest_QK)
    progress("")
    result = {**facts, "sequences": options.sequences, "shards": results}
    table = Table(
        "shards", "build, s", "memory of one, MB", "search, ms", "recall", box=None, pad_edge=False
    )
    for name, row in results.items():
        table.add_row(
            name,
            f"{row['build_seconds']:.1f}",
            f"{row['resident_bytes'] / 1e6:,.0f}",
            f"{row['search_milliseconds']:.2f}",
            f"{row['recall']:.3f}",
        )
    Console(stderr=options.json).print(table)
    write_result(options, result, {"sequences": options.sequences, "shards": results})


def measure(
    shards: int, vectors_ND: Embeddings, queries_QD: Embeddings, nearest_QK: Ids
) -> dict[str, float]:
    """Build, search and merge over `shards` processes.

    Returns:
        "build_seconds" of all, one after the other, "resident_bytes" of the largest,
        "search_milliseconds" (median, with merging), "recall" of the true nearest CANDIDATES.
    """
    context = multiprocessing.get_context("spawn")
    with openmp_threads(1), ExitStack() as stack:
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in range(shards)
        ]
        started = time.perf_counter()
        for number, pool in enumerate(pools):
            pool.submit(_build, number, shards, vectors_ND[number::shards]).result()
        build_seconds = time.perf_counter() - started
        resident_bytes = max(pool.submit(_resident_bytes).result() for pool in pools)
        seconds, recalls = [], []
        for query_D, true_K in zip(queries_QD, nearest_QK, strict=True):
            started = time.perf_counter()
            futures = [pool.submit(_nearest, query_D[None]) for pool in pools]
            results = [future.result() for future in futures]
            ids_K, similarity_K = (
                np.concatenate([result[part] for result in results]) for part in (0, 2)
            )
            best_K = ids_K[np.argsort(-similarity_K, kind="stable")[:CANDIDATES]]
            seconds.append(time.perf_counter() - started)
            recalls.append(np.isin(true_K, best_K).mean())
    return {
        "build_seconds": build_seconds,
        "resident_bytes": resident_bytes,
        "search_milliseconds": 1e3 * statistics.median(seconds),
        "recall": float(np.mean(recalls)),
    }


def _build(shard: int, shards: int, vectors_ND: Embeddings) -> None:
    global _index
    _index = Index.build(np.arange(len(vectors_ND)) * shards + shard, vectors_ND)


def _nearest(query_TD: Embeddings) -> Ranked:
    assert _index is not None
    return _index.nearest(query_TD, CANDIDATES)


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    main()
