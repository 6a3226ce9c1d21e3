"""How fast `mayfly corpus add` is, and whether its embeddings find the same neighbours.

The time of a corpus of one short file, which is mostly spent on starting, is subtracted.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from benchmarks.side_by_side.tree import Tree

CORPUS = "sources"
NEIGHBOURS = 200
# Share of the sequences that both corpora must contain to be compared.
_MIN_SHARED = 0.9
_SHORT = "one"
Embeddings: TypeAlias = npt.NDArray[np.float32]


def add_corpus(tree: Tree, home: Path, files: Path, model: str) -> dict[str, Any]:
    """Add a corpus of the files of a folder; the sequences and the seconds that they took."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    short = home / "one.py"
    short.write_text("def one():\n    return 1\n")
    start_seconds = _add(tree, home, _SHORT, short, model)
    seconds = _add(tree, home, CORPUS, files, model)
    counts = [len(_embeddings(home, name)) for name in (CORPUS, _SHORT)]
    return {
        "sequences": counts[0],
        "seconds": seconds,
        "start_seconds": start_seconds,
        "per_second": (counts[0] - counts[1]) / (seconds - start_seconds),
    }


def neighbour_recall(old: Path, new: Path) -> float:
    """Share of the nearest neighbours of the old corpus that the new one finds as well.

    Every sequence is a query, embedded as the corpus embeds it.

    Args:
        old: home of the corpus that has the right neighbours.
        new: home of the other.

    Raises:
        RuntimeError: the corpora contain other sequences.
    """
    before, after = (_embeddings(home, CORPUS) for home in (old, new))
    shared = sorted(before.keys() & after.keys())
    if len(shared) < _MIN_SHARED * max(len(before), len(after)):
        raise RuntimeError(
            f"{len(shared)} of {len(before)} and {len(after)} sequences are the same"
        )
    count = min(NEIGHBOURS, len(shared) // 2)
    right_NK, found_NK = (
        _nearest(np.stack([each[key] for key in shared]), count) for each in (before, after)
    )
    hits = [len(set(r) & set(f)) for r, f in zip(right_NK, found_NK, strict=True)]
    return float(np.mean(hits)) / count


def _nearest(embeddings_ND: Embeddings, count: int) -> npt.NDArray[np.int64]:
    similarity_NN = embeddings_ND @ embeddings_ND.T
    return np.argpartition(-similarity_NN, count, axis=1)[:, :count]


def _add(tree: Tree, home: Path, name: str, files: Path, model: str) -> float:
    started = time.monotonic()
    tree.run("corpus", "add", name, str(files), "--home", str(home), "--model", model)
    return time.monotonic() - started


def _embeddings(home: Path, name: str) -> dict[tuple[str, int], Embeddings]:
    """The embeddings of a corpus by text and position; equal ones have one entry."""
    with closing(sqlite3.connect(home / "corpora" / name / "corpus.db")) as database:
        rows = database.execute("SELECT text, start, embedding FROM sequences").fetchall()
    return {(text, start): np.frombuffer(blob, np.float32) for text, start, blob in rows}
