"""Cursors are positions: a client that deletes what it lists, page by page as openai-python does,
gets every item exactly once.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selection.corpus.corpus import Corpus
from selection.corpus.positions import new_id, position, position_in_id
from selection.corpus.tables.attachment import Attachment
from selection.embedding import Embedder
from selection.errors import LibraryError
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.library.library import Library
from selection.library.records import AttachmentRequest, Page, PageRequest, page_of_files
from selection.location import Location
from tests.selection.library_helpers import CATS, PausableEmbedder
from tests.selection.locations import in_a_folder

_BOTH = pytest.mark.parametrize("order", ["asc", "desc"])
_DIRECTIONS = pytest.mark.parametrize("direction", ["after", "before"])
_LIMITS = pytest.mark.parametrize("limit", [1, 2, 5, 6])
_INVALID = (
    "",
    "x",
    "vs_",
    "..",
    "vs_" + 24 * "0",
    "file-" + 24 * "0",
    "vs_" + 24 * "f",
    "doc-1",
    "doc-x",
    "\ud800",
    "1",
)


@pytest.fixture
def corpora(location: Location) -> Location:
    """Every place where corpora can be."""
    return location


def walk(
    page_of: Callable[[PageRequest], Page[Any]],
    delete: Callable[[str], object],
    order: str,
    direction: str,
    limit: int,
    last: str,
) -> list[str]:
    """Go through a list to its end, page by page, and delete each item; the ids in that order.

    Args:
        page_of: requests a page.
        delete: deletes an id.
        order: order of the pages.
        direction: the cursor that is moved; "before" deletes up the list.
        limit: items per page.
        last: id at the end of the list, from which "before" starts.
    """
    listed_ids: list[str] = []
    cursor = None if direction == "after" else last
    while True:
        page = page_of(PageRequest(limit, order, **{direction: cursor}))
        ids = [getattr(item, "file", item).id for item in page.items]
        for identity in ids:
            delete(identity)
        listed_ids += ids if direction == "after" else ids[::-1]
        if not page.more:
            return listed_ids
        cursor = ids[-1] if direction == "after" else ids[0]


def expected(created: list[str], order: str, direction: str) -> list[str]:
    """The ids that `walk` returns, of those created in that order; "before" starts at the last one,
    which it excludes.
    """
    if direction == "after":
        return created if order == "asc" else created[::-1]
    return created[:-1][::-1] if order == "asc" else created[1:]


def last_of(created: list[str], order: str) -> str:
    return created[-1] if order == "asc" else created[0]


@_BOTH
@_DIRECTIONS
@_LIMITS
def test_stores_can_be_deleted_while_they_are_listed(
    library: Library, order: str, direction: str, limit: int
) -> None:
    created = [library.create_store(f"store{i}").id for i in range(6)]

    listed_ids = walk(
        library.stores, library.delete_store, order, direction, limit, last_of(created, order)
    )

    assert listed_ids == expected(created, order, direction)


@_BOTH
@_DIRECTIONS
@_LIMITS
def test_uploads_can_be_deleted_while_they_are_listed(
    library: Library, order: str, direction: str, limit: int
) -> None:
    created = [library.upload(f"{i}.md", CATS.encode()).id for i in range(6)]

    listed_ids = walk(
        library.uploads, library.delete_upload, order, direction, limit, last_of(created, order)
    )

    assert listed_ids == expected(created, order, direction)


@_BOTH
@_DIRECTIONS
@pytest.mark.parametrize("by", ["detaching", "deleting the upload"])
def test_files_of_a_store_can_be_removed_while_they_are_listed(
    open_library: Callable[..., Library], words: Embedder, order: str, direction: str, by: str
) -> None:
    embedder = PausableEmbedder(words)
    library = open_library(embedder)
    store = library.create_store("notes").id
    created = [library.upload(f"{i}.md", CATS.encode()).id for i in range(6)]
    with embedder.paused():
        for file in created:
            library.attach(store, AttachmentRequest(file))

        def delete(file: str) -> None:
            library.detach(store, file) if by == "detaching" else library.delete_upload(file)

        listed_ids = walk(
            lambda request: library.files(store, request),
            delete,
            order,
            direction,
            2,
            last_of(created, order),
        )

    assert listed_ids == expected(created, order, direction)


@_BOTH
@_DIRECTIONS
def test_files_of_a_batch_can_be_detached_while_they_are_listed(
    library: Library, order: str, direction: str
) -> None:
    store = library.create_store("notes").id
    created = [library.upload(f"{i}.md", CATS.encode()).id for i in range(5)]
    batch = library.attach_batch(store, [AttachmentRequest(file) for file in created]).id

    listed_ids = walk(
        lambda request: library.files(store, request, batch=batch),
        lambda file: library.detach(store, file),
        order,
        direction,
        2,
        last_of(created, order),
    )

    assert listed_ids == expected(created, order, direction)


@_BOTH
def test_attaching_listed_files_again_ends(library: Library, order: str) -> None:
    store = library.create_store("notes").id
    created = [library.upload(f"{i}.md", CATS.encode()).id for i in range(5)]
    for file in created:
        library.attach(store, AttachmentRequest(file))

    def attach_again(file: str) -> None:
        library.detach(store, file)
        library.attach(store, AttachmentRequest(file, {"seen": True}))

    listed_ids = walk(
        lambda request: library.files(store, request), attach_again, order, "after", 2, ""
    )

    assert listed_ids == expected(created, order, "after")


def test_a_file_that_a_filter_excludes_remains_a_valid_cursor(
    open_library: Callable[..., Library], words: Embedder
) -> None:
    embedder = PausableEmbedder(words)
    library = open_library(embedder)
    store = library.create_store("notes").id
    created = [library.upload(f"{i}.md", CATS.encode(), "user_data").id for i in range(4)]
    other = library.upload("other.md", CATS.encode()).id
    with embedder.paused():
        batch = library.attach_batch(store, [AttachmentRequest(file) for file in created]).id
        library.detach(store, created[1])
        after = PageRequest(order="asc", after=created[1])

        listed = library.files(store, after, status="in_progress").items
        of_batch = library.files(store, after, status="in_progress", batch=batch).items

    assert [each.file.id for each in listed] == [each.file.id for each in of_batch] == created[2:]
    assert [
        each.id for each in library.uploads(PageRequest(after=other), "user_data").items
    ] == created[::-1]


@pytest.mark.parametrize("cursor", _INVALID)
def test_an_invalid_cursor_is_refused(library: Library, cursor: str) -> None:
    store, file = library.create_store("notes").id, library.upload("cats.md", CATS.encode()).id
    batch = library.attach_batch(store, [AttachmentRequest(file)]).id
    elsewhere = library.upload("ships.md", CATS.encode()).id
    lists: list[Callable[[PageRequest], object]] = [
        library.stores,
        library.uploads,
        lambda request: library.files(store, request),
        lambda request: library.files(store, request, batch=batch),
    ]

    for list_page in lists:
        for request in (PageRequest(after=cursor), PageRequest(before=cursor)):
            with pytest.raises(LibraryError, match="is not in this list"):
                list_page(request)
    for list_page in lists[2:]:
        with pytest.raises(LibraryError, match="is not in this list"):
            list_page(PageRequest(after=elsewhere))


def test_an_id_contains_the_creation_time(library: Library) -> None:
    before = time.time()
    store, upload = library.create_store("notes"), library.upload("cats.md", CATS.encode())

    for created, prefix in ((store, "vs_"), (upload, "file-")):
        assert re.fullmatch(f"{prefix}[0-9a-f]{{24}}", created.id)
        assert position_in_id(created.id, prefix) == position(created.id, created.created)
        assert before - 0.001 <= created.created <= time.time()
    assert position_in_id(store.id, "file-") is None
    assert len({new_id("vs_") for _ in range(1000)}) == 1000


@in_a_folder
def test_deleted_objects_of_earlier_versions_remain_valid_cursors(
    library: Library, corpora: Path
) -> None:
    """Their ids were random, so their deletion is recorded."""
    stores = [library.create_store(f"store{i}").id for i in range(3)]
    files = [library.upload(f"{i}.md", CATS.encode()).id for i in range(3)]
    old_stores, old_files = (
        [f"{kind}{i}" + 23 * "e" for i in (7, 2, 5)] for kind in ("vs_", "file-")
    )
    for i, (old_store, file, old_file) in enumerate(zip(old_stores, files, old_files, strict=True)):
        with sqlite3.connect(corpora / f"store{i}" / "corpus.db") as database:
            database.execute("UPDATE meta SET value = ? WHERE key = 'id'", (old_store,))
        database.close()
        record = corpora.parent / "files" / file / "record.json"
        record.write_text(record.read_text().replace(file, old_file))
        (corpora.parent / "files" / file).rename(corpora.parent / "files" / old_file)
    new_store, new_file = library.create_store("new").id, library.upload("new.md", CATS.encode()).id
    assert set(stores) != set(old_stores)

    listed_stores = walk(library.stores, library.delete_store, "asc", "after", 1, "")
    listed_files = walk(library.uploads, library.delete_upload, "desc", "after", 2, "")

    assert listed_stores == [*old_stores, new_store]
    assert listed_files == [*old_files, new_file][::-1]


_Item = st.sampled_from(["file", "document"])
_Delete = st.sampled_from(["all", "some", "replaced"])


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(_Item, max_size=9), st.integers(1, 10), st.sampled_from(["asc", "desc"]), _Delete)
def test_each_file_is_listed_once_whatever_is_deleted_meanwhile(
    tmp_path_factory: pytest.TempPathFactory,
    words: Embedder,
    tokenizer: Any,
    items: list[str],
    limit: int,
    order: str,
    deletes: str,
) -> None:
    corpus = Corpus.create(
        tmp_path_factory.mktemp("corpora"), "notes", words, tokenizer_digest(tokenizer)
    )
    created = []
    for number, kind in enumerate(items):
        if kind == "file":
            created.append(new_id("file-")[0])
            corpus.attachments.attach([Attachment(created[-1], "x.md")])
        else:
            ingest(corpus, [Document(f"{number}.md", f"{CATS}{number}")], words, tokenizer)
            created.append(f"doc-{max(entry.id for entry in corpus.documents())}")
    oldest_first = list(corpus.attachments.positions())
    names = {f"doc-{entry.id}": entry.name for entry in corpus.documents()}

    def delete(file: str) -> None:
        if deletes == "some" and int(file[-1], 16) % 2:
            return
        if deletes == "replaced" and file in names:
            # The replacement is a new document at the end of the list; it is deleted, so that the
            # list ends.
            ingest(corpus, [Document(names[file], f"{_OTHER_TEXT}{file}")], words, tokenizer)
            corpus.delete(names[file])
        elif file in names:
            corpus.delete(int(file.removeprefix("doc-")))
        else:
            corpus.attachments.detach(file)

    listed_ids = walk(
        lambda request: page_of_files(corpus, request, None), delete, order, "after", limit, ""
    )
    corpus.close()

    assert sorted(oldest_first) == sorted(created)
    assert listed_ids == (oldest_first if order == "asc" else oldest_first[::-1])


_OTHER_TEXT = "Other words, of another thing. "
