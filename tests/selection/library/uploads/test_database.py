"""Uploads in a database: every server has them, under the same rules as in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selection.access import Principal
from selection.corpus.postgres import connections
from selection.embedding import Embedder
from selection.errors import CorpusUnavailableError, LibraryError, MissingError
from selection.library.library import Library
from selection.library.records import AttachmentRequest
from selection.library.uploads.database import DatabaseUploads
from selection.location import DatabaseLocation
from selection.threaded_embedder import ThreadedEmbedder
from tests import postgres_server
from tests.selection.library_helpers import (
    ALL,
    CATS,
    PausableEmbedder,
    attach_and_wait,
    documents,
    wait_until_ingested,
)

_NO_FILE = "file-" + 24 * "0"


@pytest.fixture
def uploads(postgres: DatabaseLocation) -> DatabaseUploads:
    return DatabaseUploads(postgres)


@pytest.fixture
def library(
    postgres: DatabaseLocation, words: Embedder, tokenizer: Any, tmp_path: Path
) -> Iterator[Library]:
    library = Library(postgres, ThreadedEmbedder(lambda: words), tokenizer, tmp_path / "files")
    yield library
    library.close()


@pytest.mark.parametrize("content", [b"x", bytes(range(256)) * 1000, "ü 日本\0".encode()])
def test_a_file_comes_back_as_it_was(
    uploads: DatabaseUploads, postgres: DatabaseLocation, content: bytes
) -> None:
    stored = uploads.add("notes.JSONL", content, "user_data", "alice")

    other = DatabaseUploads(postgres)
    assert other.get(stored.id) == stored
    assert (stored.bytes, stored.purpose, stored.owner) == (len(content), "user_data", "alice")
    assert other.content(stored) == content
    with other.as_path(stored) as path:
        assert path.read_bytes() == content
        assert path.suffix == ".jsonl"
    assert not path.exists()


@pytest.mark.parametrize("name", ["", "a\0b", "line\nbreak", "half \ud800", "x" * 256])
def test_an_invalid_file_name_is_refused(uploads: DatabaseUploads, name: str) -> None:
    with pytest.raises(LibraryError, match="a file's name must be"):
        uploads.add(name, b"content")

    assert uploads.all() == []


def test_files_are_listed_by_their_time_and_only_to_their_owner(uploads: DatabaseUploads) -> None:
    mine, theirs, open_ = (uploads.add("a.md", b"x", owner=who) for who in ("me", "you", None))
    me = Principal("me", frozenset())

    assert uploads.all() == [mine, theirs, open_]
    assert uploads.all(me) == [mine]
    assert uploads.get(mine.id, me) == mine
    with pytest.raises(MissingError, match="there is no file"):
        uploads.get(theirs.id, me)


def test_a_deleted_file_is_gone_and_remains_a_cursor(
    uploads: DatabaseUploads, library: Library
) -> None:
    first, second, third = (uploads.add(f"{n}.md", b"x") for n in range(3))

    library.delete_upload(second.id)

    assert [each.id for each in library.uploads(ALL).items] == [first.id, third.id]
    for use in (uploads.get, uploads.delete):
        with pytest.raises(MissingError, match="there is no file"):
            use(second.id)
    for read in (uploads.content, lambda upload: uploads.as_path(upload).__enter__()):
        with pytest.raises(MissingError, match="there is no file"):
            read(second)
    assert uploads._position(second.id, Principal()) == second.position
    with pytest.raises(MissingError):
        uploads.get(_NO_FILE)


def test_a_file_is_ingested_from_the_database(
    library: Library, postgres: DatabaseLocation, tmp_path: Path
) -> None:
    library.create_store("notes")

    file = attach_and_wait(library, "notes", "rows.jsonl", '{"text": "cats purr"}\n')
    text = attach_and_wait(library, "notes", "cats.md", CATS)

    assert {*documents(postgres, "notes")} == {f"{file}/rows.jsonl#1", f"{text}/cats.md"}
    assert library.content(text) == CATS.encode()
    # Nothing of it is on this machine.
    assert not (tmp_path / "files").exists()


def test_a_file_whose_upload_was_deleted_fails(
    postgres: DatabaseLocation,
    uploads: DatabaseUploads,
    words: Embedder,
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    pausable = PausableEmbedder(words)
    library = Library(postgres, ThreadedEmbedder(lambda: pausable), tokenizer, tmp_path / "files")
    library.create_store("notes")
    first, lost = (library.upload(f"{n}.md", CATS.encode()).id for n in range(2))
    with pausable.paused():
        library.attach("notes", AttachmentRequest(first))
        assert pausable.waiting.wait(30)
        library.attach("notes", AttachmentRequest(lost))
        uploads.delete(lost)

    problem = wait_until_ingested(library, "notes", lost).problem

    assert problem is not None
    assert (problem.code, problem.message) == ("server_error", f"there is no file {lost!r}")
    library.close()


def test_a_database_that_is_away_is_reported(tmp_path: Path) -> None:
    away = DatabaseUploads(DatabaseLocation("postgresql://me:s3cret@127.0.0.1:1/db", tmp_path))

    with pytest.raises(CorpusUnavailableError, match="cannot be reached"):
        away.add("a.md", b"x")
    with pytest.raises(CorpusUnavailableError, match="cannot be reached"):
        away.all()


@pytest.mark.parametrize(
    "use",
    [
        lambda library: library.search("notes", ["cats"]),
        lambda library: library.store("notes"),
        lambda library: library.stores(ALL),
        lambda library: library.delete_store("notes"),
    ],
)
def test_a_vector_store_whose_database_is_away_is_neither_missing_nor_refused(
    library: Library,
    postgres: DatabaseLocation,
    monkeypatch: pytest.MonkeyPatch,
    use: Callable[[Library], Any],
) -> None:
    library.create_store("notes")
    monkeypatch.setattr(connections, "_POOL_SECONDS", 0.1)

    with postgres_server.away(postgres.url), pytest.raises(CorpusUnavailableError):
        use(library)
