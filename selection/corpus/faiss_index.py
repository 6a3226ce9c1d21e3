"""The only faiss import: the nearest candidates of a prompt, from an index derived from a corpus.

Up to FLAT_LIMIT vectors the index is flat: exact inner products, searched whole, on a GPU where
faiss-gpu has one (untested). Beyond it is inverted lists over codes of four bits a dimension, of
the principal axes that hold most of the spectrum. The lists nearest to a prompt and to its opposite
are read; a few times K of what they hold are ranked again by the raw vectors, which stay in a
memory-mapped file and are what the kernel of SIFT sees. How many, of both, is measured when the
index is built, so that RECALL of the top candidates is found. With a filter, or for a prompt less
like the corpus than nearly all of its own vectors are, more is read until that changes little. HNSW
was left out: it holds raw vectors and links in memory.

An index can be rebuilt from its corpus at any time. On disk it is a folder of its own, named in
`index.json` with the SHA-256 of each file, because FAISS loads most bit flips without a word; the
manifest carries its own. Writing is atomic: a new folder, fsync, then the manifest by rename.

Shapes: N vectors, Q queries, K candidates, T targets, D embedding dimensions.
"""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selection.embedding import Embeddings


class _Faiss:
    """faiss, imported when it is first used: whoever opens a corpus to list it does not wait for
    it.
    """

    def __getattr__(self, name: str) -> Any:
        import faiss

        return getattr(faiss, name)


faiss: Any = _Faiss()  # as Any: its Python wrappers take other arguments than its stubs say

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Ranked = tuple[Ids, Embeddings, npt.NDArray[np.float32]]

FLAT_LIMIT = 50_000
RECALL = 0.96
_TOP = 200  # so many nearest, of which RECALL are found
_FORMAT = 3
_MANIFEST = "index.json"
_FEW = 20_000  # so many allowed vectors are compared one by one, whatever the index
_TRAINING_PER_LIST = 40
_KEPT = 0.85  # of the squared length is coded
_BLOCK = 1 << 16  # vectors
_QUERIES = 128  # of its own vectors, to measure how it is to be read
_STEPS = 30  # numbers of lists it chooses among
_UNLIKE = 0.05  # share of them that are so little like the corpus that more is read


@dataclass(frozen=True)
class State:
    """Which corpus, and which state of it, an index was built from."""

    corpus: str
    generation: int


@dataclass(frozen=True)
class SearchParams:
    """How an index with lists is read: how many lists for each sign, how many times k are ranked by
    their raw vectors, and how similar the last of the k must be for that to be enough.
    """

    probes: int
    refine: int
    usual: float


class Index:
    """Ids, ascending, and unit vectors, searched by absolute inner product."""

    def __init__(
        self,
        ids_N: Ids,
        vectors_ND: Embeddings,
        coded: Any = None,
        reading: SearchParams | None = None,
    ) -> None:
        self.ids_N = ids_N
        self.dimension = vectors_ND.shape[1]
        self._vectors_ND = vectors_ND
        self._coded = self._searched = coded
        self._reading = reading
        if coded is None:
            self._flat = self._searched = faiss.IndexFlatIP(self.dimension)
            self._flat.add(np.ascontiguousarray(vectors_ND))
            if vectors_ND.size:  # not a second copy, and valid as long as self._flat is
                self._vectors_ND = faiss.rev_swig_ptr(self._flat.get_xb(), vectors_ND.size).reshape(
                    vectors_ND.shape
                )
            if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus():
                self._searched = faiss.index_cpu_to_all_gpus(self._flat)

    @classmethod
    def build(cls, ids_N: Ids, embeddings_ND: Embeddings, flat_limit: int = FLAT_LIMIT) -> Index:
        """An index over these vectors; ids ascending, in the same order."""
        count, dimension = embeddings_ND.shape
        if count <= flat_limit:
            return cls(ids_N, embeddings_ND)
        lists = int(2 * np.sqrt(count))
        sample = np.random.default_rng(1).permutation(count)[: lists * _TRAINING_PER_LIST]
        sample_SD = embeddings_ND[np.sort(sample)]
        projection = _projection(sample_SD)
        kept = projection.d_out
        inverted: Any = faiss.index_factory(
            kept, f"IVF{lists},PQ{kept}x4fsr", faiss.METRIC_INNER_PRODUCT
        )
        inverted.cp.niter, inverted.cp.seed = 6, 1
        coded: Any = faiss.IndexPreTransform(projection, inverted)
        # A code has 16 values.
        coded.train(np.resize(sample_SD, (max(len(sample_SD), 16), dimension)))
        for start in range(0, count, _BLOCK):
            coded.add(embeddings_ND[start : start + _BLOCK])
        index = cls(ids_N, embeddings_ND, coded)
        index._reading = index._enough(lists)
        return index

    def __len__(self) -> int:
        return len(self.ids_N)

    def vectors(self) -> Embeddings:
        """All vectors [N, D], in the order of the ids; not a copy."""
        return self._vectors_ND

    def nearest(self, targets_TD: Embeddings, k: int, allowed_N: Mask | None = None) -> Ranked:
        """The k allowed vectors of largest absolute similarity to any target: ids [K], vectors [K,
        D], similarity [K].

        Negative similarity informs as much as positive: SIFT squares it (paper section 2.1).
        """
        rows, vectors_KD, similarity_K = self._find(targets_TD, k, allowed_N)
        return self.ids_N[rows[:k]], vectors_KD[:k], similarity_K[:k]

    def _find(self, targets_TD: Embeddings, k: int, allowed_N: Mask | None) -> Ranked:
        """The nearest k at least, or all, as rows."""
        allowed = len(self) if allowed_N is None else int(np.count_nonzero(allowed_N))
        if allowed <= max(k, _FEW if self._coded is not None else k):
            rows = np.arange(len(self)) if allowed_N is None else np.flatnonzero(allowed_N)
            return self._rank(rows, targets_TD, k)
        selector = (
            None
            if allowed_N is None
            else faiss.IDSelectorBitmap(np.packbits(allowed_N, bitorder="little"))
        )
        if self._coded is None:
            parameters = None if selector is None else faiss.SearchParameters(sel=selector)
            return self._rank(self._search(targets_TD, k, parameters), targets_TD, k)
        assert self._reading is not None
        reading, k, lists = self._reading, max(k, _TOP), faiss.extract_index_ivf(self._coded).nlist
        found = self._read(targets_TD, k, reading, selector)
        # A mask may leave out most of what the nearest lists hold, and to a prompt unlike the
        # corpus all lists are about as near: then more are read, until that changes little.
        while reading.probes < lists and (
            allowed_N is not None or len(found[0]) < k or found[2][-1] < reading.usual
        ):
            reading = SearchParams(
                min(2 * reading.probes, lists), 2 * reading.refine, reading.usual
            )
            before, found = found[0], self._read(targets_TD, k, reading, selector)
            if len(before) >= k and np.isin(found[0], before).mean() >= RECALL:
                break
        return found

    def _read(
        self, targets_TD: Embeddings, k: int, reading: SearchParams, selector: Any = None
    ) -> Ranked:
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=reading.probes)
        wanted = min(reading.refine * k, len(self))
        found = self._search(
            targets_TD, wanted, faiss.SearchParametersPreTransform(index_params=parameters)
        )
        return self._rank(found, targets_TD, k)

    def _search(self, targets_TD: Embeddings, wanted: int, parameters: Any) -> Ids:
        """Rows, distinct and ascending: those wanted, and up to T times as many."""
        both_signs = np.concatenate([targets_TD, -targets_TD])
        similarity, rows = self._searched.search(both_signs, wanted, params=parameters)
        best = np.argpartition(-similarity, wanted * len(targets_TD) - 1, axis=None)[
            : wanted * len(targets_TD)
        ]
        found: Ids = np.unique(rows.reshape(-1)[best])
        return found[found >= 0]

    def _rank(self, rows: Ids, targets_TD: Embeddings, k: int) -> Ranked:
        """The nearest k of these rows by their raw vectors, nearest first; their vectors and
        similarities.
        """
        vectors_KD = np.ascontiguousarray(self._vectors_ND[rows])
        # Not by BLAS: its threads spin on for milliseconds, on cores that FAISS's next search
        # wants.
        similarity_K = np.abs(np.einsum("kd,td->kt", vectors_KD, targets_TD)).max(
            axis=1, initial=0.0
        )
        best = np.lexsort((rows, -similarity_K))[:k]
        return rows[best], vectors_KD[best], similarity_K[best]

    def _enough(self, lists: int) -> SearchParams:
        """The least reading, by steps, that finds RECALL of the top of some of its own vectors."""
        queries_QD = self._vectors_ND[np.random.default_rng(2).permutation(len(self))[:_QUERIES]]
        k = min(_TOP, len(self))
        true_QK, similarity_QK = _nearest(self._vectors_ND, queries_QD, k)
        usual = float(np.quantile(similarity_QK.min(axis=1), _UNLIKE))

        def recall(reading: SearchParams, count: int = _QUERIES) -> float:
            pairs = zip(queries_QD[:count], true_QK[:count], strict=True)
            shares = [
                np.isin(true_K, self._read(query_D[None], k, reading)[0]).mean()
                for query_D, true_K in pairs
            ]
            return float(np.mean(shares))

        reading = SearchParams(lists, 4, usual)
        while reading.refine < 32 and recall(reading, _QUERIES // 4) < (1 + RECALL) / 2:
            reading = replace(reading, refine=2 * reading.refine)
        steps = [
            replace(reading, probes=int(probes))
            for probes in np.geomspace(min(8, lists), lists, _STEPS)
        ]
        return steps[bisect.bisect_left(steps, RECALL, hi=_STEPS - 1, key=recall)]

    def save(self, folder: Path, state: State) -> None:
        """Replace the folder's index atomically; `state` is what it was built from. One saver at a
        time: `building`.
        """
        target = folder / f"index-{uuid.uuid4().hex[:12]}"
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
        blobs: dict[str, Any] = {
            "ids": self.ids_N,
            "vectors": np.ascontiguousarray(self._vectors_ND),
        }
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
            "reading": None if self._reading is None else asdict(self._reading),
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
        """The folder's index and its generation; None where it is missing, damaged or another
        corpus's: build it.
        """
        try:
            manifest = json.loads((folder / _MANIFEST).read_text())
            signed = manifest.pop("signed")
            if signed != _digest(manifest) or (manifest["format"], manifest["corpus"]) != (
                _FORMAT,
                corpus,
            ):
                return None
            # Mapped before they are checked: what was read then is what is searched, and is in
            # memory.
            mapped = {file: _map(folder / manifest["folder"] / file) for file in manifest["sha256"]}
            if {
                file: hashlib.sha256(blob.data).hexdigest() for file, blob in mapped.items()
            } != manifest["sha256"]:
                return None
            ids_N, vectors = (
                np.array(mapped["ids"].view(np.int64)),
                mapped["vectors"].view(np.float32),
            )
            coded = reading = None
            if "coded" in mapped:
                coded, reading = (
                    faiss.deserialize_index(mapped["coded"]),
                    SearchParams(**manifest["reading"]),
                )
            return manifest["generation"], cls(
                ids_N, vectors.reshape(-1, dimension), coded, reading
            )
        # FAISS raises the last.
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
            return None


@contextlib.contextmanager
def building(folder: Path) -> Iterator[None]:
    """Held by the one process that builds and saves a folder's index; others wait."""
    with (folder / "index.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _projection(sample_SD: Embeddings) -> Any:
    """Onto the fewest principal axes, by 32, that hold _KEPT of the squared length: inner products
    change least.

    Not centred, as principal components are: the inner product with a mean would differ between
    prompts.
    """
    dimension = sample_SD.shape[1]
    energy_D, axes_DD = np.linalg.eigh(sample_SD.T @ sample_SD)  # ascending
    share_D = np.cumsum(energy_D[::-1]) / energy_D.sum()
    kept = min(dimension, 32 * (int(np.searchsorted(share_D, _KEPT)) // 32 + 1))
    projection: Any = faiss.LinearTransform(dimension, kept)
    faiss.copy_array_to_vector(
        np.ascontiguousarray(axes_DD[:, ::-1].T[:kept]).ravel(), projection.A
    )
    projection.is_trained = True
    return projection


def _nearest(vectors_ND: Embeddings, queries_QD: Embeddings, k: int) -> tuple[Ids, Embeddings]:
    """Rows [Q, K] of the true nearest to each query, in no order, and their similarities [Q, K]."""
    count = len(queries_QD)
    rows_QK, similarity_QK = np.zeros((count, 0), np.int64), np.zeros((count, 0), np.float32)
    for start in range(0, len(vectors_ND), _BLOCK):
        new_QB = np.abs(queries_QD @ vectors_ND[start : start + _BLOCK].T)
        rows_B = np.broadcast_to(np.arange(start, start + new_QB.shape[1]), new_QB.shape)
        rows, similarity = np.hstack([rows_QK, rows_B]), np.hstack([similarity_QK, new_QB])
        best = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        rows_QK, similarity_QK = (
            np.take_along_axis(rows, best, axis=1),
            np.take_along_axis(similarity, best, axis=1),
        )
    return rows_QK, similarity_QK


def _map(path: Path) -> npt.NDArray[np.uint8]:
    # None maps nothing.
    return np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)


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
