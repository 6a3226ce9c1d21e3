"""The only faiss import: the nearest candidates of a prompt, from an index derived from a corpus.

Up to FLAT_LIMIT vectors the index is flat: exact inner products, searched whole. Beyond it is inverted lists
over 8-bit codes, a twentieth of which is read for a prompt, and what it finds is ranked again by the raw
vectors, which stay in a memory-mapped file and are what the kernel of SIFT sees. How many lists are read is
measured when the index is built, so that RECALL of the top candidates is found. HNSW was left out: it holds
raw vectors and links in memory, three times as much, to be faster than what is not the slow part here.
With faiss-gpu and a GPU the flat index is searched there (untested).

An index can be rebuilt from its corpus at any time. On disk it is a folder of its own, named in `index.json`
with the SHA-256 of each file, because FAISS loads most bit flips without a word; the manifest carries its own.
Writing is atomic: a new folder, fsync, then the manifest by rename.

Shapes: N vectors, K candidates, T targets, D embedding dimensions.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from selection.embedding import Embeddings

_FAISS: Any = faiss  # its Python wrappers take other arguments than its stubs say

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

FLAT_LIMIT = 100_000
RECALL = 0.97
_FORMAT = 2
_MANIFEST = "index.json"
_FEW = 20_000  # so many allowed vectors are compared one by one, whatever the index
_TRAINING_PER_LIST = 40
_QUERIES = 128  # of its own vectors, to measure how many lists are enough
_REFINE = 2  # times k found by codes, before the raw vectors decide


@dataclass(frozen=True)
class State:
    """Which corpus, and which state of it, an index was built from."""

    corpus: str
    generation: int


class Index:
    """Ids, ascending, and unit vectors, searched by absolute inner product."""

    def __init__(self, ids_N: Ids, vectors_ND: Embeddings, coded: Any = None, probes: int = 0) -> None:
        self.ids_N = ids_N
        self.dimension = vectors_ND.shape[1]
        self._vectors_ND = vectors_ND
        self._coded = coded
        self._probes = probes
        self._searched = coded
        if coded is None:
            self._flat = self._searched = faiss.IndexFlatIP(vectors_ND.shape[1])
            self._flat.add(np.ascontiguousarray(vectors_ND))
            self._vectors_ND = _flat_vectors(self._flat)  # valid as long as self._flat is
            if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus():
                self._searched = faiss.index_cpu_to_all_gpus(self._flat)

    @classmethod
    def build(cls, ids_N: Ids, embeddings_ND: Embeddings, flat_limit: int = FLAT_LIMIT) -> Index:
        """An index over these vectors; ids ascending, in the same order."""
        count, dimension = embeddings_ND.shape
        if count <= flat_limit:
            return cls(ids_N, embeddings_ND)
        lists = int(2 * np.sqrt(count))
        coded: Any = faiss.index_factory(dimension, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        coded.cp.niter = 6
        coded.cp.seed = 1
        sample = np.random.default_rng(1).permutation(count)[: lists * _TRAINING_PER_LIST]
        coded.train(embeddings_ND[np.sort(sample)])
        for start in range(0, count, 1 << 16):
            coded.add(embeddings_ND[start : start + (1 << 16)])
        index = cls(ids_N, embeddings_ND, coded)
        index._probes = index._enough_probes(lists)
        return index

    def __len__(self) -> int:
        return len(self.ids_N)

    def vectors(self) -> Embeddings:
        """All vectors [N, D], in the order of the ids; not a copy."""
        return self._vectors_ND

    def nearest(
        self, targets_TD: Embeddings, k: int, allowed_N: Mask | None = None
    ) -> tuple[Ids, Embeddings, npt.NDArray[np.float32]]:
        """The k allowed vectors of largest absolute similarity to any target: ids [K], vectors [K, D], similarity [K].

        Negative similarity informs as much as positive: SIFT squares it (paper section 2.1).
        """
        rows, vectors_KD, similarity_K = self._rank(self._find(targets_TD, k, allowed_N), targets_TD, k)
        return self.ids_N[rows], vectors_KD, similarity_K

    def _find(self, targets_TD: Embeddings, k: int, allowed_N: Mask | None, probes: int | None = None) -> Ids:
        """Rows, distinct and ascending, among which the nearest k are."""
        allowed = len(self) if allowed_N is None else int(np.count_nonzero(allowed_N))
        if allowed <= max(k, _FEW if self._coded is not None else k):
            return np.arange(len(self)) if allowed_N is None else np.flatnonzero(allowed_N)
        selector = None if allowed_N is None else _FAISS.IDSelectorBitmap(np.packbits(allowed_N, bitorder="little"))
        if self._coded is None:
            return self._search(targets_TD, k, None if selector is None else _FAISS.SearchParameters(sel=selector))
        probes = probes or self._probes
        wanted = min(_REFINE * k, allowed)
        found = self._search(targets_TD, wanted, _FAISS.SearchParametersIVF(sel=selector, nprobe=probes))
        # A mask may leave out most of what the nearest lists hold: then more are read, until that changes little.
        while allowed_N is not None and probes < self._coded.nlist:
            probes *= 2
            before = found
            found = self._search(targets_TD, wanted, _FAISS.SearchParametersIVF(sel=selector, nprobe=probes))
            if len(before) >= k and np.isin(self._rank(found, targets_TD, k)[0], before).mean() >= RECALL:
                break
        return found

    def _search(self, targets_TD: Embeddings, wanted: int, parameters: Any) -> Ids:
        both_signs = np.ascontiguousarray(np.concatenate([targets_TD, -targets_TD]))
        _, rows = self._searched.search(both_signs, wanted, params=parameters)
        found: Ids = np.unique(rows)
        return found[found >= 0]

    def _rank(self, rows: Ids, targets_TD: Embeddings, k: int) -> tuple[Ids, Embeddings, npt.NDArray[np.float32]]:
        """The nearest k of these rows by their raw vectors, nearest first; their vectors and similarities."""
        vectors_KD = np.ascontiguousarray(self._vectors_ND[rows])
        similarity_K = np.abs(vectors_KD @ targets_TD.T).max(axis=1, initial=0.0)
        best = np.lexsort((rows, -similarity_K))[:k]
        return rows[best], vectors_KD[best], similarity_K[best]

    def _enough_probes(self, lists: int) -> int:
        """The fewest lists, growing by half, that find RECALL of the top 200 of some of its own vectors."""
        queries = np.sort(np.random.default_rng(2).permutation(len(self))[:_QUERIES])
        k = min(200, len(self))
        true: list[tuple[Embeddings, Ids]] = []
        for query_D in self._vectors_ND[queries]:
            similarity_N = np.abs(self._vectors_ND @ query_D)
            true.append((query_D, np.argpartition(-similarity_N, k - 1)[:k]))
        probes = 8
        while probes < lists:
            shares = [np.isin(rows, self._find(query_D[None], k, None, probes)).mean() for query_D, rows in true]
            if np.mean(shares) >= RECALL:
                return probes
            probes += probes // 2
        return lists

    def save(self, folder: Path, state: State) -> None:
        """Replace the folder's index atomically; `state` is what it was built from. One saver at a time: `building`."""
        name = f"index-{uuid.uuid4().hex[:12]}"
        target = folder / name
        target.mkdir()
        try:
            self._save(folder, target, state)
        except OSError:  # such as a full disk, which the rest of it would keep full
            shutil.rmtree(target, ignore_errors=True)
            raise
        finally:
            for litter in folder.glob(f"{_MANIFEST}.*"):
                litter.unlink(missing_ok=True)
        for old in folder.glob("index-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)  # whoever has it mapped keeps its pages

    def _save(self, folder: Path, target: Path, state: State) -> None:
        blobs: dict[str, Any] = {"ids": self.ids_N, "vectors": np.ascontiguousarray(self._vectors_ND)}
        if self._coded is not None:
            blobs["coded"] = faiss.serialize_index(self._coded)
        for file, blob in blobs.items():
            _write(target / file, blob)
        _sync_folder(target)
        body = {
            "format": _FORMAT,
            "corpus": state.corpus,
            "generation": state.generation,
            "folder": target.name,
            "count": len(self),
            "probes": self._probes,
            "sha256": {file: hashlib.sha256(blob).hexdigest() for file, blob in blobs.items()},
        }
        temporary = folder / f"{_MANIFEST}.{uuid.uuid4().hex[:12]}"
        _write(temporary, json.dumps({**body, "signed": _digest(body)}).encode())
        temporary.replace(folder / _MANIFEST)
        _sync_folder(folder)

    @staticmethod
    def saved_generation(folder: Path) -> int:
        """The generation that the folder's manifest claims, unchecked; -1 where there is none."""
        try:
            return int(json.loads((folder / _MANIFEST).read_text())["generation"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return -1

    @classmethod
    def load(cls, folder: Path, corpus: str, dimension: int) -> tuple[int, Index] | None:
        """The folder's index and its generation; None where it is missing, damaged or another corpus's: build it."""
        try:
            manifest = json.loads((folder / _MANIFEST).read_text())
            signed = manifest.pop("signed")
            if signed != _digest(manifest) or (manifest["format"], manifest["corpus"]) != (_FORMAT, corpus):
                return None
            files = {file: folder / manifest["folder"] / file for file in manifest["sha256"]}
            for file, path in files.items():
                with path.open("rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != manifest["sha256"][file]:
                        return None
            ids_N = np.fromfile(files["ids"], np.int64)
            vectors = np.zeros(0, np.float32)
            if len(ids_N):  # an empty file cannot be mapped
                vectors = np.memmap(files["vectors"], np.float32, mode="r")
            coded = faiss.read_index(str(files["coded"])) if "coded" in files else None
            return manifest["generation"], cls(ids_N, vectors.reshape(-1, dimension), coded, manifest["probes"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):  # FAISS raises the last
            return None


@contextlib.contextmanager
def building(folder: Path) -> Iterator[None]:
    """Held by the one process that builds and saves a folder's index; others wait."""
    with (folder / "index.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _flat_vectors(flat: Any) -> Embeddings:
    """The vectors inside a flat index, not a copy."""
    if flat.ntotal == 0:
        return np.empty((0, flat.d), np.float32)
    vectors: Embeddings = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
    return vectors


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _write(path: Path, content: Any) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
