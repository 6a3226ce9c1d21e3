"""Ownership: owners neither see nor change each other's objects; the operator sees everything."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selection.access import OPERATOR, Principal
from selection.corpus.corpus import Corpus
from selection.corpus.lookup import find_corpus, list_corpora
from selection.corpus.pool import CorpusPool
from selection.corpus.sqlite_store import CorpusError, CorpusNotFoundError
from selection.embedding import Embedder, Prompt
from selection.errors import LibraryError, MissingError, ReadOnlyError
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.library.library import Library
from selection.library.records import AttachmentRequest, PageRequest
from selection.request import SelectionRequest
from selection.selector import Selector, SelectorConfig
from selection.threaded_embedder import ThreadedEmbedder
from tests.selection.library_helpers import ALL, CATS, SHIPS, documents, wait_until_ingested

ALICE, BOB = Principal("alice", frozenset({"shared"})), Principal("bob", frozenset())


def store_with_file(
    library: Library, principal: Principal, name: str, text: str
) -> tuple[str, str]:
    """Create a store with one file for a principal; the ids of both."""
    store = library.create_store(name, principal=principal).id
    file = library.upload(f"{name}.md", text.encode(), principal=principal).id
    library.attach(store, AttachmentRequest(file), principal=principal)
    assert wait_until_ingested(library, store, file).status == "completed"
    return store, file


@pytest.fixture
def shared(corpora: Path, words: Embedder, tokenizer: Any) -> str:
    """A corpus of the command line, without owner, that alice may read; its id."""
    corpus = Corpus.create(corpora, "shared", words, tokenizer_digest(tokenizer))
    ingest(corpus, [Document("ships.md", SHIPS)], words, tokenizer)
    identity = corpus.meta()["id"]
    corpus.close()
    return identity


def test_each_principal_lists_what_they_see(library: Library, shared: str) -> None:
    cats, alices = store_with_file(library, ALICE, "cats", CATS)
    ships, bobs = store_with_file(library, BOB, "ships", SHIPS)

    def seen(principal: Principal) -> tuple[set[str], set[str]]:
        stores, files = (
            library.stores(ALL, principal=principal),
            library.uploads(ALL, principal=principal),
        )
        return {store.id for store in stores.items}, {file.id for file in files.items}

    assert seen(ALICE) == ({shared, cats}, {alices})
    assert seen(BOB) == ({ships}, {bobs})
    assert seen(OPERATOR) == ({shared, cats, ships}, {alices, bobs})


def test_a_cursor_reveals_nothing_of_other_owners(
    library: Library, corpora: Path, shared: str
) -> None:
    cats, _ = store_with_file(library, ALICE, "cats", CATS)
    store_with_file(library, BOB, "ships", SHIPS)
    # An id of the same time that never existed, and random ids as earlier versions created them.
    made_up = cats[:-10] + "0123456789"
    old, never = "vs_" + 24 * "e", "vs_" + 24 * "f"
    with sqlite3.connect(corpora / "shared" / "corpus.db") as database:
        database.execute("UPDATE meta SET value = ? WHERE key = 'id'", (old,))
    database.close()

    for order in ("asc", "desc"):
        existing, missing = (
            library.stores(PageRequest(order=order, after=each), principal=BOB)
            for each in (cats, made_up)
        )
        assert existing == missing
    for cursor in (old, never):
        with pytest.raises(LibraryError, match="is not in this list"):
            library.stores(PageRequest(after=cursor), principal=BOB)
    library.delete_store(old)
    with pytest.raises(LibraryError, match="is not in this list"):
        library.stores(PageRequest(after=old), principal=BOB)
    assert library.stores(PageRequest(after=old, order="asc")).items == library.stores(ALL).items
    assert (
        library.stores(PageRequest(after=old, order="asc"), principal=ALICE).items
        == library.stores(ALL, principal=ALICE).items
    )


@pytest.mark.parametrize("by", ["id", "name"])
def test_objects_of_other_owners_do_not_exist(library: Library, by: str) -> None:
    identity, file = store_with_file(library, ALICE, "cats", CATS)
    batch = library.attach_batch(identity, [AttachmentRequest(file)], principal=ALICE).id
    wait_until_ingested(library, identity, file)
    own, _ = store_with_file(library, BOB, "ships", SHIPS)
    store = identity if by == "id" else "cats"

    calls: list[Callable[[], object]] = [
        lambda: library.store(store, principal=BOB),
        lambda: library.modify_store(store, name="mine", principal=BOB),
        lambda: library.delete_store(store, principal=BOB),
        lambda: library.search(store, ["kitten"], principal=BOB),
        lambda: library.files(store, ALL, principal=BOB),
        lambda: library.file(store, file, principal=BOB),
        lambda: library.texts(store, file, principal=BOB),
        lambda: library.modify_file(store, file, {"a": 1}, principal=BOB),
        lambda: library.detach(store, file, principal=BOB),
        lambda: library.batch(store, batch, principal=BOB),
        lambda: library.cancel_batch(store, batch, principal=BOB),
        lambda: library.uploaded(file, principal=BOB),
        lambda: library.content(file, principal=BOB),
        lambda: library.delete_upload(file, principal=BOB),
        lambda: library.attach(own, AttachmentRequest(file), principal=BOB),
        lambda: library.attach_batch(own, [AttachmentRequest(file)], principal=BOB),
        lambda: library.create_store("loot", attachments=[AttachmentRequest(file)], principal=BOB),
    ]
    for call in calls:
        with pytest.raises(MissingError):
            call()
    assert library.store(identity, principal=ALICE).name == "cats"
    assert library.texts(identity, file, principal=ALICE) == (CATS,)
    assert len(library.stores(ALL).items) == 2


def test_errors_reveal_nothing_of_other_owners(library: Library, corpora: Path) -> None:
    store_with_file(library, ALICE, "cats", CATS)
    own, _ = store_with_file(library, BOB, "ships", SHIPS)

    for name in ("cats", "unknown"):
        with pytest.raises(MissingError) as missing:
            library.store(name, principal=BOB)
        assert str(missing.value) == f"there is no vector store {name!r}"
        with pytest.raises(CorpusNotFoundError) as refused:
            find_corpus(corpora, name, BOB)
        assert f"there is no corpus {name!r} (existing corpora: {own});" in str(refused.value)


def test_two_owners_may_use_the_same_name(library: Library, corpora: Path) -> None:
    first, _ = store_with_file(library, ALICE, "notes", CATS)
    second, _ = store_with_file(library, BOB, "notes", SHIPS)

    assert library.store("notes", principal=ALICE).id == first
    assert library.store("notes", principal=BOB).id == second
    assert [found.text for found in library.search("notes", ["ship"], principal=ALICE)] == [CATS]
    assert [found.text for found in library.search("notes", ["ship"], principal=BOB)] == [SHIPS]
    assert library.delete_store("notes", principal=BOB) == second
    assert library.store("notes", principal=ALICE).id == first


def test_an_owned_store_does_not_block_a_name_for_the_command_line(
    library: Library, corpora: Path, words: Embedder
) -> None:
    owned = library.create_store("shared", principal=BOB).id

    Corpus.create(corpora, "shared", words, "t").close()

    assert sorted(list_corpora(corpora)) == ["shared", owned]
    assert library.store("shared", principal=ALICE).id != owned
    assert library.store("shared", principal=BOB).id == owned
    assert owned not in {store.id for store in library.stores(ALL, principal=ALICE).items}


def test_a_shared_store_is_read_only(library: Library, corpora: Path, shared: str) -> None:
    file = library.upload("cats.md", CATS.encode(), principal=ALICE).id
    (listed,) = library.files("shared", ALL, principal=ALICE).items

    assert library.store("shared", principal=ALICE).id == shared
    assert library.texts(shared, listed.file.id, principal=ALICE) == (SHIPS,)
    assert [found.text for found in library.search("shared", ["ship"], principal=ALICE)] == [SHIPS]
    calls: list[Callable[[], object]] = [
        lambda: library.modify_store("shared", name="mine", principal=ALICE),
        lambda: library.delete_store(shared, principal=ALICE),
        lambda: library.attach("shared", AttachmentRequest(file), principal=ALICE),
        lambda: library.attach_batch("shared", [AttachmentRequest(file)], principal=ALICE),
        lambda: library.cancel_batch("shared", "vsfb_" + 24 * "0", principal=ALICE),
        lambda: library.modify_file("shared", listed.file.id, {"a": 1}, principal=ALICE),
        lambda: library.detach("shared", listed.file.id, principal=ALICE),
    ]
    for call in calls:
        with pytest.raises(ReadOnlyError, match="yours to read, not to change"):
            call()
    assert documents(corpora, "shared") == {"ships.md": {}}


def test_the_operator_may_change_everything_and_owns_nothing(
    library: Library, corpora: Path
) -> None:
    store, file = store_with_file(library, BOB, "notes", CATS)
    created = library.create_store("shared")

    assert library.modify_file(store, file, {"year": 2024}).file.attributes == {"year": 2024}
    assert library.modify_store("notes", name="renamed").id == store
    assert wait_until_ingested(library, store, file).status == "completed"
    assert library.store("renamed", principal=BOB).id == store
    assert library.store("shared", principal=ALICE).id == created.id
    with pytest.raises(MissingError):
        library.store("shared", principal=BOB)
    library.delete_upload(file)
    assert library.delete_store("renamed") == store
    assert library.stores(ALL, principal=BOB).items == ()


def test_an_owner_may_modify_a_file_that_the_operator_attached(
    library: Library,
) -> None:
    store, _ = store_with_file(library, BOB, "notes", CATS)
    uploaded = library.upload("ships.md", SHIPS.encode()).id
    library.attach(store, AttachmentRequest(uploaded))
    wait_until_ingested(library, store, uploaded)

    library.modify_file(store, uploaded, {"language": "en"}, principal=BOB)

    assert wait_until_ingested(library, store, uploaded).attributes == {"language": "en"}
    with pytest.raises(MissingError):
        library.content(uploaded, principal=BOB)


def test_owners_survive_a_restart_and_a_reembedding(
    open_library: Callable[..., Library], corpora: Path, other_words: Embedder
) -> None:
    first = open_library()
    store, file = store_with_file(first, ALICE, "cats", CATS)
    first.close()
    corpus = Corpus.open(corpora, store)
    corpus.reembed(other_words)
    corpus.close()

    again = open_library(other_words)

    assert again.uploaded(file, principal=ALICE).owner == "alice"
    assert [found.text for found in again.search("cats", ["kitten"], principal=ALICE)] == [CATS]
    for call in (
        lambda: again.store(store, principal=BOB),
        lambda: again.uploaded(file, principal=BOB),
    ):
        with pytest.raises(MissingError):
            call()


def test_an_upload_of_an_earlier_version_has_no_owner(library: Library, corpora: Path) -> None:
    file = library.upload("cats.md", CATS.encode()).id
    record = corpora.parent / "files" / file / "record.json"
    fields = json.loads(record.read_bytes())
    del fields["owner"]
    record.write_text(json.dumps(fields))

    assert library.content(file) == CATS.encode()
    with pytest.raises(MissingError):
        library.content(file, principal=ALICE)


def test_a_damaged_corpus_is_reported_only_to_those_it_is_shared_with(
    library: Library, corpora: Path, shared: str
) -> None:
    (corpora / "shared" / "corpus.db").write_bytes(b"not a database at all, but long enough" * 100)

    with pytest.raises(CorpusError, match="is damaged"):
        library.store("shared", principal=ALICE)
    with pytest.raises(MissingError):
        library.store("shared", principal=BOB)


@pytest.mark.parametrize("by", ["id", "name"])
def test_an_open_corpus_is_hidden_from_other_principals(
    library: Library, corpora: Path, words: Embedder, tokenizer: Any, by: str
) -> None:
    identity, _ = store_with_file(library, ALICE, "cats", CATS)
    open_corpora = CorpusPool(corpora, words, tokenizer_digest(tokenizer))
    name = identity if by == "id" else "cats"

    with open_corpora.open(name, ALICE) as corpus:
        assert corpus.meta()["id"] == identity
    with pytest.raises(CorpusNotFoundError), open_corpora.open(name, BOB):
        pass
    with open_corpora.open(name) as corpus:
        assert corpus.meta()["id"] == identity
    open_corpora.close()


def test_a_corpus_replaced_by_another_owners_is_not_opened(
    library: Library,
    corpora: Path,
    words: Embedder,
    tokenizer: Any,
    shared: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between lookup and opening, the folder may be taken by another owner's corpus."""
    theirs = library.create_store("cats", principal=BOB).id
    monkeypatch.setattr("selection.corpus.corpus.find_corpus", lambda *_: corpora / theirs)

    with pytest.raises(CorpusNotFoundError, match="no corpus 'shared'"):
        Corpus.open(corpora, "shared", ALICE)


def test_a_selection_uses_only_what_its_principal_sees(
    library: Library, corpora: Path, words: Embedder, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    selector = Selector(SelectorConfig(corpora), embedder=ThreadedEmbedder(lambda: words))
    cats, _ = store_with_file(library, ALICE, "notes", CATS)
    store_with_file(library, BOB, "notes", SHIPS)

    def selected_texts(corpus: str, principal: Principal) -> list[str]:
        chosen = selector.select(
            SelectionRequest([Prompt("ship")], corpus, steps=2, principal=principal)
        )
        return [source.text for source, _ in chosen.sources]

    assert selected_texts("notes", ALICE) == selected_texts(cats, ALICE) == [CATS]
    assert selected_texts("notes", BOB) == selected_texts("shared", ALICE) == [SHIPS]
    for corpus in (cats, "shared", shared):
        with pytest.raises(CorpusNotFoundError):
            selected_texts(corpus, BOB)
    with pytest.raises(CorpusError, match="2 corpora are called"):
        selected_texts("notes", OPERATOR)
    selector.corpora.close()


def test_a_corpus_removed_during_a_lookup_is_ignored(
    library: Library, corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = store_with_file(library, ALICE, "cats", CATS)
    listed = [*list_corpora(corpora), "removed"]
    monkeypatch.setattr("selection.corpus.lookup.list_corpora", lambda _: listed)

    assert find_corpus(corpora, "cats", ALICE).name == store
    assert "removed" not in os.listdir(corpora)
