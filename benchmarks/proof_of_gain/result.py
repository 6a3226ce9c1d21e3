"""The result: parts that were measured in different runs, and what they come to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.corpus_adapters.result import Parts
from benchmarks.proof_of_gain.facts_summary import FactsRow, facts_summary
from benchmarks.proof_of_gain.first_token import FirstToken
from benchmarks.proof_of_gain.summary import (
    Row,
    by_arm,
    by_domain,
    numbers,
    sift_minus_nn,
    sift_minus_nn_by_copies,
    within_seconds,
)
from selection.config import DEFAULT


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
    quick = [Row(**row) for row in parts.get(part_name("arms", "none"), {}).get("rows", ())]
    quick_token = _first_token(parts, "none")
    without_steps = numbers(quick, (), "none", quick_token) if quick else {}
    last_line = {
        **numbers(main, compared, choice, first_token),
        "without_steps": without_steps,
        **{key: facts[key] for key in ("facts_right", "facts_minus_shown")},
    }
    result: dict[str, Any] = {
        **last_line,
        **facts,
        **_in_detail(main, choice, first_token),
        "without_steps": {**without_steps, **_in_detail(quick, "none", quick_token)},
        "within_seconds": within_seconds(main, choice, first_token),
        "sift_minus_nn_with_steps": sift_minus_nn(main, choice),
        "sift_minus_nn_by_copies": sift_minus_nn_by_copies(
            [row for row in compared or main if row.kernel == DEFAULT], choice
        ),
        "parts": parts,
    }
    return result, last_line


def _first_token(parts: Parts, trainings: str) -> FirstToken | None:
    if costs := parts.get(part_name("first-token", trainings)):
        return FirstToken(costs["fixed"], costs["per_token"], costs["load"])
    return None


def _in_detail(rows: Sequence[Row], choice: str, first_token: FirstToken | None) -> dict[str, Any]:
    return {
        "by_arm": by_arm(rows, first_token) if rows else {},
        "by_domain": by_domain(rows, choice, first_token),
    }


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the arms, and the other numbers."""
    table = Table("", "% of base", "s to the first token", box=None, pad_edge=False)
    for title, part in (("", result), ("without steps: ", result["without_steps"])):
        for name, found in part["by_arm"].items():
            mean, low, high = found["percent_of_base"]
            seconds = found["first_token"]
            shown = "" if seconds is None else f"{seconds:.2f}"
            table.add_row(title + name, f"{mean:.1f} ({low:.1f} to {high:.1f})", shown)
    console.print(table)
    table = Table("", "", box=None, pad_edge=False, show_header=False)
    keys = ("next_line_exact_match", "together_ahead", "auto_ahead", "auto", "sift_minus_nn")
    for title, found in (("", result), ("without steps: ", result["without_steps"])):
        for key in keys:
            if found.get(key):
                table.add_row(title + key.replace("_", " "), json.dumps(found[key]))
    table.add_row("facts right", json.dumps(result["facts_right"]))
    console.print(table, highlight=False)
