"""Uploads: uploaded files on disk, until they are deleted.

Each file is a folder, named by its id, with the content and a record. It is written under a hidden
name, flushed to disk and renamed, so that it exists completely or not at all; it is deleted the
same way. The name given by its owner is only recorded: no path is derived from it except for a
plain suffix, by which `selection.ingest.readers` recognises tables.

It is independent of corpora.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from selection import durable
from selection.access import OPERATOR, Principal
from selection.corpus.positions import Position, Tombstones, new_id, position
from selection.errors import LibraryError, MissingError
from selection.library.records import Page, PageRequest
from selection.library.validation import checked_text

log = logging.getLogger(__name__)

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_ID = re.compile(r"file-[0-9a-f]{24}")
_SUFFIX = re.compile(r"\.[a-z0-9]{1,16}")
# The age, in seconds, at which a hidden folder must be what a killed process left behind.
_ABANDONED_SECONDS = 24 * 3600


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


class Uploads:
    """The files in one folder. Any number of threads and processes may use it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._tombstones = Tombstones(folder)
        for hidden in folder.glob(".file-*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - hidden.stat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(hidden, ignore_errors=True)

    def add(
        self, name: str, content: bytes, purpose: str = "assistants", owner: str | None = None
    ) -> UploadedFile:
        """Store a file. Durable once it returns.

        Raises:
            LibraryError: an empty file, a name that is not a line of Unicode text, or an unknown
                purpose.
            OSError: it could not be written; nothing is left of it.
        """
        checked_text(name, "a file's name", 255)
        if not content:
            raise LibraryError(f"the file {name!r} is empty")
        if purpose not in PURPOSES:
            raise LibraryError(f"`purpose` must be one of {', '.join(PURPOSES)}")
        identity, created = new_id("file-")
        upload = UploadedFile(identity, name, len(content), purpose, created, owner)
        hidden = self._folder / f".{upload.id}"
        hidden.mkdir()
        try:
            durable.write(hidden / f"content{_suffix(name)}", content)
            durable.write(hidden / "record.json", json.dumps(asdict(upload)).encode())
            durable.sync_folder(hidden)
            hidden.rename(self._folder / upload.id)
        except OSError:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        durable.sync_folder(self._folder)
        return upload

    def get(self, file: str, principal: Principal = OPERATOR) -> UploadedFile:
        """The record of a file.

        Raises:
            MissingError: the file does not exist, or the principal does not own it.
            LibraryError: its record is damaged.
        """
        try:
            if _ID.fullmatch(file):
                upload = UploadedFile(
                    **json.loads((self._folder / file / "record.json").read_bytes())
                )
                if principal.owns(upload.owner):
                    return upload
        except FileNotFoundError:
            pass
        except (ValueError, TypeError) as problem:
            raise LibraryError(
                f"the record of file {file!r} is damaged: upload the file again"
            ) from problem
        raise MissingError(f"there is no file {file!r}")

    def path(self, upload: UploadedFile) -> Path:
        """The path of its content."""
        return self._folder / upload.id / f"content{_suffix(upload.name)}"

    def all(self, principal: Principal = OPERATOR) -> list[UploadedFile]:
        """All files that the principal owns, oldest first; files that cannot be read are logged and
        left out.
        """
        found = []
        for folder in self._folder.glob("file-*"):
            try:
                found.append(self.get(folder.name, principal))
            except MissingError:
                # Another principal owns it, or it was deleted since it was listed.
                continue
            except (LibraryError, OSError) as problem:
                log.warning("%s (%s)", problem, folder)
        return sorted(found, key=lambda upload: upload.position)

    def page(
        self, request: PageRequest, purpose: str | None = None, principal: Principal = OPERATOR
    ) -> Page[UploadedFile]:
        """A page of the files that the principal owns, or of those of one purpose."""
        files = [file for file in self.all(principal) if purpose in (None, file.purpose)]
        return request.of(
            files, lambda file: file.position, lambda cursor: self._position(cursor, principal)
        )

    def delete(self, file: str) -> None:
        """Delete a file.

        Raises:
            MissingError: it does not exist.
        """
        upload = self.get(file)
        self._tombstones.record("file-", asdict(upload))
        hidden = self._folder / f".{upload.id}"
        (self._folder / upload.id).rename(hidden)
        durable.sync_folder(self._folder)
        shutil.rmtree(hidden)

    def _position(self, file: str, principal: Principal) -> Position | None:
        """The position of a file in the principal's list, also after it was deleted; None for an id
        that was never in the list.
        """
        try:
            return self.get(file, principal).position
        except MissingError:
            return self._tombstones.position(
                file, "file-", lambda deleted: principal.owns(deleted.get("owner"))
            )


def _suffix(name: str) -> str:
    suffix = Path(name).suffix.lower()
    return suffix if _SUFFIX.fullmatch(suffix) else ""
