"""Checks the files of a model's folder, or their names on the hub.

A folder must have a configuration, a tokenizer and weights in safetensors whose headers fit their
files. Only the headers of the weights are read.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from serving.errors import ModelFilesError

_CAUSAL = re.compile(r"CausalLM|LMHead|ConditionalGeneration|Decoder")
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library
_LFS_POINTER = b"version https://git-lfs"
GGUF = (
    "a GGUF file, which cannot be served: import it with `mayfly model import FILE DIR`, "
    "and name DIR"
)


def check_folder(folder: Path, what: str, is_embedder: bool) -> None:
    """Check a folder.

    Args:
        folder: the folder.
        what: what it holds, for messages.
        is_embedder: whether it holds an embedder, not a base model.

    Raises:
        ModelFilesError: something is missing or damaged.
    """
    try:
        files = {
            file.relative_to(folder).as_posix() for file in (*folder.glob("*"), *folder.glob("*/*"))
        }
    except OSError as problem:
        raise ModelFilesError(f"cannot load {what}: {problem.strerror}") from problem
    check_names(files, what, is_embedder)
    if (folder / "config.json").is_file():
        config = _json(folder / "config.json", what)
        architectures = config.get("architectures") or []
        if not is_embedder and "model_type" not in config:
            raise ModelFilesError(
                f"cannot load {what}: it is not in the format of transformers, "
                "its config.json has no `model_type`"
            )
        if (
            not is_embedder
            and architectures
            and not any(_CAUSAL.search(str(each)) for each in architectures)
        ):
            listed = ", ".join(map(str, architectures))
            raise ModelFilesError(
                f"cannot load {what}: it is not a causal language model, "
                f"its config.json names {listed}"
            )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        needed = {str(file) for file in dict(_json(index, what).get("weight_map") or {}).values()}
        if missing := sorted(needed - files):
            raise ModelFilesError(
                f"cannot load {what}: it lacks {missing[0]}, which its index names; "
                "download or copy it again"
            )
    for file in sorted(file for file in files if file.endswith(".safetensors")):
        if damage := _damage(folder / file):
            raise ModelFilesError(f"cannot load {what}: {file} {damage}")


def check_names(files: Iterable[str], what: str, is_embedder: bool) -> None:
    """Check the file names of a folder or of a repository on the hub for what a model needs.

    Raises:
        ModelFilesError: something is missing.
    """
    names = set(files)
    endings = {Path(name).suffix.lower() for name in names}
    if not names & ({"config.json", "modules.json"} if is_embedder else {"config.json"}):
        if ".gguf" in endings:
            raise ModelFilesError(f"cannot load {what}: it contains {GGUF}")
        if "adapter_config.json" in names:
            raise ModelFilesError(
                f"cannot load {what}: it is an adapter, not a base model; "
                "name the model that it was trained on"
            )
        raise ModelFilesError(
            f"cannot load {what}: it has no config.json; "
            "name the folder that contains config.json and *.safetensors"
        )
    if ".safetensors" not in endings:
        pickled = sorted(name for name in names if Path(name).suffix.lower() in _PICKLED)
        if pickled:
            raise ModelFilesError(
                f"cannot load {what}: its weights are only in {pickled[0]}, a pickle file, "
                "which is unsafe to load; convert it to safetensors, with transformers' "
                "`from_pretrained` and `save_pretrained`"
            )
        raise ModelFilesError(
            f"cannot load {what}: it has no weights; copy *.safetensors next to its config.json"
        )
    if not is_embedder and names.isdisjoint(_TOKENIZERS):
        raise ModelFilesError(
            f"cannot load {what}: it has no tokenizer; copy tokenizer.json next to its config.json"
        )


def _damage(file: Path) -> str | None:
    """What is wrong with a safetensors file, by its header and its size; None if nothing is."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(max(8, len(_LFS_POINTER)))
            if start.startswith(_LFS_POINTER):
                return "is a Git LFS pointer, not the weights: run `git lfs pull` in its repository"
            (length,) = struct.unpack("<Q", start[:8]) if len(start) >= 8 else (size,)
            if length > min(size - 8, _MAX_HEADER_BYTES):
                return "is damaged or incomplete: download or copy it again"
            stream.seek(8)
            header = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    except OSError as problem:
        return f"cannot be read: {problem.strerror}"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "is damaged: its header is invalid; download or copy it again"
    expected = 8 + length + max(ends, default=0)
    if size == expected:
        return None
    return f"has {size:,} bytes, not {expected:,}: download or copy it again"


def _json(file: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as problem:
        raise ModelFilesError(f"cannot load {what}: {file.name}: {problem.strerror}") from problem
    except ValueError as problem:
        raise ModelFilesError(
            f"cannot load {what}: its {file.name} is not JSON ({problem})"
        ) from problem
    if not isinstance(content, dict):
        raise ModelFilesError(f"cannot load {what}: its {file.name} is not a JSON object")
    return content
