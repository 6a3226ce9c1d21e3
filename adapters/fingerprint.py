"""A fingerprint of a base model, which tells apart models of one architecture, such as fine-tunes.

It is computed from small samples of the model's files, without torch, so that it takes well under a
second even for large models. It finds no damage: a changed bit is hardly ever in a sample.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapters.errors import BaseModelError, first_line
from adapters.model_defaults import weights_header

# Number of samples that are spread evenly over a file; each tensor has one more, in its middle.
_SAMPLES = 64
# Bytes of a sample.
_SAMPLE = 4096


def model_fingerprint(folder: Path) -> str:
    """32 hex digits that differ between base models, and are equal for a copy of a folder.

    They depend on the configuration, without names and versions of libraries, and on the name, the
    size, the header and samples of each *.safetensors file.

    Args:
        folder: The folder of the model's files.

    Raises:
        BaseModelError: there is no such folder, or its files cannot be read as those of a model.
    """
    if not folder.is_dir():
        raise BaseModelError(f"there is no base model in {str(folder)!r}: no such folder")
    if not (files := sorted(folder.glob("*.safetensors"))):
        raise BaseModelError(f"there is no base model in {str(folder)!r}: no *.safetensors")
    digest = hashlib.sha256()
    try:
        config = _without_origin(json.loads((folder / "config.json").read_bytes()))
        digest.update(json.dumps(config, sort_keys=True).encode())
        for file in files:
            for part in _parts(file):
                digest.update(part)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as problem:
        raise BaseModelError(
            f"cannot read the base model in {str(folder)!r}: {first_line(problem)}"
        ) from problem
    return digest.hexdigest()[:32]


def _without_origin(config: Any) -> Any:
    """A configuration without what says where it comes from: libraries write it anew."""
    if not isinstance(config, dict):
        return config
    return {
        key: _without_origin(value)
        for key, value in config.items()
        if not key.startswith("_") and not key.endswith("_version")
    }


def _parts(file: Path) -> Iterator[bytes]:
    size, header = file.stat().st_size, weights_header(file)
    yield json.dumps([file.name, size]).encode()
    yield header
    start = 8 + len(header)
    middles = {
        start + sum(entry["data_offsets"]) // 2
        for name, entry in json.loads(header).items()
        if name != "__metadata__"
    }
    evenly = {size * i // _SAMPLES for i in range(_SAMPLES)}
    with file.open("rb") as stream:
        for position in sorted(middles | evenly):
            stream.seek(position)
            yield stream.read(_SAMPLE)
