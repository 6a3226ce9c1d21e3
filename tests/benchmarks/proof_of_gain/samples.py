"""Made-up measurements of passages, answers to questions, and the parts of a run."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

from benchmarks.proof_of_gain.arms import AUTO, LINE_ARMS, arms
from benchmarks.proof_of_gain.facts import ARMS as FACT_ARMS
from benchmarks.proof_of_gain.facts import ORACLE

CHOICE = "short"
NAMES = (*(arm.name for arm in arms(CHOICE)), AUTO)


def row(
    number: int,
    percents: Mapping[str, float],
    *,
    seconds: Mapping[str, float] | None = None,
    exact: Mapping[str, bool] | None = None,
    trainings: str = CHOICE,
    **fields: Any,
) -> dict[str, Any]:
    """A passage; arms that are not named score as the base model, and take a second.

    Args:
        number: of the passage and of its document.
        percents: per cent of base by name of the arm.
        seconds: seconds by name of the arm.
        exact: whether the next line is exact, by name of the arm; None for text without lines.
        trainings: name of the choice of trainings.
        fields: fields that differ from those of a corpus as it is.
    """
    measured: dict[str, dict[str, Any]] = {
        name: {
            "bits": percents.get(name, 100.0) * (number + 1) / 100,
            "seconds": (seconds or {}).get(name, 1.0),
            "tokens": 100,
            "is_new": name not in ("base", "corpus"),
        }
        for name in (*(arm.name for arm in arms(trainings)), AUTO)
    }
    for name in LINE_ARMS if exact is not None else ():
        measured[name]["line"] = [(exact or {}).get(name, False), 0.5]
    return {
        "domain": f"domain {number % 2}",
        "corpus": "as it is",
        "kernel": "all-MiniLM-L6-v2",
        "document": f"document {number}",
        "copies": 0.1,
        "arms": measured,
        **fields,
    }


def fact(number: int, right: Container[str], *, is_shown: bool = True) -> dict[str, Any]:
    """A question, of which every two are on one document.

    Args:
        number: of the question.
        right: names of the arms that answer it right.
        is_shown: whether what is shown has the answer.
    """
    names = [arm.name for each in FACT_ARMS for arm in (each, replace(each, shown=True))]
    return {
        "document": f"document {number // 2}",
        "question": f"Question {number}?",
        "answer": "417",
        "is_shown": is_shown,
        "arms": {
            name: {"right": name in right, "line": "417" if name in right else ""}
            for name in (*names, ORACLE)
        },
    }


def facts_part(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The part of a run that asks questions."""
    return {
        "command": "python -m benchmarks.proof --only facts",
        "commit": "1" * 40,
        "workers": 2,
        "handbook": {"documents": 24, "bytes": 20_000, "sequences": 25},
        "learnt": {"adapter": {"sequences": 25}, "seconds": 60.0},
        "rows": rows,
    }


def parts(
    main: list[dict[str, Any]], compared: list[dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """The parts of a run."""
    origin = {"command": "python -m benchmarks.proof", "commit": "0" * 40, "workers": 2}
    facts = {
        "documents": 50,
        "bytes": 1_200_000,
        "documents_near_passages": 3,
        "suffixes_in_corpus": 0,
        "places_refused": 7,
        "sequences": 1500,
    }
    size = {"trainings": CHOICE}
    learnt = {"domain 0": {"corpus": {"adapter": {"sequences": 1400}, "seconds": 800.0}}}
    made = {
        "first-token": {**origin, "fixed": 0.5, "per_token": 0.01, "load": 0.25},
        "arms": {
            **origin,
            "size": size,
            "corpora": {"domain 0": facts},
            "learnt": learnt,
            "rows": main,
        },
    }
    if compared:
        made["strategies"] = {**origin, "size": size, "corpora": {}, "rows": compared}
    return made
