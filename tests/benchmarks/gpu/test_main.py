"""The GPU check on a CPU: every part runs, and an interrupted one keeps what it has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.main import PARTS, Part, failures, run_part
from benchmarks.harness.provenance import ROOT


def test_all_parts_run_and_hold_on_a_cpu(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu.main", "--device", "cpu", "--budget", "small"]

    run = subprocess.run(
        [*command, "--json", "--out", str(file)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1])["failures"] == []
    parts = json.loads(file.read_text())["parts"]
    assert {name: entry["status"] for name, entry in parts.items()} == {
        part.name: "done" for part in PARTS
    }
    assert {"nano, float32", "nano, bfloat16"} <= parts["equivalence"]["measured"].keys()
    captured = parts["steps"]["measured"]["nano, 2 rows of 32, cuda graph"]
    assert captured == {"failed": "RuntimeError: needs a GPU"}


def test_without_a_gpu_it_says_so_instead_of_measuring_a_cpu(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")

    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.main", "--out", str(tmp_path / "gpu.json")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert run.returncode == 1
    assert "torch finds no GPU here" in run.stderr
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.parametrize(
    ("budget", "status"),
    [("raises", "failed: RuntimeError: no such device"), ("endless", "cut off at its time limit")],
)
def test_a_part_that_does_not_end_well_keeps_what_it_measured(budget: str, status: str) -> None:
    entry: dict[str, Any] = {"measured": {}}
    written: list[dict[str, Any]] = []

    run_part(
        Part("any", "tests.benchmarks.gpu.parts", {budget: 6}),
        budget,
        entry,
        lambda: written.append(dict(entry["measured"])),
    )

    assert entry["status"] == status
    assert entry["measured"] == {"first": {"budget": budget}}
    assert written[0] == {"first": {"budget": budget}}
    assert list(failures({"parts": {"any": entry}})) == [f"any: {status}"]
