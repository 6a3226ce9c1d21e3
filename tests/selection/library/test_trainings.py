"""Trainings of vector stores: whose they are, and what deleting files does to their adapters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest

from selection.access import OPERATOR, Principal
from selection.corpus.corpus import Corpus
from selection.corpus.trained.manifest import AdapterStatus, TrainedPart
from selection.corpus.trained.training import AdapterTraining
from selection.embedding import Embedder
from selection.errors import CorpusError, MissingError, ReadOnlyError
from selection.library.library import Library
from selection.location import Location
from tests.selection.library_helpers import (
    CATS,
    SHIPS,
    attach_and_wait,
    long_text,
    wait_until_ingested,
)
from tests.selection.trained_helpers import SETTINGS, SHAPE, weights

_REMOVED = "documents that the corpus's adapter has learnt were deleted or replaced"


@pytest.fixture
def corpora(location: Location) -> Location:
    """Every place where corpora can be."""
    return location


def train(library: Library, store: str) -> AdapterStatus:
    """Learn what is left, as a server does."""
    trainings = library.trainings
    trainings.check_free(store, OPERATOR)
    plan = trainings.call(store, OPERATOR, AdapterTraining.plan, SHAPE)
    for planned in plan.parts:
        ids = (*planned.ids, *planned.held_out)
        assert trainings.call(store, OPERATOR, AdapterTraining.sequences, ids).keys() == {*ids}
        if planned.start is not None:
            part = trainings.call(store, OPERATOR, AdapterTraining.part, planned.start)
            ids += part.learnt
        trained = TrainedPart(weights(1), ids, plan.snapshot)
        trainings.call(
            store,
            OPERATOR,
            AdapterTraining.save_part,
            replace(SETTINGS, divided=plan.divided),
            trained,
            planned.replaces,
        )
    return status(library, store)


def status(library: Library, store: str) -> AdapterStatus:
    return library.trainings.call(store, OPERATOR, AdapterTraining.status, SHAPE)


@pytest.mark.parametrize(
    "change", ["detached", "deleted", "with other attributes", "attached again"]
)
def test_a_file_that_leaves_a_store_makes_its_adapter_invalid(
    library: Library, change: str
) -> None:
    store = library.create_store("notes").id
    cats = attach_and_wait(library, store, "cats.md", CATS)
    attach_and_wait(library, store, "ships.md", SHIPS)
    assert train(library, store).reason is None

    if change == "detached":
        library.detach(store, cats)
    elif change == "deleted":
        library.delete_upload(cats)
    elif change == "with other attributes":
        library.modify_file(store, cats, {"kind": "pet"})
        wait_until_ingested(library, store, cats)
    else:
        library.detach(store, cats)
        attach_and_wait(library, store, "cats.md", CATS)

    now = status(library, store)
    assert (now.learnt, now.reason) == (0, _REMOVED)
    assert train(library, store).reason is None


def test_a_file_that_is_added_is_learnt_later(library: Library) -> None:
    store = library.create_store("notes").id
    attach_and_wait(library, store, "cats.md", CATS)
    before = train(library, store)

    attach_and_wait(library, store, "long.md", long_text(40))

    now = status(library, store)
    assert now.reason is None
    assert (now.learnt, now.not_learnt > 0) == (before.learnt, True)
    assert train(library, store).not_learnt == 0


def test_a_store_is_trained_by_its_owner(library: Library) -> None:
    ann, bob = Principal("ann", frozenset()), Principal("bob", frozenset())
    store = library.create_store("notes", principal=ann).id
    shared = Principal("bob", frozenset({store}))

    for refused, error in ((bob, MissingError), (shared, ReadOnlyError)):
        with pytest.raises(error):
            library.trainings.check_free(store, refused)
        with pytest.raises(error):
            library.trainings.call(store, refused, AdapterTraining.status)
    with pytest.raises(MissingError):
        library.trainings.read(store, bob, AdapterTraining.status)
    assert str(library.trainings.read(store, shared, AdapterTraining.status)) == "none"
    assert library.trainings.check_free("notes", ann) == store


def test_a_store_is_not_trained_beside_a_command(
    open_library: Callable[[], Library], corpora: Location
) -> None:
    """Any process of a server may be asked, again and again."""
    one, other = open_library(), open_library()
    store = one.create_store("notes").id
    processes = (one, other, one)

    assert {each.trainings.check_free(store, OPERATOR) for each in processes} == {store}
    with closing(Corpus.open(corpora, "notes")) as corpus, corpus.training.lock():
        for each in processes:
            with pytest.raises(CorpusError, match="is being trained by another process"):
                each.trainings.check_free(store, OPERATOR)
    assert {each.trainings.check_free(store, OPERATOR) for each in processes} == {store}


def test_a_store_can_be_deleted_while_it_is_trained(library: Library) -> None:
    store = library.create_store("notes").id
    attach_and_wait(library, store, "cats.md", CATS)
    plan = library.trainings.call(store, OPERATOR, AdapterTraining.plan, SHAPE)

    library.delete_store(store)

    trained = TrainedPart(weights(1), plan.parts[0].ids, plan.snapshot)
    with pytest.raises(MissingError):
        library.trainings.call(store, OPERATOR, AdapterTraining.save_part, SETTINGS, trained)


def test_what_is_recorded_of_all_stores_is_read_at_once(
    library: Library, corpora: Location, words: Embedder
) -> None:
    trained, never = (library.create_store(name).id for name in ("trained", "never"))
    record = {"status": "queued"}
    library.trainings.call(trained, OPERATOR, AdapterTraining.record, record)
    Corpus.create(corpora, "other", words, "another tokenizer").close()

    found = library.trainings.recorded()

    assert found == {trained: record, never: None}
