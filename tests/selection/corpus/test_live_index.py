"""The view: an index and what came and went since answer as an index built anew would."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selection.corpus.faiss_index import Index
from selection.corpus.live_index import LiveIndex

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
_D = 4


def unit(word: int) -> Floats:
    """The vector of one of a few words, so that many sequences are alike."""
    row = np.random.default_rng(word).standard_normal(_D)
    return np.asarray(row / np.linalg.norm(row), np.float32)


class Rows:
    """The truth: every sequence there is, by id, and a view that is told of each change."""

    def __init__(self, words: list[int], flat_limit: int = 100) -> None:
        self.alive = {i + 1: unit(word) for i, word in enumerate(words)}
        self.last = len(words)
        self.generation = 1
        self.view = LiveIndex(1, Index.build(self.ids(), self.vectors(self.ids()), flat_limit))

    def ids(self) -> Ids:
        return np.array(sorted(self.alive), np.int64)

    def vectors(self, ids: Ids) -> Floats:
        return np.array([self.alive[i] for i in ids.tolist()], np.float32).reshape(-1, _D)

    def follow(self, words: list[int], removed: list[int]) -> None:
        """Some sequences come, then some go, of the old and of the new; the view sees both at once."""
        newest = self.view.newest
        for word in words:
            self.last += 1
            self.alive[self.last] = unit(word)
        for gone in removed:
            self.alive.pop(gone, None)
        self.generation += 1
        added = self.ids()[self.ids() > newest]
        self.view.follow(self.generation, added, self.vectors(added), np.array(removed, np.int64))

    def assert_seen(self, targets_TD: Floats, k: int | None, allowed: Ids | None = None) -> None:
        rows = self.ids() if allowed is None else np.intersect1d(self.ids(), allowed)
        expected_K = np.sort(np.abs(self.vectors(rows) @ targets_TD.T).max(axis=1, initial=0.0))[
            ::-1
        ][:k]

        found, embeddings_KD = self.view.nearest(targets_TD, k, allowed)

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
def test_after_any_changes_it_answers_like_brute_force(
    base: list[int],
    lists: bool,
    changes: list[tuple[list[int], list[int]]],
    targets: list[int],
    k: int | None,
    allowed: list[int] | None,
) -> None:
    rows = Rows(base, flat_limit=3 if lists else 100)
    targets_TD = np.array([unit(word) for word in targets])
    ever = set(rows.alive)

    for words, removed in changes:
        known = set(rows.alive) | set(range(rows.last + 1, rows.last + 1 + len(words)))
        ever |= known
        rows.follow(words, [i for i in removed if i in known])  # a sequence goes once
        rows.assert_seen(targets_TD, k, None if allowed is None else np.array(allowed, np.int64))

    rows.assert_seen(targets_TD, None)
    assert rows.view.generation == rows.generation
    assert rows.view.built == 1


def test_a_sequence_that_came_and_went_between_two_looks_is_never_seen() -> None:
    rows = Rows([1, 2])

    rows.follow([3, 4], removed=[3])

    found, _ = rows.view.nearest(unit(3)[None], None)
    assert sorted(found.tolist()) == [1, 2, 4]
    assert rows.view.newest == 4


def test_sequences_that_came_after_the_index_can_go_too() -> None:
    rows = Rows([1, 2])
    rows.follow([3, 4], removed=[])
    rows.follow([], removed=[3, 1])
    rows.follow([5], removed=[4])

    found, _ = rows.view.nearest(unit(3)[None], None)

    assert sorted(found.tolist()) == [2, 5]


def test_copies_of_a_sequence_are_told_apart() -> None:
    rows = Rows([1, 1, 2])
    rows.follow([1, 1], removed=[])
    rows.follow([], removed=[2, 4])

    found, _ = rows.view.nearest(unit(1)[None], 2)

    assert sorted(found.tolist()) == [1, 5]


@pytest.mark.parametrize("base", [[], [1, 2]])
def test_everything_may_go(base: list[int]) -> None:
    rows = Rows(base)
    rows.follow([3], removed=[])
    rows.follow([], removed=[*range(1, rows.last + 1)])

    found, embeddings_KD = rows.view.nearest(unit(3)[None], 5)

    assert (found.shape, embeddings_KD.shape) == ((0,), (0, _D))


def test_it_counts_what_changed_since_the_index_was_built() -> None:
    rows = Rows([1, 2, 3])
    assert rows.view.changes == 0

    rows.follow([4, 5], removed=[])
    assert rows.view.changes == 2

    rows.follow([6], removed=[1, 5])
    assert rows.view.changes == 5
