"""Places: where the adapter of a corpus is: in its folder, or in its database."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from selection.corpus.stores.protocols import CorpusStore
from selection.corpus.trained.database_files import DatabaseFiles
from selection.corpus.trained.files import (
    DAMAGED,
    Checkpoint,
    Ids,
    TrainedFiles,
    folders_with_adapter,
)
from selection.corpus.trained.manifest import CorpusAdapterInfo, PartInfo
from selection.errors import CorpusError
from selection.location import Location


class AdapterFiles(Protocol):
    """As `files.TrainedFiles`, which documents it."""

    def version(self) -> tuple[int, ...] | None:
        """What changes when the adapter is replaced; None if there is none."""

    def load(self) -> CorpusAdapterInfo:
        """The adapter's manifest."""

    def read(self, part: PartInfo, kind: str) -> bytes:
        """A file of a part, checked."""

    def learnt(self, part: PartInfo) -> Ids:
        """The ids of the sequences that a part has learnt, ascending."""

    def write_part(
        self, weights: bytes, learnt: Ids, moments: bytes = b""
    ) -> tuple[str, dict[str, str]]:
        """Write the files of a new part."""

    def write_files(self, name: str, contents: Mapping[str, bytes]) -> dict[str, str]:
        """Write the files of a part of that name."""

    def save(self, adapter: CorpusAdapterInfo) -> None:
        """Replace the adapter, and delete all other parts."""

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint."""

    def load_checkpoint(self) -> Checkpoint | None:
        """The checkpoint; None if it is missing or damaged."""

    def clear_checkpoint(self) -> None:
        """Delete the checkpoint, if there is one."""

    def remove(self) -> None:
        """Delete the adapter and the checkpoint, if there are any."""

    def save_record(self, record: Mapping[str, Any] | None) -> None:
        """Replace what a server has recorded of the training."""

    def load_record(self) -> dict[str, Any] | None:
        """What a server has recorded of the training."""

    def lock(self) -> AbstractContextManager[None]:
        """Hold the lock of the one process that trains the corpus."""


def files_of(store: CorpusStore) -> AdapterFiles:
    """The files of a corpus's adapter."""
    tables = store.adapter_tables
    return TrainedFiles(store.folder) if tables is None else DatabaseFiles(tables)


def corpora_with_adapter(root: Location) -> list[str]:
    """Names of the corpora that have an adapter, sorted, whatever its state."""
    if isinstance(root, Path):
        return folders_with_adapter(root)
    # PostgreSQL's client is imported only where it is needed.
    from selection.corpus.postgres.corpora import PostgresCorpora

    return PostgresCorpora(root).with_adapter()


def copy_adapter(source: CorpusStore, copy: CorpusStore) -> None:
    """Copy the adapter of a corpus, if there is one, and check what was written; within the
    transactions in which the corpus itself is copied.

    Raises:
        CorpusError: it is damaged.
        OSError: it could not be written.
    """
    there, here = files_of(source), files_of(copy)
    try:
        info = there.load()
    except FileNotFoundError:
        return
    except CorpusError:
        raise
    except DAMAGED as problem:
        raise _damaged(source) from problem
    for part in info.parts:
        try:
            contents = {kind: there.read(part, kind) for kind in part.sha256}
        except CorpusError:
            raise
        except DAMAGED as problem:
            raise _damaged(source) from problem
        here.write_files(part.name, contents)
        for kind in part.sha256:
            # Refuses a copy that differs.
            here.read(part, kind)
    here.save(info)


def _damaged(store: CorpusStore) -> CorpusError:
    return store.unusable(
        f"has a damaged adapter: train it again, or remove it with `mayfly corpus train "
        f"{store.name} --forget`"
    )
