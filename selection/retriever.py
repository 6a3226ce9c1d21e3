"""Retriever: SIFT in place of the nearest-neighbour search of a FAISS index.

A counterpart of `activeft.sift.Retriever`, by the paper's authors, for programs that search a FAISS
index and want the vectors that together are most informative about a query. Mayfly's server does
not use it: its corpora have an index of their own (`selection.corpus`). It calls the index that it
is given, and does not import faiss.

Shapes: B queries, K candidates, D embedding dimensions, n results.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from selection.strategies.registry import REGULARISATION
from selection.strategies.sift_batch import sift_batch

Vectors = npt.NDArray[np.float32]
_INNER_PRODUCT = 0  # faiss.METRIC_INNER_PRODUCT


class Retriever:
    """Searches a FAISS index by SIFT, many queries at once.

    FAISS preselects the candidates with the largest absolute inner product, since SIFT learns as
    much from the opposite of a query; SIFT then chooses among them exactly.

        >>> import faiss, numpy as np
        >>> index = faiss.IndexFlatIP(3)
        >>> index.add(np.array([[0.8, 0.6, 0], [0.6, 0.8, 0], [0.6, 0, 0.8]], np.float32))
        >>> queries = np.array([[0.8, 0.5, 0.33]], np.float32)
        >>> index.search(queries, 2)[1]
        array([[0, 1]])
        >>> uncertainties, ids = Retriever(index, regularisation=0.01).search(queries, 2)
        >>> ids
        array([[0, 2]])
        >>> uncertainties.round(2)
        array([[0.35, 0.11]])

    Args:
        index: a FAISS index for inner products that can reconstruct its vectors, such as
            `faiss.IndexFlatIP`. Vectors of unit length give the paper's setting.
        regularisation: lambda' of SIFT; activeft calls it `llambda`, and its default is 0.01.
        candidates: K, how many vectors FAISS preselects for each query; None takes the whole index.
        alpha: the stop of ADAPTIVE SIFT; None never stops early.
        device: where SIFT computes: None for NumPy, else a torch device such as "cuda", on which
            all queries take each step together.

    Raises:
        ValueError: the index does not search by inner product.
    """

    def __init__(
        self,
        index: Any,
        *,
        regularisation: float = REGULARISATION,
        candidates: int | None = 200,
        alpha: float | None = None,
        device: str | None = None,
    ) -> None:
        if index.metric_type != _INNER_PRODUCT:
            raise ValueError(
                "the index must search by inner product: create it with METRIC_INNER_PRODUCT"
            )
        self._index = index
        self._regularisation = regularisation
        self._candidates = candidates
        self._alpha = alpha
        self._device = device

    def search(
        self, queries_BD: Vectors, n: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """The n vectors to learn from for each query, in the order of SIFT, as FAISS returns them.

        An id may repeat: observing one vector twice can be more informative than observing another.

        Returns:
            Uncertainties [B, n], sigma_1 .. sigma_n about each query after each result, where 1 is
            the uncertainty before the first; and ids [B, n]. After the stop of ADAPTIVE SIFT, and
            for an empty index, ids are -1 and the uncertainty stays what it was.

        Raises:
            ValueError: a query is zero, lambda' or alpha is not positive, or the queries do not
                have the index's dimension.
        """
        queries_BD = np.ascontiguousarray(queries_BD, np.float32)
        if queries_BD.ndim != 2 or queries_BD.shape[1] != self._index.d:
            raise ValueError(f"expected queries [B, {self._index.d}], got {list(queries_BD.shape)}")
        candidate_ids_BK, candidates_BKD = self._preselect(queries_BD)
        choices = sift_batch(
            self._on_device(candidates_BKD),
            self._on_device(queries_BD[:, None]),
            steps=n,
            regularisation=self._regularisation,
            alpha=self._alpha,
        )
        ids_BN = np.full((len(queries_BD), n), -1, np.int64)
        uncertainties_BN = np.ones((len(queries_BD), n))
        for b, choice in enumerate(choices):
            found = len(choice.picks)
            ids_BN[b, :found] = candidate_ids_BK[b, list(choice.picks)]
            uncertainties_BN[b, :found] = choice.uncertainty[1:]
            uncertainties_BN[b, found:] = choice.uncertainty[-1]
        return uncertainties_BN, ids_BN

    def _preselect(self, queries_BD: Vectors) -> tuple[npt.NDArray[np.int64], Vectors]:
        """The ids [B, K] and vectors [B, K, D] of largest absolute inner product, largest first."""
        k = min(self._candidates or self._index.ntotal, self._index.ntotal)
        if k == 0:
            return np.empty((len(queries_BD), 0), np.int64), np.empty(
                (len(queries_BD), 0, queries_BD.shape[1]), np.float32
            )
        similarities, ids, vectors = (
            np.concatenate(both, axis=1)
            for both in zip(
                self._index.search_and_reconstruct(queries_BD, k),
                self._index.search_and_reconstruct(-queries_BD, k),
                strict=True,
            )
        )
        # Only an approximate index can give an id twice, and a copy of a candidate changes no
        # choice.
        order_BK = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        ids_BK = np.take_along_axis(ids, order_BK, axis=1)
        vectors_BKD = np.take_along_axis(vectors, order_BK[:, :, None], axis=1)
        # FAISS fills up with id -1 where an approximate index found fewer; a zero vector is never
        # informative.
        vectors_BKD[ids_BK < 0] = 0.0
        return ids_BK, vectors_BKD

    def _on_device(self, array: Vectors) -> Any:
        if self._device is None:
            return array
        import torch

        return torch.from_numpy(array).to(self._device)
