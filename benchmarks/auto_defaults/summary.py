"""Summary of the rows: ways and rules with intervals, and SIFT beside the nearest sequences.

Intervals are of 90 %, over documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean
from typing import Any

from benchmarks.auto_defaults.rules import (
    NOW,
    NOW_WITHOUT,
    Look,
    Rule,
    rules_with_adapter,
    rules_without_adapter,
)
from benchmarks.auto_defaults.ways import BASE, COUNTS, MODELS, WAYS, Row, Text, Way
from benchmarks.proof_of_gain.first_token import FirstToken
from benchmarks.quality.bootstrap import interval

Interval = tuple[float, float, float]
# Per cent of base after 20 steps from scratch, which are not measured here: of 16 passages of other
# text (benchmarks/README.md).
_AFTER_STEPS = 92.6
# Bounds of the shares of near copies among the nearest sequences, by which passages are grouped.
_COPIES = (0.0, 0.05, 0.25, 1.01)


def summary(rows: Sequence[Row], first_token: FirstToken) -> dict[str, Any]:
    """All tables.

    Args:
        rows: the passages.
        first_token: costs of the engine.
    """
    by_domain = {
        domain: [row for row in rows if row.domain == domain]
        for domain in dict.fromkeys(row.domain for row in rows)
    }
    return {
        "passages": {domain: len(found) for domain, found in by_domain.items()},
        "documents": len({row.document for row in rows}),
        "ways": {way.name: _interval(rows, [row.percent(way) for row in rows]) for way in WAYS},
        "ways_by_domain": {
            domain: {way.name: mean(row.percent(way) for row in found) for way in WAYS}
            for domain, found in by_domain.items()
        },
        "sift_minus_nearest": _strategies(rows),
        "sift_minus_nearest_by_copies": {
            f"{100 * low:.0f} to {min(100, 100 * high):.0f} %": {
                "passages": len(found),
                **_strategies(found),
            }
            for low, high in pairwise(_COPIES)
            if (found := [row for row in rows if low <= row.copies < high])
        },
        "rules_with_adapter": _rules(rows, rules_with_adapter(), NOW, first_token),
        "rules_without_adapter": _rules(rows, rules_without_adapter(), NOW_WITHOUT, first_token),
        "rules_by_domain": {
            domain: {
                name: mean(row.percent(rule(Look(row))) for row in found)
                for name, rule in rules_with_adapter().items()
            }
            for domain, found in by_domain.items()
        },
    }


def _rules(
    rows: Sequence[Row], rules: Mapping[str, Rule], now: str, first_token: FirstToken
) -> dict[str, dict[str, Any]]:
    """The figures of each rule: bits per byte in per cent of the base model's, the difference to
    what the server does, the number of passages that are worse than with the base model, seconds,
    and the ways chosen; `percent_with_steps` is for a server that takes twenty steps where the rule
    leaves the base model alone.
    """
    looks = {name: [Look(row) for row in rows] for name in rules}
    answers = {name: [rule(look) for look in looks[name]] for name, rule in rules.items()}
    percents = {
        name: [row.percent(way) for row, way in zip(rows, ways, strict=True)]
        for name, ways in answers.items()
    }
    found: dict[str, dict[str, Any]] = {}
    for name, ways in answers.items():
        differences = [
            one - other for one, other in zip(percents[name], percents[now], strict=True)
        ]
        seconds = [look.seconds for look in looks[name]]
        first = [
            first_token.seconds(
                {"seconds": spent, "tokens": row.ways[way.name]["tokens"], "is_new": False}
            )
            for spent, row, way in zip(seconds, rows, ways, strict=True)
        ]
        found[name] = {
            "percent_of_base": _interval(rows, percents[name]),
            "minus_now": _interval(rows, differences),
            "worse_than_base": sum(percent > 100 for percent in percents[name]),
            "seconds": mean(seconds),
            "first_token": mean(first),
            "first_token_minus_now": 0.0,
            "answers": Counter(way.model + ", text" * (way.text is not None) for way in ways),
            "takes_steps": sum(way == BASE for way in ways),
            "percent_with_steps": mean(
                _AFTER_STEPS if way == BASE else percent
                for way, percent in zip(ways, percents[name], strict=True)
            ),
        }
    for each in found.values():
        each["first_token_minus_now"] = each["first_token"] - found[now]["first_token"]
    return found


def _strategies(rows: Sequence[Row]) -> dict[str, Interval]:
    """Points by which SIFT's picks leave more bits than the nearest: above 0, these are better."""
    return {
        f"{model}, {count}": _interval(
            rows,
            [
                row.percent(Way(model, Text(count, "sift")))
                - row.percent(Way(model, Text(count, "nn")))
                for row in rows
            ],
        )
        for model in MODELS
        for count in COUNTS
    }


def _interval(rows: Sequence[Row], values: Sequence[float]) -> Interval:
    return interval(values, [row.document for row in rows])
