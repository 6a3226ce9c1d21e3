"""Cursors are positions: whoever deletes what they list, as openai-python lists it, meets every
item exactly once.
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

from selection.corpus.attachments import Attachment
from selection.corpus.corpus import Corpus
from selection.corpus.positions import carried, new_id, position
from selection.embedding import Embedder
from selection.ingest.ingest import Document, ingest, tokenizer_digest
from selection.library.library import Library
from selection.library.records import AttachmentRequest, Page, PageRequest, page_of_files
from selection.library.uploads import LibraryError
from tests.selection.libraries import CATS, HeldEmbedder

_BOTH = pytest.mark.parametrize("order", ["asc", "desc"])
_WAYS = pytest.mark.parametrize("way", ["after", "before"])
_LIMITS = pytest.mark.parametrize("limit", [1, 2, 5, 6])
_GARBAGE = (
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


def walk(
    page_of: Callable[[PageRequest], Page[Any]],
    delete: Callable[[str], object],
    order: str,
    way: str,
    limit: int,
    last: str,
) -> list[str]:
    """Follows a list to its end, page by page, and deletes what it meets; the ids it met.

    Args:
        page_of: asks for a part.
        delete: an id.
        order: of the pages.
        way: the cursor that is moved; "before" goes up the list.
        limit: of a page.
        last: an id at the end from which "before" begins.
    """
    met: list[str] = []
    cursor = None if way == "after" else last
    while True:
        page = page_of(PageRequest(limit, order, **{way: cursor}))
        ids = [getattr(item, "file", item).id for item in page.items]
        for identity in ids:
            delete(identity)
        met += ids if way == "after" else ids[::-1]
        if not page.more:
            return met
        cursor = ids[-1] if way == "after" else ids[0]


def expected(made: list[str], order: str, way: str) -> list[str]:
    """What is met, of what was made in that order; "before" begins beyond its last one, which it
    does not meet.
    """
    if way == "after":
        return made if order == "asc" else made[::-1]
    return made[:-1][::-1] if order == "asc" else made[1:]


def ends(made: list[str], order: str) -> str:
    return made[-1] if order == "asc" else made[0]


@_BOTH
@_WAYS
@_LIMITS
def test_stores_are_deleted_as_they_are_listed(
    library: Library, order: str, way: str, limit: int
) -> None:
    made = [library.create_store(f"store{i}").id for i in range(6)]

    met = walk(library.stores, library.delete_store, order, way, limit, ends(made, order))

    assert met == expected(made, order, way)


@_BOTH
@_WAYS
@_LIMITS
def test_uploads_are_deleted_as_they_are_listed(
    library: Library, order: str, way: str, limit: int
) -> None:
    made = [library.upload(f"{i}.md", CATS.encode()).id for i in range(6)]

    met = walk(library.uploads, library.delete_upload, order, way, limit, ends(made, order))

    assert met == expected(made, order, way)


@_BOTH
@_WAYS
@pytest.mark.parametrize("by", ["detaching", "deleting the upload"])
def test_files_of_a_store_go_as_they_are_listed(
    opened: Callable[..., Library], words: Embedder, order: str, way: str, by: str
) -> None:
    held = HeldEmbedder(words)
    library = opened(held)
    store = library.create_store("notes").id
    made = [library.upload(f"{i}.md", CATS.encode()).id for i in range(6)]
    with held.held():
        for file in made:
            library.attach(store, AttachmentRequest(file))

        def delete(file: str) -> None:
            library.detach(store, file) if by == "detaching" else library.delete_upload(file)

        met = walk(
            lambda part: library.files(store, part), delete, order, way, 2, ends(made, order)
        )

    assert met == expected(made, order, way)


@_BOTH
@_WAYS
def test_the_files_of_a_batch_are_listed_on_as_they_are_detached(
    library: Library, order: str, way: str
) -> None:
    store = library.create_store("notes").id
    made = [library.upload(f"{i}.md", CATS.encode()).id for i in range(5)]
    batch = library.attach_batch(store, [AttachmentRequest(file) for file in made]).id

    met = walk(
        lambda part: library.files(store, part, batch=batch),
        lambda file: library.detach(store, file),
        order,
        way,
        2,
        ends(made, order),
    )

    assert met == expected(made, order, way)


@_BOTH
def test_who_attaches_anew_what_they_list_comes_to_an_end(library: Library, order: str) -> None:
    store = library.create_store("notes").id
    made = [library.upload(f"{i}.md", CATS.encode()).id for i in range(5)]
    for file in made:
        library.attach(store, AttachmentRequest(file))

    def anew(file: str) -> None:
        library.detach(store, file)
        library.attach(store, AttachmentRequest(file, {"seen": True}))

    met = walk(lambda part: library.files(store, part), anew, order, "after", 2, "")

    assert met == expected(made, order, "after")


def test_a_file_that_a_filter_leaves_out_by_now_is_a_cursor_still(
    opened: Callable[..., Library], words: Embedder
) -> None:
    held = HeldEmbedder(words)
    library = opened(held)
    store = library.create_store("notes").id
    made = [library.upload(f"{i}.md", CATS.encode(), "user_data").id for i in range(4)]
    other = library.upload("other.md", CATS.encode()).id
    with held.held():
        batch = library.attach_batch(store, [AttachmentRequest(file) for file in made]).id
        library.detach(store, made[1])
        after = PageRequest(order="asc", after=made[1])

        listed = library.files(store, after, status="in_progress").items
        of_batch = library.files(store, after, status="in_progress", batch=batch).items

    assert [each.file.id for each in listed] == [each.file.id for each in of_batch] == made[2:]
    assert [
        each.id for each in library.uploads(PageRequest(after=other), "user_data").items
    ] == made[::-1]


@pytest.mark.parametrize("cursor", _GARBAGE)
def test_what_cannot_be_a_position_is_refused(library: Library, cursor: str) -> None:
    store, file = library.create_store("notes").id, library.upload("cats.md", CATS.encode()).id
    batch = library.attach_batch(store, [AttachmentRequest(file)]).id
    elsewhere = library.upload("ships.md", CATS.encode()).id
    lists: list[Callable[[PageRequest], object]] = [
        library.stores,
        library.uploads,
        lambda part: library.files(store, part),
        lambda part: library.files(store, part, batch=batch),
    ]

    for ask in lists:
        for part in (PageRequest(after=cursor), PageRequest(before=cursor)):
            with pytest.raises(LibraryError, match="is not in this list"):
                ask(part)
    for ask in lists[2:]:
        with pytest.raises(LibraryError, match="is not in this list"):
            ask(PageRequest(after=elsewhere))


def test_an_id_carries_the_time_that_its_object_says(library: Library) -> None:
    before = time.time()
    store, upload = library.create_store("notes"), library.upload("cats.md", CATS.encode())

    for made, prefix in ((store, "vs_"), (upload, "file-")):
        assert re.fullmatch(f"{prefix}[0-9a-f]{{24}}", made.id)
        assert carried(made.id, prefix) == position(made.id, made.created)
        assert before - 0.001 <= made.created <= time.time()
    assert carried(store.id, "file-") is None
    assert len({new_id("vs_") for _ in range(1000)}) == 1000


def test_stores_and_uploads_of_earlier_versions_are_cursors_when_they_are_deleted(
    library: Library, corpora: Path
) -> None:
    """Their ids were random: what is deleted is remembered."""
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

    met_stores = walk(library.stores, library.delete_store, "asc", "after", 1, "")
    met_files = walk(library.uploads, library.delete_upload, "desc", "after", 2, "")

    assert met_stores == [*old_stores, new_store]
    assert met_files == [*old_files, new_file][::-1]


_Item = st.sampled_from(["file", "document"])
_Delete = st.sampled_from(["all", "some", "replaced"])


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(_Item, max_size=9), st.integers(1, 10), st.sampled_from(["asc", "desc"]), _Delete)
def test_whatever_a_store_holds_is_met_once_whatever_goes_meanwhile(
    tmp_path_factory: pytest.TempPathFactory,
    words: Embedder,
    tokenizer: Any,
    items: list[str],
    limit: int,
    order: str,
    goes: str,
) -> None:
    corpus = Corpus.create(
        tmp_path_factory.mktemp("corpora"), "notes", words, tokenizer_digest(tokenizer)
    )
    made = []
    for number, kind in enumerate(items):
        if kind == "file":
            made.append(new_id("file-")[0])
            corpus.attachments.attach([Attachment(made[-1], "x.md")])
        else:
            ingest(corpus, [Document(f"{number}.md", f"{CATS}{number}")], words, tokenizer)
            made.append(f"doc-{max(entry.id for entry in corpus.documents())}")
    oldest_first = list(corpus.attachments.listed())
    names = {f"doc-{entry.id}": entry.name for entry in corpus.documents()}

    def delete(file: str) -> None:
        if goes == "some" and int(file[-1], 16) % 2:
            return
        if goes == "replaced" and file in names:
            # The new one is a new document, at the end of the list; it is taken out again, to come
            # to an end.
            ingest(corpus, [Document(names[file], f"{SHORT}{file}")], words, tokenizer)
            corpus.delete(names[file])
        elif file in names:
            corpus.delete(int(file.removeprefix("doc-")))
        else:
            corpus.attachments.detach(file)

    met = walk(lambda part: page_of_files(corpus, part, None), delete, order, "after", limit, "")
    corpus.close()

    assert sorted(oldest_first) == sorted(made)
    assert met == (oldest_first if order == "asc" else oldest_first[::-1])


SHORT = "Other words, of another thing. "
