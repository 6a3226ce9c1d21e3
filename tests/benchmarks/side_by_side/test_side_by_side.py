"""What compares two trees: the code that runs, tokens' times, neighbours, and the summary."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.real_model import summary
from benchmarks.report.real_model import real_model
from benchmarks.side_by_side.ingest import CORPUS, neighbour_recall
from benchmarks.side_by_side.requests import _seconds_per_token
from benchmarks.side_by_side.tree import Tree, _write_metadata, this_tree
from tests.benchmarks.sketches import sketches

_PROJECT = """
[project]
[project.scripts]
mayfly = "serving.old:run"
[project.entry-points."vllm.general_plugins"]
mayfly_old = "serving.old:register"
"""


@pytest.fixture
def old(tmp_path: Path) -> Tree:
    """A tree with another command and another plugin than this one."""
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "__init__.py").touch()
    (tmp_path / "serving" / "old.py").write_text("def run():\n    print('the old command')\n")
    (tmp_path / "pyproject.toml").write_text(_PROJECT)
    return Tree("old", tmp_path)


def test_processes_of_a_checkout_run_its_command_and_find_its_plugins(old: Tree) -> None:
    _write_metadata(old)

    old.check()
    assert old.run() == "the old command\n"


def test_a_tree_whose_plugins_are_not_found_is_reported(old: Tree) -> None:
    with pytest.raises(RuntimeError, match=r"serving\.old:register"):
        old.check()


def test_this_tree_is_the_one_that_runs() -> None:
    this_tree().check()


def test_the_time_of_a_token_is_taken_while_all_requests_decode() -> None:
    slow_start = [0.0, 5.0, *(10.0 + 0.1 * n for n in range(40))]
    late = [10.0 + 0.1 * n for n in range(40)]

    assert _seconds_per_token([slow_start, late]) == pytest.approx(0.1)


def test_requests_that_do_not_decode_together_have_no_time() -> None:
    with pytest.raises(RuntimeError, match="at the same time"):
        _seconds_per_token([[0.1 * n for n in range(40)], [3.8 + 0.1 * n for n in range(40)]])


def test_recall_counts_the_neighbours_that_both_corpora_find(tmp_path: Path) -> None:
    embeddings_ND = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    shuffled_ND = embeddings_ND[::-1]
    for name, each in (("old", embeddings_ND), ("same", embeddings_ND), ("other", shuffled_ND)):
        _write_corpus(tmp_path / name, each)

    assert neighbour_recall(tmp_path / "old", tmp_path / "same") == 1.0
    assert neighbour_recall(tmp_path / "old", tmp_path / "other") < 0.8


def test_corpora_of_different_sequences_are_not_compared(tmp_path: Path) -> None:
    _write_corpus(tmp_path / "old", np.eye(10, dtype=np.float32))
    _write_corpus(tmp_path / "new", np.eye(20, dtype=np.float32))

    with pytest.raises(RuntimeError, match="10 of 10 and 20"):
        neighbour_recall(tmp_path / "old", tmp_path / "new")


def test_the_summary_has_a_ratio_of_each_kind_and_the_report_shows_it() -> None:
    measured = {model: _measured() for model in ("smollm2", "nano")}

    found = summary(measured, recall=0.995)

    assert found["step_speedup"] == {"smollm2": 2.0, "nano": 2.0}
    assert found["percent_of_base"]["nano"]["difference"] == pytest.approx((-2.0, -2.0, -2.0))
    assert found["adapted_token_ratio"] == pytest.approx({"1": 1.1, "8": 1.1})
    assert found["base_token_speedup"] == 4.0
    assert (found["ingest_speedup"], found["neighbour_recall"]) == (3.0, 0.995)
    assert found["ready_seconds"]["nano"] == {"old": 40.0, "new": 20.0}
    assert found["resident_bytes"]["nano"]["new"] == {"total": 1 << 30}

    result = json.loads(json.dumps({"model": "smollm2", "against": "0123456", **found}))
    lines = real_model({"real-model": result}, sketches("real-model"))
    assert "| recall of the 200 nearest neighbours | 0.995 | at least 0.99 | holds |" in lines
    assert "| nano | 40.0 | 20.0 |" in lines
    assert "| total | 2,048 | 1,024 |" in lines


def _measured() -> dict[str, Any]:
    """Measurements of one model, in which the new tree is twice as fast in everything."""

    def tree(seconds: float, percent: float, rate: float, token: float) -> dict[str, Any]:
        tokens = {"base": [token], "adapted": [1.1 * token]}
        memory = {"total": {"resident": int(seconds / 20 * (1 << 30))}}
        step = [{"passage": "a", "seconds": seconds, "percent_of_base": percent}]
        return {
            "step": step,
            "token": {"1": tokens, "8": tokens},
            "ingest": {"per_second": rate},
            "start": {"ready_seconds": seconds, "memory": memory},
        }

    trees = {"old": tree(40.0, 92.0, 10.0, 0.2), "new": tree(20.0, 90.0, 30.0, 0.05)}
    return {
        part: {name: [measured[part]] for name, measured in trees.items()} for part in trees["old"]
    }


def _write_corpus(home: Path, embeddings_ND: np.ndarray[Any, Any]) -> None:
    folder = home / "corpora" / CORPUS
    folder.mkdir(parents=True)
    with closing(sqlite3.connect(folder / "corpus.db")) as database:
        database.execute("CREATE TABLE sequences (text TEXT, start INTEGER, embedding BLOB)")
        rows = [(f"text {n}", 0, row.tobytes()) for n, row in enumerate(embeddings_ND)]
        database.executemany("INSERT INTO sequences VALUES (?, ?, ?)", rows)
        database.commit()
