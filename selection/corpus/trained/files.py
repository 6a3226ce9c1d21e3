"""TrainedFiles: the adapter of a corpus on disk, and the checkpoint of a training under way, both
replaced atomically and never read damaged.

They lie in the folder `trained` of the corpus. `adapter.json` names the parts and the SHA-256 of
their files; `checkpoint.json` those of the checkpoint. Each contains a checksum of itself, and is
replaced by rename once the files that it names are on disk; files that it no longer names are
deleted afterwards. Only one process may save at a time: a command holds the `lock`, and a server
records that it trains.
"""

from __future__ import annotations

import fcntl
import io
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from selection import durable
from selection.corpus.trained.manifest import CorpusAdapterInfo, PartInfo, Snapshot

Ids: TypeAlias = npt.NDArray[np.int64]
# The kinds of a part's files, which are the ends of their names.
WEIGHTS, LEARNT, MOMENTS = "safetensors", "npy", "moments"
# What reading a manifest or the files that it names raises if they are damaged or missing.
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)

_FOLDER = "trained"
_MANIFEST, _CHECKPOINT, _LOCK = "adapter.json", "checkpoint.json", "training.lock"
_RECORD = "training.json"


class LockedError(Exception):
    """Another process trains the corpus."""


@dataclass(frozen=True)
class Checkpoint:
    """A training under way, so that another process can continue it.

    Attributes:
        snapshot: the state of the corpus that its plan was made from.
        progress: what its owner needs to continue, as JSON.
        files: further contents by name, of letters only.
        learnt: the sequences that these contents were trained on.
    """

    snapshot: Snapshot
    progress: Mapping[str, Any]
    files: Mapping[str, bytes]
    learnt: tuple[int, ...]


class TrainedFiles:
    """The files of one corpus's adapter.

    Args:
        corpus: the corpus's folder.
    """

    def __init__(self, corpus: Path) -> None:
        self._folder = corpus / _FOLDER

    def version(self) -> tuple[int, ...] | None:
        """What changes when the adapter is replaced; None if there is none."""
        try:
            status = (self._folder / _MANIFEST).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def load(self) -> CorpusAdapterInfo:
        """The adapter's manifest.

        Raises:
            FileNotFoundError: there is no adapter.
            DAMAGED: it is damaged.
        """
        return CorpusAdapterInfo.from_dict(durable.read_manifest(self._folder / _MANIFEST))

    def read(self, part: PartInfo, kind: str) -> bytes:
        """A file of a part, checked.

        Raises:
            DAMAGED: it is damaged or missing.
        """
        return durable.read_checked(self._folder / f"{part.name}.{kind}", part.sha256[kind])

    def learnt(self, part: PartInfo) -> Ids:
        """The ids of the sequences that a part has learnt, ascending.

        Raises:
            DAMAGED: they are damaged or missing.
        """
        return ids_of(self.read(part, LEARNT))

    def write_part(
        self, weights: bytes, learnt: Ids, moments: bytes = b""
    ) -> tuple[str, dict[str, str]]:
        """Write the files of a new part, which belong to the adapter once `save` names it.

        Returns:
            The part's name, and the SHA-256 of each kind of file.

        Raises:
            OSError: they cannot be written; nothing is left of them.
        """
        name = f"corpus-{uuid.uuid4().hex}"
        return name, self.write_files(name, part_contents(weights, learnt, moments))

    def write_files(self, name: str, contents: Mapping[str, bytes]) -> dict[str, str]:
        """Write the files of a part of that name; returns the SHA-256 of each kind.

        Raises:
            OSError: they cannot be written; nothing is left of them.
        """
        self._folder.mkdir(exist_ok=True)
        try:
            digests = durable.write_files(
                self._folder, {f"{name}.{kind}": content for kind, content in contents.items()}
            )
        except OSError:
            # Incomplete files would keep a full disk full.
            for file in self._folder.glob(f"{name}.*"):
                file.unlink(missing_ok=True)
            raise
        return {kind: digests[f"{name}.{kind}"] for kind in contents}

    def save(self, adapter: CorpusAdapterInfo) -> None:
        """Replace the adapter by one whose parts are on disk, and delete all other parts.

        Raises:
            OSError: it cannot be written; the old adapter stays.
        """
        durable.write_manifest(self._folder / _MANIFEST, adapter.as_dict())
        names = {part.name for part in adapter.parts}
        for file in self._folder.glob("corpus-*"):
            if file.stem not in names:
                file.unlink(missing_ok=True)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint.

        Raises:
            OSError: it cannot be written; the old one stays.
        """
        target = self._folder / f"checkpoint-{uuid.uuid4().hex[:12]}"
        target.mkdir(parents=True)
        learnt = npy(np.array(checkpoint.learnt, np.int64))
        try:
            digests = durable.write_files(target, {**checkpoint.files, LEARNT: learnt})
            durable.write_manifest(
                self._folder / _CHECKPOINT,
                {
                    "folder": target.name,
                    "snapshot": asdict(checkpoint.snapshot),
                    "progress": checkpoint.progress,
                    "sha256": digests,
                },
            )
        except OSError:
            # An incomplete checkpoint would keep a full disk full.
            shutil.rmtree(target, ignore_errors=True)
            raise
        self._delete_checkpoints(target)

    def load_checkpoint(self) -> Checkpoint | None:
        """The checkpoint; None if it is missing or damaged."""
        try:
            body = durable.read_manifest(self._folder / _CHECKPOINT)
            files = {
                name: durable.read_checked(self._folder / body["folder"] / name, sha256)
                for name, sha256 in body["sha256"].items()
            }
            learnt = ids_of(files.pop(LEARNT))
            snapshot = Snapshot(**body["snapshot"])
            return Checkpoint(snapshot, body["progress"], files, tuple(learnt.tolist()))
        except DAMAGED:
            return None

    def clear_checkpoint(self) -> None:
        """Delete the checkpoint, if there is one."""
        (self._folder / _CHECKPOINT).unlink(missing_ok=True)
        self._delete_checkpoints()

    def remove(self) -> None:
        """Delete the adapter and the checkpoint, if there are any."""
        (self._folder / _MANIFEST).unlink(missing_ok=True)
        for file in self._folder.glob("corpus-*"):
            file.unlink(missing_ok=True)
        self.clear_checkpoint()

    def save_record(self, record: Mapping[str, Any] | None) -> None:
        """Replace what a server has recorded of the training; None deletes it.

        Raises:
            OSError: it cannot be written; the old one stays.
        """
        if record is None:
            (self._folder / _RECORD).unlink(missing_ok=True)
            return
        self._folder.mkdir(exist_ok=True)
        durable.write_manifest(self._folder / _RECORD, record)

    def load_record(self) -> dict[str, Any] | None:
        """What a server has recorded of the training; None if it is missing or damaged."""
        try:
            return durable.read_manifest(self._folder / _RECORD)
        except DAMAGED:
            return None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the one process that trains the corpus within the `with` block.

        Raises:
            LockedError: another process holds it.
        """
        self._folder.mkdir(exist_ok=True)
        with (self._folder / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError from None
            yield

    def _delete_checkpoints(self, kept: Path | None = None) -> None:
        for folder in self._folder.glob("checkpoint-*"):
            if folder != kept:
                shutil.rmtree(folder, ignore_errors=True)


def folders_with_adapter(root: Path) -> list[str]:
    """Names of the corpora under a folder that have an adapter, sorted, whatever its state."""
    return sorted(file.parents[1].name for file in root.glob(f"*/{_FOLDER}/{_MANIFEST}"))


def part_contents(weights: bytes, learnt: Ids, moments: bytes = b"") -> dict[str, bytes]:
    """The files of a part by kind."""
    contents = {WEIGHTS: weights, LEARNT: npy(np.sort(learnt))}
    return {**contents, MOMENTS: moments} if moments else contents


def npy(ids: Ids) -> bytes:
    """Ids of sequences as the content of a file."""
    stream = io.BytesIO()
    np.save(stream, ids, allow_pickle=False)
    return stream.getvalue()


def ids_of(content: bytes) -> Ids:
    """The inverse of `npy`.

    Raises:
        ValueError: it is no such content.
    """
    ids: Ids = np.load(io.BytesIO(content), allow_pickle=False)
    return ids
