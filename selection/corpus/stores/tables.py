"""What a corpus needs of the tables of its store.

`selection.corpus.tables` implements it, and documents it: each method here does what the one of
that name there does.

Shapes: N sequences, G groups of them, K candidates, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from selection.corpus.contents import Row
from selection.corpus.positions import Position
from selection.corpus.tables.attachment import Attachment, Problem
from selection.corpus.tables.replication import DocumentReplica
from selection.corpus.tables.retokenization import Tokenize
from selection.embedding import Embeddings

Ids: TypeAlias = npt.NDArray[np.int64]


class AttachmentTable(Protocol):
    """As `tables.attachments.Attachments`."""

    def attach(self, files: Sequence[Attachment]) -> None:
        """Attach files, or attach them again."""

    def get(self, file: str) -> Attachment | None:
        """The attachment of that id."""

    def positions(self, status: str | None = None) -> dict[str, Position]:
        """Ids and positions of the files of a status, or of all."""

    def ids(self, status: str | None = None) -> list[str]:
        """Ids of the files of a status, or of all."""

    def position(self, file: str) -> Position | None:
        """The position of a file, also after it was detached."""

    def counts(self) -> dict[str, int]:
        """The number of files of each status."""

    def is_in_progress(self, file: str) -> bool:
        """Whether a file is still to be ingested."""

    def any_in_progress(self) -> bool:
        """Whether a file, any of them, is still to be ingested."""

    def finish(
        self,
        ingested: Attachment,
        status: str,
        problem: Problem | None = None,
        documents: Mapping[str, int] | None = None,
    ) -> None:
        """End the ingestion of a file."""

    def cancel_all(self) -> None:
        """Cancel every file in progress."""

    def detach(self, file: str) -> bool:
        """Remove a file and its documents."""

    def texts(self, file: str) -> list[str]:
        """The texts of a file's sequences."""

    def files_of(self, documents: Iterable[int]) -> dict[int, tuple[str, str]]:
        """Id and name of the file of each document."""


class FileBatchTable(Protocol):
    """As `tables.file_batches.FileBatches`."""

    def get(self, batch: str) -> tuple[int, bool] | None:
        """When a batch was created, and whether it was cancelled."""

    def counts(self, batch: str) -> dict[str, int]:
        """The number of its files of each status."""

    def positions(self, batch: str, status: str | None = None) -> dict[str, Position]:
        """Ids and positions of its files."""

    def member(self, batch: str, file: str) -> Attachment:
        """A file of a batch."""

    def cancel(self, batch: str) -> None:
        """Cancel the files of a batch that are in progress."""


class ReembeddingTable(Protocol):
    """As `tables.reembedding.Reembedding`."""

    def begin(self, identity: Mapping[str, str]) -> None:
        """Resume an interrupted run for the same embedder, or else start from scratch."""

    def count(self, identity: Mapping[str, str]) -> int:
        """The number of new embeddings collected so far."""

    def pending(self, limit: int) -> list[tuple[int, str, str | None]]:
        """The first sequences without a new embedding."""

    def save(
        self, identity: Mapping[str, str], ids: Sequence[int], embeddings_ND: Embeddings
    ) -> None:
        """Collect new embeddings."""

    def finish(self, identity: Mapping[str, str]) -> bool:
        """Replace all embeddings at once; False if some are pending."""


class ReplicationTable(Protocol):
    """As `tables.replication.Replication`."""

    def export(self, document: int) -> DocumentReplica | None:
        """The document of that id."""

    def import_(self, replica: DocumentReplica) -> None:
        """Add a document of another store."""

    def present(self, sequences: Ids) -> npt.NDArray[np.bool_]:
        """Which of these sequences exist [K]."""


class RetokenizationTable(Protocol):
    """As `tables.retokenization.Retokenization`."""

    def run(
        self,
        tokenizer: str,
        template: str,
        tokenize: Tokenize,
        max_tokens: int,
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> int:
        """Replace the tokens of every sequence; returns the number of those removed."""


class SequenceTable(Protocol):
    """As `tables.sequence_ids.SequenceIds`."""

    def all(self) -> Ids:
        """The document [N, 0] and the id [N, 1] of each sequence."""

    def count(self) -> int:
        """The number of sequences."""

    def contents(self) -> dict[int, str]:
        """The digest of each document's content."""

    def centroids(self, groups: Sequence[Ids]) -> Embeddings:
        """The mean embeddings [G, D] of groups of sequences."""


class TransferTables(Protocol):
    """As `tables.transfer.Transfer`."""

    def export(self, table: str) -> Iterator[Row]:
        """The rows of a table, within a transaction."""

    def import_(self, table: str, rows: Iterable[Row]) -> None:
        """Fill an empty table, within `Corpora.receiving`."""


class AdapterTables(Protocol):
    """As `postgres.tables.adapter_tables.AdapterTables`; a corpus in a folder has files instead."""

    def version(self, kind: str) -> int | None:
        """A number that changes when a manifest is replaced; None if there is none."""

    def manifest(self, kind: str) -> dict[str, Any] | None:
        """A manifest; None if there is none."""

    def replace(
        self,
        kind: str,
        body: Mapping[str, Any] | None,
        prefix: str | None = None,
        kept: Collection[str] = (),
    ) -> None:
        """Replace a manifest, and delete the files that it does not name any more."""

    def write(self, files: Mapping[str, bytes]) -> None:
        """Store new files, or nothing of them."""

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if it does not exist."""

    def lock(self) -> AbstractContextManager[bool]:
        """Hold the lock of the one process that trains the corpus; False if another one has it."""
