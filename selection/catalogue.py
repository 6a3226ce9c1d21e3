"""Catalogue: what a library says of itself: its stores, their files, and pages of lists of them.

Plain values, read off an open corpus; they survive pickling. Times are in seconds since 1970, UTC.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from selection.attachments import Attachment
from selection.corpus import Corpus
from selection.filters import Scalar
from selection.uploads import LibraryError, MissingError

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
class Wanted:
    """A file to attach: its id, the metadata of its documents, and the tokens of a sequence and of an overlap."""

    file: str
    attributes: Mapping[str, Scalar] = field(default_factory=dict)
    cut: tuple[int, int] | None = None


def checked_cut(length: int, overlap: int) -> tuple[int, int]:
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
    """Files that were attached together: how many are in each of `attachments.STATES`."""

    id: str
    store: str
    created: int
    counts: Mapping[str, int]

    @classmethod
    def of(cls, corpus: Corpus, batch: str) -> Batch:
        """A batch of a corpus.

        Raises:
            MissingError: there is none of that id.
        """
        files = corpus.attachments.ids(batch=batch) if _BATCH.fullmatch(batch) else []
        first = corpus.attachments.get(files[0]) if files else None
        if first is None:
            raise MissingError(f"vector store {corpus.name!r} has no file batch {batch!r}")
        return cls(batch, corpus.meta()["id"], first.created, corpus.attachments.counts(batch))


@dataclass(frozen=True)
class Page(Generic[Item]):
    """A part of a list, and whether there is more of it."""

    items: tuple[Item, ...]
    more: bool


@dataclass(frozen=True)
class Part:
    """Which part of a list is wanted: so many, newest or oldest first, beyond one id and before another."""

    limit: int = 20
    order: str = "desc"
    after: str | None = None
    before: str | None = None

    def of(self, oldest_first: Sequence[Item], key: Callable[[Item], str]) -> Page[Item]:
        """That part.

        Raises:
            LibraryError: a cursor that names nothing in the list.
        """
        items = list(oldest_first) if self.order == "asc" else list(reversed(oldest_first))
        keys = [key(item) for item in items]
        for cursor in (self.after, self.before):
            if cursor is not None and cursor not in keys:
                raise LibraryError(f"the cursor {cursor!r} is not in this list")
        begin = 0 if self.after is None else keys.index(self.after) + 1
        end = len(items) if self.before is None else keys.index(self.before)
        if self.before is not None and self.after is None:
            begin = max(begin, end - self.limit)  # the page that ends there
            return Page(tuple(items[begin:end]), begin > 0)
        return Page(tuple(items[begin:end][: self.limit]), end - begin > self.limit)
