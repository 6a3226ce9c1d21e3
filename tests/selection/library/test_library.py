"""The library: vector stores are corpora, and attached files add and remove documents."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from selection.corpus.corpus import Corpus
from selection.corpus.lookup import list_corpora
from selection.corpus.sqlite_store import CorpusError, CorpusNotFoundError
from selection.embedding import Embedder
from selection.errors import LibraryError, MissingError
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.library.library import Library
from selection.library.records import AttachmentRequest
from selection.location import Location
from tests.selection.library_helpers import (
    ALL,
    CATS,
    SHIPS,
    PausableEmbedder,
    attach_and_wait,
    documents,
    long_text,
    wait_until_ingested,
)
from tests.selection.locations import in_a_folder


@pytest.fixture
def corpora(location: Location) -> Location:
    """Every place where corpora can be."""
    return location


@pytest.fixture
def add_by_command(corpora: Path, words: Embedder, tokenizer: Any) -> Callable[..., None]:
    """Create a corpus as `mayfly corpus add` does."""

    def add(name: str, *documents: Document) -> None:
        corpus = Corpus.create(corpora, name, words, tokenizer_digest(tokenizer))
        ingest(corpus, documents, words, tokenizer)
        corpus.close()

    return add


def test_a_store_is_a_corpus_found_by_name_and_by_id(library: Library, corpora: Path) -> None:
    created = library.create_store("notes", metadata={"owner": "me"}, description="what I noted")

    assert list_corpora(corpora) == ["notes"]
    assert created.id.startswith("vs_")
    assert (created.name, created.metadata, created.description) == (
        "notes",
        {"owner": "me"},
        "what I noted",
    )
    assert abs(created.created - time.time()) < 60
    for name in ("notes", created.id):
        assert library.store(name).id == created.id
        corpus = Corpus.open(corpora, name)
        assert corpus.name == "notes"
        corpus.close()


def test_a_corpus_of_the_command_line_is_a_store_with_its_documents_as_files(
    library: Library, corpora: Path, add_by_command: Callable[..., None]
) -> None:
    add_by_command(
        "animals", Document("cats.md", CATS, {"language": "en"}), Document("ships.md", SHIPS)
    )

    (store,) = library.stores(ALL).items
    files = [each.file for each in library.files(store.id, ALL).items]
    (best,) = library.search(store.id, ["kitten purrs"], max_results=1)

    assert (store.name, store.counts["completed"], sum(store.counts.values())) == ("animals", 2, 2)
    assert [(f.name, f.status, f.attributes, f.chunking) for f in files] == [
        ("cats.md", "completed", {"language": "en"}, None),
        ("ships.md", "completed", {}, None),
    ]
    assert (best.file, best.name, best.attributes) == (files[0].id, "cats.md", {"language": "en"})
    assert library.texts(store.id, best.file) == (best.text,)
    with pytest.raises(LibraryError, match="was not uploaded"):
        library.modify_file(store.id, best.file, {"language": "de"})
    library.detach(store.id, best.file)
    assert list(documents(corpora, "animals")) == ["ships.md"]


def test_examples_are_found_by_their_prompts_and_read_as_text(library: Library) -> None:
    library.create_store("notes")
    rows = (
        '{"text": "Ships sail the seas."}\n{"prompt": "Who sails?", "completion": "The captain."}\n'
    )

    file = attach_and_wait(library, "notes", "rows.jsonl", rows)
    (best,) = library.search("notes", ["Who sails?"], max_results=1)

    assert best.text == "user: Who sails?\nassistant: The captain."
    assert best.score == pytest.approx(1.0)
    assert library.texts("notes", file) == ("Ships sail the seas.", best.text)


def test_a_reembedding_does_not_change_the_id(
    library: Library, corpora: Path, add_by_command: Callable[..., None], other_words: Embedder
) -> None:
    add_by_command("animals", Document("cats.md", CATS))
    before = library.store("animals")

    corpus = Corpus.open(corpora, "animals")
    corpus.reembed(other_words)
    corpus.close()

    assert library.store("animals").id == before.id
    assert library.stores(ALL).items[0].created == before.created


def test_any_name_is_accepted_as_display_name(
    library: Library, corpora: Path, tmp_path: Path
) -> None:
    first, second = library.create_store("notes"), library.create_store("notes")
    free, nameless = library.create_store("Fragen & Antworten ü/../x"), library.create_store()
    like_an_id = library.create_store(first.id)

    folders = {"notes", second.id, free.id, nameless.id, like_an_id.id}
    assert set(list_corpora(corpora)) == folders
    assert [entry.name for entry in library.stores(ALL).items] == [
        "notes",
        "notes",
        "Fragen & Antworten ü/../x",
        nameless.id,
        first.id,
    ]
    assert library.store("notes").id == first.id
    assert library.store("Fragen & Antworten ü/../x").id == free.id
    assert library.store(first.id).id == first.id
    assert {*os.listdir(tmp_path)} <= {"corpora", "files", "cache"}


def test_an_ambiguous_display_name_is_refused(library: Library, corpora: Path) -> None:
    for _ in range(2):
        library.create_store("my notes")

    for call, kind in (
        (library.store, LibraryError),
        (lambda name: Corpus.open(corpora, name), CorpusError),
    ):
        with pytest.raises(kind, match="2 corpora are called 'my notes': name one by its id"):
            call("my notes")


def test_a_renamed_store_is_found_by_both_names(library: Library, corpora: Path) -> None:
    store = library.create_store("notes", metadata={"a": "1"})

    renamed = library.modify_store(store.id, name="old notes")
    noted = library.modify_store("old notes", metadata={"b": "2"})

    assert (renamed.name, renamed.metadata) == ("old notes", {"a": "1"})
    assert (noted.id, noted.name, noted.metadata) == (store.id, "old notes", {"b": "2"})
    assert library.store("notes") == library.store("old notes")


def test_deleting_a_store_frees_its_name(library: Library, corpora: Path) -> None:
    store = library.create_store("notes")
    attach_and_wait(library, store.id, "cats.md", CATS)
    assert library.search("notes", ["kitten"])

    assert library.delete_store("notes") == store.id

    assert list_corpora(corpora) == []
    with pytest.raises(MissingError, match=store.id):
        library.store(store.id)
    again = library.create_store("notes")
    assert again.id != store.id
    assert library.search("notes", ["kitten"]) == ()
    assert len(library.uploads(ALL).items) == 1


def test_a_corpus_of_another_embedder_is_only_listed(
    library: Library, corpora: Path, words: Embedder, other_words: Embedder, tokenizer: Any
) -> None:
    Corpus.create(corpora, "theirs", other_words, tokenizer_digest(tokenizer)).close()
    Corpus.create(corpora, "tokens", words, "another tokenizer").close()
    file = library.upload("cats.md", CATS.encode()).id

    assert {entry.name for entry in library.stores(ALL).items} == {"theirs", "tokens"}
    for store, reason in (
        ("theirs", "mayfly corpus reembed theirs"),
        ("tokens", "another model's tokenizer"),
    ):
        with pytest.raises(LibraryError, match=reason):
            library.attach(store, AttachmentRequest(file))
        with pytest.raises(LibraryError, match=reason):
            library.search(store, ["cat"])
        assert library.files(store, ALL).items == ()


@in_a_folder
def test_a_damaged_corpus_does_not_hide_the_others(library: Library, corpora: Path) -> None:
    library.create_store("sound")
    (corpora / "damaged").mkdir()
    (corpora / "damaged" / "corpus.db").write_bytes(b"not a database at all, but long enough" * 100)

    file = attach_and_wait(library, "sound", "cats.md", CATS)
    assert [entry.name for entry in library.stores(ALL).items] == ["sound"]
    library.delete_upload(file)
    assert documents(corpora, "sound") == {}


@in_a_folder
def test_a_full_disk_leaves_nothing_of_a_store(library: Library, corpora: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))
    try:
        with pytest.raises(CorpusError, match="was not changed"):
            library.create_store("notes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert os.listdir(corpora) == []


def test_the_command_line_adds_by_id_but_cannot_choose_one(
    library: Library, corpora: Path, add_by_command: Callable[..., None]
) -> None:
    store = library.create_store("notes")

    add_by_command(store.id, Document("cats.md", CATS))
    with pytest.raises(CorpusNotFoundError):
        add_by_command("vs_" + 24 * "0", Document("cats.md", CATS))

    assert list_corpora(corpora) == ["notes"]
    assert list(documents(corpora, "notes")) == ["cats.md"]


def test_an_attached_file_is_ingested_in_the_background(
    open_library: Callable[..., Library], corpora: Path, words: Embedder
) -> None:
    embedder = PausableEmbedder(words)
    library = open_library(embedder)
    store = library.create_store("notes").id
    file = library.upload("cats.md", CATS.encode()).id

    with embedder.paused():
        attachment = library.attach(
            store, AttachmentRequest(file, {"language": "en", "year": 2024, "draft": False})
        )
        assert embedder.waiting.wait(30)
        during = library.store(store)
    done = wait_until_ingested(library, store, file)

    assert (attachment.store, attachment.file.status, attachment.file.problem) == (
        store,
        "in_progress",
        None,
    )
    assert during.counts == {"in_progress": 1, "completed": 0, "failed": 0, "cancelled": 0}
    assert (done.status, done.name, done.problem, done.chunking) == (
        "completed",
        "cats.md",
        None,
        (256, 0),
    )
    assert done.bytes > len(CATS)
    assert library.store(store).counts["completed"] == 1
    assert documents(corpora, "notes") == {
        f"{file}/cats.md": {"language": "en", "year": 2024, "draft": False}
    }
    assert library.texts(store, file) == (CATS,)


def test_rows_of_tables_become_documents_with_the_files_attributes(
    library: Library, corpora: Path
) -> None:
    library.create_store("rows")
    rows = [{"id": "a", "text": CATS, "metadata": {"kind": "cat", "n": 1}}, {"text": SHIPS}]
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": [CATS, SHIPS]}), table)

    lines = attach_and_wait(
        library, "rows", "pets.JSONL", "\n".join(map(json.dumps, rows)), attributes={"n": 2}
    )
    parquet = attach_and_wait(library, "rows", "pets.parquet", table.getvalue())

    assert documents(corpora, "rows") == {
        f"{lines}/pets.JSONL#a": {"kind": "cat", "n": 2},
        f"{lines}/pets.JSONL#2": {"n": 2},
        f"{parquet}/pets.parquet#1": {},
        f"{parquet}/pets.parquet#2": {},
    }
    assert [each.file.name for each in library.files("rows", ALL).items] == [
        "pets.JSONL",
        "pets.parquet",
    ]


def test_chunk_lengths_are_counted_in_tokens_of_the_model(library: Library, tokenizer: Any) -> None:
    library.create_store("notes")
    text = long_text(60)

    file = attach_and_wait(library, "notes", "long.txt", text, chunking=(64, 16))

    texts = library.texts("notes", file)
    assert library.file("notes", file).file.chunking == (64, 16)
    assert max(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts) <= 64 + 1
    assert len(texts) > len(tokenizer(text)["input_ids"]) / 64
    starts = [text.index(each) for each in texts]
    for start, each, following in zip(starts, texts, starts[1:], strict=False):
        assert start < following < start + len(each)


@pytest.mark.parametrize("cut", [(7, 0), (4097, 0), (100, 51), (100, -1)])
def test_chunks_outside_the_limits_are_refused(library: Library, cut: tuple[int, int]) -> None:
    library.create_store("notes")
    file = library.upload("cats.md", CATS.encode()).id

    with pytest.raises(LibraryError, match="8 to 4096 tokens of the served model"):
        library.attach("notes", AttachmentRequest(file, chunking=cut))

    assert library.files("notes", ALL).items == ()


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        (
            "picture.png",
            b"\x89PNG\r\n\x1a\n\xff\xfe",
            "unsupported_file",
            "picture.png is not UTF-8 text",
        ),
        ("nulls.bin", b"abc\0def", "unsupported_file", "null character"),
        (
            "rows.jsonl",
            b'{"text": "fine enough"}\n{"text": oh no}\n',
            "invalid_file",
            "rows.jsonl, line 2: not JSON",
        ),
        (
            "rows.jsonl",
            b'{"txt": "a"}',
            "invalid_file",
            "rows.jsonl, row 1: expected a field `text`",
        ),
        ("rows.ndjson", b'{"text": "\\ud800 is half"}', "invalid_file", "Unicode"),
        ("rows.parquet", b"PAR1 but not really", "invalid_file", "not a Parquet file"),
        ("blank.txt", b"\n", "invalid_file", "no text of two tokens"),
    ],
)
def test_an_unreadable_file_fails_with_a_reason_and_leaves_nothing(
    library: Library,
    corpora: Path,
    tmp_path: Path,
    name: str,
    content: bytes,
    code: str,
    message: str,
) -> None:
    library.create_store("notes")

    file = library.file("notes", attach_and_wait(library, "notes", name, content)).file

    assert (file.status, file.bytes) == ("failed", 0)
    assert file.problem is not None
    assert file.problem.code == code
    assert message in file.problem.message
    assert str(tmp_path) not in file.problem.message
    assert documents(corpora, "notes") == {}
    assert library.store("notes").counts["failed"] == 1


def test_a_file_that_fails_late_leaves_nothing(library: Library, corpora: Path) -> None:
    library.create_store("notes")
    complete = attach_and_wait(library, "notes", "cats.md", CATS)
    rows = [json.dumps({"text": f"Row {i} is about nothing but itself."}) for i in range(300)]

    broken = attach_and_wait(library, "notes", "rows.jsonl", "\n".join([*rows, "{"]))

    assert library.file("notes", broken).file.status == "failed"
    assert list(documents(corpora, "notes")) == [f"{complete}/cats.md"]
    assert {
        found.file for found in library.search("notes", ["Row 7 is about"], max_results=50)
    } == {complete}


def test_a_file_attached_to_two_stores_is_detached_from_one(
    library: Library, corpora: Path
) -> None:
    for store in ("one", "two"):
        library.create_store(store)
    file = attach_and_wait(library, "one", "cats.md", CATS)
    library.attach("two", AttachmentRequest(file))
    wait_until_ingested(library, "two", file)

    library.detach("one", file)

    assert (documents(corpora, "one"), list(documents(corpora, "two"))) == ({}, [f"{file}/cats.md"])
    assert library.search("one", ["kitten"]) == ()
    assert len(library.search("two", ["kitten"])) == 1
    assert library.uploaded(file).name == "cats.md"
    with pytest.raises(MissingError, match=file):
        library.file("one", file)


def test_a_deleted_file_is_detached_from_every_store(library: Library, corpora: Path) -> None:
    for store in ("one", "two"):
        library.create_store(store)
    file = attach_and_wait(library, "one", "cats.md", CATS)
    library.attach("two", AttachmentRequest(file))
    wait_until_ingested(library, "two", file)
    stays = attach_and_wait(library, "two", "ships.md", SHIPS)

    library.delete_upload(file)

    assert (documents(corpora, "one"), list(documents(corpora, "two"))) == (
        {},
        [f"{stays}/ships.md"],
    )
    assert [upload.id for upload in library.uploads(ALL).items] == [stays]
    for call in (library.uploaded, library.content, library.delete_upload):
        with pytest.raises(MissingError, match=file):
            call(file)
    with pytest.raises(MissingError, match=file):
        library.attach("one", AttachmentRequest(file))


def test_filters_use_modified_attributes(library: Library, corpora: Path) -> None:
    library.create_store("notes")
    file = attach_and_wait(
        library, "notes", "cats.md", CATS, attributes={"language": "en"}, chunking=(64, 0)
    )

    library.modify_file("notes", file, {"language": "de"})
    after = wait_until_ingested(library, "notes", file)

    assert (after.attributes, after.chunking, after.status) == (
        {"language": "de"},
        (64, 0),
        "completed",
    )
    assert documents(corpora, "notes") == {f"{file}/cats.md": {"language": "de"}}
    german = {"type": "eq", "key": "language", "value": "de"}
    assert [found.attributes for found in library.search("notes", ["cat"], filter=german)] == [
        {"language": "de"}
    ]


@pytest.mark.parametrize(
    "identity", ["", "..", "../files", "file-../../x", "doc-1", "doc-" + 30 * "9", "file-\ud800"]
)
def test_an_invalid_id_is_missing(library: Library, identity: str) -> None:
    library.create_store("notes")

    calls: list[Callable[[], object]] = [
        lambda: library.uploaded(identity),
        lambda: library.content(identity),
        lambda: library.delete_upload(identity),
        lambda: library.attach("notes", AttachmentRequest(identity)),
        lambda: library.file("notes", identity),
        lambda: library.texts("notes", identity),
        lambda: library.detach("notes", identity),
        lambda: library.store(identity),
        lambda: library.delete_store(identity),
        lambda: library.search(identity, ["x"]),
        lambda: library.batch("notes", identity),
    ]
    for call in calls:
        with pytest.raises(MissingError):
            call()
    assert [entry.name for entry in library.stores(ALL).items] == ["notes"]


@pytest.mark.parametrize(
    "attributes",
    [
        {"a": [1]},
        {"a": {"b": 1}},
        {"a": None},
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": 1 << 63},
        {"a": "x" * 513},
        {"a": "\ud800"},
        {"a": "\0"},
        {"": 1},
        {"x" * 65: 1},
        {"\udfff": 1},
        {f"k{i}": i for i in range(17)},
        ["a"],
        "a",
    ],
)
def test_invalid_attributes_are_refused(library: Library, attributes: Any) -> None:
    library.create_store("notes")
    file = library.upload("cats.md", CATS.encode()).id

    with pytest.raises(LibraryError, match="`attributes"):
        library.attach("notes", AttachmentRequest(file, attributes))

    assert library.files("notes", ALL).items == ()


def test_all_results_can_be_pickled(library: Library) -> None:
    store = library.create_store("notes")
    file = attach_and_wait(library, "notes", "cats.md", CATS, attributes={"a": 1})
    batch = library.attach_batch("notes", [AttachmentRequest(file)])

    for value in (
        store,
        library.stores(ALL),
        library.uploaded(file),
        library.file("notes", file),
        batch,
        library.search("notes", ["kitten"]),
        Library.search,
    ):
        assert pickle.loads(pickle.dumps(value)) == value
    for problem in (LibraryError("why"), MissingError("why")):
        again = pickle.loads(pickle.dumps(problem))
        assert (type(again), str(again)) == (type(problem), "why")


def test_folders_outside_the_corpora_are_not_stores(library: Library, corpora: Path) -> None:
    with pytest.raises(CorpusNotFoundError):
        Corpus.open(corpora, "files")
    assert library.stores(ALL).items == ()
