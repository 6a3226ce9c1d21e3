"""Places: the uploaded files that belong to the corpora of a location."""

from __future__ import annotations

from pathlib import Path

from selection.library.uploads.base import Uploads
from selection.library.uploads.folder import FolderUploads
from selection.location import Location


def uploads_at(corpora: Location, folder: Path) -> Uploads:
    """The uploaded files: in the database of the corpora, if they are in one, or else in a folder.

    Args:
        corpora: where the corpora are.
        folder: the folder.
    """
    if isinstance(corpora, Path):
        return FolderUploads(folder)
    # PostgreSQL's client is imported only where it is needed.
    from selection.library.uploads.database import DatabaseUploads

    return DatabaseUploads(corpora)
