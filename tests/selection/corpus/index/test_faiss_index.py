"""The index: the nearest by absolute similarity, compared with brute force, flat and with lists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selection.corpus.index import files as index_files
from selection.corpus.index.faiss_index import Index
from selection.corpus.index.files import CorpusVersion
from tests.selection.corpus.vectors import Floats, clustered, ids, units


@pytest.fixture(scope="module")
def many() -> tuple[Index, Floats]:
    """An index with lists, of too many vectors to compare them all, and these vectors."""
    vectors_ND = clustered(1, 30_000)
    return Index.build(ids(30_000), vectors_ND, flat_limit=1000), vectors_ND


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 40),
    targets=st.integers(1, 3),
    k=st.integers(1, 50),
    share=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    flat_limit=st.sampled_from([3, 100]),
)
def test_nearest_is_by_absolute_similarity_to_any_target_among_the_allowed(
    seed: int, count: int, targets: int, k: int, share: float, flat_limit: int
) -> None:
    vectors_ND, targets_TD = units(seed, count), units(seed + 1, targets)
    allowed_N = np.random.default_rng(seed).random(count) < share
    scores_N = np.abs(vectors_ND @ targets_TD.T).max(axis=1)
    in_order = np.argsort(-scores_N, kind="stable")
    index = Index.build(ids(count), vectors_ND, flat_limit)

    for mask_N, expected in ((None, in_order[:k]), (allowed_N, in_order[allowed_N[in_order]][:k])):
        found, embeddings_KD, similarity_K = index.nearest(targets_TD, k, mask_N)

        np.testing.assert_array_equal(found, ids(count)[expected])
        np.testing.assert_array_equal(embeddings_KD, vectors_ND[expected])
        np.testing.assert_allclose(similarity_K, scores_N[expected], atol=1e-6)


def test_an_opposite_vector_is_near() -> None:
    vectors_ND = np.array([[0.6, 0.8], [-1.0, 0.0]], np.float32)

    found, _, _ = Index.build(np.array([7, 9]), vectors_ND).nearest(
        np.array([[1.0, 0.0]], np.float32), 1
    )

    assert found.tolist() == [9]


def test_an_empty_index_answers_with_nothing() -> None:
    index = Index.build(np.empty(0, np.int64), np.empty((0, 8), np.float32))

    found, embeddings_KD, similarity_K = index.nearest(units(2, 1), 10)

    assert (len(index), found.shape, embeddings_KD.shape, similarity_K.shape) == (
        0,
        (0,),
        (0, 8),
        (0,),
    )


def recall(
    many: tuple[Index, Floats], queries_TD: Floats, allowed_N: npt.NDArray[np.bool_] | None, k: int
) -> float:
    """Mean share of the true k nearest that are found, over queries made one at a time."""
    index, vectors_ND = many
    rows = np.arange(len(vectors_ND)) if allowed_N is None else np.flatnonzero(allowed_N)
    shares = []
    for query_D in queries_TD:
        found, embeddings_KD, _ = index.nearest(query_D[None], k, allowed_N)
        similarity_N = np.abs(vectors_ND[rows] @ query_D)
        true = ids(len(vectors_ND))[rows[np.argsort(-similarity_N)[:k]]]
        assert len(found) == len(set(found.tolist())) == min(k, len(rows))
        assert set(found.tolist()) <= set(ids(len(vectors_ND))[rows].tolist())
        np.testing.assert_array_equal(embeddings_KD, vectors_ND[(found - 100) // 3])
        shares.append(np.isin(true, found).mean() if len(true) else 1.0)
    return float(np.mean(shares))


def test_lists_find_nearly_all_of_the_nearest(many: tuple[Index, Floats]) -> None:
    assert recall(many, clustered(2, 40), None, 200) >= 0.95


def test_lists_find_nearly_all_of_the_nearest_that_a_filter_allows(
    many: tuple[Index, Floats],
) -> None:
    allowed_N = np.random.default_rng(3).random(30_000) < 0.8

    assert recall(many, clustered(2, 40), allowed_N, 200) >= 0.95


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_lists_find_what_a_filter_allows_far_from_the_target(
    many: tuple[Index, Floats], share: float
) -> None:
    # The nearest lists contain no allowed vector: the nearest share of all vectors is excluded.
    query_1D = clustered(4, 1)
    similarity_N = np.abs(many[1] @ query_1D[0])
    allowed_N = similarity_N < np.quantile(similarity_N, 1 - share)

    assert recall(many, query_1D, allowed_N, 200) >= 0.95


def test_lists_find_nearly_all_of_the_nearest_to_a_prompt_unlike_the_corpus(
    many: tuple[Index, Floats],
) -> None:
    assert recall(many, units(10, 40, 16), None, 200) >= 0.95


@pytest.mark.parametrize("k", [1, 10, 3000])
def test_lists_find_nearly_all_for_any_k(many: tuple[Index, Floats], k: int) -> None:
    assert recall(many, clustered(2, 20), None, k) >= 0.95


def test_lists_find_nearly_all_of_the_nearest_without_principal_axes() -> None:
    # Codes are inaccurate for such vectors.
    vectors_ND = units(11, 25_000, 50)

    many = Index.build(ids(25_000), vectors_ND, flat_limit=1000), vectors_ND

    assert recall(many, units(12, 20, 50), None, 200) >= 0.95


def test_building_an_index_with_lists_is_deterministic(
    tmp_path: Path, many: tuple[Index, Floats]
) -> None:
    digests = []
    for index in (many[0], Index.build(ids(30_000), many[1], flat_limit=1000)):
        index_files.save(index, tmp_path, CorpusVersion("1f0c", 1))
        manifest = json.loads((tmp_path / "index.json").read_text())
        digests.append((manifest["sha256"], manifest["search_params"]))

    assert digests[0] == digests[1]


@pytest.mark.parametrize("allowed", [0, 1, 150, 5000])
def test_lists_are_exact_when_few_vectors_are_allowed(
    many: tuple[Index, Floats], allowed: int
) -> None:
    allowed_N = np.zeros(30_000, np.bool_)
    allowed_N[np.random.default_rng(5).permutation(30_000)[:allowed]] = True

    assert recall(many, clustered(6, 5), allowed_N, 200) == 1.0


def test_lists_can_return_all_vectors(many: tuple[Index, Floats]) -> None:
    found, _, similarity_K = many[0].nearest(clustered(7, 2), 30_000)

    np.testing.assert_array_equal(np.sort(found), ids(30_000))
    assert (np.diff(similarity_K) <= 0).all()


def test_ten_thousand_copies_of_one_vector_are_found() -> None:
    vectors_ND = np.concatenate([np.repeat(units(8, 1), 10_000, axis=0), units(9, 15_000)])
    index = Index.build(ids(25_000), vectors_ND, flat_limit=1000)

    found, embeddings_KD, _ = index.nearest(units(8, 1), 50)

    assert len(set(found.tolist())) == 50
    np.testing.assert_array_equal(embeddings_KD, vectors_ND[:50])


def test_saved_lists_load_with_the_same_results(tmp_path: Path, many: tuple[Index, Floats]) -> None:
    index_files.save(many[0], tmp_path, CorpusVersion("1f0c", 1))

    loaded = index_files.load(tmp_path, "1f0c", 16)

    assert loaded is not None
    for before, after in zip(
        many[0].nearest(clustered(4, 2), 50), loaded[1].nearest(clustered(4, 2), 50), strict=True
    ):
        np.testing.assert_array_equal(before, after)
