"""SelectorConfig, and the names that it is made of: values that can be named without loading what
they configure.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT = "all-MiniLM-L6-v2"
BASE_MODEL = "base-model"


@dataclass(frozen=True)
class SelectorConfig:
    """Where corpora are and how data is chosen from them.

    Attributes:
        root: the folder of all corpora.
        embedder: as in `selection.embedding.load_embedder`.
        base_model: hub id or folder; its tokenizer must be the corpora's. None leaves that
            unchecked.
        candidates: K, how many nearest sequences are chosen from; None takes the whole corpus.
        regularisation: lambda' of SIFT; None takes that of the corpus's calibration, else
            REGULARISATION.
        device: where the embedder computes.
    """

    root: Path
    embedder: str = DEFAULT
    base_model: str | None = None
    candidates: int | None = 200
    regularisation: float | None = None
    device: str = "cpu"
