"""Trainings of vector stores: whose they are, and what deleting files does to their adapters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selection.access import OPERATOR, Principal
from selection.corpus.corpus import Corpus
from selection.corpus.trained.manifest import AdapterStatus, TrainedPart
from selection.corpus.trained.training import AdapterTraining
from selection.embedding import Embedder
from selection.errors import CorpusError, MissingError, ReadOnlyError
from selection.library.library import Library
from selection.location import DatabaseLocation, Location
from selection.threaded_embedder import ThreadedEmbedder
from tests.selection.library_helpers import (
    CATS,
    SHIPS,
    attach_and_wait,
    long_text,
    wait_until_ingested,
)
from tests.selection.locations import in_a_folder
from tests.selection.trained_helpers import SETTINGS, SHAPE, weights

_REMOVED = "documents that the corpus's adapter has learnt were deleted or replaced"


@pytest.fixture
def corpora(location: Location) -> Location:
    """Every place where corpora can be."""
    return location


def train(library: Library, store: str) -> AdapterStatus:
    """Learn what is left, as a server does."""
    trainings = library.trainings
    identity = trainings.begin(store, OPERATOR)
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
    trainings.end(identity)
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


@in_a_folder
def test_a_store_is_trained_by_its_owner_once_at_a_time(
    open_library: Callable[[], Library],
) -> None:
    library, other = open_library(), open_library()
    ann, bob = Principal("ann", frozenset()), Principal("bob", frozenset())
    store = library.create_store("notes", principal=ann).id
    shared = Principal("bob", frozenset({store}))

    for refused, error in ((bob, MissingError), (shared, ReadOnlyError)):
        with pytest.raises(error):
            library.trainings.begin(store, refused)
        with pytest.raises(error):
            library.trainings.call(store, refused, AdapterTraining.status)
    with pytest.raises(MissingError):
        library.trainings.read(store, bob, AdapterTraining.status)
    assert str(library.trainings.read(store, shared, AdapterTraining.status)) == "none"
    assert library.trainings.begin("notes", ann) == store
    assert library.trainings.begin(store, ann) == store
    with pytest.raises(CorpusError, match="is being trained by another process"):
        other.trainings.begin(store, ann)
    library.trainings.end(store)
    library.trainings.end(store)
    assert other.trainings.begin(store, ann) == store
    other.close()
    assert library.trainings.begin(store, ann) == store


def test_a_training_beside_a_database_may_end_in_another_process(
    postgres: DatabaseLocation, words: Embedder, tokenizer: Any, tmp_path: Path
) -> None:
    one, other = (
        Library(postgres, ThreadedEmbedder(lambda: words), tokenizer, tmp_path) for _ in range(2)
    )
    store = one.create_store("notes").id

    assert one.trainings.begin(store, OPERATOR) == store
    other.trainings.end(store)
    assert other.trainings.begin(store, OPERATOR) == store

    with (
        closing(Corpus.open(postgres, "notes")) as corpus,
        corpus.training.lock(),
        pytest.raises(CorpusError, match="is being trained by another process"),
    ):
        one.trainings.begin(store, OPERATOR)
    one.close()
    other.close()


def test_a_store_can_be_deleted_while_it_is_trained(library: Library) -> None:
    store = library.create_store("notes").id
    attach_and_wait(library, store, "cats.md", CATS)
    library.trainings.begin(store, OPERATOR)
    plan = library.trainings.call(store, OPERATOR, AdapterTraining.plan, SHAPE)

    library.delete_store(store)

    trained = TrainedPart(weights(1), plan.parts[0].ids, plan.snapshot)
    with pytest.raises(MissingError):
        library.trainings.call(store, OPERATOR, AdapterTraining.save_part, SETTINGS, trained)
    library.trainings.end(store)
