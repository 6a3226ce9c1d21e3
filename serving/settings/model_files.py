"""Checks whether a base model or an embedder can be used, by its files alone and within a second,
without torch and transformers.

A folder is checked by `serving.settings.model_folder`. A hub id must be in the local cache or on
the hub, which gets one request with a short timeout; the libraries would retry for a minute before
they report a missing model. A model that passes may still fail when it is loaded: only
transformers and vLLM know which architectures they support.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from adapters.config import TrainerConfig
from adapters.fingerprint import model_fingerprint
from selection.config import BASE_MODEL, DEFAULT, AdapterShape
from selection.errors import first_line
from serving.environment import hidden_packages
from serving.errors import ModelFilesError
from serving.settings.model_folder import GGUF, check_folder, check_names

log = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)
# Timeouts of requests to the hub, in seconds.
_READ_SECONDS, _CONNECT_SECONDS = 10.0, 5.0


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
    with hidden_packages():
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


def adapter_shape(trainer: TrainerConfig) -> AdapterShape | None:
    """What the adapter of a corpus must have been trained for; None if the model is not on this
    machine.

    Raises:
        BaseModelError: the files of the model cannot be read.
    """
    folder = local_folder(trainer.model)
    if folder is None:
        return None
    return AdapterShape(model_fingerprint(folder), trainer.rank, trainer.targets)


def _check(name: str, what: str, *, is_embedder: bool) -> None:
    path = Path(name)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as problem:
        raise ModelFilesError(f"cannot load {what}: {problem.strerror}") from problem
    if name.lower().endswith(".gguf") or (path.is_file() and _starts_with(path, b"GGUF")):
        raise ModelFilesError(f"cannot load {what}: it is {GGUF}")
    if is_folder:
        check_folder(path, what, is_embedder)
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
        check_folder(cached, what, is_embedder)
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
    check_folder(cached, what, is_embedder)


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
            check_names(files, what, is_embedder)
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


def _starts_with(file: Path, magic: bytes) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(magic)) == magic
    except OSError:
        return False
