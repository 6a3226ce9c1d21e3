"""Made-up scores of passages, and the result of a run with all parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.corpus_adapters.arms import COMBINED, FRESH, INSTANT, TRAININGS, Arm, arms_of
from benchmarks.corpus_adapters.summary import (
    Row,
    by_arm,
    by_corpus,
    combined_gain,
    instant_shares,
    steps_gain,
)

ARMS = arms_of(TRAININGS["served"])
# The steps of COMBINED, without the comparison before them.
STEPPED = replace(COMBINED, compared=False)
_ORIGIN = {"command": "python -m benchmarks.corpus_adapter", "commit": "0" * 40, "seconds": 90.0}


def rows(percents: dict[Arm, float], passages: int = 4, arms: tuple[Arm, ...] = ARMS) -> list[Row]:
    """Passages of two corpora; arms that are not named score as the base model."""
    return [
        Row(
            f"corpus {number % 2}",
            f"document {number}",
            {
                arm.name: (percents.get(arm, 100.0) * (number + 1) / 100, 0.1 + arm.steps)
                for arm in arms
            },
        )
        for number in range(passages)
    ]


def parts() -> dict[str, dict[str, Any]]:
    """All parts of a run."""
    scored = rows({FRESH: 95.0, INSTANT: 90.0, COMBINED: 88.0, STEPPED: 91.0})
    corpora = [f"corpus {number}" for number in range(2)]
    learnt = {"corpus": {"adapter": {"sequences": 90}, "seconds": 12.0}}
    measured: dict[str, dict[str, Any]] = {
        "quality nano": {
            "size": {"prefix": 128, "suffix": 128},
            "passages": len(scored),
            "passages_of": dict.fromkeys(corpora, 2),
            "workers": 2,
            "arms": by_arm(scored, ARMS),
            "by_corpus": by_corpus(scored, ARMS),
            "instant": instant_shares(scored, ARMS),
            "sift_from_corpus_minus_best_single": combined_gain(scored, ARMS),
            "steps_from_corpus_minus_corpus": steps_gain(scored),
            "learnt": {corpus: {"sequences": 100, **learnt} for corpus in corpora},
        },
        "instant nano": {"first_token_ratio": {"1": 1.1, "8": 1.2}, "speedup_vs_naive": 6.0},
        "instant smollm2": {"first_token_ratio": {"1": 1.0, "8": 1.3}, "speedup_vs_naive": 4.0},
        "canary": {
            "canary_known": 0,
            "by_way": {
                "removed": {
                    "requests": 250,
                    "known": 0,
                    "known_while_learnt": "5 of 6",
                    "largest_difference_nats": 0.0001,
                }
            },
        },
        "kills": {
            "injected": 50,
            "in_writes": 20,
            "with_checkpoint": 30,
            "resumed": 29,
            "half_written_used": 0,
            "finished_equal": 11,
            "finished_different": 0,
            "flips": {"injected": 40, "used": 0},
        },
        "increment": {
            "increment_cost_share": 0.06,
            "beside_training": {"steps=5": {"ratio": (1.2, 1.1, 1.4)}},
        },
    }
    return {name: {**_ORIGIN, "quick": False, **part} for name, part in measured.items()}
