"""File batches: the outcome of files that were attached together, whatever happens to these files
in the meantime.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selection.corpus.corpus import Corpus
from selection.corpus.tables.attachment import STATUSES
from selection.embedding import Embedder
from selection.errors import MissingError
from selection.ingest.ingest import tokenizer_digest
from selection.library.library import Library
from selection.library.records import AttachmentRequest, PageRequest
from selection.location import Location
from tests.selection.library_helpers import (
    ALL,
    CATS,
    SHIPS,
    PausableEmbedder,
    documents,
    wait_until_ingested,
)
from tests.selection.locations import in_a_folder


@pytest.fixture
def corpora(location: Location) -> Location:
    """Every place where corpora can be."""
    return location


def upload(library: Library, count: int) -> list[str]:
    return [library.upload(f"{i}.md", f"{CATS} {i}".encode()).id for i in range(count)]


def counts(library: Library, batch: str) -> dict[str, int]:
    """The number of the batch's files of each status that occurs."""
    return {
        status: count for status, count in library.batch("notes", batch).counts.items() if count
    }


def statuses(library: Library, batch: str) -> list[tuple[str, str]]:
    return [
        (each.file.id, each.file.status) for each in library.files("notes", ALL, batch=batch).items
    ]


@pytest.fixture
def embedder(words: Embedder) -> PausableEmbedder:
    return PausableEmbedder(words)


@pytest.fixture
def notes(open_library: Callable[..., Library], embedder: PausableEmbedder) -> Library:
    """A library with a store named `notes`."""
    library = open_library(embedder)
    library.create_store("notes")
    return library


def test_a_batch_keeps_its_files_when_they_are_attached_again(notes: Library) -> None:
    first, second, third = files = upload(notes, 3)
    batch = notes.attach_batch(
        "notes", [AttachmentRequest(file, {"by": 1}, (64, 0)) for file in files]
    )
    for file in files:
        wait_until_ingested(notes, "notes", file)

    notes.attach("notes", AttachmentRequest(first, {"by": 2}))
    again = notes.attach_batch(
        "notes", [AttachmentRequest(file, {"by": 3}) for file in (second, third)]
    )
    for file in files:
        wait_until_ingested(notes, "notes", file)

    assert counts(notes, batch.id) == {"completed": 3}
    assert counts(notes, again.id) == {"completed": 2}
    assert notes.batch("notes", batch.id).created == batch.created
    assert statuses(notes, batch.id) == [(file, "completed") for file in files]
    listed = [each.file for each in notes.files("notes", ALL, batch=batch.id).items]
    assert [(file.attributes, file.chunking, file.batch) for file in listed] == [
        ({"by": 1}, (64, 0), batch.id)
    ] * 3
    now = [each.file.attributes for each in notes.files("notes", ALL).items]
    assert now == [{"by": 2}, {"by": 3}, {"by": 3}]


def test_the_outcome_of_a_file_in_a_batch_is_final(
    notes: Library, embedder: PausableEmbedder
) -> None:
    (good,) = upload(notes, 1)
    bad = notes.upload("bad.md", b"\xff\xfe").id
    batch = notes.attach_batch("notes", [AttachmentRequest(good), AttachmentRequest(bad)]).id
    for file in (good, bad):
        wait_until_ingested(notes, "notes", file)

    with embedder.paused():
        notes.attach("notes", AttachmentRequest(good))
        during = counts(notes, batch)
        notes.delete_upload(bad)
        notes.detach("notes", good)

    assert during == counts(notes, batch) == {"completed": 1, "failed": 1}
    assert statuses(notes, batch) == [(good, "completed"), (bad, "failed")]
    (failed,) = notes.files("notes", ALL, batch=batch, status="failed").items
    assert failed.file.problem is not None
    assert failed.file.problem.code == "unsupported_file"
    assert failed.file.bytes == 0
    with pytest.raises(MissingError):
        notes.file("notes", bad)


def test_members_in_progress_follow_the_status_of_their_file(
    notes: Library, embedder: PausableEmbedder
) -> None:
    again_alone, again_in_batch, detached, deleted, untouched = files = upload(notes, 5)
    with embedder.paused():
        first = notes.attach_batch("notes", [AttachmentRequest(file) for file in files]).id
        notes.attach("notes", AttachmentRequest(again_alone))
        second = notes.attach_batch("notes", [AttachmentRequest(again_in_batch)]).id
        notes.detach("notes", detached)
        notes.delete_upload(deleted)
        during = counts(notes, first)
    for file in (again_alone, again_in_batch, untouched):
        wait_until_ingested(notes, "notes", file)

    assert during == {"in_progress": 3, "cancelled": 2}
    assert counts(notes, first) == {"completed": 3, "cancelled": 2}
    assert not notes.batch("notes", first).cancelled
    assert counts(notes, second) == {"completed": 1}


def test_cancelling_a_batch_spares_files_that_were_attached_again(
    notes: Library, embedder: PausableEmbedder, corpora: Path
) -> None:
    again_alone, again_in_batch, untouched = files = upload(notes, 3)
    with embedder.paused():
        first = notes.attach_batch("notes", [AttachmentRequest(file) for file in files]).id
        notes.attach("notes", AttachmentRequest(again_alone))
        second = notes.attach_batch("notes", [AttachmentRequest(again_in_batch)]).id
        cancelled = notes.cancel_batch("notes", first)
        statuses_during = [notes.file("notes", file).file.status for file in files]
    for file in files:
        wait_until_ingested(notes, "notes", file)

    assert cancelled.cancelled
    assert counts(notes, first) == {"cancelled": 3}
    assert statuses_during == ["in_progress", "in_progress", "cancelled"]
    assert counts(notes, second) == {"completed": 1}
    assert {name.split("/")[0] for name in documents(corpora, "notes")} == {
        again_alone,
        again_in_batch,
    }
    assert notes.file("notes", untouched).file.status == "cancelled"


def test_cancelling_a_batch_does_not_change_completed_files(
    notes: Library, embedder: PausableEmbedder
) -> None:
    (file,) = upload(notes, 1)
    batch = notes.attach_batch("notes", [AttachmentRequest(file)]).id
    wait_until_ingested(notes, "notes", file)

    with embedder.paused():
        notes.modify_file("notes", file, {"year": 2024})
        after = notes.cancel_batch("notes", batch)
        statuses_during = notes.file("notes", file).file.status

    assert (after.cancelled, counts(notes, batch), statuses_during) == (
        False,
        {"completed": 1},
        "in_progress",
    )
    assert wait_until_ingested(notes, "notes", file).attributes == {"year": 2024}


def test_a_file_given_twice_in_a_batch_is_one_file_with_its_last_attributes(notes: Library) -> None:
    first, second = upload(notes, 2)

    batch = notes.attach_batch(
        "notes",
        [
            AttachmentRequest(first, {"n": 1}),
            AttachmentRequest(second),
            AttachmentRequest(first, {"n": 2}),
        ],
    ).id
    for file in (first, second):
        wait_until_ingested(notes, "notes", file)

    assert statuses(notes, batch) == [(first, "completed"), (second, "completed")]
    assert notes.files("notes", PageRequest(1, "asc"), batch=batch).items[0].file.attributes == {
        "n": 2
    }


# A corpus as an earlier version created it, old_corpus batches had tables of their own.
_OLD = """
CREATE TABLE attachments (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, attributes TEXT NOT NULL,
    max_length INTEGER, overlap INTEGER, batch TEXT, status TEXT NOT NULL, code TEXT, message TEXT,
    attached INTEGER NOT NULL DEFAULT (unixepoch()));
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL,
    metadata TEXT NOT NULL, added INTEGER NOT NULL DEFAULT (unixepoch()),
    file TEXT REFERENCES attachments(id));
CREATE INDEX documents_by_file ON documents(file);
CREATE TABLE sequences (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    document INTEGER NOT NULL REFERENCES documents(id) ON DELETE CASCADE,
    start INTEGER NOT NULL, text TEXT NOT NULL, tokens BLOB NOT NULL, embedding BLOB NOT NULL);
CREATE INDEX sequences_by_document ON sequences(document);
CREATE TABLE removed (sequence INTEGER PRIMARY KEY, generation INTEGER NOT NULL);
CREATE TABLE reembedded (sequence INTEGER PRIMARY KEY, embedding BLOB NOT NULL);
INSERT INTO attachments VALUES ('file-aaaaaaaaaaaaaaaaaaaaaaaa', 'a.md', '{"n": 1}', 256, 0,
    'vsfb_aaaaaaaaaaaaaaaaaaaaaaaa', 'completed', NULL, NULL, 1000);
INSERT INTO attachments VALUES ('file-cccccccccccccccccccccccc', 'c.md', '{}', 256, 0,
    'vsfb_aaaaaaaaaaaaaaaaaaaaaaaa', 'failed', 'invalid_file', 'no text', 1000);
INSERT INTO attachments VALUES ('file-bbbbbbbbbbbbbbbbbbbbbbbb', 'b.md', '{}', 256, 0,
    NULL, 'completed', NULL, NULL, 1001);
INSERT INTO documents VALUES (1, 'ships.md', 'digest', '{}', 1000, NULL);
INSERT INTO documents VALUES (2, 'file-aaaaaaaaaaaaaaaaaaaaaaaa/a.md', 'digest', '{"n": 1}', 1000,
    'file-aaaaaaaaaaaaaaaaaaaaaaaa');
INSERT INTO documents VALUES (3, 'cats.md', 'digest', '{}', 1002, NULL);
PRAGMA user_version = 3;
"""


@pytest.fixture
def old_corpus(corpora: Path, words: Embedder, tokenizer: Any) -> Path:
    """The database of such a corpus, named `notes`, with this test's embedder."""
    (corpora / "notes").mkdir()
    file = corpora / "notes" / "corpus.db"
    meta = {"id": "vs_" + 24 * "a", "created": "1000.5", "generation": "3", "uuid": "u"}
    meta |= {"embedder": words.name, "revision": words.revision, "dimension": str(words.dimension)}
    with sqlite3.connect(file) as database:
        database.executescript(_OLD)
        database.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            {**meta, "tokenizer": tokenizer_digest(tokenizer)}.items(),
        )
        for document, text in ((1, SHIPS), (2, CATS), (3, CATS)):
            row = (document, 0, text, bytes(8), words.embed([text])[0].tobytes())
            database.execute(
                "INSERT INTO sequences (document, start, text, tokens, embedding) VALUES (?, ?, "
                "?, ?, ?)",
                row,
            )
    database.close()
    return file


@in_a_folder
def test_an_old_corpus_keeps_its_contents_and_gets_its_batches(
    old_corpus: Path, open_library: Callable[..., Library], corpora: Path
) -> None:
    a, b, c = (f"file-{24 * letter}" for letter in "abc")
    batch = "vsfb_" + 24 * "a"
    library = open_library()

    listed = [each.file.id for each in library.files("notes", ALL).items]
    members = statuses(library, batch)
    library.detach("notes", a)
    left = [
        each.file.id for each in library.files("notes", PageRequest(order="asc", after=a)).items
    ]
    library.detach("notes", "doc-1")
    beyond = [
        each.file.id
        for each in library.files("notes", PageRequest(order="desc", after="doc-1")).items
    ]

    assert listed == [a, c, "doc-1", b, "doc-3"]
    assert members == [(a, "completed"), (c, "failed")]
    assert left == [c, "doc-1", b, "doc-3"]
    assert beyond == [c]
    assert (counts(library, batch), library.batch("notes", batch).created) == (
        {"completed": 1, "failed": 1},
        1000,
    )
    assert list(documents(corpora, "notes")) == ["cats.md"]
    assert [found.text for found in library.search("notes", ["cat"])] == [CATS]


@in_a_folder
def test_writes_of_an_earlier_version_are_recorded(old_corpus: Path, corpora: Path) -> None:
    """Processes of both versions may use a corpus, while a cluster is being updated."""
    Corpus.open(corpora, "notes").close()
    new, batch = "file-" + 24 * "d", "vsfb_" + 24 * "d"

    with sqlite3.connect(old_corpus) as database:
        database.execute(
            "INSERT INTO attachments (id, name, attributes, max_length, overlap, batch, status) "
            "VALUES (?, 'd.md', '{}', 256, 0, ?, 'in_progress') ON CONFLICT (id) DO UPDATE SET "
            "batch = excluded.batch",
            (new, batch),
        )
        database.execute("UPDATE attachments SET status = 'completed' WHERE id = ?", (new,))
        database.execute("DELETE FROM attachments WHERE id = ?", (new,))
    database.close()
    corpus = Corpus.open(corpora, "notes")

    assert corpus.file_batches.counts(batch) == {**dict.fromkeys(STATUSES, 0), "completed": 1}
    assert corpus.attachments.position(new) is not None
    corpus.close()
