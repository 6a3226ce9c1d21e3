"""Index files: an index on disk, written atomically and never loaded damaged.

An index is a folder of files, named in `index.json` together with the SHA-256 of each file, because
FAISS loads most bit flips without an error; the manifest contains a checksum of itself. An index is
written to a new folder and flushed to disk before the manifest replaces the old one by rename. What
cannot be loaded is rebuilt from the corpus.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from selection import durable
from selection.corpus.index.faiss_index import Bytes, Index, SearchParams

_FORMAT = 4
_MANIFEST = "index.json"


@dataclass(frozen=True)
class CorpusVersion:
    """What an index was built from: the `uuid` of a corpus's embeddings, and its generation."""

    corpus: str
    generation: int


def save(index: Index, folder: Path, version: CorpusVersion) -> None:
    """Replace the folder's index atomically. Only one process may save at a time: `build_lock`.

    Raises:
        OSError: it cannot be written, for example because the disk is full; the old index stays.
    """
    target = folder / f"index-{uuid.uuid4().hex[:12]}"
    target.mkdir()
    try:
        _save(index, folder, target, version)
    except OSError:
        # An incomplete index would keep a full disk full.
        shutil.rmtree(target, ignore_errors=True)
        raise
    for old in folder.glob("index-*"):
        if old != target:
            # A process that has mapped the old files keeps their pages.
            shutil.rmtree(old, ignore_errors=True)


def load(folder: Path, corpus: str, dimension: int) -> tuple[int, Index] | None:
    """The folder's index and the generation it was built from.

    Args:
        folder: the corpus's folder.
        corpus: the `uuid` of its embeddings.
        dimension: D, their dimension.

    Returns:
        None if the index is missing, damaged, of another format or another corpus's: build it.
    """
    try:
        manifest = durable.read_manifest(folder / _MANIFEST)
        if (manifest["format"], manifest["corpus"]) != (_FORMAT, corpus):
            return None
        # The files are mapped before they are checked, so that what was checked is what is
        # searched, and already in memory.
        blobs = {file: _map(folder / manifest["folder"] / file) for file in manifest["sha256"]}
        digests = {file: hashlib.sha256(blob.data).hexdigest() for file, blob in blobs.items()}
        if digests != manifest["sha256"]:
            return None
        params = manifest["search_params"]
        index = Index.from_blobs(
            blobs, dimension, None if params is None else SearchParams(**params)
        )
        return manifest["generation"], index
    # FAISS raises RuntimeErrors.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None


def saved_generation(folder: Path) -> int:
    """The generation named by the folder's manifest, unchecked; -1 if it cannot be read."""
    try:
        return int(json.loads((folder / _MANIFEST).read_text())["generation"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return -1


def build_lock(folder: Path) -> AbstractContextManager[None]:
    """Hold the lock of the one process that builds and saves a folder's index; others wait."""
    return durable.locked(folder / "index.lock")


def _save(index: Index, folder: Path, target: Path, version: CorpusVersion) -> None:
    digests = durable.write_files(target, index.blobs())
    body = {
        "format": _FORMAT,
        "corpus": version.corpus,
        "generation": version.generation,
        "folder": target.name,
        "count": len(index),
        "search_params": None if index.search_params is None else asdict(index.search_params),
        "sha256": digests,
    }
    durable.write_manifest(folder / _MANIFEST, body)


def _map(path: Path) -> Bytes:
    # An empty file cannot be mapped.
    return np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
