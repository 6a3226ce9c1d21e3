"""What an `AdapterCache` holds: the adapter of a turn or of examples, and who may use it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from adapters.adapter import Adapter
from selection.corpus.filters import Filter


@dataclass(frozen=True)
class CacheScope:
    """The requests that may use an adapter.

    Attributes:
        key: name of the API key; "" for a server without keys.
        corpus: id of the corpus that the adapter was trained on, since a name may be given to
            another corpus; None for a request without one, or before it is known.
        model: name of the served model.
        filter: filter on the corpus's documents.
        start: name of the corpus's adapter that it was trained from, since that may become invalid;
            None for a fresh start, or before it is known.
    """

    key: str
    corpus: str | None
    model: str
    filter: Filter | None = None
    start: str | None = None

    def digest(self) -> bytes:
        """Equal for equal scopes."""
        fields = [self.key, self.corpus, self.model, self.filter, self.start]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).digest()


@dataclass(frozen=True)
class CachedAdapter:
    """The adapter of a turn.

    Attributes:
        weights: weights in the format of `adapters.Adapter`.
        name: name of the adapter.
        turns: number of turns that it was trained for.
        steps: number of training steps of these turns together.
        fresh_reason: why the first of these turns started from a fresh adapter; None for one that
            started from the corpus's adapter.
    """

    weights: bytes
    name: str
    turns: int
    steps: int
    fresh_reason: str | None = None

    @classmethod
    def after(
        cls, earlier: CachedAdapter | None, adapter: Adapter, fresh_reason: str | None = None
    ) -> CachedAdapter:
        """The adapter of a turn, which continued an earlier one or is the first."""
        turns, steps = (earlier.turns, earlier.steps) if earlier else (0, 0)
        steps += len(adapter.losses)
        return cls(adapter.weights, adapter.name, turns + 1, steps, fresh_reason)

    def as_dict(self) -> dict[str, Any]:
        """The object `reused` in the report of the turn that continues it."""
        return {"adapter": self.name, "turns": self.turns, "steps": self.steps}


@dataclass(frozen=True)
class ExamplesAdapter:
    """The adapter of the examples and texts that a request brought.

    Attributes:
        adapter: the adapter.
        sources: what it was trained on, as the report shows it.
    """

    adapter: Adapter
    sources: tuple[dict[str, Any], ...]

    @property
    def weights(self) -> bytes:
        """Its weights."""
        return self.adapter.weights

    def as_dict(self) -> dict[str, Any]:
        """The object `reused` in the report of a request that uses it again."""
        return {"adapter": self.adapter.name, "steps": len(self.adapter.losses)}
