"""Validity: no request starts from an adapter that has learnt what the corpus no longer has."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selection.corpus.corpus import Corpus
from selection.corpus.tables.attachment import Attachment
from selection.corpus.trained.division import PART_SIZE
from selection.corpus.trained.manifest import TrainedPart
from selection.corpus.trained.merge import merged
from selection.embedding import Embedder
from selection.location import Location
from tests.conftest import WordEmbedder
from tests.selection.brute_force import add, database_of
from tests.selection.locations import in_a_folder
from tests.selection.trained_helpers import SETTINGS, SHAPE, found, refusal, train, weights

_REMOVED = "documents that the corpus's adapter has learnt were deleted or replaced"


@pytest.fixture
def corpora(location: Location) -> Location:
    """Every place where corpora can be."""
    return location


@pytest.fixture
def corpus(corpora: Location, words: Embedder) -> Iterator[Corpus]:
    """A corpus of four documents of two sequences, whose adapter has learnt them."""
    made = Corpus.create(corpora, "notes", words, "tokens")
    for number in range(4):
        add(made, words, f"document {number}", f"word{number} is here", f"word{number} again")
    train(made, seed=1)
    yield made
    made.close()


@pytest.fixture
def reader(corpus: Corpus) -> Iterator[Corpus]:
    """The corpus as a server has it open, which has started from its adapter before."""
    opened = Corpus.open(corpus._place.parent, "notes")
    found(opened)
    yield opened
    opened.close()


def deleted(corpus: Corpus, words: Embedder) -> None:
    corpus.delete("document 2")


def replaced(corpus: Corpus, words: Embedder) -> None:
    add(corpus, words, "document 2", "word2 is here", "word2 again")


@pytest.mark.parametrize("change", [deleted, replaced])
def test_the_adapter_is_invalid_once_a_learnt_document_is_gone(
    corpus: Corpus, reader: Corpus, words: Embedder, change: Callable[[Corpus, Embedder], None]
) -> None:
    before = found(reader)
    change(corpus, words)

    for either in (corpus, reader):
        assert refusal(either) == _REMOVED
        with pytest.raises(ValueError, match="has another adapter since it was looked up"):
            either.trained.weights(before)
        assert either.training.status().invalid == (before.name,)
        assert str(either.training.status()) == f"not used: {_REMOVED}"
    # It stays invalid, also for a process that opens the corpus later, whatever is added.
    add(corpus, words, "another", "word9")
    later = Corpus.open(corpus._place.parent, "notes")
    assert refusal(later) == refusal(reader) == _REMOVED
    later.close()

    # Training without it makes it valid.
    train(corpus, seed=2)
    for either in (corpus, reader):
        assert found(either).sequences == corpus.counts()[1]
        assert either.trained.weights(found(either)).weights == weights(2)


def test_documents_that_are_added_make_it_stale(
    corpus: Corpus, reader: Corpus, words: Embedder
) -> None:
    before = found(reader)

    add(corpus, words, "new", "word7 is new", "word8 too")

    assert found(reader) == replace(before, not_learnt=2)
    assert str(reader.training.status()) == "8 of 10 sequences learnt"
    plan = corpus.training.plan(SHAPE)
    assert [(part.start, len(part.ids)) for part in plan.parts] == [(before.name, 2)]
    train(corpus, seed=2)
    now = found(reader)
    assert (now.documents, now.sequences, now.not_learnt) == (5, 10, 0)
    assert now.name != before.name
    assert now.generation > before.generation
    assert not corpus.training.plan(SHAPE).parts
    assert str(reader.training.status()) == "10 of 10 sequences learnt"


def test_deleting_what_was_not_learnt_changes_nothing(
    corpus: Corpus, reader: Corpus, words: Embedder
) -> None:
    before = found(reader)
    add(corpus, words, "new", "word7 is new")
    found(reader)

    corpus.delete("new")

    assert found(reader) == found(corpus) == before


def test_what_is_deleted_while_it_is_learnt_is_found(corpus: Corpus, reader: Corpus) -> None:
    plan = corpus.training.plan(SHAPE, fresh=True)
    ids = [*plan.parts[0].ids, *plan.parts[0].held_out]
    assert corpus.training.are_present(ids)
    assert len(corpus.training.sequences(ids)) == 8

    reader.delete("document 0")
    assert not corpus.training.are_present(ids)
    assert len(corpus.training.sequences(ids)) == 6
    corpus.training.save_part(SETTINGS, TrainedPart(weights(2), tuple(ids), plan.snapshot))

    assert refusal(corpus) == refusal(reader) == _REMOVED


def test_reembedding_keeps_it_and_retokenizing_does_not(corpus: Corpus, reader: Corpus) -> None:
    before = found(reader)
    corpus.reembed(WordEmbedder(revision="2", dimension=24))
    assert found(reader).name == before.name

    corpus.retokenization.run("others", "none", lambda rows: [((1, 2), None)] * len(rows), 99)

    assert refusal(reader) == "the corpus was retokenized since its adapter was trained"
    assert corpus.training.plan(SHAPE).sequences == 8
    # The tokens that it has learnt are the corpus's again.
    corpus.retokenization.run("tokens", "none", lambda rows: [((1, 2), None)] * len(rows), 99)
    assert found(reader).name == before.name


def test_a_part_of_other_tokens_is_not_saved(corpus: Corpus) -> None:
    plan = corpus.training.plan(SHAPE, fresh=True)
    corpus.retokenization.run("others", "none", lambda rows: [((1, 2), None)] * len(rows), 99)

    with pytest.raises(ValueError, match="was retokenized in the meantime"):
        corpus.training.save_part(SETTINGS, TrainedPart(weights(2), (1,), plan.snapshot))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (replace(SHAPE, model="another"), "another model"),
        (replace(SHAPE, rank=4), "rank 2, not 4"),
        (replace(SHAPE, targets=("q_proj",)), "other projections"),
        (replace(SHAPE, targets=("v_proj", "q_proj")), None),
    ],
)
def test_an_adapter_of_another_shape_is_refused(corpus: Corpus, shape: Any, reason: str) -> None:
    expected = reason and f"the corpus's adapter was trained for {reason}"

    assert refusal(corpus, shape) == expected
    assert corpus.training.status(shape).reason == expected
    # It would be trained anew.
    assert bool(corpus.training.plan(shape).parts) == bool(reason)


def test_files_that_are_being_read_are_a_reason_to_start_fresh(
    corpus: Corpus, reader: Corpus
) -> None:
    file = "file-" + 24 * "0"
    corpus.attachments.attach([Attachment(file, "new.txt", chunking=(64, 0))])
    assert refusal(reader) == "files of the corpus are being read"

    corpus.attachments.detach(file)

    assert refusal(reader) is None


@in_a_folder
@pytest.mark.parametrize("text", [None, "word9", "word8"])
def test_the_adapter_beside_an_older_copy_of_the_database_knows_no_more_than_it(
    corpus: Corpus, words: Embedder, text: str | None
) -> None:
    # Arrange: an older copy of the database takes the place of the one that was trained on, and
    # may have given the ids of the document that it lacks to another one.
    folder = corpus.folder
    with closing(sqlite3.connect(folder.parent / "copy.db")) as copy:
        database_of(corpus)._connection.backup(copy)
    add(corpus, words, "later", "word8")
    train(corpus, seed=2)
    corpus.close()
    for file in folder.glob("corpus.db*"):
        file.unlink()
    (folder.parent / "copy.db").rename(folder / "corpus.db")
    restored = Corpus.open(folder.parent, "notes")
    restored.check(words)
    if text is not None:
        add(restored, words, "later", text)

    assert refusal(restored) == (None if text == "word8" else _REMOVED)
    restored.close()


@pytest.fixture
def divided(corpora: Any, words: Embedder) -> Iterator[Corpus]:
    """A corpus of three topics with a part for each."""
    made = Corpus.create(corpora, "topics", words, "tokens")
    for topic in ("cats", "ships", "bread"):
        for number in range(5):
            texts = [f"{topic} {topic} {topic} number{i}" for i in range(PART_SIZE // 5)]
            add(made, words, f"{topic} {number}", *texts)
    assert len(train(made, seed=1, parts=3)) == 3
    yield made
    made.close()


def start_for(corpus: Corpus, words: Embedder, *prompts: str) -> Any:
    result = corpus.trained.start(SHAPE, words.embed(prompts))
    assert result is not None
    return result.start


def test_the_parts_nearest_to_the_prompt_are_mixed(divided: Corpus, words: Embedder) -> None:
    assert divided.trained.start(SHAPE, None) is None

    cats = start_for(divided, words, "cats cats")
    mixed = start_for(divided, words, "cats cats", "ships ships")

    assert len(cats.parts) == 1
    assert cats.name == cats.parts[0][0]
    assert (cats.sequences, cats.documents) == (PART_SIZE, 5)
    assert len(mixed.parts) > 1
    assert mixed.sequences == PART_SIZE * len(mixed.parts)
    expected = merged(
        [(divided.training.part(name).weights, weight, 1.0) for name, weight in mixed.parts]
    )
    assert divided.trained.weights(mixed).weights == expected
    json.dumps(mixed.as_dict())


def test_a_deleted_document_costs_one_part(divided: Corpus, words: Embedder) -> None:
    before = start_for(divided, words, "cats cats")
    ships = start_for(divided, words, "ships ships")

    divided.delete("cats 1")

    assert start_for(divided, words, "cats cats").name != before.name
    assert start_for(divided, words, "ships ships").name == ships.name
    assert divided.training.status().invalid == (before.name,)
    plan = divided.training.plan(SHAPE)
    assert [part.start for part in plan.parts] == [None]
    assert plan.sequences == PART_SIZE * 4 // 5

    train(divided, seed=7)

    assert start_for(divided, words, "ships ships").name == ships.name
    assert start_for(divided, words, "cats cats").sequences == PART_SIZE * 4 // 5
    left = f"{PART_SIZE * 14 // 5:,}"
    assert str(divided.training.status()) == f"{left} of {left} sequences learnt in 3 parts"


def test_an_adapter_stays_divided_as_it_is(
    divided: Corpus, words: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not divided.training.plan(SHAPE).parts
    assert not divided.training.plan(SHAPE, parts=2).parts
    (whole,) = divided.training.plan(SHAPE, parts=1).parts
    assert len(whole.replaces) == 3

    train(divided, parts=1)
    divided.delete("cats 1")
    # A first training would divide a corpus of this size.
    monkeypatch.setattr("selection.corpus.trained.plan.PART_FROM", PART_SIZE)

    assert len(divided.training.plan(SHAPE).parts) == 1
    assert len(divided.training.plan(SHAPE, fresh=True).parts) == 3
    divided.training.remove()
    assert len(divided.training.plan(SHAPE).parts) == 3


def test_the_parts_of_a_reembedded_corpus_are_found_by_their_new_embeddings(
    divided: Corpus,
) -> None:
    words = WordEmbedder(revision="2", dimension=24)
    old = start_for(divided, WordEmbedder(), "ships ships")

    divided.reembed(words)

    assert start_for(divided, words, "ships ships").name == old.name


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("adtn"), st.integers(0, 5)), min_size=1, max_size=12))
def test_no_order_of_changes_uses_what_was_deleted(
    corpora: Any, words: Embedder, changes: list[tuple[str, int]]
) -> None:
    # a: add or replace a document, d: delete one, t: train, n: open anew.
    corpus = Corpus.create(corpora, "changing", words, "tokens")
    reader = Corpus.open(corpora, corpus.name)
    learnt: set[int] = set()
    trained = False
    for change, number in changes:
        if change == "a":
            add(corpus, words, f"document {number}", f"word{number}", "and more")
        elif change == "d":
            corpus.delete(f"document {number}")
        elif change == "n":
            reader.close()
            reader = Corpus.open(corpora, corpus.name)
        elif corpus.counts()[1]:
            train(corpus, seed=number)
            ids, _ = corpus.nearest(words.embed(["word"]), None)
            learnt, trained = {*ids.tolist()}, True
        present = {*corpus.nearest(words.embed(["word"]), None)[0].tolist()}

        for either in (corpus, reader):
            result = either.trained.start(SHAPE, None)
            assert result is not None
            assert (result.start is not None) == (trained and learnt <= present)
            if result.start is not None:
                assert result.start.sequences == len(learnt)
                assert result.start.not_learnt == len(present - learnt)
    reader.close()
    corpus.remove()
