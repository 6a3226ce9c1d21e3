"""The only faiss import: the nearest candidates of a prompt, from an index derived from a corpus.

Up to FLAT_LIMIT vectors the index is flat: exact inner products over all vectors, on a GPU if
faiss-gpu finds one (untested). Above that limit it consists of inverted lists over 4-bit codes of
the principal axes that hold most of the spectrum. A search probes the lists nearest to a prompt and
to its opposite, and ranks a multiple of K candidates again by their raw vectors, which stay in a
memory-mapped file and are what the kernel of SIFT sees. The number of lists and the multiple are
tuned when the index is built, so that a share RECALL of the top candidates is found. With a filter,
or for a prompt less similar to the corpus than nearly all of its own vectors, a search reads more
until its result hardly changes. HNSW is no alternative: it keeps raw vectors and links in memory.

It does not depend on files (`selection.corpus.index.files`).

Shapes: N vectors, Q queries, K candidates, T targets, D embedding dimensions.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from selection.embedding import Embeddings


class _Faiss:
    """faiss, imported at its first use, so that opening a corpus to list it does not load it."""

    def __getattr__(self, name: str) -> Any:
        import faiss

        return getattr(faiss, name)


# Typed as Any because faiss's Python wrappers take other arguments than its stubs declare.
faiss: Any = _Faiss()

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ranked = tuple[Ids, Embeddings, npt.NDArray[np.float32]]

FLAT_LIMIT = 50_000
RECALL = 0.96
# The number of nearest vectors over which RECALL is measured.
_TOP = 200
# Up to this number of allowed vectors, all are compared, also by an index with lists.
_EXHAUSTIVE = 20_000
_TRAINING_PER_LIST = 40
# The share of the squared length that the coded axes must hold.
_CODED_ENERGY = 0.85
# Vectors per block, to bound memory.
_BLOCK = 1 << 16
# The number of its own vectors that serve as queries when an index is tuned.
_QUERIES = 128
# The number of values of `probes` that tuning chooses from.
_STEPS = 30
# The share of these queries that count as dissimilar to the corpus, for which more is read.
_DISSIMILAR = 0.05


@dataclass(frozen=True)
class SearchParams:
    """How an index with lists is searched.

    Attributes:
        probes: lists to read for each sign.
        refine: candidates to rank by their raw vectors, as a multiple of k.
        usual: the similarity that the k-th candidate must reach, or else more is read.
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
        search_params: SearchParams | None = None,
    ) -> None:
        self.ids_N = ids_N
        self.dimension = vectors_ND.shape[1]
        self._vectors_ND = vectors_ND
        self._coded = self._searched = coded
        self.search_params = search_params
        if coded is None:
            self._flat = self._searched = faiss.IndexFlatIP(self.dimension)
            self._flat.add(np.ascontiguousarray(vectors_ND))
            if vectors_ND.size:
                # A view of FAISS's own copy saves a second one; it is valid as long as self._flat.
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
        coded_dimension = projection.d_out
        inverted: Any = faiss.index_factory(
            coded_dimension, f"IVF{lists},PQ{coded_dimension}x4fsr", faiss.METRIC_INNER_PRODUCT
        )
        inverted.cp.niter, inverted.cp.seed = 6, 1
        coded: Any = faiss.IndexPreTransform(projection, inverted)
        # A 4-bit code has 16 values, and k-means needs at least as many vectors.
        coded.train(np.resize(sample_SD, (max(len(sample_SD), 16), dimension)))
        for start in range(0, count, _BLOCK):
            coded.add(embeddings_ND[start : start + _BLOCK])
        index = cls(ids_N, embeddings_ND, coded)
        index.search_params = index._tune(lists)
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
        """Rows of at least the k nearest vectors, or of all, with vectors and similarities."""
        allowed = len(self) if allowed_N is None else int(np.count_nonzero(allowed_N))
        if allowed <= max(k, _EXHAUSTIVE if self._coded is not None else k):
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
        assert self.search_params is not None
        params, k, lists = (
            self.search_params,
            max(k, _TOP),
            faiss.extract_index_ivf(self._coded).nlist,
        )
        found = self._probe(targets_TD, k, params, selector)
        # A mask may exclude most of the nearest lists' vectors, and all lists are about equally far
        # from a prompt dissimilar to the corpus: more are read until the result hardly changes.
        while params.probes < lists and (
            allowed_N is not None or len(found[0]) < k or found[2][-1] < params.usual
        ):
            params = SearchParams(min(2 * params.probes, lists), 2 * params.refine, params.usual)
            before, found = found[0], self._probe(targets_TD, k, params, selector)
            if len(before) >= k and np.isin(found[0], before).mean() >= RECALL:
                break
        return found

    def _probe(
        self, targets_TD: Embeddings, k: int, params: SearchParams, selector: Any = None
    ) -> Ranked:
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=params.probes)
        rows = self._search(
            targets_TD,
            min(params.refine * k, len(self)),
            faiss.SearchParametersPreTransform(index_params=parameters),
        )
        return self._rank(rows, targets_TD, k)

    def _search(self, targets_TD: Embeddings, count: int, parameters: Any) -> Ids:
        """Rows, distinct and ascending, of the nearest `count` vectors, and of up to T times as
        many.
        """
        both_signs = np.concatenate([targets_TD, -targets_TD])
        similarity, rows = self._searched.search(both_signs, count, params=parameters)
        best = np.argpartition(-similarity, count * len(targets_TD) - 1, axis=None)[
            : count * len(targets_TD)
        ]
        found: Ids = np.unique(rows.reshape(-1)[best])
        return found[found >= 0]

    def _rank(self, rows: Ids, targets_TD: Embeddings, k: int) -> Ranked:
        """The nearest k of these rows by their raw vectors, nearest first; their vectors and
        similarities.
        """
        vectors_KD = np.ascontiguousarray(self._vectors_ND[rows])
        # BLAS would leave its threads spinning for milliseconds on the cores that FAISS's next
        # search needs; einsum does not use them.
        similarity_K = np.abs(np.einsum("kd,td->kt", vectors_KD, targets_TD)).max(
            axis=1, initial=0.0
        )
        best = np.lexsort((rows, -similarity_K))[:k]
        return rows[best], vectors_KD[best], similarity_K[best]

    def _tune(self, lists: int) -> SearchParams:
        """The cheapest parameters, in steps, that reach RECALL for some of its own vectors."""
        queries_QD = self._vectors_ND[np.random.default_rng(2).permutation(len(self))[:_QUERIES]]
        k = min(_TOP, len(self))
        true_QK, similarity_QK = _nearest(self._vectors_ND, queries_QD, k)
        usual = float(np.quantile(similarity_QK.min(axis=1), _DISSIMILAR))

        def recall(params: SearchParams, count: int = _QUERIES) -> float:
            pairs = zip(queries_QD[:count], true_QK[:count], strict=True)
            shares = [
                np.isin(true_K, self._probe(query_D[None], k, params)[0]).mean()
                for query_D, true_K in pairs
            ]
            return float(np.mean(shares))

        params = SearchParams(lists, 4, usual)
        while params.refine < 32 and recall(params, _QUERIES // 4) < (1 + RECALL) / 2:
            params = replace(params, refine=2 * params.refine)
        steps = [
            replace(params, probes=int(probes))
            for probes in np.geomspace(min(8, lists), lists, _STEPS)
        ]
        return steps[bisect.bisect_left(steps, RECALL, hi=_STEPS - 1, key=recall)]

    def blobs(self) -> dict[str, Any]:
        """The content of the index by file name, as buffers (`selection.corpus.index.files`)."""
        blobs: dict[str, Any] = {
            "ids": self.ids_N,
            "vectors": np.ascontiguousarray(self._vectors_ND),
        }
        if self._coded is not None:
            blobs["coded"] = faiss.serialize_index(self._coded)
        return blobs

    @classmethod
    def from_blobs(
        cls, blobs: Mapping[str, Bytes], dimension: int, search_params: SearchParams | None
    ) -> Index:
        """The index of these `blobs`, which it goes on to use, mapped files as well.

        Raises:
            KeyError, ValueError, RuntimeError: these are not the blobs of an index of that
                dimension.
        """
        vectors_ND = blobs["vectors"].view(np.float32).reshape(-1, dimension)
        coded = faiss.deserialize_index(blobs["coded"]) if "coded" in blobs else None
        return cls(np.array(blobs["ids"].view(np.int64)), vectors_ND, coded, search_params)


def _projection(sample_SD: Embeddings) -> Any:
    """The projection onto the fewest principal axes, a multiple of 32, that hold _CODED_ENERGY of
    the squared length, because that changes inner products least.

    The vectors are not centred, as they are for principal components: the inner product with their
    mean would differ between prompts.
    """
    dimension = sample_SD.shape[1]
    # The eigenvalues ascend.
    energy_D, axes_DD = np.linalg.eigh(sample_SD.T @ sample_SD)
    share_D = np.cumsum(energy_D[::-1]) / energy_D.sum()
    axes = min(dimension, 32 * (int(np.searchsorted(share_D, _CODED_ENERGY)) // 32 + 1))
    projection: Any = faiss.LinearTransform(dimension, axes)
    faiss.copy_array_to_vector(
        np.ascontiguousarray(axes_DD[:, ::-1].T[:axes]).ravel(), projection.A
    )
    projection.is_trained = True
    return projection


def _nearest(vectors_ND: Embeddings, queries_QD: Embeddings, k: int) -> tuple[Ids, Embeddings]:
    """Rows [Q, K] of the true nearest to each query, unordered, and their similarities [Q, K]."""
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
