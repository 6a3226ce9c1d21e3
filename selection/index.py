"""The only faiss import: the nearest candidates of a prompt, from an index derived from a corpus.

The index is flat (exact inner products). It can be rebuilt from the corpus at any time; beside it a
manifest holds its SHA-256, because FAISS loads most bit flips without a word. Writing is atomic: a
temporary name, fsync, rename.

Shapes: N vectors, K candidates, T targets, D embedding dimensions.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from selection.embedding import Embeddings

Ids = npt.NDArray[np.int64]


class Index:
    """Ids and unit vectors, searched by absolute inner product."""

    def __init__(self, flat: Any, ids_N: Ids) -> None:
        self._flat = flat
        self._ids_N = ids_N

    @classmethod
    def build(cls, ids_N: Ids, embeddings_ND: Embeddings) -> Index:
        """An index over these vectors; ids in the same order."""
        flat = faiss.IndexFlatIP(embeddings_ND.shape[1])
        flat.add(np.ascontiguousarray(embeddings_ND))
        return cls(flat, ids_N)

    def __len__(self) -> int:
        return len(self._ids_N)

    def nearest(self, targets_TD: Embeddings, k: int) -> tuple[Ids, Embeddings]:
        """The k vectors of largest absolute similarity to any target: ids [K] and embeddings [K, D].

        Negative similarity informs as much as positive: SIFT squares it (paper section 2.1).
        """
        k = min(k, len(self))
        if k == 0:
            return np.empty(0, np.int64), np.empty((0, self._flat.d), np.float32)
        both_signs = np.concatenate([targets_TD, -targets_TD])
        scores, rows = self._flat.search(np.ascontiguousarray(both_signs), k)
        best: dict[int, float] = {}
        for row, score in zip(rows.ravel().tolist(), scores.ravel().tolist(), strict=True):
            best[row] = max(best.get(row, -np.inf), score)
        chosen = np.array(sorted(best, key=lambda row: (-best[row], row))[:k], dtype=np.int64)
        return self._ids_N[chosen], self._flat.reconstruct_batch(chosen)

    def save(self, folder: Path, generation: int) -> None:
        """Replace the folder's index and manifest atomically; `generation` is the corpus state it was built from."""
        blob = faiss.serialize_index(self._flat).tobytes()
        ids = self._ids_N.tobytes()
        _replace(folder / "index.faiss", blob)
        _replace(folder / "index.ids", ids)
        manifest = {"generation": generation, "count": len(self), "sha256": _digest(blob, ids)}
        _replace(folder / "index.json", json.dumps(manifest).encode())

    @classmethod
    def load(cls, folder: Path, generation: int) -> Index | None:
        """The folder's index, or None where it is missing, damaged or of another generation: build it again."""
        try:
            manifest = json.loads((folder / "index.json").read_text())
            blob, ids = (folder / "index.faiss").read_bytes(), (folder / "index.ids").read_bytes()
        except (OSError, ValueError):
            return None
        expected = {"generation": generation, "count": len(ids) // 8, "sha256": _digest(blob, ids)}
        if manifest != expected:
            return None
        return cls(faiss.deserialize_index(np.frombuffer(blob, np.uint8)), np.frombuffer(ids, np.int64))


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(f"{path.suffix}.{uuid.uuid4().hex}")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
