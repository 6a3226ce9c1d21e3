"""DatabaseFiles: the adapter of a corpus as `trained.files.TrainedFiles` has it, in a database."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from selection.corpus.stores.tables import AdapterTables
from selection.corpus.trained.files import (
    DAMAGED,
    LEARNT,
    Checkpoint,
    Ids,
    LockedError,
    ids_of,
    npy,
    part_contents,
)
from selection.corpus.trained.manifest import CorpusAdapterInfo, PartInfo, Snapshot
from selection.errors import CorpusError

_ADAPTER, _CHECKPOINT, _RECORD = "adapter", "checkpoint", "record"
_PART = "corpus-"


class DatabaseFiles:
    """The files of one corpus's adapter.

    Every method raises CorpusError if the database cannot be used.

    Args:
        tables: the corpus's tables.
    """

    def __init__(self, tables: AdapterTables) -> None:
        self._tables = tables

    def version(self) -> tuple[int, ...] | None:
        """What changes when the adapter is replaced; None if there is none."""
        version = self._tables.version(_ADAPTER)
        return None if version is None else (version,)

    def load(self) -> CorpusAdapterInfo:
        """As `TrainedFiles.load`."""
        body = self._tables.manifest(_ADAPTER)
        if body is None:
            raise FileNotFoundError(_ADAPTER)
        return CorpusAdapterInfo.from_dict(body)

    def read(self, part: PartInfo, kind: str) -> bytes:
        """As `TrainedFiles.read`."""
        return self._checked(f"{part.name}.{kind}", part.sha256[kind])

    def learnt(self, part: PartInfo) -> Ids:
        """As `TrainedFiles.learnt`."""
        return ids_of(self.read(part, LEARNT))

    def write_part(
        self, weights: bytes, learnt: Ids, moments: bytes = b""
    ) -> tuple[str, dict[str, str]]:
        """As `TrainedFiles.write_part`."""
        name = f"{_PART}{uuid.uuid4().hex}"
        return name, self.write_files(name, part_contents(weights, learnt, moments))

    def write_files(self, name: str, contents: Mapping[str, bytes]) -> dict[str, str]:
        """As `TrainedFiles.write_files`."""
        self._tables.write({f"{name}.{kind}": content for kind, content in contents.items()})
        return {kind: _sha256(content) for kind, content in contents.items()}

    def save(self, adapter: CorpusAdapterInfo) -> None:
        """As `TrainedFiles.save`."""
        kept = [f"{part.name}.{kind}" for part in adapter.parts for kind in part.sha256]
        self._tables.replace(_ADAPTER, adapter.as_dict(), _PART, kept)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """As `TrainedFiles.save_checkpoint`."""
        folder = f"{_CHECKPOINT}-{uuid.uuid4().hex[:12]}"
        contents = {**checkpoint.files, LEARNT: npy(np.array(checkpoint.learnt, np.int64))}
        files = {f"{folder}/{name}": content for name, content in contents.items()}
        self._tables.write(files)
        self._tables.replace(
            _CHECKPOINT,
            {
                "folder": folder,
                "snapshot": asdict(checkpoint.snapshot),
                "progress": checkpoint.progress,
                "sha256": {name: _sha256(content) for name, content in contents.items()},
            },
            _CHECKPOINT,
            [*files],
        )

    def load_checkpoint(self) -> Checkpoint | None:
        """The checkpoint; None if it is missing or damaged."""
        try:
            body = self._tables.manifest(_CHECKPOINT)
            if body is None:
                return None
            files = {
                name: self._checked(f"{body['folder']}/{name}", sha256)
                for name, sha256 in body["sha256"].items()
            }
            learnt = ids_of(files.pop(LEARNT))
            snapshot = Snapshot(**body["snapshot"])
            return Checkpoint(snapshot, body["progress"], files, tuple(learnt.tolist()))
        except CorpusError:
            raise
        except DAMAGED:
            return None

    def clear_checkpoint(self) -> None:
        """Delete the checkpoint, if there is one."""
        self._tables.replace(_CHECKPOINT, None, _CHECKPOINT)

    def remove(self) -> None:
        """Delete the adapter and the checkpoint, if there are any."""
        self._tables.replace(_ADAPTER, None, _PART)
        self.clear_checkpoint()

    def save_record(self, record: Mapping[str, Any] | None) -> None:
        """Replace what a server has recorded of the training; None deletes it."""
        self._tables.replace(_RECORD, record)

    def load_record(self) -> dict[str, Any] | None:
        """What a server has recorded of the training; None if there is nothing."""
        return self._tables.manifest(_RECORD)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """As `TrainedFiles.lock`."""
        with self._tables.lock() as held:
            if not held:
                raise LockedError
            yield

    def _checked(self, name: str, sha256: str) -> bytes:
        """The content of a file with that SHA-256.

        Raises:
            ValueError: it is missing or has another content.
        """
        content = self._tables.read(name)
        if content is None or _sha256(content) != sha256:
            raise ValueError(f"{name} is damaged")
        return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
