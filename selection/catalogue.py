"""Catalogue: what a library says of itself: its stores, their files, and pages of lists of them. Plain values only.

They are made by `library` and survive pickling. Times are in seconds since 1970, UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from selection.attachments import Attachment
from selection.filters import Scalar
from selection.uploads import LibraryError

Item = TypeVar("Item")


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


@dataclass(frozen=True)
class Wanted:
    """A file to attach: its id, the metadata of its documents, and the tokens of a sequence and of an overlap."""

    file: str
    attributes: Mapping[str, Scalar] = field(default_factory=dict)
    cut: tuple[int, int] | None = None


@dataclass(frozen=True)
class AttachedFile:
    """A file of the store of that id."""

    store: str
    file: Attachment


@dataclass(frozen=True)
class Batch:
    """Files that were attached together: how many are in each of `attachments.STATES`."""

    id: str
    store: str
    created: int
    counts: Mapping[str, int]


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
