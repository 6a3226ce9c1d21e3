"""Shards: what a search over N sequences costs where they lie in one, two, four processes, each
with a part.

Vectors and queries are those of `benchmarks/selection/growth.py`. Each shard is a process of its own on one
thread with an index over its part; a query goes to all of them at once (to a single one, too), and
what they find is merged, as `selection/corpus/shards.py` does. Memory is that of the largest
process. It knows nothing of Ray, whose calls between machines take a millisecond or two more.

    python -m benchmarks.selection.shards [--sequences 1000000] [--json] [--out
    benchmarks/results/shards.json]

Shapes: N sequences, Q queries, K candidates, D embedding dimensions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.harness.command_line import progress
from benchmarks.harness.provenance import provenance
from benchmarks.selection.growth import CANDIDATES, draw, nearest_of_all
from selection.corpus.faiss_index import Ids, Index, Ranked
from selection.embedding import Embeddings

SHARDS = (1, 2, 4)
_QUERIES = 100

_index: Index | None = None  # of a process that holds a shard


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sequences", type=int, default=1_000_000)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--out", type=Path, help="write the full result here")
    options, facts = parser.parse_args(), provenance()
    vectors_ND, queries_QD = draw(options.sequences, _QUERIES)
    nearest_QK = nearest_of_all(vectors_ND, queries_QD)
    found = {}
    for shards in SHARDS:
        progress(f"{shards} shards")
        found[str(shards)] = spread(shards, vectors_ND, queries_QD, nearest_QK)
    progress("")
    result = {**facts, "sequences": options.sequences, "shards": found}
    table = Table(
        "shards", "build, s", "memory of one, MB", "search, ms", "recall", box=None, pad_edge=False
    )
    for name, row in found.items():
        table.add_row(
            name,
            f"{row['build_seconds']:.1f}",
            f"{row['resident_bytes'] / 1e6:,.0f}",
            f"{row['search_milliseconds']:.2f}",
            f"{row['recall']:.3f}",
        )
    Console(stderr=options.json).print(table)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.json:
        print(json.dumps({"sequences": options.sequences, "shards": found}))


def spread(
    shards: int, vectors_ND: Embeddings, queries_QD: Embeddings, nearest_QK: Ids
) -> dict[str, float]:
    """Build, search and merge over so many processes.

    Returns:
        "build_seconds" of all, one after the other, "resident_bytes" of the largest,
        "search_milliseconds" (median, merging included), "recall" of the true nearest CANDIDATES.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    context = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, mp_context=context) for _ in range(shards)]
    try:
        started = time.perf_counter()
        for number, pool in enumerate(pools):
            pool.submit(_build, number, shards, vectors_ND[number::shards]).result()
        built = time.perf_counter() - started
        resident = [pool.submit(_resident).result() for pool in pools]
        seconds, recalls = [], []
        for query_D, true_K in zip(queries_QD, nearest_QK, strict=True):
            started = time.perf_counter()
            asked = [pool.submit(_nearest, query_D[None]) for pool in pools]
            found = [each.result() for each in asked]
            ids_K, similarity_K = (
                np.concatenate([each[part] for each in found]) for part in (0, 2)
            )
            best_K = ids_K[np.argsort(-similarity_K, kind="stable")[:CANDIDATES]]
            seconds.append(time.perf_counter() - started)
            recalls.append(np.isin(true_K, best_K).mean())
        return {
            "build_seconds": built,
            "resident_bytes": max(resident),
            "search_milliseconds": 1e3 * statistics.median(seconds),
            "recall": float(np.mean(recalls)),
        }
    finally:
        for pool in pools:
            pool.shutdown()
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _build(shard: int, shards: int, vectors_ND: Embeddings) -> None:
    global _index  # a process of a pool has no other place
    _index = Index.build(np.arange(len(vectors_ND)) * shards + shard, vectors_ND)


def _nearest(query_TD: Embeddings) -> Ranked:
    assert _index is not None
    return _index.nearest(query_TD, CANDIDATES)


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    main()
