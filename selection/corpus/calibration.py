"""Calibration: the settings found best for one corpus, one base model and one embedder; the corpus
keeps them.

`mayfly calibrate` finds them (serving/calibration.py). A value, and where it lies in what a corpus
remembers of itself. Base models are told apart by their configuration: fine-tunes of one model
share its calibration. The learning rate and the rank belong to who trains; here they are numbers
that are carried along.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from selection.errors import CorpusError, SelectionError, first_line

_KEY = "calibration"
# Where a model lies, not what it is.
_OF_FILES = {"_name_or_path", "transformers_version", "torch_dtype", "dtype"}


@dataclass(frozen=True)
class Calibration:
    """What to use in the place of the built-in defaults.

    Attributes:
        regularisation: lambda' of SIFT.
        gain: per cent of the prompt's loss that a step must bring, of requests that leave the stop
            to the server.
        learning_rate: of Adam.
        rank: of the LoRA adapters.
        passages: on how many it was chosen, and on as many others judged.
        percent_of_base: mean bits per byte of those others after all steps, in per cent of the base
            model's.
        percent_by_default: likewise with the built-in defaults.
    """

    regularisation: float
    gain: float
    learning_rate: float
    rank: int
    passages: int
    percent_of_base: float
    percent_by_default: float


def model_digest(base_model: str) -> str:
    """16 hex digits that two base models share only if they are built alike.

    Args:
        base_model: hub id or folder.

    Raises:
        SelectionError: its configuration cannot be loaded.
    """
    from transformers import AutoConfig

    # Whatever a library makes of somebody's files: the cause is in the traceback that `--debug`
    # shows.
    try:
        told: dict[str, Any] = AutoConfig.from_pretrained(base_model).to_dict()
    except Exception as problem:
        raise SelectionError(
            f"cannot load the configuration of {base_model!r}: {first_line(problem)}"
        ) from problem
    told = {key: value for key, value in told.items() if key not in _OF_FILES}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def is_calibrated(meta: Mapping[str, str]) -> bool:
    """Whether a corpus keeps a calibration, of any model and embedder."""
    return any(key.startswith(f"{_KEY} ") and said for key, said in meta.items())


def calibration_of(meta: Mapping[str, str], model: str) -> Calibration | None:
    """A corpus's calibration for a model, by its digest; None where there is none for the embedder
    that it has now.

    Args:
        meta: what the corpus remembers of itself.
        model: as `model_digest` gives it.
    """
    try:
        said = json.loads(meta.get(f"{_KEY} {model}") or "{}")
        if said.pop("embedder", None) != _embedder(meta):
            return None
        return Calibration(**said)
    except (ValueError, TypeError, AttributeError) as problem:
        name = meta.get("name") or meta["id"]
        raise CorpusError(
            f"the calibration of corpus {name!r} is damaged: run `mayfly calibrate` again"
        ) from problem


def to_remember(
    calibration: Calibration | None, meta: Mapping[str, str], model: str
) -> dict[str, str]:
    """What the corpus is to remember of a calibration; of None, that there is none."""
    said = (
        ""
        if calibration is None
        else json.dumps({**asdict(calibration), "embedder": _embedder(meta)})
    )
    return {f"{_KEY} {model}": said}


def _embedder(meta: Mapping[str, str]) -> str:
    return f"{meta['embedder']} {meta['revision']}"
