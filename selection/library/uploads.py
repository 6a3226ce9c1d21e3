"""Uploads: files that were handed in, on disk, until they are attached to corpora or deleted.

Each is a folder of its own, named by its id, with the content and a record of it. It is written
under a hidden name, fsynced and renamed, so that a file is there whole or not at all; it is deleted
the same way. The name that its owner gave it is only recorded: no path is ever made of it, but for
a plain suffix, by which `documents` knows tables.

It knows nothing of corpora.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from selection.access import OPERATOR, Principal
from selection.corpus.filters import Scalar
from selection.corpus.positions import Deleted, Position, new_id, position
from selection.errors import LibraryError as LibraryError
from selection.errors import MissingError as MissingError
from selection.errors import ReadOnlyError as ReadOnlyError

log = logging.getLogger(__name__)

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_ID = re.compile(r"file-[0-9a-f]{24}")
_SUFFIX = re.compile(r"\.[a-z0-9]{1,16}")
_LEFT_OVER = 24 * 3600  # seconds after which a hidden folder is what a kill left behind
_KEYS, _KEY, _VALUE = 16, 64, 512  # OpenAI's limits of metadata and attributes


@dataclass(frozen=True)
class UploadedFile:
    """A file that was handed in; `created` in seconds since 1970, UTC; `owner` as in `reader`, None
    for nobody's.
    """

    id: str
    name: str
    bytes: int
    purpose: str
    created: float
    owner: str | None = None

    @property
    def position(self) -> Position:
        """Where it stands in a list."""
        return position(self.id, self.created)


class Uploads:
    """The files in one folder. Any number of threads and processes may use it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._deleted = Deleted(folder)
        for left in folder.glob(".file-*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _LEFT_OVER:
                    shutil.rmtree(left, ignore_errors=True)

    def add(
        self, name: str, content: bytes, purpose: str = "assistants", owner: str | None = None
    ) -> UploadedFile:
        """Keep a file. Durable once it returns.

        Raises:
            LibraryError: an empty file, a name that is not a line of Unicode text, an unknown
                purpose.
            OSError: it could not be written; nothing is left of it.
        """
        checked_text(name, "a file's name", 255)
        if not content:
            raise LibraryError(f"the file {name!r} is empty")
        if purpose not in PURPOSES:
            raise LibraryError(f"`purpose` is one of {', '.join(PURPOSES)}")
        identity, created = new_id("file-")
        upload = UploadedFile(identity, name, len(content), purpose, created, owner)
        hidden = self._folder / f".{upload.id}"
        hidden.mkdir()
        try:
            _write(hidden / f"content{_suffix(name)}", content)
            _write(hidden / "record.json", json.dumps(asdict(upload)).encode())
            _sync(hidden)
            hidden.rename(self._folder / upload.id)
        except OSError:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        _sync(self._folder)
        return upload

    def get(self, file: str, reader: Principal = OPERATOR) -> UploadedFile:
        """The record of a file of a reader's.

        Raises:
            MissingError: there is none.
            LibraryError: its record is damaged.
        """
        try:
            if _ID.fullmatch(file):
                upload = UploadedFile(
                    **json.loads((self._folder / file / "record.json").read_bytes())
                )
                if reader.owns(upload.owner):
                    return upload
        except FileNotFoundError:
            pass
        except (ValueError, TypeError) as problem:
            raise LibraryError(
                f"the record of file {file!r} is damaged: upload the file again"
            ) from problem
        raise MissingError(f"there is no file {file!r}")

    def path(self, upload: UploadedFile) -> Path:
        """Where its content is."""
        return self._folder / upload.id / f"content{_suffix(upload.name)}"

    def every(self, reader: Principal = OPERATOR) -> list[UploadedFile]:
        """Every file of a reader's, oldest first; the log tells of those that cannot be read."""
        found = []
        for folder in self._folder.glob("file-*"):
            try:
                found.append(self.get(folder.name, reader))
            except MissingError:  # another's, or deleted just now
                continue
            except (LibraryError, OSError) as problem:
                log.warning("%s (%s)", problem, folder)
        return sorted(found, key=lambda upload: upload.position)

    def position(self, file: str, reader: Principal = OPERATOR) -> Position | None:
        """Where a file of a reader's stands in the list, or stood when it was there; None for what
        cannot have been.
        """
        try:
            return self.get(file, reader).position
        except MissingError:
            return self._deleted.position(
                file, "file-", lambda gone: reader.owns(gone.get("owner"))
            )

    def delete(self, file: str) -> None:
        """Delete a file.

        Raises:
            MissingError: there is none.
        """
        upload = self.get(file)
        self._deleted.remember("file-", asdict(upload))
        hidden = self._folder / f".{upload.id}"
        (self._folder / upload.id).rename(hidden)
        _sync(self._folder)
        shutil.rmtree(hidden)


def checked_text(value: Any, what: str, most: int) -> str:
    """A short Unicode text in one line.

    Raises:
        LibraryError: it is not one; the message begins with `what`.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= most:
        raise LibraryError(f"{what} is a string of 1 to {most} characters")
    if not _is_unicode(value) or any(character < " " for character in value):
        raise LibraryError(f"{what} is Unicode text without control characters")
    return value


def checked_attributes(
    value: Any, what: str, scalar: tuple[type, ...] = (str, int, float, bool)
) -> Mapping[str, Scalar]:
    """A flat object of 16 keys at most, within OpenAI's limits; None is an empty one.

    Raises:
        LibraryError: it is not one.
    """
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _KEYS:
        raise LibraryError(f"`{what}` is an object of {_KEYS} keys at most")
    for key, each in value.items():
        checked_text(key, f"a key of `{what}`", _KEY)
        if type(each) not in scalar:
            raise LibraryError(
                f"`{what}.{key}` is a {', '.join(kind.__name__ for kind in scalar)}: nothing nested"
            )
        if isinstance(each, str):
            if len(each) > _VALUE or not _is_unicode(each):
                raise LibraryError(f"`{what}.{key}` is Unicode text of {_VALUE} characters at most")
        elif not abs(each) < 1 << 63:
            raise LibraryError(f"`{what}.{key}` is not a number that can be compared")
    return dict(value)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _suffix(name: str) -> str:
    suffix = Path(name).suffix.lower()
    return suffix if _SUFFIX.fullmatch(suffix) else ""


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
