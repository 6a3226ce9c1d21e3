"""Records: the values that a library returns and takes: vector stores, their files, file batches,
and pages of lists of them.

Plain values, read from an open corpus; they can be pickled. Times are in seconds since 1970, UTC.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from selection.corpus.corpus import Corpus
from selection.corpus.filters import Scalar
from selection.corpus.positions import Position, position
from selection.corpus.tables.attachment import Attachment
from selection.errors import LibraryError, MissingError

Item = TypeVar("Item")

_BATCH = re.compile(r"vsfb_[0-9a-f]{24}")


@dataclass(frozen=True)
class VectorStoreInfo:
    """A vector store.

    Attributes:
        id: its id, which never changes.
        name: its display name.
        created: seconds since 1970, UTC.
        metadata: key-value pairs given by its owner.
        description: text given by its owner.
        counts: number of files of each of `attachments.STATUSES`.
        bytes: size of its database.
        mismatch: why this server cannot use it, as it was made with another embedder or tokenizer;
            None if it can.
    """

    id: str
    name: str
    created: float
    metadata: Mapping[str, str]
    description: str
    counts: Mapping[str, int]
    bytes: int
    mismatch: str | None = None

    @property
    def position(self) -> Position:
        """Its position in a list."""
        return position(self.id, self.created)

    @classmethod
    def of(cls, corpus: Corpus, mismatch: str | None = None) -> VectorStoreInfo:
        """The vector store of a corpus."""
        meta = corpus.meta()
        return cls(
            id=meta["id"],
            name=meta.get("name", corpus.name),
            created=float(meta["created"]),
            metadata=json.loads(meta.get("metadata", "{}")),
            description=meta.get("description", ""),
            counts=corpus.attachments.counts(),
            bytes=corpus.size(),
            mismatch=mismatch,
        )


@dataclass(frozen=True)
class AttachmentRequest:
    """A file to attach.

    Attributes:
        file: id of the uploaded file.
        attributes: metadata of its documents.
        chunking: tokens per chunk and tokens of overlap; None uses the default.
    """

    file: str
    attributes: Mapping[str, Scalar] = field(default_factory=dict)
    chunking: tuple[int, int] | None = None


@dataclass(frozen=True)
class AttachedFile:
    """A file of a vector store, whose id is `store`."""

    store: str
    file: Attachment

    @classmethod
    def of(cls, corpus: Corpus, file: str) -> AttachedFile:
        """The file of that id in a corpus.

        Raises:
            MissingError: it does not exist.
        """
        attachment = corpus.attachments.get(file)
        if attachment is None:
            raise MissingError(f"vector store {corpus.name!r} has no file {file!r}")
        return cls(corpus.meta()["id"], attachment)


@dataclass(frozen=True)
class FileBatch:
    """Files that were attached together.

    Attributes:
        id: its id.
        store: id of the vector store.
        created: seconds since 1970, UTC.
        counts: number of files of each of `attachments.STATUSES`.
        cancelled: whether files of it were cancelled together.
    """

    id: str
    store: str
    created: int
    counts: Mapping[str, int]
    cancelled: bool = False

    @classmethod
    def of(cls, corpus: Corpus, batch: str) -> FileBatch:
        """The batch of that id in a corpus.

        Raises:
            MissingError: it does not exist.
        """
        found = corpus.file_batches.get(batch) if _BATCH.fullmatch(batch) else None
        if found is None:
            raise MissingError(f"vector store {corpus.name!r} has no file batch {batch!r}")
        created, cancelled = found
        return cls(
            batch, corpus.meta()["id"], created, corpus.file_batches.counts(batch), cancelled
        )


@dataclass(frozen=True)
class Page(Generic[Item]):
    """A part of a list, and whether more of it follows."""

    items: tuple[Item, ...]
    more: bool


@dataclass(frozen=True)
class PageRequest:
    """Which part of a list to return.

    Cursors stand for positions, so the id of an object that was deleted since, or that a filter
    excludes, remains a valid cursor.

    Attributes:
        limit: largest number of items.
        order: "asc" for oldest first, "desc" for newest first.
        after: id after which the page begins.
        before: id before which the page ends.
    """

    limit: int = 20
    order: str = "desc"
    after: str | None = None
    before: str | None = None

    def of(
        self,
        oldest_first: Sequence[Item],
        position: Callable[[Item], Position],
        find: Callable[[str], Position | None],
    ) -> Page[Item]:
        """This page of a list.

        Args:
            oldest_first: the list.
            position: the position of an item.
            find: the position of a cursor's item, also after it was deleted; None for an id that
                was never in the list.

        Raises:
            LibraryError: an invalid cursor.
        """
        after, before = (self._position(cursor, find) for cursor in (self.after, self.before))
        low, high = (after, before) if self.order == "asc" else (before, after)
        items = [
            item
            for item in oldest_first
            if (low is None or low < position(item)) and (high is None or position(item) < high)
        ]
        if self.order != "asc":
            items.reverse()
        more = len(items) > self.limit
        if before is not None and after is None:
            # The page ends at the cursor, so it takes the last items.
            return Page(tuple(items[-self.limit :]), more)
        return Page(tuple(items[: self.limit]), more)

    @staticmethod
    def _position(cursor: str | None, find: Callable[[str], Position | None]) -> Position | None:
        if cursor is None:
            return None
        found = find(cursor)
        if found is None:
            raise LibraryError(
                f"the cursor {cursor!r} is not in this list: use the id of an item of a page"
            )
        return found


def page_of_files(corpus: Corpus, request: PageRequest, status: str | None) -> Page[AttachedFile]:
    """A page of a vector store's files, or of those of one status, by the time they were first
    attached.
    """
    attachments, identity = corpus.attachments, corpus.meta()["id"]
    positions = attachments.positions(status)
    page = request.of([*positions], positions.__getitem__, attachments.position)
    # A file that was detached since it was listed is left out.
    files = [file for file in map(attachments.get, page.items) if file is not None]
    return Page(tuple(AttachedFile(identity, file) for file in files), page.more)


def page_of_batch(
    corpus: Corpus, batch: FileBatch, request: PageRequest, status: str | None
) -> Page[AttachedFile]:
    """A page of a batch's files, or of those of one status, in the order of the batch."""
    listed = [*corpus.file_batches.positions(batch.id, status)]
    positions = corpus.file_batches.positions(batch.id)
    page = request.of(listed, positions.__getitem__, positions.get)
    members = [corpus.file_batches.member(batch.id, file) for file in page.items]
    return Page(tuple(AttachedFile(batch.store, member) for member in members), page.more)
