"""Made-up measurements of passages."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.auto_defaults.ways import WAYS, Row


def row(
    number: int = 0,
    *,
    percents: Mapping[str, float] | None = None,
    losses: Mapping[str, float] | None = None,
    copies: float = 0.0,
) -> Row:
    """A passage. Ways that are not named score as the base model and have its loss; a comparison
    takes a second, a choice a tenth, and a prompt has a hundred tokens, a thousand with text.

    Args:
        number: of the passage and of its document.
        percents: per cent of base by name of the way.
        losses: loss of the prompt's end by name of the way; 2 for others.
        copies: share of near copies.
    """
    return Row(
        f"domain {number % 2}",
        f"document {number}",
        copies,
        {"sift": 0.1, "nn": 0.1},
        {
            way.name: {
                "bits": (percents or {}).get(way.name, 100.0) / 100,
                "loss": (losses or {}).get(way.name, 2.0),
                "seconds": 1.0,
                "tokens": 1000 if way.text else 100,
            }
            for way in WAYS
        },
    )
