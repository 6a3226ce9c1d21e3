"""Checks whether a base model or an embedder can be used, by its files alone and within a second,
without torch and transformers.

A folder must have a configuration, a tokenizer and weights in safetensors whose headers fit their
files. A hub id must be in the local cache or on the hub, which gets one request with a short
timeout; the libraries would retry for a minute before they report a missing model. A model that
passes may still fail when it is loaded: only transformers and vLLM know which architectures they
support.
"""

from __future__ import annotations

import json
import logging
import os
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from selection.config import BASE_MODEL, DEFAULT
from selection.errors import first_line
from serving.errors import ModelFilesError

log = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)
# Timeouts of requests to the hub, in seconds.
_READ_SECONDS, _CONNECT_SECONDS = 10.0, 5.0
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


def check_model(name: str) -> None:
    """Check that a base model can be used.

    Args:
        name: hub id or folder.

    Raises:
        ModelFilesError: the model cannot be used; the message says why, in one line.
    """
    _check(name, f"the model {name!r}", is_embedder=False)


def check_embedder(name: str, base_model: str) -> None:
    """Check that an embedder can be used.

    Args:
        name: name of the embedder, as in `selection.embedding.load_embedder`.
        base_model: hub id or folder of the base model, for the embedder "base-model".

    Raises:
        ModelFilesError: the embedder cannot be used; the message says why, in one line.
    """
    if name == BASE_MODEL:
        check_model(base_model)
    elif name != DEFAULT:
        _check(name, f"the embedder {name!r}", is_embedder=True)


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a base model.

    Args:
        name: hub id or folder.

    Raises:
        ModelFilesError: the tokenizer cannot be loaded, or it is not a fast one, which alone can
            map tokens to positions in the text.
    """
    from transformers import AutoTokenizer

    # The libraries raise exceptions of any kind for damaged files; `--debug` shows the traceback.
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as problem:
        raise ModelFilesError(
            f"cannot load the tokenizer of the model {name!r}: {first_line(problem)}"
        ) from problem
    if not getattr(tokenizer, "is_fast", False):
        raise ModelFilesError(
            f"cannot load the model {name!r}: it has no fast tokenizer (tokenizer.json)"
        )
    return tokenizer


def context_tokens(name: str) -> int:
    """The maximum number of tokens of a training sequence of a base model that was checked.

    Args:
        name: hub id or folder.
    """
    from transformers import AutoConfig

    # The same default as the trainer's.
    return int(getattr(AutoConfig.from_pretrained(name), "max_position_embeddings", 2048))


def local_folder(name: str) -> Path | None:
    """The folder of a model's files on this machine, which may be in the hub's cache; None if they
    are not on this machine.
    """
    folder = Path(name)
    try:
        if folder.is_dir():
            return folder
    except OSError:
        return None
    return _cached(name) if _HUB_ID.fullmatch(name) else None


def _check(name: str, what: str, *, is_embedder: bool) -> None:
    path = Path(name)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as problem:
        raise ModelFilesError(f"cannot load {what}: {problem.strerror}") from problem
    if name.lower().endswith(".gguf") or (path.is_file() and _starts_with(path, b"GGUF")):
        raise ModelFilesError(f"cannot load {what}: it is {_GGUF}")
    if is_folder:
        _check_folder(path, what, is_embedder)
    elif exists:
        raise ModelFilesError(
            f"cannot load {what}: it is a file; name the folder that contains config.json, "
            "the tokenizer and *.safetensors"
        )
    elif not _HUB_ID.fullmatch(name) or len(name) > 96 or name.startswith((".", "~")):
        raise ModelFilesError(f"cannot load {what}: no such folder; check the path")
    else:
        names = (
            [name] if "/" in name or not is_embedder else [f"sentence-transformers/{name}", name]
        )
        _check_hub(names, what, is_embedder)


_GGUF = (
    "a GGUF file, which cannot be served: import it with `mayfly model import FILE DIR`, "
    "and name DIR"
)


def _check_folder(folder: Path, what: str, is_embedder: bool) -> None:
    try:
        files = {
            file.relative_to(folder).as_posix() for file in (*folder.glob("*"), *folder.glob("*/*"))
        }
    except OSError as problem:
        raise ModelFilesError(f"cannot load {what}: {problem.strerror}") from problem
    _check_names(files, what, is_embedder)
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


def _check_names(files: Iterable[str], what: str, is_embedder: bool) -> None:
    """Check the file names of a folder or of a repository on the hub for what a model needs."""
    names = set(files)
    endings = {Path(name).suffix.lower() for name in names}
    if not names & ({"config.json", "modules.json"} if is_embedder else {"config.json"}):
        if ".gguf" in endings:
            raise ModelFilesError(f"cannot load {what}: it contains {_GGUF}")
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


def _check_hub(names: list[str], what: str, is_embedder: bool) -> None:
    """Check that the hub, or its local cache, has a model with one of these ids."""
    from huggingface_hub import constants

    cached = next((folder for folder in map(_cached, names) if folder is not None), None)
    if constants.HF_HUB_OFFLINE:
        if cached is None:
            raise ModelFilesError(
                f"cannot load {what}: it is neither a folder nor in the hub's cache "
                f"({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set; name a folder, "
                "or unset HF_HUB_OFFLINE to download the model"
            )
        _check_folder(cached, what, is_embedder)
        return
    problem = None
    for name in names:
        problem = _ask_hub(name, what, is_embedder)
        if problem is None:
            return
    assert problem is not None, "there is at least one name"
    if cached is None:
        raise problem
    log.warning("%s; using its copy in the hub's cache", problem)
    # Child processes read the variable; in this process the library has already read it.
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    _check_folder(cached, what, is_embedder)


def _ask_hub(name: str, what: str, is_embedder: bool) -> ModelFilesError | None:
    """Ask the hub once for a model; None if it has the model, or is slow or busy."""
    import httpx
    from huggingface_hub import constants, get_token

    token, hub = get_token(), constants.ENDPOINT
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    patience = httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS)
    try:
        with httpx.Client(headers=headers, timeout=patience, follow_redirects=True) as client:
            reply = client.head(f"{hub}/{name}/resolve/main/config.json")
            code = reply.headers.get("x-error-code", "")
            listed = (
                client.get(f"{hub}/api/models/{name}")
                if reply.is_success or code == "EntryNotFound"
                else None
            )
    except (
        httpx.ConnectError,
        httpx.ConnectTimeout,
        httpx.ProxyError,
        httpx.UnsupportedProtocol,
    ) as problem:
        return ModelFilesError(
            f"cannot load {what}: it is not a folder, and the hub at {hub} cannot be reached "
            f"({first_line(problem)}); name a folder, or go online; "
            "HF_HUB_OFFLINE=1 uses only the hub's cache"
        )
    except httpx.TransportError:
        return None
    if code == "GatedRepo" or reply.status_code == 403:
        return ModelFilesError(
            f"cannot load {what}: it is gated; accept its terms at {hub}/{name} "
            "and set HF_TOKEN to a token of your account"
        )
    if reply.status_code in (401, 404) and code != "EntryNotFound":
        remedy = "the token in HF_TOKEN has no access" if token else "set HF_TOKEN"
        return ModelFilesError(
            f"cannot load {what}: it is neither a folder nor a public model on the hub at {hub}; "
            f"check its spelling, or, if it is private: {remedy}"
        )
    if listed is not None and listed.is_success:
        files = [str(each["rfilename"]) for each in listed.json().get("siblings") or []]
        if files:
            _check_names(files, what, is_embedder)
    return None


def _cached(name: str) -> Path | None:
    """The newest snapshot of a model in the hub's cache; None if it is not there."""
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    try:
        snapshot = repository / "snapshots" / (repository / "refs" / "main").read_text().strip()
        return snapshot if snapshot.is_dir() else None
    except (OSError, ValueError):
        return None


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


def _starts_with(file: Path, magic: bytes) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(magic)) == magic
    except OSError:
        return False
