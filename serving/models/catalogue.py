"""The names of models: those in the cache, the bundled one, and the default.

The cache is a folder that contains a folder for each model: MAYFLY_MODEL_CACHE, otherwise
~/.mayfly/models. All homes of one user share it. Nothing heavy is imported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adapters.model_defaults import parameters_of
from serving.config import bundled_model
from serving.environment import MODEL_CACHE
from serving.errors import ModelFilesError
from serving.models.card import ModelCard

NANO = "nano"
SMOLLM2 = "smollm2"
_INSTALL = "`make install` brings it"


@dataclass(frozen=True)
class InstalledModel:
    """A model on this machine.

    Attributes:
        name: its name for `--model`.
        folder: its folder.
        card: where it comes from; unknown values are None.
        size: size of its files in bytes.
    """

    name: str
    folder: Path
    card: ModelCard
    size: int


@dataclass(frozen=True)
class DefaultModel:
    """The model of commands that name none.

    Attributes:
        name: "smollm2" if it is installed, otherwise "nano".
        folder: its folder.
        reason: why it is this one, for the line that reports that a server is ready.
    """

    name: str
    folder: str
    reason: str


def models_folder() -> Path:
    """The folder of all installed models."""
    named = os.environ.get(MODEL_CACHE)
    return Path(named).expanduser().absolute() if named else Path.home() / ".mayfly" / "models"


def default_model() -> DefaultModel:
    """SmolLM2 where it is installed, otherwise the bundled model."""
    folder = models_folder() / SMOLLM2
    if _is_model(folder):
        return DefaultModel(SMOLLM2, str(folder), "the default model")
    return DefaultModel(NANO, bundled_model(), f"{SMOLLM2} is not installed, {_INSTALL}")


def model_folder(name: str | None) -> str:
    """The folder of an installed model, or the name itself where it is a folder or a hub id.

    Args:
        name: the value of `--model`; None for the default model.

    Raises:
        ModelFilesError: it is "smollm2", which is not installed.
    """
    if name is None:
        return default_model().folder
    if name == NANO:
        return bundled_model()
    # A name with a slash is a path or a hub id.
    if name == Path(name).name and _is_model(models_folder() / name):
        return str(models_folder() / name)
    if name == SMOLLM2 and not Path(name).exists():
        raise ModelFilesError(f"the model {SMOLLM2!r} is not installed: {_INSTALL}")
    return name


def installed_models() -> Iterator[InstalledModel]:
    """All models in the cache, by name, and the bundled one."""
    root = models_folder()
    folders = sorted(root.iterdir()) if root.is_dir() else []
    for folder in folders:
        # Hidden folders are imports in progress.
        if not folder.name.startswith(".") and _is_model(folder):
            yield _installed(folder.name, folder, ModelCard.read(folder))
    bundled = Path(bundled_model())
    yield _installed(NANO, bundled, _card(bundled, "bundled with Mayfly", "apache-2.0"))


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _installed(name: str, folder: Path, card: ModelCard | None) -> InstalledModel:
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return InstalledModel(name, folder, card or _card(folder, str(folder), None), size)


def _card(folder: Path, source: str, license: str | None) -> ModelCard:
    """A card for a folder that has none."""
    try:
        architecture = str(json.loads((folder / "config.json").read_bytes())["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        architecture = "unknown"
    return ModelCard(source, "", license, architecture, parameters_of(folder))
