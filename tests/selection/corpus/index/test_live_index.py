"""LiveIndex: with later changes applied, an index returns what a fresh one would."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selection.corpus.index.faiss_index import Index
from selection.corpus.index.live_index import LiveIndex

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
_D = 4


def unit(word: int) -> Floats:
    """The vector of one of a few words, so that many sequences are equal."""
    row = np.random.default_rng(word).standard_normal(_D)
    return np.asarray(row / np.linalg.norm(row), np.float32)


class Sequences:
    """All present sequences by id, and a live index to which each change is applied."""

    def __init__(self, words: list[int], flat_limit: int = 100) -> None:
        self.present = {i + 1: unit(word) for i, word in enumerate(words)}
        self.last = len(words)
        self.generation = 1
        self.index = LiveIndex(1, Index.build(self.ids(), self.vectors(self.ids()), flat_limit))

    def ids(self) -> Ids:
        return np.array(sorted(self.present), np.int64)

    def vectors(self, ids: Ids) -> Floats:
        return np.array([self.present[i] for i in ids.tolist()], np.float32).reshape(-1, _D)

    def apply(self, words: list[int], removed: list[int]) -> None:
        """Add sequences, remove old and new ones, and apply both changes to the index at once."""
        newest = self.index.newest
        for word in words:
            self.last += 1
            self.present[self.last] = unit(word)
        for sequence in removed:
            self.present.pop(sequence, None)
        self.generation += 1
        added = self.ids()[self.ids() > newest]
        self.index.apply(self.generation, added, self.vectors(added), np.array(removed, np.int64))

    def assert_nearest(self, targets_TD: Floats, k: int | None, allowed: Ids | None = None) -> None:
        rows = self.ids() if allowed is None else np.intersect1d(self.ids(), allowed)
        expected_K = np.sort(np.abs(self.vectors(rows) @ targets_TD.T).max(axis=1, initial=0.0))[
            ::-1
        ][:k]

        found, embeddings_KD = self.index.nearest(targets_TD, k, allowed)

        assert len(set(found.tolist())) == len(found) == len(expected_K)
        assert set(found.tolist()) <= set(rows.tolist())
        np.testing.assert_array_equal(embeddings_KD, self.vectors(found))
        np.testing.assert_allclose(
            np.abs(embeddings_KD @ targets_TD.T).max(axis=1, initial=0.0), expected_K, atol=1e-6
        )


_words = st.lists(st.integers(0, 9), max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    base=_words,
    lists=st.booleans(),
    changes=st.lists(
        st.tuples(_words, st.lists(st.integers(1, 30), max_size=6, unique=True)), max_size=6
    ),
    targets=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    k=st.one_of(st.none(), st.integers(1, 12)),
    allowed=st.one_of(st.none(), st.lists(st.integers(1, 40), max_size=20, unique=True)),
)
def test_after_any_changes_the_result_equals_brute_force(
    base: list[int],
    lists: bool,
    changes: list[tuple[list[int], list[int]]],
    targets: list[int],
    k: int | None,
    allowed: list[int] | None,
) -> None:
    sequences = Sequences(base, flat_limit=3 if lists else 100)
    targets_TD = np.array([unit(word) for word in targets])
    ever = set(sequences.present)

    for words, removed in changes:
        known = set(sequences.present) | set(
            range(sequences.last + 1, sequences.last + 1 + len(words))
        )
        ever |= known
        # Each sequence is removed once.
        sequences.apply(words, [i for i in removed if i in known])
        sequences.assert_nearest(
            targets_TD, k, None if allowed is None else np.array(allowed, np.int64)
        )

    sequences.assert_nearest(targets_TD, None)
    assert sequences.index.generation == sequences.generation
    assert sequences.index.built == 1


def test_a_sequence_added_and_removed_between_two_updates_is_never_found() -> None:
    sequences = Sequences([1, 2])

    sequences.apply([3, 4], removed=[3])

    found, _ = sequences.index.nearest(unit(3)[None], None)
    assert sorted(found.tolist()) == [1, 2, 4]
    assert sequences.index.newest == 4


def test_sequences_added_after_the_index_can_be_removed() -> None:
    sequences = Sequences([1, 2])
    sequences.apply([3, 4], removed=[])
    sequences.apply([], removed=[3, 1])
    sequences.apply([5], removed=[4])

    found, _ = sequences.index.nearest(unit(3)[None], None)

    assert sorted(found.tolist()) == [2, 5]


def test_copies_of_a_sequence_are_distinct() -> None:
    sequences = Sequences([1, 1, 2])
    sequences.apply([1, 1], removed=[])
    sequences.apply([], removed=[2, 4])

    found, _ = sequences.index.nearest(unit(1)[None], 2)

    assert sorted(found.tolist()) == [1, 5]


@pytest.mark.parametrize("base", [[], [1, 2]])
def test_all_sequences_can_be_removed(base: list[int]) -> None:
    sequences = Sequences(base)
    sequences.apply([3], removed=[])
    sequences.apply([], removed=[*range(1, sequences.last + 1)])

    found, embeddings_KD = sequences.index.nearest(unit(3)[None], 5)

    assert (found.shape, embeddings_KD.shape) == ((0,), (0, _D))


def test_changes_since_the_index_was_built_are_counted() -> None:
    sequences = Sequences([1, 2, 3])
    assert sequences.index.changes == 0

    sequences.apply([4, 5], removed=[])
    assert sequences.index.changes == 2

    sequences.apply([6], removed=[1, 5])
    assert sequences.index.changes == 5
