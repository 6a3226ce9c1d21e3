"""DatabaseUploads: uploaded files in the database of the corpora, so that every server has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import NamedTemporaryFile

from selection.access import OPERATOR, Principal
from selection.corpus.positions import Position, position_in_id
from selection.corpus.postgres.files import Files
from selection.library.uploads.base import UploadedFile, Uploads, missing
from selection.location import DatabaseLocation


class DatabaseUploads(Uploads):
    """The files in one database.

    Every method raises CorpusError if it cannot be used.
    """

    def __init__(self, location: DatabaseLocation) -> None:
        self._files = Files(location)

    def all(self, principal: Principal = OPERATOR) -> list[UploadedFile]:
        """As `Uploads.all`."""
        uploads = (UploadedFile(*row) for row in self._files.all())
        found = [upload for upload in uploads if principal.owns(upload.owner)]
        return sorted(found, key=lambda upload: upload.position)

    def content(self, upload: UploadedFile) -> bytes:
        """As `Uploads.content`."""
        content = self._files.content(upload.id)
        if content is None:
            raise missing(upload.id)
        return content

    @contextmanager
    def as_path(self, upload: UploadedFile) -> Iterator[Path]:
        """As `Uploads.as_path`: a temporary file."""
        content = self.content(upload)
        with NamedTemporaryFile(prefix="mayfly-", suffix=upload.suffix) as file:
            file.write(content)
            file.flush()
            del content
            yield Path(file.name)

    def delete(self, file: str) -> None:
        """As `Uploads.delete`."""
        if not self._files.delete(self.get(file).id):
            raise missing(file)

    def _write(self, upload: UploadedFile, content: bytes) -> None:
        self._files.add(asdict(upload), content)

    def _read(self, file: str) -> UploadedFile | None:
        row = self._files.get(file)
        return None if row is None else UploadedFile(*row)

    def _deleted_position(self, file: str, principal: Principal) -> Position | None:
        # Each id contains it.
        return position_in_id(file, "file-")
