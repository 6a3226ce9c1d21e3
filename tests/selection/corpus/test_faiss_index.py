"""The index: absolute similarity against brute force, flat and with lists, and that nothing damaged
is ever loaded.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selection.corpus.faiss_index import Index, State

Floats = npt.NDArray[np.float32]
_MINE = "1f0c"
_FILES = {"flat": ["ids", "vectors"], "lists": ["ids", "vectors", "coded"]}


def units(seed: int, count: int, dimension: int = 8) -> Floats:
    rows = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def ids(count: int) -> npt.NDArray[np.int64]:
    return np.arange(count, dtype=np.int64) * 3 + 100


def clustered(seed: int, count: int) -> Floats:
    """Unit vectors in a hundred clusters that overlap."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((100, 16))
    rows = centres[generator.integers(0, 100, count)] + 0.4 * generator.standard_normal((count, 16))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def build(kind: str, seed: int, count: int) -> Index:
    """A small index, flat or, from four vectors on, with lists."""
    return Index.build(ids(count), units(seed, count), flat_limit=100 if kind == "flat" else 3)


def folder_of(saved: Path) -> Path:
    """The folder that the manifest names."""
    return saved / str(json.loads((saved / "index.json").read_text())["folder"])


@pytest.fixture(params=["flat", "lists"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def saved(tmp_path: Path, kind: str) -> Path:
    """A folder with an index of 20 vectors, made from generation 5."""
    build(kind, 1, 20).save(tmp_path, State(_MINE, 5))
    return tmp_path


@pytest.fixture(scope="module")
def many() -> tuple[Index, Floats]:
    """30,000 vectors with lists, enough that they are not all compared one by one."""
    vectors_ND = clustered(1, 30_000)
    return Index.build(ids(30_000), vectors_ND, flat_limit=1000), vectors_ND


def build_of(saved: Path) -> Index:
    """What is saved in a folder."""
    loaded = Index.load(saved, _MINE, 8)
    assert loaded is not None
    return loaded[1]


def assert_untouched(folder: Path, count: int = 20) -> None:
    loaded = Index.load(folder, _MINE, 8)
    assert loaded is not None
    assert len(loaded[1]) == count


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
    """Mean share of the true k nearest that are found; a query at a time."""
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
    # The nearest lists hold nothing that is allowed: the nearest share of all vectors is left out.
    query_1D = clustered(4, 1)
    similarity_N = np.abs(many[1] @ query_1D[0])
    allowed_N = similarity_N < np.quantile(similarity_N, 1 - share)

    assert recall(many, query_1D, allowed_N, 200) >= 0.95


def test_lists_find_nearly_all_of_the_nearest_to_what_is_unlike_the_corpus(
    many: tuple[Index, Floats],
) -> None:
    assert recall(many, units(10, 40, 16), None, 200) >= 0.95


@pytest.mark.parametrize("k", [1, 10, 3000])
def test_lists_find_nearly_all_of_few_and_of_many(many: tuple[Index, Floats], k: int) -> None:
    assert recall(many, clustered(2, 20), None, k) >= 0.95


def test_lists_find_nearly_all_of_the_nearest_where_every_dimension_counts_alike() -> None:
    vectors_ND = units(11, 25_000, 50)  # codes of such vectors say little

    many = Index.build(ids(25_000), vectors_ND, flat_limit=1000), vectors_ND

    assert recall(many, units(12, 20, 50), None, 200) >= 0.95


def test_an_index_with_lists_is_built_the_same_again(
    tmp_path: Path, many: tuple[Index, Floats]
) -> None:
    digests = []
    for index in (many[0], Index.build(ids(30_000), many[1], flat_limit=1000)):
        index.save(tmp_path, State(_MINE, 1))
        manifest = json.loads((tmp_path / "index.json").read_text())
        digests.append((manifest["sha256"], manifest["reading"]))

    assert digests[0] == digests[1]


@pytest.mark.parametrize("allowed", [0, 1, 150, 5000])
def test_with_few_allowed_lists_are_exact(many: tuple[Index, Floats], allowed: int) -> None:
    allowed_N = np.zeros(30_000, np.bool_)
    allowed_N[np.random.default_rng(5).permutation(30_000)[:allowed]] = True

    assert recall(many, clustered(6, 5), allowed_N, 200) == 1.0


def test_all_of_an_index_with_lists_can_be_asked_for(many: tuple[Index, Floats]) -> None:
    found, _, similarity_K = many[0].nearest(clustered(7, 2), 30_000)

    np.testing.assert_array_equal(np.sort(found), ids(30_000))
    assert (np.diff(similarity_K) <= 0).all()


def test_ten_thousand_copies_of_one_vector_are_no_trouble() -> None:
    vectors_ND = np.concatenate([np.repeat(units(8, 1), 10_000, axis=0), units(9, 15_000)])
    index = Index.build(ids(25_000), vectors_ND, flat_limit=1000)

    found, embeddings_KD, _ = index.nearest(units(8, 1), 50)

    assert len(set(found.tolist())) == 50
    np.testing.assert_array_equal(embeddings_KD, vectors_ND[:50])


@pytest.mark.parametrize("count", [0, 1, 20])
def test_saved_and_loaded_it_answers_the_same(tmp_path: Path, kind: str, count: int) -> None:
    index = build(kind, 3, count)
    index.save(tmp_path, State(_MINE, 1))

    loaded = Index.load(tmp_path, _MINE, 8)

    assert loaded is not None
    assert (loaded[0], len(loaded[1])) == (1, count)
    for before, after in zip(
        index.nearest(units(4, 2), 5), loaded[1].nearest(units(4, 2), 5), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_lists_saved_and_loaded_answer_the_same(tmp_path: Path, many: tuple[Index, Floats]) -> None:
    many[0].save(tmp_path, State(_MINE, 1))

    loaded = Index.load(tmp_path, _MINE, 16)

    assert loaded is not None
    for before, after in zip(
        many[0].nearest(clustered(4, 2), 50), loaded[1].nearest(clustered(4, 2), 50), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_saving_again_replaces_and_leaves_no_litter(saved: Path, kind: str) -> None:
    (saved / "index-of-a-saver-that-was-killed").mkdir()
    (saved / "index.json.half").touch()

    build(kind, 5, 9).save(saved, State(_MINE, 6))

    assert_untouched(saved, count=9)
    assert Index.saved_generation(saved) == 6
    assert {file.name for file in saved.iterdir()} == {"index.json", folder_of(saved).name}
    assert {file.name for file in folder_of(saved).iterdir()} == set(_FILES[kind])


def test_who_has_an_index_loaded_keeps_it_when_it_is_replaced(saved: Path, kind: str) -> None:
    loaded = Index.load(saved, _MINE, 8)
    assert loaded is not None
    before = loaded[1].nearest(units(4, 1), 20)

    build(kind, 5, 3).save(saved, State(_MINE, 6))

    for kept, again in zip(before, loaded[1].nearest(units(4, 1), 20), strict=True):
        np.testing.assert_array_equal(kept, again)


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_save_on_a_full_disk_leaves_the_old_index_and_takes_no_room(
    saved: Path, kind: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(saved.rglob("*"))
    plain_fsync = os.fsync
    synced = 0

    def fsync(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        if synced > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        build(kind, 5, 3).save(saved, State(_MINE, 6))

    assert_untouched(saved)
    assert sorted(saved.rglob("*")) == before


def test_an_index_that_is_replaced_while_it_is_loaded_is_loaded_whole_or_not_at_all(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever saves removes the old folder: here once the reader has mapped so many of its files.
    expected = build_of(saved).nearest(units(4, 1), 20)
    plain_memmap, folder = np.memmap, folder_of(saved)
    for left in range(1, len(list(folder.iterdir())) + 1):
        shutil.copytree(folder, saved / "kept")
        mapped = 0

        def memmap(*arguments: Any, left: int = left, **options: Any) -> Any:
            nonlocal mapped
            mapped += 1
            result = plain_memmap(*arguments, **options)
            if mapped == left:
                shutil.rmtree(folder)
            return result

        with monkeypatch.context() as patched:
            patched.setattr(np, "memmap", memmap)
            loaded = Index.load(saved, _MINE, 8)

        assert mapped == left
        if left < len(list((saved / "kept").iterdir())):
            assert loaded is None
        else:
            assert loaded is not None
            for before, after in zip(expected, loaded[1].nearest(units(4, 1), 20), strict=True):
                np.testing.assert_array_equal(before, after)
        (saved / "kept").rename(folder)


def test_an_index_of_another_corpus_or_dimension_is_not_loaded(saved: Path) -> None:
    assert Index.load(saved, "another", 8) is None
    assert Index.load(saved, _MINE, 7) is None
    assert_untouched(saved)


@pytest.mark.parametrize("name", ["ids", "vectors", "coded", "index.json"])
def test_any_flipped_bit_is_noticed(tmp_path: Path, name: str) -> None:
    build("lists", 1, 20).save(tmp_path, State(_MINE, 5))
    file = tmp_path / name if name == "index.json" else folder_of(tmp_path) / name
    sound = file.read_bytes()
    rng = np.random.default_rng(6)
    for position in {0, len(sound) - 1, *rng.integers(0, len(sound), 30).tolist()}:
        damaged = bytearray(sound)
        damaged[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        assert Index.load(tmp_path, _MINE, 8) is None, f"byte {position}"
    file.write_bytes(sound)
    assert_untouched(tmp_path)


@pytest.mark.parametrize("name", ["ids", "vectors", "coded", "index.json"])
def test_a_truncated_grown_emptied_or_missing_file_is_noticed(tmp_path: Path, name: str) -> None:
    build("lists", 1, 20).save(tmp_path, State(_MINE, 5))
    file = tmp_path / name if name == "index.json" else folder_of(tmp_path) / name
    sound = file.read_bytes()
    for damaged in (sound[:-1], sound[: len(sound) // 2], b"", sound + b"\0"):
        file.write_bytes(damaged)
        assert Index.load(tmp_path, _MINE, 8) is None, f"{len(damaged)} bytes"
    file.unlink()
    assert Index.load(tmp_path, _MINE, 8) is None


@pytest.mark.parametrize(
    "manifest",
    ["[]", "null", "5", '"text"', "{}", "[{}]", "\xff", '{"generation": 5}', "[" * 100_000],
)
def test_a_manifest_that_is_none_is_noticed(saved: Path, manifest: str) -> None:
    (saved / "index.json").write_bytes(manifest.encode("latin-1"))

    assert Index.load(saved, _MINE, 8) is None
    assert Index.saved_generation(saved) in (-1, 5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("format", 4),
        ("generation", 4),
        ("reading", {"probes": 1, "refine": 1, "usual": 0.0}),
    ],
)
def test_a_manifest_that_was_edited_is_noticed(saved: Path, key: str, value: object) -> None:
    manifest = json.loads((saved / "index.json").read_text())
    assert manifest[key] != value

    (saved / "index.json").write_text(json.dumps({**manifest, key: value}))

    assert Index.load(saved, _MINE, 8) is None


@pytest.mark.parametrize("version", [2, 4])
def test_an_index_of_another_version_is_not_loaded(
    saved: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("selection.corpus.faiss_index._FORMAT", version)
        Index.build(ids(20), units(1, 20)).save(saved, State(_MINE, 5))
        assert_untouched(saved)

    assert Index.load(saved, _MINE, 8) is None


@pytest.mark.parametrize("name", ["ids", "vectors", "coded"])
def test_files_of_two_indexes_are_not_mixed(tmp_path: Path, name: str) -> None:
    build("lists", 1, 20).save(tmp_path, State(_MINE, 5))
    other = tmp_path / "other"
    other.mkdir()
    Index.build(ids(21)[1:], units(7, 20), flat_limit=3).save(other, State(_MINE, 5))

    shutil.copy(folder_of(other) / name, folder_of(tmp_path) / name)

    assert Index.load(tmp_path, _MINE, 8) is None


def test_the_manifest_says_what_it_belongs_to(saved: Path, kind: str) -> None:
    manifest = json.loads((saved / "index.json").read_text())

    assert (manifest["corpus"], manifest["generation"], manifest["count"]) == (_MINE, 5, 20)
    assert {file: len(digest) for file, digest in manifest["sha256"].items()} == dict.fromkeys(
        _FILES[kind], 64
    )


def test_without_a_manifest_no_generation_is_claimed(tmp_path: Path) -> None:
    assert Index.saved_generation(tmp_path) == -1
    assert Index.load(tmp_path, _MINE, 8) is None
