"""Writes that survive a power cut: content and folder entries are flushed to disk before they
return.

To replace something atomically, write it under a temporary name, rename it, and sync the folder.
"""

from __future__ import annotations

import os
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
