"""Uploads: uploaded files, wherever they are stored.

A file exists completely or not at all. The name given by its owner is only recorded: nothing is
derived from it except for a plain suffix, by which `selection.ingest.readers` recognises tables.
Files are independent of corpora.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from selection.access import OPERATOR, Principal
from selection.corpus.positions import Position, new_id, position
from selection.errors import LibraryError, MissingError
from selection.library.records import Page, PageRequest
from selection.library.validation import checked_text

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_ID = re.compile(r"file-[0-9a-f]{24}")
_SUFFIX = re.compile(r"\.[a-z0-9]{1,16}")


@dataclass(frozen=True)
class UploadedFile:
    """An uploaded file.

    Attributes:
        id: its id.
        name: the name given by its owner.
        bytes: size of its content.
        purpose: one of PURPOSES.
        created: seconds since 1970, UTC.
        owner: see `selection.access.Principal`; None for a file without an owner.
    """

    id: str
    name: str
    bytes: int
    purpose: str
    created: float
    owner: str | None = None

    @property
    def position(self) -> Position:
        """Its position in a list."""
        return position(self.id, self.created)

    @property
    def suffix(self) -> str:
        """The suffix of its name, if it is a plain one; may be empty."""
        suffix = Path(self.name).suffix.lower()
        return suffix if _SUFFIX.fullmatch(suffix) else ""


class Uploads(ABC):
    """Uploaded files. Any number of threads and processes may use them."""

    def add(
        self, name: str, content: bytes, purpose: str = "assistants", owner: str | None = None
    ) -> UploadedFile:
        """Store a file. Durable once it returns.

        Raises:
            LibraryError: an empty file, a name that is not a line of Unicode text, or an unknown
                purpose.
            OSError, CorpusError: it could not be written; nothing is left of it.
        """
        checked_text(name, "a file's name", 255)
        if not content:
            raise LibraryError(f"the file {name!r} is empty")
        if purpose not in PURPOSES:
            raise LibraryError(f"`purpose` must be one of {', '.join(PURPOSES)}")
        identity, created = new_id("file-")
        upload = UploadedFile(identity, name, len(content), purpose, created, owner)
        self._write(upload, content)
        return upload

    def get(self, file: str, principal: Principal = OPERATOR) -> UploadedFile:
        """The record of a file.

        Raises:
            MissingError: the file does not exist, or the principal does not own it.
            LibraryError: its record is damaged.
        """
        upload = self._read(file) if _ID.fullmatch(file) else None
        if upload is None or not principal.owns(upload.owner):
            raise missing(file)
        return upload

    @abstractmethod
    def all(self, principal: Principal = OPERATOR) -> list[UploadedFile]:
        """All files that the principal owns, oldest first."""

    @abstractmethod
    def content(self, upload: UploadedFile) -> bytes:
        """The content of a file.

        Raises:
            MissingError: it was deleted.
        """

    @abstractmethod
    def as_path(self, upload: UploadedFile) -> AbstractContextManager[Path]:
        """A path with the content of a file, and with its suffix, within the `with` block.

        Raises:
            MissingError: it was deleted.
        """

    @abstractmethod
    def delete(self, file: str) -> None:
        """Delete a file.

        Raises:
            MissingError: it does not exist.
        """

    def page(
        self, request: PageRequest, purpose: str | None = None, principal: Principal = OPERATOR
    ) -> Page[UploadedFile]:
        """A page of the files that the principal owns, or of those of one purpose."""
        files = [file for file in self.all(principal) if purpose in (None, file.purpose)]
        return request.of(
            files, lambda file: file.position, lambda cursor: self._position(cursor, principal)
        )

    def _position(self, file: str, principal: Principal) -> Position | None:
        """The position of a file in the principal's list, also after it was deleted; None for an id
        that was never in the list.
        """
        try:
            return self.get(file, principal).position
        except MissingError:
            return self._deleted_position(file, principal)

    @abstractmethod
    def _write(self, upload: UploadedFile, content: bytes) -> None:
        """Store a file durably, or nothing of it."""

    @abstractmethod
    def _read(self, file: str) -> UploadedFile | None:
        """The record of a file; None if it does not exist."""

    @abstractmethod
    def _deleted_position(self, file: str, principal: Principal) -> Position | None:
        """The position that a deleted file had in the principal's list."""


def missing(file: str) -> MissingError:
    """The error for a file that does not exist."""
    return MissingError(f"there is no file {file!r}")
