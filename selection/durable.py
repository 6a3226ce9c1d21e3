"""Files that survive a power cut: content and folder entries are flushed to disk before a write
returns.

To replace something atomically, write it under a temporary name, rename it, and sync the folder.
What consists of several files is replaced by its manifest, which names them and contains a checksum
of itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def write(path: Path, content: Any) -> None:
    """Write a file and flush it to disk.

    Args:
        path: the file; its folder must exist.
        content: bytes, or any object with the buffer protocol.

    Raises:
        OSError: it cannot be written, for example because the disk is full.
    """
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that files created, renamed or deleted in it stay so."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_files(folder: Path, files: Mapping[str, Any]) -> dict[str, str]:
    """Write new files into a folder.

    Args:
        folder: the folder, which must exist.
        files: the content of each file, as for `write`.

    Returns:
        The SHA-256 of each, for a manifest.

    Raises:
        OSError: one cannot be written.
    """
    for name, content in files.items():
        write(folder / name, content)
    sync_folder(folder)
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def read_checked(path: Path, sha256: str) -> bytes:
    """The content of a file with that SHA-256.

    Raises:
        OSError: it cannot be read.
        ValueError: it has another content.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path.name} is damaged")
    return content


def write_manifest(path: Path, body: Mapping[str, Any]) -> None:
    """Replace a manifest atomically; the files it names must be on disk. Only one process may write
    it at a time.

    Args:
        path: the manifest.
        body: its content, as JSON.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        write(temporary, json.dumps({**body, "checksum": _checksum(body)}).encode())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        # Those of killed processes, too.
        for leftover in path.parent.glob(f"{path.name}.*"):
            leftover.unlink(missing_ok=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of a manifest.

    Raises:
        FileNotFoundError: there is none.
        OSError, ValueError: it is damaged.
    """
    try:
        body = json.loads(path.read_bytes())
        if body.pop("checksum") == _checksum(body):
            return dict(body)
    except (KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{path.name} is damaged")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file within the `with` block; other processes and threads wait."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
