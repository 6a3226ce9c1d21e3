"""What a corpus needs of its store, and what is needed of the place where all corpora are.

`selection.corpus.sqlite_store` implements it, and documents it: each method here does what the one
of that name there does. Every change is one transaction, and durable once it returns. A store is
used from one thread at a time.

Shapes: N sequences, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from selection.corpus.filters import Filter, Scalar
from selection.corpus.positions import Position
from selection.corpus.sequences import Chunk, DocumentInfo, StoredSequence
from selection.corpus.stores.tables import (
    AdapterTables,
    AttachmentTable,
    FileBatchTable,
    Ids,
    ReembeddingTable,
    ReplicationTable,
    RetokenizationTable,
    SequenceTable,
    TransferTables,
)
from selection.embedding import Embeddings
from selection.errors import CorpusError


class CorpusStore(Protocol):
    """As `sqlite_store.SQLiteStore`."""

    @property
    def name(self) -> str:
        """Name of the corpus."""

    @property
    def folder(self) -> Path:
        """Folder on this machine for what is derived from the corpus."""

    @property
    def attachments(self) -> AttachmentTable:
        """Its files."""

    @property
    def file_batches(self) -> FileBatchTable:
        """Its file batches."""

    @property
    def reembedding(self) -> ReembeddingTable:
        """The replacement of its embeddings."""

    @property
    def retokenization(self) -> RetokenizationTable:
        """The replacement of its tokens."""

    @property
    def replication(self) -> ReplicationTable:
        """The exchange of documents with other stores."""

    @property
    def sequence_ids(self) -> SequenceTable:
        """Its sequences without their texts."""

    @property
    def transfer(self) -> TransferTables:
        """Its tables, to be copied."""

    @property
    def adapter_tables(self) -> AdapterTables | None:
        """Its adapter; None if that is in the folder."""

    @property
    def is_in_place(self) -> bool:
        """Whether the corpus was neither removed nor replaced since it was opened."""

    def initialise(self, meta: Mapping[str, str]) -> None:
        """Create what a corpus needs and record its metadata, unless that was done before."""

    def check_version(self) -> None:
        """Check that this version of Mayfly can use the corpus."""

    def close(self) -> None:
        """Close the store; the corpus stays."""

    def remove(self) -> None:
        """Delete the corpus, and close the store."""

    def size(self) -> int:
        """The size of the corpus in bytes."""

    def reading(self) -> AbstractContextManager[None]:
        """One consistent state, whatever others write in the meantime."""

    def meta(self) -> dict[str, str]:
        """The corpus's metadata."""

    def update_meta(self, changes: Mapping[str, str]) -> None:
        """Add or replace entries of the metadata."""

    def add(
        self,
        name: str,
        sha256: str,
        chunks: Sequence[Chunk],
        embeddings_ND: Embeddings,
        metadata: Mapping[str, Scalar],
        embedding_uuid: str,
        file: str | None = None,
        tokenizer: str | None = None,
        template: str | None = None,
    ) -> int:
        """Add a document, replacing the one of the same name."""

    def delete(self, document: str | int) -> bool:
        """Delete a document by name or id."""

    def has(self, name: str, sha256: str) -> bool:
        """Whether a document of that name and content exists."""

    def has_name(self, name: str) -> bool:
        """Whether a document of that name exists."""

    def names(self, file: str) -> list[str]:
        """The names of the documents of an attachment."""

    def counts(self) -> tuple[int, int]:
        """The numbers of documents and of sequences."""

    def documents(self) -> list[DocumentInfo]:
        """Every document, by name."""

    def token_sequences(self, name: str | None = None) -> Iterator[bytes]:
        """The tokens of every sequence."""

    def sequences_of(self, document: int) -> list[int]:
        """Ids of a document's sequences."""

    def read(self, sequences: Sequence[int]) -> dict[int, StoredSequence]:
        """Sequences by id."""

    def matching(self, filter: Filter) -> Ids:
        """Ids of the sequences whose document passes a filter."""

    def embeddings(self, after: int = 0) -> tuple[Ids, Embeddings]:
        """Ids above `after`, ascending [N], and their vectors [N, D]."""

    def removed(self, since: int) -> Ids:
        """Ids of the sequences removed after that generation."""

    def unusable(self, why: str) -> CorpusError:
        """The error for a corpus that cannot be used."""


class TombstoneRecords(Protocol):
    """As `positions.Tombstones`."""

    def record(self, prefix: str, deleted: Mapping[str, str]) -> None:
        """Record a deleted object, unless its id contains its position."""

    def position(
        self, identity: str, prefix: str, is_visible: Callable[[Mapping[str, str]], bool]
    ) -> Position | None:
        """The position of a deleted object."""


class Corpora(Protocol):
    """All corpora in one place; as `stores.folder.FolderCorpora`."""

    def names(self) -> list[str]:
        """Names of the corpora, sorted."""

    def holds(self, name: str) -> bool:
        """Whether there is a corpus of that name."""

    def metas(self, names: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
        """Name and metadata of each of these corpora."""

    def reserve(self, name: str) -> bool:
        """Take the name for a new corpus; False if it is taken."""

    def release(self, name: str) -> None:
        """Give up a name that `reserve` took."""

    def clean_cache(self) -> None:
        """Delete what this machine has derived from corpora that were removed elsewhere.

        Raises:
            CorpusError: they cannot be listed; nothing was deleted.
        """

    def receiving(self, name: str) -> AbstractContextManager[CorpusStore]:
        """An empty store to be filled in one transaction, which ends with the `with` block; until
        then no other process sees it, and nothing is left of it if the block fails.

        Raises:
            CorpusError: there is a corpus of that name.
        """

    @property
    def tombstones(self) -> TombstoneRecords:
        """Records of removed corpora."""
