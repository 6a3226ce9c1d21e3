"""SIFT over a FAISS index: what it retrieves, and that activeft, by the paper's authors, agrees."""

from __future__ import annotations

import doctest
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest
import torch

from selection import Retriever, retriever, sift

_ACTIVEFT = Path(__file__).resolve().parents[2] / ".cache" / "activeft"

Vectors = npt.NDArray[np.float32]
_DEVICES = [
    None,
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def random_vectors(seed: int, count: int, dimension: int = 32) -> Vectors:
    """Unit vectors in clusters of five on average."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((max(count // 5, 1), dimension))
    vectors = centres[generator.integers(0, len(centres), count)]
    vectors = vectors + 0.5 * generator.standard_normal(vectors.shape)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def flat_index(vectors_ND: Vectors) -> Any:
    index: Any = faiss.IndexFlatIP(vectors_ND.shape[1])
    index.add(vectors_ND)
    return index


def test_the_example_of_its_documentation_runs() -> None:
    results = doctest.testmod(retriever)

    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("device", _DEVICES)
@pytest.mark.parametrize("candidates", [20, None])
def test_each_query_gets_the_choice_of_sift_among_its_nearest_vectors(
    device: str | None, candidates: int | None
) -> None:
    vectors_ND, queries_BD = random_vectors(1, 300), random_vectors(2, 7)

    uncertainties_BN, ids_BN = Retriever(
        flat_index(vectors_ND), regularisation=0.1, candidates=candidates, device=device
    ).search(queries_BD, 12)

    assert uncertainties_BN.shape == ids_BN.shape == (7, 12)
    for query_D, uncertainties_N, ids_N in zip(queries_BD, uncertainties_BN, ids_BN, strict=True):
        # Negative similarity is as informative as positive.
        nearest = np.argsort(-np.abs(vectors_ND @ query_D))[:candidates]
        expected = sift(vectors_ND[nearest], query_D[None], steps=12, regularisation=0.1)
        assert tuple(ids_N) == tuple(nearest[list(expected.picks)])
        np.testing.assert_allclose(uncertainties_N, expected.uncertainty[1:], atol=1e-5)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_after_the_stop_of_adaptive_sift_ids_are_missing(device: str | None) -> None:
    vectors_ND, queries_BD = random_vectors(1, 300), random_vectors(2, 7)
    whole = Retriever(flat_index(vectors_ND), regularisation=0.1)
    adaptive = Retriever(flat_index(vectors_ND), regularisation=0.1, alpha=0.3, device=device)

    sigmas_BN, ids_BN = whole.search(queries_BD, 30)
    stopped_sigmas_BN, stopped_ids_BN = adaptive.search(queries_BD, 30)

    for b in range(7):
        found = int((stopped_ids_BN[b] >= 0).sum())
        assert 0 < found < 30
        assert sigmas_BN[b, found - 1] > 1 / (0.3 * found)
        np.testing.assert_array_equal(stopped_ids_BN[b, :found], ids_BN[b, :found])
        assert (stopped_ids_BN[b, found:] == -1).all()
        assert (stopped_sigmas_BN[b, found:] == stopped_sigmas_BN[b, found - 1]).all()


def test_an_approximate_index_may_find_fewer_candidates() -> None:
    # Arrange: an index with lists of which a search reads one, shorter than K.
    vectors_ND, queries_BD = random_vectors(1, 300), random_vectors(2, 7)
    index: Any = faiss.index_factory(32, "IVF30,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors_ND)
    index.add(vectors_ND)

    uncertainties_BN, ids_BN = Retriever(index, candidates=100).search(queries_BD, 10)

    assert (ids_BN >= 0).all()
    assert np.isfinite(uncertainties_BN).all()


def test_an_empty_index_has_no_results() -> None:
    uncertainties_BN, ids_BN = Retriever(faiss.IndexFlatIP(32)).search(random_vectors(2, 3), 4)

    np.testing.assert_array_equal(ids_BN, np.full((3, 4), -1))
    np.testing.assert_array_equal(uncertainties_BN, np.ones((3, 4)))


def test_an_invalid_index_query_or_option_is_refused() -> None:
    index = flat_index(random_vectors(1, 50))

    with pytest.raises(ValueError, match="must search by inner product"):
        Retriever(faiss.IndexFlatL2(32))
    with pytest.raises(ValueError, match=r"expected queries \[B, 32\], got \[32\]"):
        Retriever(index).search(random_vectors(2, 1)[0], 3)
    with pytest.raises(ValueError, match="all target embeddings of a prompt are zero"):
        Retriever(index).search(np.zeros((1, 32), np.float32), 3)
    with pytest.raises(ValueError, match="lambda' must be positive"):
        Retriever(index, regularisation=0.0).search(random_vectors(2, 1), 3)


def test_it_retrieves_what_activeft_retrieves(monkeypatch: pytest.MonkeyPatch) -> None:
    # activeft tries to import wandb at every pick, which takes long where wandb is absent.
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.syspath_prepend(str(_ACTIVEFT))
    activeft = pytest.importorskip(
        "activeft.sift",
        reason="activeft is not installed: `make bench-selection` puts it into .cache/activeft",
    )
    vectors_ND, queries_BD = random_vectors(3, 400), random_vectors(4, 5)
    index = flat_index(vectors_ND)
    reference = activeft.Retriever(index, llambda=0.1, device=torch.device("cpu"))

    uncertainties_BN, ids_BN = Retriever(index, regularisation=0.1, candidates=100).search(
        queries_BD, 10
    )

    for query_D, uncertainties_N, ids_N in zip(queries_BD, uncertainties_BN, ids_BN, strict=True):
        values_N, reference_ids_N, _, _ = reference.search(query_D[None], N=10, K=100)
        assert ids_N.tolist() == reference_ids_N.tolist()
        # activeft's value of a pick is the negative variance that it leaves.
        np.testing.assert_allclose(uncertainties_N**2, -values_N, atol=1e-4)
