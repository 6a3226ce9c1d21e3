"""Whether a base model or an embedder can be used, by its files alone and within a second: no
torch, no transformers.

A folder must hold a configuration, a tokenizer and weights in safetensors whose headers fit their
files. A hub id must be in the local cache or known to the hub, which is asked once and with a short
patience; libraries that ask it again and again would take a minute to say that it is not there.
What passes may still fail when it is loaded: whether an architecture is supported is for
transformers and vLLM to say.
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
from serving.errors import ModelFilesError

log = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)
_PATIENCE = 10.0  # seconds for each of the hub's answers
_TO_CONNECT = 5.0  # seconds
_CAUSAL = re.compile(r"CausalLM|LMHead|ConditionalGeneration|Decoder")
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
_MORE_TOKENIZERS = ("sentencepiece.bpe.model", "tokenizer_config.json")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_LONGEST_HEADER = 100_000_000  # bytes, as in the safetensors library
_POINTER = b"version https://git-lfs"


def check_model(name: str) -> None:
    """Refuse a base model that cannot be used.

    Args:
        name: its hub id or folder.

    Raises:
        ModelFilesError: naming what is wrong with it, in one line.
    """
    _check(name, f"the model {name!r}", is_embedder=False)


def check_embedder(name: str, base_model: str) -> None:
    """Refuse an embedder that cannot be used.

    Args:
        name: as in `selection.embedding.load_embedder`.
        base_model: the base model's hub id or folder, for the embedder "base-model".

    Raises:
        ModelFilesError: naming what is wrong with it, in one line.
    """
    if name == BASE_MODEL:
        check_model(base_model)
    elif name != DEFAULT:
        _check(name, f"the embedder {name!r}", is_embedder=True)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a base model.

    Args:
        name: its hub id or folder.

    Raises:
        ModelFilesError: it cannot be loaded, or it is not one of those that tell where in a text
            each token lies.
    """
    from transformers import AutoTokenizer

    # Whatever a library makes of somebody's files: the cause is in the traceback that `--debug`
    # shows.
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as problem:
        said = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
        raise ModelFilesError(
            f"cannot load the tokenizer of the model {name!r}: {said}"
        ) from problem
    if not getattr(tokenizer, "is_fast", False):
        raise ModelFilesError(
            f"cannot load the model {name!r}: it has no fast tokenizer; it needs a tokenizer.json"
        )
    return tokenizer


def local_folder(name: str) -> Path | None:
    """Where a model's files are on this machine: its folder, or its copy in the hub's cache; None
    where nowhere.
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
        is_folder, is_there = path.is_dir(), path.exists()
    except OSError as problem:
        raise ModelFilesError(f"cannot load {what}: {problem.strerror}") from problem
    if name.lower().endswith(".gguf") or (path.is_file() and _begins(path, b"GGUF")):
        raise ModelFilesError(f"cannot load {what}: it is {_GGUF}")
    if is_folder:
        _check_folder(path, what, is_embedder)
    elif is_there:
        raise ModelFilesError(
            f"cannot load {what}: it is a file; name the folder that holds config.json, tokenizer and *.safetensors"
        )
    elif not _HUB_ID.fullmatch(name) or len(name) > 96 or name.startswith((".", "~")):
        raise ModelFilesError(f"cannot load {what}: there is no such folder; check the path")
    else:
        names = (
            [name] if "/" in name or not is_embedder else [f"sentence-transformers/{name}", name]
        )
        _check_hub(names, what, is_embedder)


_GGUF = (
    "a GGUF file, which is not served directly: convert it to a folder in safetensors first, with transformers' "
    "`from_pretrained(FOLDER, gguf_file=FILE)` and `save_pretrained`"
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
                f"cannot load {what}: it is not in transformers' format, its config.json has no `model_type`"
            )
        if (
            not is_embedder
            and architectures
            and not any(_CAUSAL.search(str(each)) for each in architectures)
        ):
            named = ", ".join(map(str, architectures))
            raise ModelFilesError(
                f"cannot load {what}: it is not a causal language model, its config.json names {named}"
            )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        needed = {str(file) for file in dict(_json(index, what).get("weight_map") or {}).values()}
        if missing := sorted(needed - files):
            raise ModelFilesError(
                f"cannot load {what}: it lacks {missing[0]}, which its index names; download or copy it again"
            )
    for file in sorted(file for file in files if file.endswith(".safetensors")):
        if damage := _damage(folder / file):
            raise ModelFilesError(f"cannot load {what}: {file} {damage}")


def _check_names(files: Iterable[str], what: str, is_embedder: bool) -> None:
    """Whether these files, of a folder or of a repository on the hub, can be all that is needed."""
    names = set(files)
    endings = {Path(name).suffix.lower() for name in names}
    if not names & ({"config.json", "modules.json"} if is_embedder else {"config.json"}):
        if ".gguf" in endings:
            raise ModelFilesError(f"cannot load {what}: it holds {_GGUF}")
        if "adapter_config.json" in names:
            raise ModelFilesError(
                f"cannot load {what}: it is an adapter, not a base model; name the model that it was trained on"
            )
        raise ModelFilesError(
            f"cannot load {what}: it has no config.json; name the folder that holds it, beside *.safetensors"
        )
    if ".safetensors" not in endings:
        pickled = sorted(name for name in names if Path(name).suffix.lower() in _PICKLED)
        if pickled:
            raise ModelFilesError(
                f"cannot load {what}: it has its weights only in {pickled[0]}, and nothing is unpickled here; "
                "convert it to safetensors, with transformers' `from_pretrained` and `save_pretrained`"
            )
        raise ModelFilesError(
            f"cannot load {what}: it has no weights, there is no *.safetensors beside its config.json"
        )
    if not is_embedder and not names & {*_TOKENIZERS, *_MORE_TOKENIZERS}:
        raise ModelFilesError(
            f"cannot load {what}: it has no tokenizer; copy its tokenizer.json beside its config.json"
        )


def _damage(file: Path) -> str | None:
    """What is wrong with a file of safetensors, by its header and its size."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            begin = stream.read(max(8, len(_POINTER)))
            if begin.startswith(_POINTER):
                return "is a Git LFS pointer, not the weights: run `git lfs pull` in its repository"
            (length,) = struct.unpack("<Q", begin[:8]) if len(begin) >= 8 else (size,)
            if length > min(size - 8, _LONGEST_HEADER):
                return "is damaged or incomplete: download or copy it again"
            stream.seek(8)
            header = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    except OSError as problem:
        return f"cannot be read: {problem.strerror}"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "is damaged: its header is not that of safetensors; download or copy it again"
    wanted = 8 + length + max(ends, default=0)
    return (
        None if size == wanted else f"has {size:,} bytes, not {wanted:,}: download or copy it again"
    )


def _check_hub(names: list[str], what: str, is_embedder: bool) -> None:
    """Whether the cache or the hub has a model by one of these ids."""
    from huggingface_hub import constants

    cached = next((folder for folder in map(_cached, names) if folder is not None), None)
    if constants.HF_HUB_OFFLINE:
        if cached is None:
            raise ModelFilesError(
                f"cannot load {what}: it is neither a folder here nor in the hub's cache ({constants.HF_HUB_CACHE}), "
                "and HF_HUB_OFFLINE is set; name a folder, or unset it to download the model"
            )
        _check_folder(cached, what, is_embedder)
        return
    problem = None
    for name in names:
        problem = _ask_hub(name, what, is_embedder)
        if problem is None:
            return
    assert problem is not None, "there is a name at least"
    if cached is None:
        raise problem
    log.warning("%s; its copy in the hub's cache is used", problem)
    # For this process, where the library has read the variable already, and for those that it
    # starts.
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    _check_folder(cached, what, is_embedder)


def _ask_hub(name: str, what: str, is_embedder: bool) -> ModelFilesError | None:
    """Ask once; None where the hub has it, or is there and is only slow or busy."""
    import httpx
    from huggingface_hub import constants, get_token

    token, hub = get_token(), constants.ENDPOINT
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    patience = httpx.Timeout(_PATIENCE, connect=_TO_CONNECT)
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
        said = str(problem) or type(problem).__name__
        return ModelFilesError(
            f"cannot load {what}: it is not a folder here, and the hub at {hub} cannot be reached ({said}); "
            "name a folder, or go online; HF_HUB_OFFLINE=1 uses the hub's cache alone"
        )
    except httpx.TransportError:
        return None
    if code == "GatedRepo" or reply.status_code == 403:
        return ModelFilesError(
            f"cannot load {what}: it is gated; accept its terms at {hub}/{name}, and set HF_TOKEN to a token "
            "of that account"
        )
    if reply.status_code in (401, 404) and code != "EntryNotFound":
        token_hint = (
            "which the token in HF_TOKEN may not read" if token else "whose readers need HF_TOKEN"
        )
        return ModelFilesError(
            f"cannot load {what}: it is neither a folder here nor a model that the hub at {hub} shows; "
            f"check its spelling, or it is private, {token_hint}"
        )
    if listed is not None and listed.is_success:
        files = [str(each["rfilename"]) for each in listed.json().get("siblings") or []]
        if files:
            _check_names(files, what, is_embedder)
    return None


def _cached(name: str) -> Path | None:
    """The newest snapshot of a model in the hub's cache."""
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    try:
        snapshot = repository / "snapshots" / (repository / "refs" / "main").read_text().strip()
        return snapshot if snapshot.is_dir() else None
    except (OSError, ValueError):
        return None


def _json(file: Path, what: str) -> dict[str, Any]:
    try:
        said = json.loads(file.read_bytes())
    except OSError as problem:
        raise ModelFilesError(f"cannot load {what}: {file.name}: {problem.strerror}") from problem
    except ValueError as problem:
        raise ModelFilesError(
            f"cannot load {what}: its {file.name} is not JSON ({problem})"
        ) from problem
    if not isinstance(said, dict):
        raise ModelFilesError(f"cannot load {what}: its {file.name} is not a JSON object")
    return said


def _begins(file: Path, magic: bytes) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(magic)) == magic
    except OSError:
        return False
