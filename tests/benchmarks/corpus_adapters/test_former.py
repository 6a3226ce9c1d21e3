"""Runs that add to what others have measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.corpus_adapters import study
from benchmarks.corpus_adapters.corpora import HeldOut
from benchmarks.corpus_adapters.former import FormerRun
from benchmarks.corpus_adapters.study import Study, passage_key
from benchmarks.corpus_adapters.workers import Runner, Task
from benchmarks.harness.measures import TimeLimit
from benchmarks.quality.passages import Passage


def _passage(start: int) -> Passage:
    return Passage("shop", "apple.md", start, (1, 2), "an", "apple")


class Counting:
    """Measures a passage: where it starts."""

    def measure(self, passage: Passage, corpus: str) -> Any:
        return passage.start


class WorkersHere:
    """A fake of the workers: measures in this process, since others take seconds to start."""

    def __init__(self, open_runner: Callable[[], Runner]) -> None:
        self._runner = open_runner()

    def measure(
        self, tasks: Iterable[Task], limit: TimeLimit
    ) -> Iterator[tuple[str, Passage, Any]]:
        for kind, passage, corpus in tasks:
            yield kind, passage, self._runner.measure(passage, corpus)


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def workers_here(count: int, open_runner: Callable[[], Runner]) -> Iterator[WorkersHere]:
        yield WorkersHere(open_runner)

    monkeypatch.setattr(study, "Workers", workers_here)


def _run(file: Path, folder: Path, *starts: int, key: str = "size and code") -> dict[str, Any]:
    """A run on a machine of its own that measures these passages."""
    former = FormerRun(file, "arms", key)
    held_out = {"shop": HeldOut("shop", 3, tuple(map(_passage, starts)))}
    measuring = Study("", folder, ("corpus",), lambda kind, home: held_out[kind], workers=1)
    former.add_to(measuring, lambda row: row["score"])
    measured = measuring.measure(held_out, Counting, TimeLimit(None))
    rows = former.with_rows(
        {"key": passage_key(kind, passage), "score": score} for kind, passage, score in measured
    )
    origin, learnt = {"commit": folder.name}, {folder.name: len(starts)}
    part: dict[str, Any] = {**former.fields(origin, len(rows), ("learnt", learnt)), "rows": rows}
    file.write_text(json.dumps({"parts": {"arms": part}}))
    return part


def _scores(part: Mapping[str, Any]) -> list[int]:
    return sorted(row["score"] for row in part["rows"])


def test_a_run_adds_to_what_another_one_has_measured(tmp_path: Path) -> None:
    file = tmp_path / "proof.json"

    first = _run(file, tmp_path / "first", 0, 5)
    second = _run(file, tmp_path / "second", 5, 9)
    nothing_new = _run(file, tmp_path / "third", 9)

    assert _scores(first) == [0, 5]
    assert _scores(second) == _scores(nothing_new) == [0, 5, 9]
    assert second["runs"] == [{"commit": "first", "rows": 2}, {"commit": "second", "rows": 1}]
    assert nothing_new["runs"] == second["runs"]
    assert second["learnt"] == {"first": 2, "second": 2}


def test_a_run_of_other_code_replaces_what_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "proof.json"

    _run(file, tmp_path / "first", 0, 5)
    other = _run(file, tmp_path / "second", 9, key="other code")

    assert _scores(other) == [9]
    assert [run["commit"] for run in other["runs"]] == ["second"]


def test_an_adapter_that_had_no_more_time_is_trained_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = iter(("seconds", "learnt"))

    def learn(home: Path, corpus: str, *arguments: str, threads: int) -> dict[str, Any]:
        return {"end": next(ends), "adapter": {"sequences": 3}, "steps": 4, "seconds": 2.0}

    monkeypatch.setattr(study, "learn", learn)
    monkeypatch.setattr(study, "copied", lambda *folders: None)
    held_out = HeldOut("shop", 3, (_passage(0),))
    shop = {"shop": held_out}

    outcomes = []
    for _ in range(3):
        measuring = Study("", tmp_path, ("corpus",), lambda kind, home: held_out, workers=1)
        measuring.prepare(shop, TimeLimit(None))
        outcomes.append(measuring.learnt(shop)["shop"]["corpus"])

    assert [each["end"] for each in outcomes] == ["seconds", "learnt", "learnt"]
    assert [each["steps"] for each in outcomes] == [4, 8, 8]


def test_an_adapter_with_which_something_was_measured_is_not_trained_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    def learn(home: Path, corpus: str, *arguments: str, threads: int) -> dict[str, Any]:
        runs.append(corpus)
        return {"end": "seconds", "adapter": {"sequences": 3}, "steps": 4, "seconds": 2.0}

    monkeypatch.setattr(study, "learn", learn)
    monkeypatch.setattr(study, "copied", lambda *folders: None)
    held_out = HeldOut("shop", 3, (_passage(0),))
    shop = {"shop": held_out}

    for _ in range(2):
        measuring = Study("", tmp_path, ("corpus",), lambda kind, home: held_out, workers=1)
        measuring.prepare(shop, TimeLimit(None))
        measuring.measure(shop, Counting, TimeLimit(None))

    assert runs == ["shop"]
