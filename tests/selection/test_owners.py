"""Two owners in one library: neither sees, changes or learns of what is the other's; an operator
sees both.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selection import selector as selector_module
from selection.access import OPERATOR, Principal
from selection.corpus.corpus import Corpus, find_corpus, list_corpora
from selection.corpus.pool import CorpusPool
from selection.corpus.sqlite_store import CorpusError, CorpusNotFoundError
from selection.embedding import Embedder, Prompt
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.library.library import Library
from selection.library.records import AttachmentRequest, PageRequest
from selection.library.uploads import LibraryError, MissingError, ReadOnlyError
from selection.request import SelectionRequest
from selection.selector import Selector, SelectorConfig
from tests.selection.libraries import ALL, CATS, SHIPS, documents, settled

ALICE, BOB = Principal("alice", frozenset({"shared"})), Principal("bob", frozenset())


def filled(library: Library, reader: Principal, name: str, text: str) -> tuple[str, str]:
    """A store of a reader's with a file of theirs; the ids of both."""
    store = library.create_store(name, reader=reader).id
    file = library.upload(f"{name}.md", text.encode(), reader=reader).id
    library.attach(store, AttachmentRequest(file), reader=reader)
    assert settled(library, store, file).status == "completed"
    return store, file


@pytest.fixture
def shared(corpora: Path, words: Embedder, tokenizer: Any) -> str:
    """A corpus of the command line's, nobody's, that alice may read; its id."""
    corpus = Corpus.create(corpora, "shared", words, tokenizer_digest(tokenizer))
    ingest(corpus, [Document("ships.md", SHIPS)], words, tokenizer)
    identity = corpus.meta()["id"]
    corpus.close()
    return identity


def test_each_lists_what_is_theirs(library: Library, shared: str) -> None:
    cats, alices = filled(library, ALICE, "cats", CATS)
    ships, bobs = filled(library, BOB, "ships", SHIPS)

    def seen(reader: Principal) -> tuple[set[str], set[str]]:
        stores, files = library.stores(ALL, reader=reader), library.uploads(ALL, reader=reader)
        return {store.id for store in stores.items}, {file.id for file in files.items}

    assert seen(ALICE) == ({shared, cats}, {alices})
    assert seen(BOB) == ({ships}, {bobs})
    assert seen(OPERATOR) == ({shared, cats, ships}, {alices, bobs})


def test_a_cursor_tells_nothing_of_what_is_anothers(
    library: Library, corpora: Path, shared: str
) -> None:
    cats, _ = filled(library, ALICE, "cats", CATS)
    filled(library, BOB, "ships", SHIPS)
    made_up = cats[:-10] + "0123456789"  # of the same time
    old, never = "vs_" + 24 * "e", "vs_" + 24 * "f"  # random ones, of earlier versions
    with sqlite3.connect(corpora / "shared" / "corpus.db") as database:
        database.execute("UPDATE meta SET value = ? WHERE key = 'id'", (old,))
    database.close()

    for order in ("asc", "desc"):
        theirs, nobodys = (
            library.stores(PageRequest(order=order, after=each), reader=BOB)
            for each in (cats, made_up)
        )
        assert theirs == nobodys
    for cursor in (old, never):
        with pytest.raises(LibraryError, match="is not in this list"):
            library.stores(PageRequest(after=cursor), reader=BOB)
    library.delete_store(old)
    with pytest.raises(LibraryError, match="is not in this list"):
        library.stores(PageRequest(after=old), reader=BOB)
    assert library.stores(PageRequest(after=old, order="asc")).items == library.stores(ALL).items
    assert (
        library.stores(PageRequest(after=old, order="asc"), reader=ALICE).items
        == library.stores(ALL, reader=ALICE).items
    )


@pytest.mark.parametrize("by", ["id", "name"])
def test_what_is_anothers_is_not_there(library: Library, by: str) -> None:
    identity, file = filled(library, ALICE, "cats", CATS)
    batch = library.attach_batch(identity, [AttachmentRequest(file)], reader=ALICE).id
    settled(library, identity, file)
    own, _ = filled(library, BOB, "ships", SHIPS)
    store = identity if by == "id" else "cats"

    asks: list[Callable[[], object]] = [
        lambda: library.store(store, reader=BOB),
        lambda: library.modify_store(store, name="mine", reader=BOB),
        lambda: library.delete_store(store, reader=BOB),
        lambda: library.search(store, ["kitten"], reader=BOB),
        lambda: library.files(store, ALL, reader=BOB),
        lambda: library.file(store, file, reader=BOB),
        lambda: library.texts(store, file, reader=BOB),
        lambda: library.modify_file(store, file, {"a": 1}, reader=BOB),
        lambda: library.detach(store, file, reader=BOB),
        lambda: library.batch(store, batch, reader=BOB),
        lambda: library.cancel_batch(store, batch, reader=BOB),
        lambda: library.uploaded(file, reader=BOB),
        lambda: library.content(file, reader=BOB),
        lambda: library.delete_upload(file, reader=BOB),
        lambda: library.attach(own, AttachmentRequest(file), reader=BOB),
        lambda: library.attach_batch(own, [AttachmentRequest(file)], reader=BOB),
        lambda: library.create_store("loot", wanted=[AttachmentRequest(file)], reader=BOB),
    ]
    for ask in asks:
        with pytest.raises(MissingError):
            ask()
    assert library.store(identity, reader=ALICE).name == "cats"
    assert library.texts(identity, file, reader=ALICE) == (CATS,)
    assert len(library.stores(ALL).items) == 2


def test_a_refusal_tells_nothing_of_the_others(library: Library, corpora: Path) -> None:
    filled(library, ALICE, "cats", CATS)
    own, _ = filled(library, BOB, "ships", SHIPS)

    for name in ("cats", "nobody's"):
        with pytest.raises(MissingError) as missing:
            library.store(name, reader=BOB)
        assert str(missing.value) == f"there is no vector store {name!r}"
        with pytest.raises(CorpusNotFoundError) as refused:
            find_corpus(corpora, name, BOB)
        assert f"there is no corpus {name!r} (there are: {own});" in str(refused.value)


def test_a_name_may_be_taken_by_both_and_means_to_each_their_own(
    library: Library, corpora: Path
) -> None:
    first, _ = filled(library, ALICE, "notes", CATS)
    second, _ = filled(library, BOB, "notes", SHIPS)

    assert library.store("notes", reader=ALICE).id == first
    assert library.store("notes", reader=BOB).id == second
    assert [found.text for found in library.search("notes", ["ship"], reader=ALICE)] == [CATS]
    assert [found.text for found in library.search("notes", ["ship"], reader=BOB)] == [SHIPS]
    assert library.delete_store("notes", reader=BOB) == second
    assert library.store("notes", reader=ALICE).id == first


def test_no_owner_takes_a_name_from_the_command_line(
    library: Library, corpora: Path, words: Embedder
) -> None:
    squatted = library.create_store("shared", reader=BOB).id

    Corpus.create(corpora, "shared", words, "t").close()

    assert sorted(list_corpora(corpora)) == ["shared", squatted]
    assert library.store("shared", reader=ALICE).id != squatted
    assert library.store("shared", reader=BOB).id == squatted
    assert squatted not in {store.id for store in library.stores(ALL, reader=ALICE).items}


def test_what_may_be_read_may_not_be_changed(library: Library, corpora: Path, shared: str) -> None:
    file = library.upload("cats.md", CATS.encode(), reader=ALICE).id
    (listed,) = library.files("shared", ALL, reader=ALICE).items

    assert library.store("shared", reader=ALICE).id == shared
    assert library.texts(shared, listed.file.id, reader=ALICE) == (SHIPS,)
    assert [found.text for found in library.search("shared", ["ship"], reader=ALICE)] == [SHIPS]
    asks: list[Callable[[], object]] = [
        lambda: library.modify_store("shared", name="mine", reader=ALICE),
        lambda: library.delete_store(shared, reader=ALICE),
        lambda: library.attach("shared", AttachmentRequest(file), reader=ALICE),
        lambda: library.attach_batch("shared", [AttachmentRequest(file)], reader=ALICE),
        lambda: library.cancel_batch("shared", "vsfb_" + 24 * "0", reader=ALICE),
        lambda: library.modify_file("shared", listed.file.id, {"a": 1}, reader=ALICE),
        lambda: library.detach("shared", listed.file.id, reader=ALICE),
    ]
    for ask in asks:
        with pytest.raises(ReadOnlyError, match="yours to read, not to change"):
            ask()
    assert documents(corpora, "shared") == {"ships.md": {}}


def test_an_operator_changes_everything_and_what_they_make_is_nobodys(
    library: Library, corpora: Path
) -> None:
    store, file = filled(library, BOB, "notes", CATS)
    made = library.create_store("shared")

    assert library.modify_file(store, file, {"year": 2024}).file.attributes == {"year": 2024}
    assert library.modify_store("notes", name="renamed").id == store
    assert settled(library, store, file).status == "completed"
    assert library.store("renamed", reader=BOB).id == store
    assert library.store("shared", reader=ALICE).id == made.id
    with pytest.raises(MissingError):
        library.store("shared", reader=BOB)
    library.delete_upload(file)
    assert library.delete_store("renamed") == store
    assert library.stores(ALL, reader=BOB).items == ()


def test_a_file_that_an_operator_attached_is_read_anew_for_the_owner_of_the_store(
    library: Library,
) -> None:
    store, _ = filled(library, BOB, "notes", CATS)
    given = library.upload("ships.md", SHIPS.encode()).id
    library.attach(store, AttachmentRequest(given))
    settled(library, store, given)

    library.modify_file(store, given, {"language": "en"}, reader=BOB)

    assert settled(library, store, given).attributes == {"language": "en"}
    with pytest.raises(MissingError):
        library.content(given, reader=BOB)


def test_owners_outlive_the_process_and_an_embedding_anew(
    opened: Callable[..., Library], corpora: Path, other_words: Embedder
) -> None:
    first = opened()
    store, file = filled(first, ALICE, "cats", CATS)
    first.close()
    corpus = Corpus.open(corpora, store)
    corpus.reembed(other_words)
    corpus.close()

    again = opened(other_words)

    assert again.uploaded(file, reader=ALICE).owner == "alice"
    assert [found.text for found in again.search("cats", ["kitten"], reader=ALICE)] == [CATS]
    for ask in (lambda: again.store(store, reader=BOB), lambda: again.uploaded(file, reader=BOB)):
        with pytest.raises(MissingError):
            ask()


def test_an_upload_from_before_there_were_owners_is_nobodys(
    library: Library, corpora: Path
) -> None:
    file = library.upload("cats.md", CATS.encode()).id
    record = corpora.parent / "files" / file / "record.json"
    fields = json.loads(record.read_bytes())
    del fields["owner"]
    record.write_text(json.dumps(fields))

    assert library.content(file) == CATS.encode()
    with pytest.raises(MissingError):
        library.content(file, reader=ALICE)


def test_a_damaged_corpus_is_nobody_elses(library: Library, corpora: Path, shared: str) -> None:
    (corpora / "shared" / "corpus.db").write_bytes(b"not a database at all, but long enough" * 100)

    with pytest.raises(CorpusError, match="is damaged"):
        library.store("shared", reader=ALICE)
    with pytest.raises(MissingError):
        library.store("shared", reader=BOB)


@pytest.mark.parametrize("by", ["id", "name"])
def test_a_corpus_that_stays_open_is_open_to_those_who_see_it(
    library: Library, corpora: Path, words: Embedder, tokenizer: Any, by: str
) -> None:
    identity, _ = filled(library, ALICE, "cats", CATS)
    open_corpora = CorpusPool(corpora, words, tokenizer_digest(tokenizer))
    name = identity if by == "id" else "cats"

    with open_corpora.use(name, ALICE) as corpus:
        assert corpus.meta()["id"] == identity
    with pytest.raises(CorpusNotFoundError), open_corpora.use(name, BOB):
        pass
    with open_corpora.use(name) as corpus:
        assert corpus.meta()["id"] == identity
    open_corpora.close()


def test_a_corpus_that_another_puts_in_its_place_meanwhile_is_not_opened(
    library: Library,
    corpora: Path,
    words: Embedder,
    tokenizer: Any,
    shared: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What `find_corpus` found may be gone, and its folder another's, once it is opened."""
    theirs = library.create_store("cats", reader=BOB).id
    monkeypatch.setattr("selection.corpus.corpus.find_corpus", lambda *_: corpora / theirs)

    with pytest.raises(CorpusNotFoundError, match="no corpus 'shared'"):
        Corpus.open(corpora, "shared", ALICE)


def test_a_selection_learns_from_what_its_reader_sees_only(
    library: Library, corpora: Path, words: Embedder, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selector_module, "load_embedder", lambda *_, **__: words)
    selector = Selector(SelectorConfig(corpora))
    cats, _ = filled(library, ALICE, "notes", CATS)
    filled(library, BOB, "notes", SHIPS)

    def learnt(corpus: str, reader: Principal) -> list[str]:
        chosen = selector.select(
            SelectionRequest([Prompt("ship")], corpus, steps=2, principal=reader)
        )
        return [source.text for source, _ in chosen.sources]

    assert learnt("notes", ALICE) == learnt(cats, ALICE) == [CATS]
    assert learnt("notes", BOB) == learnt("shared", ALICE) == [SHIPS]
    for corpus in (cats, "shared", shared):
        with pytest.raises(CorpusNotFoundError):
            learnt(corpus, BOB)
    with pytest.raises(CorpusError, match="2 corpora are called"):
        learnt("notes", OPERATOR)
    selector.corpora.close()


def test_a_corpus_whose_folder_goes_meanwhile_is_passed_over(
    library: Library, corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = filled(library, ALICE, "cats", CATS)
    listed = [*list_corpora(corpora), "gone"]
    monkeypatch.setattr("selection.corpus.corpus.list_corpora", lambda _: listed)

    assert find_corpus(corpora, "cats", ALICE).name == store
    assert "gone" not in os.listdir(corpora)
