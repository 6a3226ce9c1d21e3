"""The result: parts that were measured in different runs, in one file, and what they come to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

# What was measured, by name of the part (`part_name`).
Parts: TypeAlias = Mapping[str, Mapping[str, Any]]

# Parts that are measured for each model.
_OF_A_MODEL = ("quality", "instant")


def part_name(part: str, model: str, corpora: Sequence[str] = ()) -> str:
    """The name of a part in a result: "quality MODEL", "instant MODEL", or the part itself. Quality
    on chosen corpora has their names as well, and replaces only that on the same.

    Args:
        part: the part that was measured.
        model: name or folder of the model that it was asked for.
        corpora: the corpora that were chosen; none if all were measured.
    """
    if part not in _OF_A_MODEL:
        return part
    chosen = ", ".join(corpora) if part == "quality" else ""
    return f"{part} {Path(model).name}" + (f", {chosen}" if chosen else "")


def by_model(parts: Parts, part: str) -> dict[str, Mapping[str, Any]]:
    """What was measured of a part, by the name of the model."""
    prefix = f"{part} "
    return {
        name.removeprefix(prefix): measured
        for name, measured in parts.items()
        if name.startswith(prefix)
    }


def merged(file: Path | None, parts: Parts) -> dict[str, Mapping[str, Any]]:
    """The parts of a former result's file, if there is one, replaced by those of this run."""
    former: dict[str, Mapping[str, Any]] = {}
    if file is not None and file.exists():
        former = json.loads(file.read_text())["parts"]
    return {**former, **parts}


def summary(parts: Parts) -> dict[str, Any]:
    """The numbers that a run ends with; None for what was not measured."""
    quality, instant = (by_model(parts, part) for part in _OF_A_MODEL)
    canary, kills, increment = (parts.get(name) for name in ("canary", "kills", "increment"))
    return {
        "percent_of_base": {
            model: {arm: found["percent_of_base"] for arm, found in part["arms"].items()}
            for model, part in quality.items()
        }
        or None,
        "instant": {
            **{
                key: {model: part["instant"][key] for model, part in quality.items()} or None
                for key in ("gain_share", "gain_share_without_shown", "seconds_share")
            },
            **{
                key: {model: part[key] for model, part in instant.items()} or None
                for key in ("first_token_ratio", "speedup_vs_naive")
            },
        },
        "sift_from_corpus_minus_best_single": {
            model: part["sift_from_corpus_minus_best_single"] for model, part in quality.items()
        }
        or None,
        "steps_from_corpus_minus_corpus": {
            model: part["steps_from_corpus_minus_corpus"] for model, part in quality.items()
        }
        or None,
        "canary_known": None if canary is None else canary["canary_known"],
        "kills": None
        if kills is None
        else {
            key: kills[key]
            for key in ("injected", "with_checkpoint", "resumed", "half_written_used")
        },
        "increment_cost_share": None if increment is None else increment["increment_cost_share"],
        "beside_training_ratio": None
        if increment is None
        else {budget: found["ratio"][0] for budget, found in increment["beside_training"].items()},
    }


def show(numbers: Mapping[str, Any], parts: Parts, console: Console) -> None:
    """Print the arms of each model, and the other numbers."""
    for model, part in by_model(parts, "quality").items():
        table = Table(f"quality {model}", "% of base", "s at the request", box=None, pad_edge=False)
        for arm, found in part["arms"].items():
            mean, low, high = found["percent_of_base"]
            table.add_row(arm, f"{mean:.1f} ({low:.1f} to {high:.1f})", f"{found['seconds']:.3f}")
        console.print(table)
        console.print(f"{part['passages']} passages: {part['passages_of']}", highlight=False)
    table = Table("", "", box=None, pad_edge=False, show_header=False)
    for key, value in numbers.items():
        if key != "percent_of_base":
            table.add_row(key.replace("_", " "), json.dumps(value))
    console.print(table, highlight=False)
