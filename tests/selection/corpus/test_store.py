"""The stores of one corpus: one transaction per change, records of removals; the same wherever it
is stored.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selection.corpus.sequences import Chunk
from selection.corpus.stores.places import make_place, open_store
from selection.corpus.stores.protocols import CorpusStore
from selection.errors import CorpusError
from selection.location import Location, Place
from tests.selection.corpus.store_helpers import META, add, generation, vectors

_NEW = {"embedder": "words", "revision": "2", "dimension": "3"}
_ODD = st.sampled_from(
    ["'", '"', "\\", "%s", "%(corpus)s", "$1", "?", "a'; DROP TABLE documents; --", "{}", ""]
) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


@pytest.fixture
def place(location: Location) -> Place:
    """Where the corpus `notes` is."""
    place = location / "notes"
    make_place(place)
    return place


@pytest.fixture
def store(place: Place) -> Iterator[CorpusStore]:
    """An empty store of four dimensions."""
    store = open_store(place)
    store.initialise(META)
    yield store
    store.close()


def test_a_new_store_is_empty_and_has_the_given_metadata(store: CorpusStore) -> None:
    store.check_version()

    meta = store.meta()
    assert {key: meta[key] for key in META} == META
    assert (meta["generation"], len(meta["uuid"])) == ("0", 32)
    assert (store.counts(), store.documents(), list(store.token_sequences())) == ((0, 0), [], [])


def test_initialising_again_changes_nothing(store: CorpusStore, place: Place) -> None:
    add(store, "a", "one")
    before = store.meta()

    again = open_store(place)
    again.initialise({**META, "embedder": "another"})

    assert again.meta() == before
    assert again.counts() == (1, 1)
    again.close()


def test_documents_are_listed_by_name_with_metadata_and_time(store: CorpusStore) -> None:
    started = int(time.time())
    second = add(store, "b", "one", "two", language="de", year=2024, score=0.5, draft=True)
    first = add(store, "a", "three")

    documents = store.documents()

    assert [(entry.id, entry.name, entry.sequences) for entry in documents] == [
        (first, "a", 1),
        (second, "b", 2),
    ]
    assert documents[1].metadata == {"language": "de", "year": 2024, "score": 0.5, "draft": True}
    assert all(started <= entry.added <= time.time() for entry in documents)


def test_what_was_added_is_read_with_its_provenance(store: CorpusStore) -> None:
    document = add(store, "a", "one", "two", language="de")

    read = store.read([2, 1, 2, 99])

    assert set(read) == {1, 2}
    source, tokens = read[2].source, read[2].tokens
    assert (source.sequence, source.document, source.name, source.start, source.text) == (
        2,
        document,
        "a",
        10,
        "two",
    )
    assert (source.metadata, tokens) == ({"language": "de"}, tuple(map(ord, "two")))


def test_only_changes_advance_the_generation(
    store: CorpusStore,
) -> None:
    add(store, "a", "one")
    add(store, "a", "two")
    assert generation(store) == 2

    assert store.delete("nothing") is False
    assert generation(store) == 2

    assert store.delete("a") is True
    assert generation(store) == 3


def test_removed_sequences_are_recorded_with_their_generation(store: CorpusStore) -> None:
    add(store, "a", "one", "two")
    add(store, "b", "three")
    add(store, "a", "four")
    store.delete("b")

    assert store.removed(0).tolist() == [1, 2, 3]
    assert store.removed(2).tolist() == [1, 2, 3]
    assert store.removed(3).tolist() == [3]
    assert store.removed(4).tolist() == []


def test_ids_are_never_reused(store: CorpusStore, place: Place) -> None:
    first = add(store, "a", "one", "two")
    store.delete("a")
    store.close()

    again = open_store(place)
    second = add(again, "a", "one", "two")

    assert second > first
    assert again.embeddings()[0].tolist() == [3, 4]
    again.close()


@pytest.mark.parametrize("by_id", [False, True])
def test_a_document_is_deleted_by_name_or_id_with_its_sequences(
    store: CorpusStore, by_id: bool
) -> None:
    document = add(store, "a", "one", "two")
    add(store, "b", "three")

    assert store.delete(document if by_id else "a") is True

    assert store.delete(document if by_id else "a") is False
    assert store.counts() == (1, 1)
    assert store.read([1, 2]) == {}


@pytest.mark.parametrize("document", [0, -1, 99, 10**30, "", "99", "A"])
def test_deleting_a_missing_document_changes_nothing(
    store: CorpusStore, document: str | int
) -> None:
    add(store, "a", "one")

    assert store.delete(document) is False
    assert store.counts() == (1, 1)


def test_a_number_can_be_a_name(store: CorpusStore) -> None:
    add(store, "a", "one")
    add(store, "1", "two")

    assert store.delete("1") is True
    assert [entry.name for entry in store.documents()] == ["a"]


def test_a_document_is_recognised_by_name_and_content(store: CorpusStore) -> None:
    add(store, "a", "one")

    assert store.has("a", "digest of ('one',)")
    assert not store.has("a", "another digest")
    assert not store.has("b", "digest of ('one',)")


def test_embeddings_are_returned_by_ascending_id(store: CorpusStore) -> None:
    for i, name in enumerate(["a", "b", "c"]):
        add(store, name, "one", "two", value=i)
    store.delete("b")

    ids_N, vectors_ND = store.embeddings()
    assert ids_N.tolist() == [1, 2, 5, 6]
    assert vectors_ND[:, 0].tolist() == [0, 0, 2, 2]
    assert vectors_ND.shape == (4, 4)
    assert store.embeddings(after=2)[0].tolist() == [5, 6]
    assert store.embeddings(after=6)[1].shape == (0, 4)


def test_sequences_are_found_by_the_metadata_of_their_document(store: CorpusStore) -> None:
    add(store, "a", "one", "two", language="de")
    add(store, "b", "three", language="en")
    add(store, "c", "four")

    assert store.matching({"type": "eq", "key": "language", "value": "de"}).tolist() == [1, 2]
    assert store.matching({"type": "ne", "key": "language", "value": "de"}).tolist() == [3, 4]
    assert store.matching({"type": "eq", "key": "none", "value": 1}).tolist() == []
    with pytest.raises(ValueError, match="a filter"):
        store.matching({"type": "eq"})


def test_tokens_are_returned_for_all_sequences_or_one_document(store: CorpusStore) -> None:
    add(store, "a", "x", "y")
    add(store, "b", "x")
    x, y = (np.array([ord(c)], np.int32).tobytes() for c in "xy")

    assert sorted(store.token_sequences()) == [x, x, y]
    assert sorted(store.token_sequences("a")) == [x, y]
    assert list(store.token_sequences("c")) == []


def test_a_failed_addition_leaves_no_trace(store: CorpusStore) -> None:
    add(store, "a", "the words that stay")
    before = store.meta()
    unstorable = Chunk(0, "text", (1 << 40, 2))  # no token id is that large

    with pytest.raises((OverflowError, ValueError)):
        store.add(
            "a", "digest", [Chunk(0, "fine", (1, 2)), unstorable], vectors(2), {}, before["uuid"]
        )

    assert store.meta() == before
    assert [each.source.text for each in store.read([1]).values()] == ["the words that stay"]
    assert store.removed(0).tolist() == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_metadata_that_is_not_json_is_refused(store: CorpusStore, value: float) -> None:
    add(store, "a", "one", score=1)

    with pytest.raises(ValueError, match="JSON"):
        add(store, "b", "two", score=value)

    assert store.counts() == (1, 1)
    assert store.matching({"type": "gt", "key": "score", "value": 0}).tolist() == [1]


def test_a_reader_sees_one_state_during_a_write(store: CorpusStore, place: Place) -> None:
    add(store, "a", "one")
    reader = open_store(place)

    with reader.reading():
        before = reader.counts(), generation(reader)
        add(store, "b", "two")
        assert (reader.counts(), generation(reader)) == before

    assert (reader.counts(), generation(reader)) == ((2, 2), 2)
    reader.close()


def test_new_embeddings_replace_the_old_all_at_once(store: CorpusStore) -> None:
    add(store, "a", "one", "two", "three")
    before = store.meta()
    store.reembedding.begin(_NEW)

    waiting = store.reembedding.pending(2)
    assert waiting == [(1, "one", None), (2, "two", None)]
    store.reembedding.save(_NEW, [1, 2], vectors(2, 9.0, 3))
    assert store.reembedding.finish(_NEW) is False
    assert store.embeddings()[1].tolist() == vectors(3).tolist()
    assert store.reembedding.pending(2) == [(3, "three", None)]
    store.reembedding.save(_NEW, [3], vectors(1, 9.0, 3))
    assert store.reembedding.finish(_NEW) is True

    after = store.meta()
    assert store.embeddings()[1].tolist() == vectors(3, 9.0, 3).tolist()
    assert {key: after[key] for key in _NEW} == _NEW
    assert after["uuid"] != before["uuid"]
    assert int(after["generation"]) == int(before["generation"]) + 1
    assert "reembedding" not in after


def test_documents_changed_during_a_reembedding_are_included(
    store: CorpusStore,
) -> None:
    add(store, "a", "one", "two")
    store.reembedding.begin(_NEW)
    store.reembedding.save(_NEW, [1, 2], vectors(2, 9.0, 3))

    add(store, "b", "three")
    store.delete("a")

    assert store.reembedding.finish(_NEW) is False
    assert store.reembedding.pending(10) == [(3, "three", None)]
    store.reembedding.save(_NEW, [3], vectors(1, 9.0, 3))
    assert store.reembedding.finish(_NEW) is True
    assert store.embeddings()[0].tolist() == [3]


def test_a_reembedding_resumes_for_the_same_embedder_only(
    store: CorpusStore,
) -> None:
    add(store, "a", "one", "two")
    store.reembedding.begin(_NEW)
    store.reembedding.save(_NEW, [1], vectors(1, 9.0, 3))

    store.reembedding.begin(_NEW)
    assert store.reembedding.pending(10) == [(2, "two", None)]

    store.reembedding.begin({**_NEW, "revision": "3"})
    assert store.reembedding.pending(10) == [(1, "one", None), (2, "two", None)]


def test_embeddings_for_two_embedders_are_never_mixed(store: CorpusStore) -> None:
    # Two processes re-embed the corpus for different embedders; the one that began first fails.
    add(store, "a", "one", "two")
    other = {**_NEW, "revision": "3"}
    store.reembedding.begin(_NEW)
    store.reembedding.save(_NEW, [1], vectors(1, 9.0, 3))
    store.reembedding.begin(other)

    with pytest.raises(
        CorpusError, match="being re-embedded, or was in the meantime, by another process"
    ):
        store.reembedding.save(_NEW, [2], vectors(1, 9.0, 3))
    with pytest.raises(
        CorpusError, match="being re-embedded, or was in the meantime, by another process"
    ):
        store.reembedding.finish(_NEW)

    store.reembedding.save(other, [1, 2], vectors(2, 7.0, 3))
    assert store.reembedding.finish(other) is True
    assert store.embeddings()[1].tolist() == vectors(2, 7.0, 3).tolist()


def test_vectors_of_the_old_embedder_are_refused_after_a_reembedding(
    store: CorpusStore,
) -> None:
    add(store, "a", "one")
    old = store.meta()["uuid"]
    store.reembedding.begin(_NEW)
    store.reembedding.save(_NEW, [1], vectors(1, 9.0, 3))
    store.reembedding.finish(_NEW)

    with pytest.raises(CorpusError, match="'notes' was re-embedded in the meantime: add 'b' again"):
        store.add("b", "digest", [Chunk(0, "x", (1, 2))], vectors(1), {}, old)

    assert store.counts() == (1, 1)


def test_long_names_are_told_apart_by_all_their_characters(store: CorpusStore) -> None:
    # Random, since PostgreSQL compresses what is longer than an entry of an index may be.
    long = hashlib.shake_256(b"a name").hexdigest(4000)
    first = add(store, f"{long}ü1", "one")
    add(store, f"{long}ü2", "two")
    replacing = add(store, f"{long}ü1", "three")

    assert replacing > first
    assert [each.name for each in store.documents()] == [f"{long}ü1", f"{long}ü2"]
    assert store.has(f"{long}ü1", "digest of ('three',)")
    assert (store.has_name(f"{long}ü2"), store.has_name(long)) == (True, False)
    assert [len(tokens) for tokens in store.token_sequences(f"{long}ü2")] == [4 * len("two")]
    assert (store.delete(f"{long}ü2"), store.delete(long)) == (True, False)
    assert store.counts() == (1, 1)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=_ODD, text=_ODD, key=_ODD, value=_ODD, other=_ODD)
def test_user_input_never_becomes_sql(
    store: CorpusStore, name: str, text: str, key: str, value: str, other: str
) -> None:
    document = store.add(
        name, other, [Chunk(0, text, (1, 2))], vectors(1), {key: value}, store.meta()["uuid"]
    )

    assert [(each.name, each.metadata) for each in store.documents()] == [(name, {key: value})]
    assert (store.has(name, other), store.has_name(name), store.has(name, f"{other}'")) == (
        True,
        True,
        False,
    )
    assert len(store.matching({"type": "eq", "key": key, "value": value})) == 1
    (sequence,) = store.read(store.sequences_of(document)).values()
    assert (sequence.source.text, sequence.source.name) == (text, name)
    assert store.names(other) == []
    assert store.attachments.get(other) is None
    assert store.file_batches.get(other) is None
    store.update_meta({f"x{key}": value})
    assert store.meta()[f"x{key}"] == value
    assert store.delete(name)
    assert store.counts() == (0, 0)
