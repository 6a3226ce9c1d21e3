"""The values of a corpus's adapter: what its manifest says, and what a request starts from.

A corpus adapter has one part or several; each part is a LoRA that was trained on some of the
corpus's documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from selection.config import AdapterShape

FORMAT = 1


@dataclass(frozen=True)
class PartInfo:
    """One part of a corpus adapter.

    Attributes:
        name: "corpus-" and 32 hex digits; never used again for other weights.
        sha256: digest of each of its files, by the end of its name: "safetensors" (the weights),
            "npy" (the ids of its learnt sequences) and, unless there are none, "moments".
        sequences: number of learnt sequences.
        documents: number of documents that they belong to.
        generation: the corpus's generation from which they were read.
        steps: number of Adam steps that the moments have seen.
    """

    name: str
    sha256: Mapping[str, str]
    sequences: int
    documents: int
    generation: int
    steps: int = 0


@dataclass(frozen=True)
class CorpusAdapterInfo:
    """What the manifest of a corpus adapter says.

    Attributes:
        corpus: id of the corpus.
        model: fingerprint of the base model.
        tokenizer: digest of the tokenizer of the learnt sequences.
        template: digest of the chat template of the learnt examples; None if there are none.
        rank: LoRA rank.
        scale_numerator: LoRA alpha.
        targets: names of the adapted projections.
        learning_rate: Adam learning rate that it was trained with.
        passes: number of times that each sequence was trained on.
        parts: its parts; at least one.
    """

    corpus: str
    model: str
    tokenizer: str
    template: str | None
    rank: int
    scale_numerator: float
    targets: tuple[str, ...]
    learning_rate: float
    passes: int
    parts: tuple[PartInfo, ...]

    @property
    def shape(self) -> AdapterShape:
        """What it was trained for."""
        return AdapterShape(self.model, self.rank, self.targets)

    def as_dict(self) -> dict[str, Any]:
        """The manifest's fields, for JSON."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> CorpusAdapterInfo:
        """The inverse of `as_dict`.

        Raises:
            ValueError: another format.
            KeyError, TypeError: fields are missing or of other types.
        """
        if body["format"] != FORMAT:
            raise ValueError("another format")
        values = {each.name: body[each.name] for each in fields(cls)}
        values["targets"] = tuple(values["targets"])
        values["parts"] = tuple(PartInfo(**part) for part in values["parts"])
        return cls(**values)


@dataclass(frozen=True)
class CorpusStart:
    """A corpus adapter that a request starts from, or the mixture of several of its parts.

    Attributes:
        name: name of the adapter: that of the part, or one that follows from the parts and their
            weights. Never used for other weights.
        corpus: id of the corpus.
        generation: the corpus's generation up to which its newest part has learnt.
        documents: number of documents that its parts have learnt.
        sequences: number of sequences that its parts have learnt.
        not_learnt: number of sequences of the corpus that no usable part has learnt.
        parts: name and weight of each part; the weights add up to 1.
    """

    name: str
    corpus: str
    generation: int
    documents: int
    sequences: int
    not_learnt: int
    parts: tuple[tuple[str, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "adapter": self.name,
            "generation": self.generation,
            "documents": self.documents,
            "sequences": self.sequences,
            "not_learnt": self.not_learnt,
            "parts": [{"adapter": name, "weight": round(weight, 4)} for name, weight in self.parts],
        }


@dataclass(frozen=True)
class StartFound:
    """The result of a lookup of a corpus's adapter.

    Attributes:
        corpus: id of the corpus.
        start: what to start from; None if there is nothing.
        reason: why there is nothing, for the client; None if there is something.
    """

    corpus: str
    start: CorpusStart | None
    reason: str | None = None


@dataclass(frozen=True)
class CorpusWeights:
    """A start's adapter itself.

    Attributes:
        name: as `CorpusStart.name`.
        weights: a safetensors file with PEFT's keys, float32.
        rank: LoRA rank.
        scale_numerator: LoRA alpha.
        targets: names of the adapted projections.
    """

    name: str
    weights: bytes
    rank: int
    scale_numerator: float
    targets: tuple[str, ...]
