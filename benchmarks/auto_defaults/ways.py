"""Ways to answer without a step, and what was measured of each on a passage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from benchmarks.corpus_adapters.arms import Strategy

Model: TypeAlias = Literal["base", "corpus"]

MODELS: tuple[Model, ...] = ("base", "corpus")
STRATEGIES: tuple[Strategy, ...] = ("sift", "nn")
# Numbers of sequences that are shown.
COUNTS = (2, 4, 8)
_LABELS = {"sift": "by SIFT", "nn": "nearest"}


@dataclass(frozen=True)
class Text:
    """What is put into a prompt.

    Attributes:
        count: number of sequences.
        strategy: what chooses them.
    """

    count: int
    strategy: Strategy

    @property
    def name(self) -> str:
        """Name in the results."""
        return f"{self.count} {_LABELS[self.strategy]}"


@dataclass(frozen=True)
class Way:
    """A way to answer.

    Attributes:
        model: the base model, or that with the adapter of the corpus.
        text: what is put into the prompt; None for nothing.
    """

    model: Model
    text: Text | None = None

    @property
    def name(self) -> str:
        """Name in the results."""
        return f"{self.model}, {self.text.name}" if self.text else self.model


BASE, CORPUS = Way("base"), Way("corpus")
TEXTS = tuple(Text(count, strategy) for strategy in STRATEGIES for count in COUNTS)
WAYS = (BASE, CORPUS, *(Way(model, text) for model in MODELS for text in TEXTS))


@dataclass(frozen=True)
class Row:
    """What was measured on a passage.

    Attributes:
        domain: name of its domain.
        document: its document.
        copies: share of near copies among the sequences nearest to it.
        choosing: seconds that each strategy takes to choose.
        ways: of each way by name: `bits` per byte of the suffix, `loss` of the prompt's end in nats
            per token, `seconds` to measure that loss, and `tokens` of the prompt.
    """

    domain: str
    document: str
    copies: float
    choosing: Mapping[str, float]
    ways: Mapping[str, Mapping[str, float]]

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Row:
        """A row of a result."""
        return cls(**fields)

    def percent(self, way: Way) -> float:
        """Bits per byte in per cent of the base model's."""
        return 100 * self.ways[way.name]["bits"] / self.ways[BASE.name]["bits"]

    def loss(self, way: Way) -> float:
        """Loss of the prompt's end."""
        return self.ways[way.name]["loss"]
