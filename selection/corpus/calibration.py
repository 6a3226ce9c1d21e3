"""Calibration: the settings found best for one corpus, one base model and one embedder, stored in
the corpus's metadata.

`mayfly calibrate` finds them (`serving.calibration`). Base models are identified by their
configuration, so fine-tunes of one model share its calibration. Only lambda' and the strategy are
used here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from selection.errors import CorpusError, SelectionError, first_line

_KEY = "calibration"
# These differ between two copies of the same model.
_IGNORED = {"_name_or_path", "transformers_version", "torch_dtype", "dtype"}


@dataclass(frozen=True)
class Calibration:
    """Settings that replace the built-in defaults.

    Attributes:
        regularisation: lambda' of SIFT.
        gain: percentage of the prompt's loss by which a step must reduce it, for requests that
            leave the stop to the server.
        learning_rate: Adam learning rate.
        rank: LoRA rank.
        passages: number of passages that the settings were chosen on; as many others were used to
            evaluate them.
        percent_of_base: mean bits per byte of these others with these settings and after all steps,
            as a percentage of the base model's.
        percent_by_default: the same with the built-in defaults.
        show: number of chosen sequences to put into the prompt of a request that adapts and has no
            number of its own.
        steps: maximum number of steps, for requests that leave the stop to the server; None for
            the budget's.
        strategy: selection strategy of requests that name none (`SelectionRequest.strategy_for`).
    """

    regularisation: float
    gain: float
    learning_rate: float
    rank: int
    passages: int
    percent_of_base: float
    percent_by_default: float
    show: int = 0
    steps: int | None = None
    strategy: str = "sift"


def model_digest(base_model: str) -> str:
    """16 hex digits that are equal for base models of the same configuration.

    Args:
        base_model: hub id or folder.

    Raises:
        SelectionError: its configuration cannot be loaded.
    """
    from transformers import AutoConfig

    # Transformers raises many kinds of exceptions for invalid files; `--debug` shows the cause.
    try:
        config: dict[str, Any] = AutoConfig.from_pretrained(base_model).to_dict()
    except Exception as problem:
        raise SelectionError(
            f"cannot load the configuration of {base_model!r}: {first_line(problem)}"
        ) from problem
    config = {key: value for key, value in config.items() if key not in _IGNORED}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]


def is_calibrated(meta: Mapping[str, str]) -> bool:
    """Whether a corpus has a calibration, for any model and embedder."""
    return any(key.startswith(f"{_KEY} ") and value for key, value in meta.items())


def calibration_of(meta: Mapping[str, str], model: str) -> Calibration | None:
    """A corpus's calibration for a model; None if it has none for that model and its present
    embedder.

    Args:
        meta: the corpus's metadata.
        model: digest of the model, see `model_digest`.

    Raises:
        CorpusError: the calibration is damaged.
    """
    try:
        fields = json.loads(meta.get(f"{_KEY} {model}") or "{}")
        if fields.pop("embedder", None) != _embedder(meta):
            return None
        return Calibration(**fields)
    except (ValueError, TypeError, AttributeError) as problem:
        name = meta.get("name") or meta["id"]
        raise CorpusError(
            f"the calibration of corpus {name!r} is damaged: run `mayfly calibrate` again"
        ) from problem


def calibration_meta(
    calibration: Calibration | None, meta: Mapping[str, str], model: str
) -> dict[str, str]:
    """The metadata entry that stores a calibration in a corpus; None deletes the stored one."""
    value = (
        ""
        if calibration is None
        else json.dumps({**asdict(calibration), "embedder": _embedder(meta)})
    )
    return {f"{_KEY} {model}": value}


def _embedder(meta: Mapping[str, str]) -> str:
    return f"{meta['embedder']} {meta['revision']}"
