"""FolderUploads: uploaded files in a folder.

Each file is a folder, named by its id, with the content and a record. It is written under a hidden
name, flushed to disk and renamed, so that it exists completely or not at all; it is deleted the
same way.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from selection import durable
from selection.access import OPERATOR, Principal
from selection.corpus.positions import Position, Tombstones
from selection.errors import LibraryError, MissingError
from selection.library.uploads.base import UploadedFile, Uploads, missing

log = logging.getLogger(__name__)

# The age, in seconds, at which a hidden folder must be what a killed process left behind.
_ABANDONED_SECONDS = 24 * 3600


class FolderUploads(Uploads):
    """The files in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._tombstones = Tombstones(folder)
        for hidden in folder.glob(".file-*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - hidden.stat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(hidden, ignore_errors=True)

    def all(self, principal: Principal = OPERATOR) -> list[UploadedFile]:
        """As `Uploads.all`; files that cannot be read are logged and left out."""
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

    def content(self, upload: UploadedFile) -> bytes:
        """As `Uploads.content`."""
        try:
            return self._path(upload).read_bytes()
        except FileNotFoundError:
            raise missing(upload.id) from None

    @contextmanager
    def as_path(self, upload: UploadedFile) -> Iterator[Path]:
        """As `Uploads.as_path`: the file itself."""
        yield self._path(upload)

    def delete(self, file: str) -> None:
        """As `Uploads.delete`."""
        upload = self.get(file)
        self._tombstones.record("file-", asdict(upload))
        hidden = self._folder / f".{upload.id}"
        (self._folder / upload.id).rename(hidden)
        durable.sync_folder(self._folder)
        shutil.rmtree(hidden)

    def _write(self, upload: UploadedFile, content: bytes) -> None:
        hidden = self._folder / f".{upload.id}"
        hidden.mkdir()
        try:
            durable.write(hidden / f"content{upload.suffix}", content)
            durable.write(hidden / "record.json", json.dumps(asdict(upload)).encode())
            durable.sync_folder(hidden)
            hidden.rename(self._folder / upload.id)
        except OSError:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        durable.sync_folder(self._folder)

    def _read(self, file: str) -> UploadedFile | None:
        try:
            return UploadedFile(**json.loads((self._folder / file / "record.json").read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as problem:
            raise LibraryError(
                f"the record of file {file!r} is damaged: upload the file again"
            ) from problem

    def _path(self, upload: UploadedFile) -> Path:
        return self._folder / upload.id / f"content{upload.suffix}"

    def _deleted_position(self, file: str, principal: Principal) -> Position | None:
        return self._tombstones.position(
            file, "file-", lambda deleted: principal.owns(deleted.get("owner"))
        )
