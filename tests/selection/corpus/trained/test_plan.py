"""Plans: every sequence is learnt once, and documents are never torn apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from selection.corpus.trained.division import PART_MIN, PART_SIZE, divide
from selection.corpus.trained.manifest import Snapshot
from selection.corpus.trained.plan import (
    HELD_OUT_FROM,
    HELD_OUT_MAX,
    PART_FROM,
    Ids,
    PlannedPart,
    TrainingPlan,
    plan_anew,
    plan_increment,
)
from selection.embedding import Embeddings

_SIZES = st.lists(st.integers(1, 150), min_size=1, max_size=40)


def sequences_of(sizes: Sequence[int], first: int = 1) -> Ids:
    """Document and id of each sequence of documents of these sizes."""
    documents_N = np.repeat(np.arange(len(sizes)) + first, sizes)
    return np.stack([documents_N, np.arange(len(documents_N)) + 10 * first], axis=1)


def by_id(groups: Sequence[Ids]) -> Embeddings:
    """Embeddings that turn with the ids of the sequences."""
    angle_G = np.array([ids.mean() for ids in groups]) / 1000
    return np.stack([np.cos(angle_G), np.sin(angle_G)], axis=1).astype(np.float32)


def documents_in(ids: Sequence[int], sequences_N2: Ids) -> set[int]:
    document_of = dict(sequences_N2[:, ::-1].tolist())
    return {document_of[i] for i in ids}


def assert_each_once(planned: Sequence[PlannedPart], expected: Ids) -> None:
    trained = Counter(i for part in planned for i in (*part.ids, *part.held_out))
    assert trained == Counter(expected.tolist())


@given(_SIZES, st.integers(1, 6), st.integers(0, 9))
def test_a_whole_corpus_is_learnt_once_with_documents_in_one_piece(
    sizes: list[int], parts: int, seed: int
) -> None:
    sequences_N2 = sequences_of(sizes)

    divided, planned = plan_anew(sequences_N2, parts, by_id, seed)

    assert divided == (parts > 1)
    assert_each_once(planned, sequences_N2[:, 1])
    pieces = [documents_in(ids, sequences_N2) for p in planned for ids in (p.ids, p.held_out)]
    assert sum(map(len, pieces)) == len(sizes)
    assert len(planned) <= parts
    if len(planned) > 1:
        assert all(len(part.ids) + len(part.held_out) >= PART_MIN for part in planned)


@given(_SIZES, st.integers(0, 9))
def test_a_part_holds_out_a_few_of_its_documents(sizes: list[int], seed: int) -> None:
    sequences_N2 = sequences_of(sizes)

    _, (part,) = plan_anew(sequences_N2, 1, by_id, seed)

    held_out = documents_in(part.held_out, sequences_N2)
    assert len(part.held_out) <= HELD_OUT_MAX
    # One document in twenty, but several of few: one may have near copies among the others.
    assert len(held_out) <= max(min(4, len(sizes) // 4), len(sizes) // 20)
    assert bool(held_out) == (len(sizes) >= HELD_OUT_FROM and min(sizes) <= HELD_OUT_MAX)


@given(st.integers(0, 9))
def test_no_document_is_held_out_whose_copy_is_learnt(seed: int) -> None:
    # Documents 1 to 20 have a copy each, and 41 to 80 have none.
    sequences_N2 = sequences_of([1] * 80)
    directions_DD = np.eye(60, dtype=np.float32)
    embeddings_ND = np.concatenate([directions_DD[:20], directions_DD[:20], directions_DD[20:]])

    def centroids(groups: Sequence[Ids]) -> Embeddings:
        return np.concatenate([embeddings_ND[ids - 10] for ids in groups])

    _, (part,) = plan_anew(sequences_N2, 1, centroids, seed)

    held_out = documents_in(part.held_out, sequences_N2)
    assert len(held_out) == 4
    assert min(held_out) > 40


def test_the_order_and_what_is_held_out_follow_from_the_seed() -> None:
    sequences_N2 = sequences_of([1] * 200)

    plans = [plan_anew(sequences_N2, 1, by_id, seed)[1] for seed in (1, 1, 2)]

    assert plans[0] == plans[1]
    assert plans[0][0].ids != plans[2][0].ids
    assert plans[0][0].held_out != plans[2][0].held_out
    assert list(plans[0][0].ids) != sorted(plans[0][0].ids)


def test_a_corpus_is_divided_only_if_it_is_large_or_asked_for() -> None:
    small, large = sequences_of([1] * PART_FROM), sequences_of([1] * (PART_FROM + 1))

    assert len(plan_anew(small, None, by_id, 0)[1]) == 1
    divided, planned = plan_anew(large, None, by_id, 0)
    assert divided
    assert len(planned) == round(len(large) / PART_SIZE)
    sizes = [len(part.ids) + len(part.held_out) for part in planned]
    assert max(sizes) <= 1.5 * PART_SIZE


def test_an_empty_corpus_has_nothing_to_learn() -> None:
    for parts in (None, 1, 3):
        assert plan_anew(sequences_of([]), parts, by_id, 0)[1] == []


def test_parts_are_made_of_similar_documents() -> None:
    # Three topics, whose documents are mixed up.
    random = np.random.default_rng(0)
    topic_N = random.integers(0, 3, 600)
    centroids_ND = np.eye(8, dtype=np.float32)[topic_N]
    centroids_ND = centroids_ND + 0.05 * random.standard_normal((600, 8)).astype(np.float32)
    sizes = np.where(topic_N == 0, 2, 1).tolist()

    parts = divide(sizes, centroids_ND, 3)

    purity = [np.bincount(topic_N[part]).max() / len(part) for part in parts]
    assert len(parts) == 3
    assert np.mean(purity) > 0.85


@given(_SIZES, st.lists(st.integers(-1, 2), min_size=40, max_size=40), st.booleans())
def test_what_no_part_has_learnt_is_planned_once(
    sizes: list[int], owner: list[int], divided: bool
) -> None:
    # Arrange: each document is learnt by one of three parts, or by none.
    sequences_N2 = sequences_of(sizes)
    owner_N = np.array(owner)[sequences_N2[:, 0] - 1]
    learnt = {
        f"part-{part}": sequences_N2[owner_N == part, 1]
        for part in range(3)
        if (owner_N == part).any()
    } or {"part-0": np.array([5])}

    planned = plan_increment(sequences_N2, learnt, divided, by_id, 0)

    pending = sequences_N2[owner_N == -1, 1]
    assert_each_once(planned, pending)
    further = [part for part in planned if part.start is not None]
    assert len({part.start for part in further}) == len(further)
    for part in further:
        assert part.start in learnt
        assert part.replaces == (part.start,)
        assert not part.held_out
    pieces = [documents_in(ids, sequences_N2) for p in planned for ids in (p.ids, p.held_out)]
    assert sum(map(len, pieces)) == len(documents_in(pending.tolist(), sequences_N2))
    if divided and len(pending) >= PART_MIN:
        assert not further
    else:
        assert len(further) == len(planned)


def test_a_new_document_goes_to_the_nearest_part() -> None:
    sequences_N2 = sequences_of([50, 50, 50, 50])
    ids = [sequences_N2[sequences_N2[:, 0] == document, 1] for document in (1, 2, 3, 4)]

    (part,) = plan_increment(sequences_N2, {"far": ids[0], "near": ids[2]}, True, by_id, 0)[:1]
    rest = plan_increment(sequences_N2, {"low": ids[0], "high": ids[3]}, True, by_id, 0)

    assert part.start == "near"
    assert {p.start: sorted(p.ids) for p in rest} == {
        "low": ids[1].tolist(),
        "high": ids[2].tolist(),
    }


def test_the_rest_of_a_document_is_learnt_by_the_part_that_has_begun_it() -> None:
    # Arrange: a training in seconds ended within document 2.
    sequences_N2 = sequences_of([300, 300, 300])
    ids_N = sequences_N2[:, 1]
    learnt = {"one": ids_N[:400], "two": ids_N[600:]}

    (part,) = plan_increment(sequences_N2, learnt, True, by_id, 0)

    assert (part.start, sorted(part.ids)) == ("one", ids_N[400:600].tolist())


def test_a_plan_survives_its_json() -> None:
    divided, planned = plan_anew(sequences_of([3] * 100), 1, by_id, 0)
    further = plan_increment(sequences_of([3] * 3), {"p": np.array([10])}, False, by_id, 0)
    plan = TrainingPlan(Snapshot(7, "tokens", None), divided, (*planned, *further))

    assert TrainingPlan.from_bytes(plan.to_bytes()) == plan
    assert plan.sequences == 300 + 8
