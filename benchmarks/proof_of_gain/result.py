"""The result: parts that were measured in different runs, and what they come to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.corpus_adapters.result import Parts
from benchmarks.proof_of_gain.arms import arms
from benchmarks.proof_of_gain.first_token import FirstToken
from benchmarks.proof_of_gain.summary import (
    FactsRow,
    Row,
    auto_shares,
    by_arm,
    by_domain,
    facts_summary,
    numbers,
    sift_minus_nn_by_copies,
    within_seconds,
)


def part_name(part: str, trainings: str) -> str:
    """The name of the part with these trainings: "arms", or what an engine adds to them."""
    return f"{part} without steps" if trainings == "none" else part


def result_of(parts: Parts) -> tuple[dict[str, Any], dict[str, Any]]:
    """All that a result says, with its parts, and the numbers that a run ends with."""
    main, compared = (
        [Row(**row) for row in parts[name]["rows"]] if name in parts else []
        for name in ("arms", "strategies")
    )
    first_token = _first_token(parts, "full")
    choice = next(
        (parts[name]["size"]["trainings"] for name in ("arms", "strategies") if name in parts),
        "full",
    )
    facts = facts_summary([FactsRow(**row) for row in parts.get("facts", {}).get("rows", ())])
    last_line = {
        **numbers(main, compared, choice, first_token),
        "facts_right": facts["facts_right"],
    }
    result: dict[str, Any] = {
        **last_line,
        "without_steps": _without_steps(parts),
        **facts,
        "by_arm": by_arm(main, first_token) if main else {},
        "within_seconds": within_seconds(main, choice, first_token),
        "by_domain": by_domain(main, choice, first_token),
        "sift_minus_nn_by_copies": sift_minus_nn_by_copies([*main, *compared], choice),
        "parts": parts,
    }
    return result, last_line


def _first_token(parts: Parts, trainings: str) -> FirstToken | None:
    if costs := parts.get(part_name("first-token", trainings)):
        return FirstToken(costs["fixed"], costs["per_token"], costs["load"])
    return None


def _without_steps(parts: Parts) -> dict[str, Any]:
    """What is known of the arms without a step, on more passages than all arms."""
    if not (part := parts.get(part_name("arms", "none"))):
        return {}
    rows, first_token = [Row(**row) for row in part["rows"]], _first_token(parts, "none")
    return {
        "by_arm": by_arm(rows, first_token),
        "by_domain": by_domain(rows, "none", first_token),
        "auto": auto_shares(rows, [arm.name for arm in arms("none")], first_token),
    }


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the arms, and the other numbers."""
    table = Table("", "% of base", "s to the first token", box=None, pad_edge=False)
    for name, found in result["by_arm"].items():
        mean, low, high = found["percent_of_base"]
        seconds = found["first_token"]
        shown = "" if seconds is None else f"{seconds:.2f}"
        table.add_row(name, f"{mean:.1f} ({low:.1f} to {high:.1f})", shown)
    console.print(table)
    table = Table("", "", box=None, pad_edge=False, show_header=False)
    keys = ("next_line_exact_match", "together_ahead", "auto", "sift_minus_nn", "facts_right")
    for key in keys:
        table.add_row(key.replace("_", " "), json.dumps(result[key]))
    console.print(table, highlight=False)
