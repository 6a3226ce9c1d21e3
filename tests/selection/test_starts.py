"""Starts: what requests start from is found with their data, and never knows what was deleted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selection.access import Principal
from selection.config import SelectorConfig
from selection.corpus.corpus import Corpus
from selection.corpus.lookup import find_corpus
from selection.corpus.sqlite_store import SQLiteStore
from selection.corpus.stores import folder as folder_corpora
from selection.corpus.trained.adapter import TrainedAdapter
from selection.corpus.trained.division import PART_SIZE
from selection.corpus.trained.manifest import StartFound
from selection.embedding import Embedder, Embeddings, Prompt
from selection.errors import CorpusError
from selection.location import Location
from selection.request import SelectionRequest
from selection.selector import Selector
from selection.threaded_embedder import ThreadedEmbedder
from tests.conftest import WordEmbedder
from tests.selection.brute_force import add
from tests.selection.locations import in_a_folder
from tests.selection.trained_helpers import SHAPE, found, train, weights

_REQUEST = SelectionRequest([Prompt("word1 is here")], "notes", steps=4, start=True)
_REMOVED = "documents that the corpus's adapter has learnt were deleted or replaced"


class CountingEmbedder(WordEmbedder):
    """An embedder that counts its texts."""

    count = 0

    def embed(self, texts: Sequence[str]) -> Embeddings:
        self.count += len(texts)
        return super().embed(texts)


@pytest.fixture
def counting() -> CountingEmbedder:
    return CountingEmbedder()


@pytest.fixture
def corpora(location: Location) -> Location:
    """Every place where corpora can be."""
    return location


@pytest.fixture
def selector(corpora: Location, counting: CountingEmbedder) -> Selector:
    config = SelectorConfig(corpora, adapters=SHAPE)
    return Selector(config, embedder=ThreadedEmbedder(lambda: counting))


@pytest.fixture
def corpus(corpora: Location, words: Embedder) -> Iterator[Corpus]:
    """A corpus of four documents, whose adapter has learnt them, as another process has it open."""
    made = Corpus.create(corpora, "notes", words, "tokens")
    for number in range(4):
        add(made, words, f"document {number}", f"word{number} is here", f"word{number} again")
    train(made, seed=1)
    yield made
    made.close()


def test_the_adapter_is_found_with_the_selection(corpus: Corpus, selector: Selector) -> None:
    selection = selector.select(_REQUEST)

    assert selection.start == found(corpus)
    assert selection.no_start is None
    assert len(selection.ids) == 4
    assert selector.start(_REQUEST).start == selection.start
    assert selection.corpus is not None
    read = selector.start_weights(selection.corpus, selection.start)
    assert (read.name, read.weights) == (selection.start.name, weights(1))


def test_a_request_that_does_not_ask_starts_from_nothing(
    corpus: Corpus, selector: Selector
) -> None:
    selection = selector.select(replace(_REQUEST, start=False))

    assert (selection.start, selection.no_start) == (None, None)


@pytest.mark.parametrize("change", ["delete", "replace", "while the server was away"])
def test_no_request_starts_from_what_has_learnt_a_deleted_document(
    corpus: Corpus, selector: Selector, words: Embedder, change: str
) -> None:
    before = selector.start(_REQUEST)
    assert before.start is not None

    if change == "replace":
        add(corpus, words, "document 3", "word3 is here", "word3 again")
    else:
        corpus.delete("document 3")
    if change == "while the server was away":
        selector.corpora.close()

    selection = selector.select(_REQUEST)
    assert (selection.start, selection.no_start) == (None, _REMOVED)
    assert selector.start(_REQUEST) == replace(before, start=None, reason=_REMOVED)
    with pytest.raises(CorpusError, match="has another adapter since it was looked up"):
        selector.start_weights(before.corpus, before.start)
    assert selector.learnt_corpora() == ()
    train(corpus, seed=2)
    assert selector.select(_REQUEST).start == found(corpus)


def test_a_start_is_of_the_same_state_as_the_search(
    corpus: Corpus, selector: Selector, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Arrange: the document that would be chosen is deleted once the search has begun.
    results: list[StartFound] = []
    start = TrainedAdapter.start

    def delete_and_start(adapter: TrainedAdapter, *args: Any) -> Any:
        corpus.delete("document 1")
        found_now = start(adapter, *args)
        assert found_now is not None
        results.append(found_now)
        return found_now

    monkeypatch.setattr(TrainedAdapter, "start", delete_and_start)

    selection = selector.select(_REQUEST)

    # The first search was that of a state which had the document, and so was its start.
    assert [result.reason for result in results] == [None, _REMOVED]
    assert (selection.start, selection.no_start) == (None, _REMOVED)
    assert "document 1" not in {source.name for source, _ in selection.sources}


def test_requests_that_cannot_start_from_the_adapter_are_told_why(
    corpus: Corpus, selector: Selector, corpora: Location, words: Embedder
) -> None:
    only = replace(_REQUEST, filter={"type": "eq", "key": "group", "value": 0})
    plain = Selector(SelectorConfig(corpora), embedder=ThreadedEmbedder(lambda: words))
    Corpus.create(corpora, "new", words, "tokens").close()

    for request, by, reason in [
        (only, selector, "the request has a filter, and the corpus's adapter has learnt all"),
        (_REQUEST, plain, "this server starts from no adapters of corpora"),
        (replace(_REQUEST, corpus="new"), selector, "the corpus has no adapter"),
    ]:
        selection, looked_up = by.select(request), by.start(request)
        assert selection.start is looked_up.start is None
        assert selection.no_start == looked_up.reason
        assert str(selection.no_start).startswith(reason)
        assert looked_up.corpus == selection.corpus
    assert plain.learnt_corpora() == ()
    nothing = selector.select(replace(_REQUEST, corpus=None))
    assert (nothing.start, nothing.no_start) == (None, "the request uses no corpus")


def test_the_prompt_is_embedded_only_for_several_parts(
    corpus: Corpus, selector: Selector, counting: CountingEmbedder, words: Embedder
) -> None:
    before = counting.count
    assert selector.start(_REQUEST).start == found(corpus)
    assert counting.count == before

    # Arrange: two topics with a part for each.
    for topic in ("cats", "ships"):
        for number in range(4):
            texts = [f"{topic} {topic} {topic} number{i}" for i in range(PART_SIZE // 4)]
            add(corpus, words, f"{topic} {number}", *texts)
    train(corpus, seed=3, parts=2)

    looked_up = [
        selector.start(replace(_REQUEST, prompts=[Prompt(text)])).start
        for text in ("cats cats", "ships ships", "cats cats")
    ]
    assert counting.count == before + 3
    assert None not in looked_up
    assert looked_up[0] == looked_up[2] != looked_up[1]
    selected = selector.select(replace(_REQUEST, prompts=[Prompt("ships ships")]))
    assert selected.start == looked_up[1]
    assert len(selector.learnt_corpora()) == 1


@in_a_folder
def test_the_corpora_with_an_adapter_are_those_that_the_principal_sees(
    corpora: Path, corpus: Corpus, selector: Selector, words: Embedder
) -> None:
    owned = Corpus.create(
        corpora, "owned", words, "tokens", {"name": "Mine", "owner": "ann", "created": "12.5"}
    )
    add(owned, words, "document", "word1 is here")
    train(owned)
    Corpus.create(corpora, "untrained", words, "tokens").close()
    damaged = Corpus.create(corpora, "damaged", words, "tokens")
    add(damaged, words, "document", "word1 is here")
    train(damaged)
    damaged.close()
    (corpora / "damaged" / "corpus.db").write_bytes(b"no database")

    def seen(principal: Principal) -> dict[str, str]:
        return {each.id: each.name for each in selector.learnt_corpora(principal)}

    mine, notes = owned.meta()["id"], corpus.meta()["id"]
    assert seen(Principal()) == {notes: "notes", mine: "Mine"}
    assert seen(Principal("ann", frozenset())) == {mine: "Mine"}
    assert seen(Principal("bob", frozenset({"notes"}))) == {notes: "notes"}
    owned.close()


@in_a_folder
def test_a_list_of_the_corpora_with_an_adapter_opens_those_that_have_changed_since_the_last(
    corpora: Path, corpus: Corpus, selector: Selector, words: Embedder, monkeypatch: Any
) -> None:
    train(corpus)
    for name in ("changed", "same"):
        Corpus.create(corpora, name, words, "tokens").close()
    opened = []

    class Recording(SQLiteStore):
        def __init__(self, folder: Path) -> None:
            opened.append(folder.name)
            super().__init__(folder)

    monkeypatch.setattr(folder_corpora, "SQLiteStore", Recording)
    # Nothing is known of files that have just changed.
    monkeypatch.setattr(folder_corpora, "_SETTLED_SECONDS", -1.0)

    assert len(selector.learnt_corpora()) == len(selector.learnt_corpora()) == 1
    assert sorted(opened) == ["changed", "notes", "same"]

    changed = Corpus.open(corpora, "changed")
    changed.update_meta({"name": "notes"})
    changed.close()
    assert len(selector.learnt_corpora()) == 1
    assert opened[3:] == ["changed"]

    monkeypatch.setattr(folder_corpora, "_SETTLED_SECONDS", 3600.0)
    selector.learnt_corpora()
    assert sorted(opened[4:]) == ["changed", "notes", "same"]


@pytest.mark.parametrize("clash", ["folder", "id", "display name"])
def test_a_corpus_is_listed_by_a_name_that_finds_it(
    corpora: Location, corpus: Corpus, selector: Selector, words: Embedder, clash: str
) -> None:
    # Arrange: the name that a tenant gives to a corpus already means another, untrained one.
    meta = {"owner": "eve", "name": "shown"}
    other = Corpus.create(corpora, "hidden", words, "tokens", meta)
    name = {"folder": "hidden", "id": other.meta()["id"], "display name": "shown"}[clash]
    other.close()
    made = Corpus.create(corpora, "mine", words, "tokens", {"owner": "ann", "name": name})
    add(made, words, "document", "word1 is here")
    train(made)
    identity = made.meta()["id"]
    made.close()

    by_all = {each.id: each.name for each in selector.learnt_corpora()}
    by_owner = selector.learnt_corpora(Principal("ann", frozenset()))

    assert by_all[identity] == identity
    # What they do not see does not exist for them.
    assert [each.name for each in by_owner] == [name]
    for principal, listed in [(Principal(), identity), (Principal("ann", frozenset()), name)]:
        assert find_corpus(corpora, listed, principal).name == "mine"
