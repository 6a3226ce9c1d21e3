"""The index: absolute similarity against brute force, and that nothing damaged or stale is ever loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selection.index import Index


def units(seed: int, count: int, dimension: int = 8) -> npt.NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def ids(count: int) -> npt.NDArray[np.int64]:
    return np.arange(count, dtype=np.int64) * 3 + 100


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with an index of 20 vectors, made from generation 5."""
    Index.build(ids(20), units(1, 20)).save(tmp_path, 5)
    return tmp_path


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 3), st.integers(1, 50))
def test_nearest_is_by_absolute_similarity_to_any_target(seed: int, count: int, targets: int, k: int) -> None:
    vectors_ND, targets_TD = units(seed, count), units(seed + 1, targets)
    scores_N = np.abs(vectors_ND @ targets_TD.T).max(axis=1)
    expected = np.argsort(-scores_N, kind="stable")[:k]

    found, embeddings_KD = Index.build(ids(count), vectors_ND).nearest(targets_TD, k)

    np.testing.assert_array_equal(found, ids(count)[expected])
    np.testing.assert_array_equal(embeddings_KD, vectors_ND[expected])


def test_an_opposite_vector_is_near() -> None:
    vectors_ND = np.array([[0.6, 0.8], [-1.0, 0.0]], np.float32)

    found, _ = Index.build(np.array([7, 9]), vectors_ND).nearest(np.array([[1.0, 0.0]], np.float32), 1)

    assert found.tolist() == [9]


def test_an_empty_index_answers_with_nothing() -> None:
    index = Index.build(np.empty(0, np.int64), np.empty((0, 8), np.float32))

    found, embeddings_KD = index.nearest(units(2, 1), 10)

    assert (len(index), found.shape, embeddings_KD.shape) == (0, (0,), (0, 8))


@pytest.mark.parametrize("count", [0, 1, 20])
def test_saved_and_loaded_it_answers_the_same(tmp_path: Path, count: int) -> None:
    index = Index.build(ids(count), units(3, count))
    index.save(tmp_path, 1)

    loaded = Index.load(tmp_path, 1)

    assert loaded is not None
    assert len(loaded) == count
    for before, after in zip(index.nearest(units(4, 2), 5), loaded.nearest(units(4, 2), 5), strict=True):
        np.testing.assert_array_equal(before, after)


def test_saving_again_replaces_and_leaves_no_litter(saved: Path) -> None:
    Index.build(ids(3), units(5, 3)).save(saved, 6)

    loaded = Index.load(saved, 6)

    assert loaded is not None
    assert len(loaded) == 3
    assert sorted(file.name for file in saved.iterdir()) == ["index.faiss", "index.ids", "index.json"]


def test_an_index_of_another_generation_is_not_loaded(saved: Path) -> None:
    assert Index.load(saved, 5) is not None
    assert Index.load(saved, 4) is None
    assert Index.load(saved, 6) is None


@pytest.mark.parametrize("name", ["index.faiss", "index.ids"])
def test_any_flipped_bit_is_noticed(saved: Path, name: str) -> None:
    sound = (saved / name).read_bytes()
    rng = np.random.default_rng(6)
    for position in {0, len(sound) - 1, *rng.integers(0, len(sound), 30).tolist()}:
        damaged = bytearray(sound)
        damaged[position] ^= 1 << int(rng.integers(8))
        (saved / name).write_bytes(damaged)
        assert Index.load(saved, 5) is None, f"byte {position}"
    (saved / name).write_bytes(sound)
    assert Index.load(saved, 5) is not None


@pytest.mark.parametrize("name", ["index.faiss", "index.ids", "index.json"])
def test_a_truncated_emptied_or_missing_file_is_noticed(saved: Path, name: str) -> None:
    sound = (saved / name).read_bytes()
    for length in (len(sound) - 1, len(sound) // 2, 0):
        (saved / name).write_bytes(sound[:length])
        assert Index.load(saved, 5) is None, f"{length} bytes"
    (saved / name).unlink()
    assert Index.load(saved, 5) is None


@pytest.mark.parametrize("manifest", ["[]", "null", "5", '"text"', "{}", "[{}]", "\xff"])
def test_a_manifest_that_is_none_is_noticed(saved: Path, manifest: str) -> None:
    (saved / "index.json").write_bytes(manifest.encode("latin-1"))

    assert Index.load(saved, 5) is None


def test_files_of_two_indexes_are_not_mixed(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    # What a crash between two renames leaves: the new vectors beside the old manifest.
    other = tmp_path_factory.mktemp("other")
    Index.build(ids(20), units(7, 20)).save(other, 5)

    (saved / "index.faiss").write_bytes((other / "index.faiss").read_bytes())

    assert Index.load(saved, 5) is None


def test_the_manifest_says_what_it_belongs_to(saved: Path) -> None:
    manifest = json.loads((saved / "index.json").read_text())

    assert (manifest["generation"], manifest["count"], len(manifest["sha256"])) == (5, 20, 64)
