"""Setting: a combination of the values that `mayfly calibrate` searches."""

from __future__ import annotations

from dataclasses import dataclass

# The compared strategies in words.
STRATEGY_NAMES = {"sift": "SIFT", "nn": "nearest neighbours"}


@dataclass(frozen=True)
class Setting:
    """A combination of the searched values.

    Attributes:
        regularisation: lambda' of SIFT, without effect on nearest neighbours.
        learning_rate: Adam learning rate.
        rank: LoRA rank.
        strategy: "sift" or "nn".
        embedder: Name of another embedder than the corpus's own; None for its own.
    """

    regularisation: float
    learning_rate: float
    rank: int
    strategy: str = "sift"
    embedder: str | None = None

    def __str__(self) -> str:
        chosen = f"lambda' {self.regularisation:g}"
        if self.strategy != "sift":
            chosen = STRATEGY_NAMES[self.strategy]
        values = f"{chosen}, learning rate {self.learning_rate:.2g}, rank {self.rank}"
        return values if self.embedder is None else f"{self.embedder}: {values}"
