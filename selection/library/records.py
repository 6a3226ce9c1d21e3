"""Catalogue: what a library says of itself: its stores, their files, and pages of lists of them.

Plain values, read off an open corpus; they survive pickling. Times are in seconds since 1970, UTC.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from selection.corpus.attachments import Attachment
from selection.corpus.corpus import Corpus
from selection.corpus.filters import Scalar
from selection.corpus.positions import Position, position
from selection.library.uploads import LibraryError, MissingError

Item = TypeVar("Item")

_SHORTEST, _LONGEST = 8, 4096  # tokens of a sequence
_BATCH = re.compile(r"vsfb_[0-9a-f]{24}")


@dataclass(frozen=True)
class StoreEntry:
    """A store.

    Attributes:
        id: its own for good.
        name: free text.
        created: seconds since 1970, UTC.
        metadata: its owner's notes.
        description: its owner's, too.
        counts: files in each of `attachments.STATES`.
        bytes: of its database.
    """

    id: str
    name: str
    created: float
    metadata: Mapping[str, str]
    description: str
    counts: Mapping[str, int]
    bytes: int

    @property
    def position(self) -> Position:
        """Where it stands in a list."""
        return position(self.id, self.created)

    @classmethod
    def of(cls, corpus: Corpus) -> StoreEntry:
        """What there is to say of a corpus."""
        meta = corpus.meta()
        return cls(
            id=meta["id"],
            name=meta.get("name", corpus.name),
            created=float(meta["created"]),
            metadata=json.loads(meta.get("metadata", "{}")),
            description=meta.get("description", ""),
            counts=corpus.attachments.counts(),
            bytes=sum(file.stat().st_size for file in corpus.folder.glob("corpus.db*")),
        )


@dataclass(frozen=True)
class AttachmentRequest:
    """A file to attach: its id, the metadata of its documents, and the tokens of a sequence and of
    an overlap.
    """

    file: str
    attributes: Mapping[str, Scalar] = field(default_factory=dict)
    cut: tuple[int, int] | None = None


def parse_chunking(length: int, overlap: int) -> tuple[int, int]:
    """Tokens of a sequence and of an overlap, if they can be that.

    Raises:
        LibraryError: they cannot.
    """
    if not _SHORTEST <= length <= _LONGEST or not 0 <= overlap <= length // 2:
        raise LibraryError(
            f"a chunk has {_SHORTEST} to {_LONGEST} tokens of the served model and overlaps by half of them at most"
        )
    return length, overlap


@dataclass(frozen=True)
class AttachedFile:
    """A file of the store of that id."""

    store: str
    file: Attachment

    @classmethod
    def of(cls, corpus: Corpus, file: str) -> AttachedFile:
        """A file of a corpus.

        Raises:
            MissingError: there is none of that id.
        """
        attachment = corpus.attachments.get(file)
        if attachment is None:
            raise MissingError(f"vector store {corpus.name!r} has no file {file!r}")
        return cls(corpus.meta()["id"], attachment)


@dataclass(frozen=True)
class Batch:
    """Files that were attached together: how many are in each of `attachments.STATES`, and whether
    it was cancelled.
    """

    id: str
    store: str
    created: int
    counts: Mapping[str, int]
    cancelled: bool = False

    @classmethod
    def of(cls, corpus: Corpus, batch: str) -> Batch:
        """A batch of a corpus.

        Raises:
            MissingError: there is none of that id.
        """
        found = corpus.batches.get(batch) if _BATCH.fullmatch(batch) else None
        if found is None:
            raise MissingError(f"vector store {corpus.name!r} has no file batch {batch!r}")
        created, cancelled = found
        return cls(batch, corpus.meta()["id"], created, corpus.batches.counts(batch), cancelled)


@dataclass(frozen=True)
class Page(Generic[Item]):
    """A part of a list, and whether there is more of it."""

    items: tuple[Item, ...]
    more: bool


@dataclass(frozen=True)
class PageRequest:
    """Which part of a list is wanted: so many, newest or oldest first, beyond one id and before
    another.

    Ids stand for positions: one that has been deleted since, or that a filter leaves out, still has
    its place.
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
        """That part.

        Args:
            oldest_first: the list.
            position: where an item stands.
            find: where the item of a cursor stands, or stood; None for what was never in such a
                list.

        Raises:
            LibraryError: a cursor that is not a position.
        """
        after, before = (self._found(cursor, find) for cursor in (self.after, self.before))
        low, high = (after, before) if self.order == "asc" else (before, after)
        items = [
            item
            for item in oldest_first
            if (low is None or low < position(item)) and (high is None or position(item) < high)
        ]
        if self.order != "asc":
            items.reverse()
        more = len(items) > self.limit
        if before is not None and after is None:  # the page that ends there
            return Page(tuple(items[-self.limit :]), more)
        return Page(tuple(items[: self.limit]), more)

    def _found(self, cursor: str | None, find: Callable[[str], Position | None]) -> Position | None:
        if cursor is None:
            return None
        found = find(cursor)
        if found is None:
            raise LibraryError(
                f"the cursor {cursor!r} is not in this list: it takes the id of an item of a page"
            )
        return found


def page_of_files(corpus: Corpus, part: PageRequest, status: str | None) -> Page[AttachedFile]:
    """A part of the list of a store's files, of one status, by the time they were first attached."""
    kept, identity = corpus.attachments, corpus.meta()["id"]
    listed = kept.listed(status)
    page = part.of([*listed], listed.__getitem__, kept.position)
    # The others were detached just now.
    found = [file for file in map(kept.get, page.items) if file is not None]
    return Page(tuple(AttachedFile(identity, file) for file in found), page.more)


def page_of_batch(
    corpus: Corpus, batch: Batch, part: PageRequest, status: str | None
) -> Page[AttachedFile]:
    """A part of the list of a batch's files, of one status, in the order of the batch."""
    listed, positions = corpus.batches.listed(batch.id, status), corpus.batches.listed(batch.id)
    page = part.of([*listed], positions.__getitem__, positions.get)
    found = [
        AttachedFile(batch.store, corpus.batches.member(batch.id, file)) for file in page.items
    ]
    return Page(tuple(found), page.more)
