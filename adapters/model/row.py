"""Row: a token sequence in a batch, and which of its tokens are scored.

The loss of a row is the mean over its scored tokens; the others are context. Depends on no tensors,
so that a request can be validated before torch is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from adapters.errors import TrainingOptionError

# Half-open ranges of token positions, ascending and not overlapping.
Spans: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Row:
    """A token sequence in a batch; `len` is its number of tokens.

    Attributes:
        tokens: Token ids.
        scored: The tokens whose loss counts.
    """

    tokens: tuple[int, ...]
    scored: Spans

    @classmethod
    def of(cls, tokens: Sequence[int], scored: Spans | None = None) -> Row:
        """A row of these tokens; without `scored`, all but the first count."""
        return cls(tuple(tokens), ((1, len(tokens)),) if scored is None else scored)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def scored_tokens(self) -> int:
        """Number of scored tokens."""
        return sum(end - start for start, end in self.scored)


def check_spans(scored: Spans, tokens: int) -> None:
    """Validate the scored ranges of a sequence of `tokens` tokens.

    Raises:
        TrainingOptionError: no ranges, an empty range, the first token (its loss is not defined), a
            range beyond the last token, or ranges that descend or overlap.
    """
    if not scored:
        raise TrainingOptionError(
            "a sequence has no scored tokens to learn from: score at least one, or leave it out"
        )
    least = 1
    for start, end in scored:
        if not least <= start < end <= tokens:
            raise TrainingOptionError(
                f"cannot score tokens [{start}, {end}) of a sequence of {tokens}: a range needs at "
                f"least one token, and here lies within [{least}, {tokens})"
            )
        least = end
