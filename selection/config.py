"""SelectorConfig and the names it is made of, importable without loading a model or a library."""

from __future__ import annotations

from dataclasses import dataclass

from selection.location import Location

DEFAULT = "all-MiniLM-L6-v2"
BASE_MODEL = "base-model"


@dataclass(frozen=True)
class AdapterShape:
    """What the adapter of a corpus must have been trained for, so that a request can start from it.

    Attributes:
        model: fingerprint of the base model (`adapters.fingerprint`).
        rank: LoRA rank.
        targets: names of the adapted projections, in any order.
    """

    model: str
    rank: int
    targets: tuple[str, ...]

    def mismatch(self, wanted: AdapterShape) -> str | None:
        """What differs from what is wanted; None if nothing does."""
        if self.model != wanted.model:
            return "another model"
        if self.rank != wanted.rank:
            return f"rank {self.rank}, not {wanted.rank}"
        if {*self.targets} != {*wanted.targets}:
            return "other projections"
        return None


@dataclass(frozen=True)
class SelectorConfig:
    """Where corpora are stored and how data is selected from them.

    Attributes:
        root: where all corpora are.
        embedder: name or folder of the embedder, see `selection.embedding.load_embedder`.
        base_model: hub id or folder of the base model; its tokenizer must match that of the
            corpora. None skips that check.
        candidates: K, the number of nearest sequences to select from; None takes the whole corpus.
        regularisation: lambda' of SIFT; None takes it from the corpus's calibration, or else
            REGULARISATION.
        device: torch device of the embedder.
        chat_template: what replaces the base model's own, see
            `selection.examples.templates.set_chat_template`.
        adapters: what adapters of corpora must have been trained for; None starts from none.
    """

    root: Location
    embedder: str = DEFAULT
    base_model: str | None = None
    candidates: int | None = 200
    regularisation: float | None = None
    device: str = "cpu"
    chat_template: str | None = None
    adapters: AdapterShape | None = None
