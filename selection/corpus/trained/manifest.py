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
NO_ADAPTER = "the corpus has no adapter"


@dataclass(frozen=True)
class Snapshot:
    """A state of a corpus.

    Attributes:
        generation: the corpus's generation.
        tokenizer: digest of the tokenizer of its tokens.
        template: digest of the chat template of its examples; None if it has none.
    """

    generation: int
    tokenizer: str
    template: str | None

    @classmethod
    def of(cls, meta: Mapping[str, str]) -> Snapshot:
        """The state of a corpus with that metadata."""
        return cls(int(meta["generation"]), meta["tokenizer"], meta.get("template"))

    def has_tokens_of(self, tokenizer: str, template: str | None) -> bool:
        """Whether what was learnt from the tokens of a tokenizer and of a template, if any, was
        learnt from the tokens that the corpus has; `retokenize` replaces them.
        """
        return tokenizer == self.tokenizer and template in (None, self.template)


@dataclass(frozen=True)
class PartInfo:
    """One part of a corpus adapter.

    Attributes:
        name: "corpus-" and 32 hex digits; never used again for other weights.
        sha256: digest of each of its files, by the end of its name: "safetensors" (the weights),
            "npy" (the ids of its learnt sequences) and, unless there are none, "moments".
        sequences: number of learnt sequences.
        documents: number of documents that they belong to.
        content: digest of the contents of these documents.
        generation: the corpus's generation from which they were read.
        steps: number of Adam steps that the moments have seen.
        scaling: factor on what it adds to the base model where requests use it.
    """

    name: str
    sha256: Mapping[str, str]
    sequences: int
    documents: int
    content: str
    generation: int
    steps: int = 0
    scaling: float = 1.0


@dataclass(frozen=True)
class AdapterSettings:
    """What a corpus adapter is trained for, and how.

    Attributes:
        model: fingerprint of the base model.
        rank: LoRA rank.
        scale_numerator: LoRA alpha.
        targets: names of the adapted projections.
        learning_rate: Adam learning rate.
        passes: number of times that each sequence is trained on.
        divided: whether the corpus is divided into parts (`TrainingPlan.divided`).
    """

    model: str
    rank: int
    scale_numerator: float
    targets: tuple[str, ...]
    learning_rate: float
    passes: int
    divided: bool

    @property
    def shape(self) -> AdapterShape:
        """What it was trained for."""
        return AdapterShape(self.model, self.rank, self.targets)

    def continues(self, earlier: AdapterSettings) -> bool:
        """Whether a part that is trained with these settings can stand beside earlier ones."""
        mine, theirs = (
            (each.model, each.rank, each.scale_numerator, each.targets, each.divided)
            for each in (self, earlier)
        )
        return mine == theirs


@dataclass(frozen=True)
class CorpusAdapterInfo(AdapterSettings):
    """What the manifest of a corpus adapter says.

    Attributes:
        corpus: id of the corpus.
        tokenizer: digest of the tokenizer of the learnt sequences.
        template: digest of the chat template of the learnt examples; None if there are none.
        parts: its parts; at least one.
    """

    corpus: str
    tokenizer: str
    template: str | None
    parts: tuple[PartInfo, ...]

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
class TrainedPart:
    """A part as training leaves it.

    Attributes:
        weights: a safetensors file with PEFT's keys, float32.
        learnt: ids of all sequences that it has learnt.
        snapshot: the state of the corpus from which they were read (`TrainingPlan.snapshot`).
        moments: Adam's moments, to train it further; may be empty.
        steps: number of steps that the moments have seen.
        scaling: factor on what it adds to the base model where requests use it.
    """

    weights: bytes
    learnt: tuple[int, ...]
    snapshot: Snapshot
    moments: bytes = b""
    steps: int = 0
    scaling: float = 1.0


@dataclass(frozen=True)
class AdapterStatus:
    """How far a corpus's adapter is.

    Attributes:
        info: what its manifest says; None if there is none, or if it is damaged.
        learnt: number of sequences that the usable parts have learnt.
        not_learnt: number of the other sequences of the corpus.
        invalid: names of the parts that must be trained anew.
        reason: why no request can start from it now; None if one can.
    """

    info: CorpusAdapterInfo | None
    learnt: int
    not_learnt: int
    invalid: tuple[str, ...]
    reason: str | None

    @property
    def documents(self) -> int:
        """The number of documents that the usable parts have learnt."""
        parts = () if self.info is None else self.info.parts
        return sum(part.documents for part in parts if part.name not in self.invalid)

    def left_to(self, shape: AdapterShape) -> tuple[Any, ...]:
        """What is learnt, followed by what is left to a training for that shape: what is not
        learnt, what is invalid, and why an adapter for another shape cannot be used.
        """
        mismatch = None if self.info is None else self.info.shape.mismatch(shape)
        return self.learnt, self.not_learnt, self.invalid, mismatch

    def __str__(self) -> str:
        """In one line, for people."""
        if self.info is None or self.reason is not None:
            return "none" if self.reason == NO_ADAPTER else f"not used: {self.reason}"
        line = f"{self.learnt:,} of {self.learnt + self.not_learnt:,} sequences learnt"
        if len(self.info.parts) > 1:
            line += f" in {len(self.info.parts) - len(self.invalid)} parts"
        return line


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
class LearntCorpus:
    """A corpus whose adapter requests can start from.

    Attributes:
        id: its id, which never changes.
        name: the name by which it is found: its display name, or its id where that is another's.
        created: seconds since 1970, UTC.
    """

    id: str
    name: str
    created: float


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
