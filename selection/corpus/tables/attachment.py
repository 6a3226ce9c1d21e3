"""Attachment: one file of a corpus, and how its ingestion ends, in whatever database it is
(`tables.attachments`, `postgres.tables.attachments`).
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from selection.corpus.filters import Scalar
from selection.corpus.positions import Position
from selection.corpus.tables.common import AnyDatabase, DatabaseTable

STATUSES = ("in_progress", "completed", "failed", "cancelled")
FILE_ID, DOCUMENT_ID = re.compile(r"file-[0-9a-f]{24}"), re.compile(r"doc-([0-9]{1,18})")


class DetachedError(Exception):
    """The file of a document is no longer in progress: it was detached, cancelled or finished."""


@dataclass(frozen=True)
class Problem:
    """Why a file could not be ingested: OpenAI's code (server_error, unsupported_file,
    invalid_file) and a message.
    """

    code: str
    message: str


@dataclass(frozen=True)
class Attachment:
    """A file of a corpus.

    Attributes:
        id: id of the uploaded file, or `doc-<id>`.
        name: name of the file.
        attributes: metadata of its documents.
        chunking: tokens per sequence and tokens of overlap; None for a document that was not
            uploaded.
        batch: id of the batch it was attached with.
        status: one of STATUSES.
        problem: why it failed.
        created: seconds since 1970, UTC.
        bytes: size of its sequences' texts, tokens and embeddings.
        documents: how many of its documents were added, replaced, unchanged, empty, or skipped as
            rows without a text, when it was last ingested; None before that, and where an earlier
            version ingested it.
    """

    id: str
    name: str
    attributes: Mapping[str, Scalar] = field(default_factory=dict)
    chunking: tuple[int, int] | None = None
    batch: str | None = None
    status: str = "in_progress"
    problem: Problem | None = None
    created: int = 0
    bytes: int = 0
    documents: Mapping[str, int] | None = None


def attachment_from_row(file: str, row: Sequence[Any], batch: str | None, size: int) -> Attachment:
    """An attachment from its columns, beginning with the name: those of its own row, or of a
    batch's.
    """
    name, attributes, max_length, overlap, status, code, message, attached = row
    # Only a failed file has a code. Without one, the message column, which earlier versions
    # ignore then, holds the counts of documents.
    documents = json.loads(message) if code is None and message is not None else None
    return Attachment(
        file,
        name,
        json.loads(attributes),
        None if max_length is None else (max_length, overlap),
        batch,
        status,
        None if code is None else Problem(code, message),
        attached,
        size,
        documents,
    )


class AttachmentStatuses(DatabaseTable[AnyDatabase], ABC):
    """The files of one corpus, as far as their status is concerned."""

    @abstractmethod
    def get(self, file: str) -> Attachment | None:
        """The attachment of that id, or None."""

    @abstractmethod
    def positions(self, status: str | None = None) -> dict[str, Position]:
        """Ids and positions of all files, or of those of one status; oldest first."""

    def ids(self, status: str | None = None) -> list[str]:
        """Ids of all files, or of those of one status; oldest first."""
        return list(self.positions(status))

    def finish(
        self,
        ingested: Attachment,
        status: str,
        problem: Problem | None = None,
        documents: Mapping[str, int] | None = None,
    ) -> None:
        """End the ingestion of a file, unless it has ended or the file was attached again since.

        Args:
            ingested: the attachment as it was when its ingestion began.
            status: its new status; unless it is "completed", the file's documents are deleted.
            problem: why it failed.
            documents: counts of its documents, see `Attachment`.
        """
        with self._database.writing():
            now = self.get(ingested.id)
            if (
                now is not None
                and now.status == "in_progress"
                and replace(now, bytes=ingested.bytes) == ingested
            ):
                self.set_status([ingested.id], status, problem, documents)

    def cancel_all(self) -> None:
        """Cancel every file in progress."""
        with self._database.writing():
            self.set_status(self.ids("in_progress"), "cancelled")

    def set_status(
        self,
        files: Iterable[str],
        status: str,
        problem: Problem | None = None,
        documents: Mapping[str, int] | None = None,
    ) -> None:
        """As `finish`, for any files and within a transaction."""
        code, message = None, json.dumps(dict(documents)) if documents else None
        if problem is not None:
            code, message = problem.code, problem.message
        for file in files:
            self._end(file, status, code, message)

    @abstractmethod
    def _end(self, file: str, status: str, code: str | None, message: str | None) -> None:
        """Set the status of a file; unless it is "completed", delete the file's documents."""
