"""The report as a whole, and the provenance of its results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.report.formatting import provenance_line, runs_of
from benchmarks.report.main import BENCHMARKS, report_lines
from tests.benchmarks.report.samples import RESULTS

RESULT: dict[str, Any] = {
    "command": "python -m benchmarks.latency.main --budget small",
    "commit": "0123456789abcdef",
    "machine": {"processor": "a CPU", "cores": 2, "system": "Linux"},
    "versions": {"python": "3.11.7"},
}


def test_provenance_names_file_command_commit_machine_and_versions() -> None:
    assert provenance_line(RESULT, "latency", "results", "make bench-latency") == (
        "<sub>[latency.json](results/latency.json); "
        "`python -m benchmarks.latency.main --budget small`; commit 0123456789; "
        "a CPU, 2 cores; python 3.11.7.</sub>"
    )


def test_a_command_whose_script_is_gone_is_followed_by_the_present_one() -> None:
    result = {**RESULT, "command": "python benchmarks/latency.py --budget small"}

    line = provenance_line(result, "latency", "results", "make bench-latency")

    assert "`python benchmarks/latency.py --budget small` (now `make bench-latency`);" in line


def test_a_report_without_results_names_the_commands(tmp_path: Path) -> None:
    lines = report_lines(tmp_path, tmp_path)

    assert "Not measured here: `make bench-latency`." in lines
    assert "Not measured here: `make abuse`." in lines
    assert not any("make bench-proof" in line for line in lines)


def test_a_run_is_told_by_its_number_of_rows() -> None:
    several = [{**RESULT, "rows": 2}, {**RESULT, "rows": 1}]

    assert [run["rows"] for run in runs_of({**RESULT, "rows": [{}, {}, {}]})] == [3]
    assert [run["rows"] for run in runs_of({**RESULT, "rows": [{}] * 3, "runs": several})] == [2, 1]
    assert [run["rows"] for run in runs_of(RESULT)] == [0]


def test_no_cell_of_the_report_has_a_whole_result() -> None:
    lines = (BENCHMARKS / "REPORT.md").read_text().splitlines()
    cells = [cell for line in lines if line.startswith("|") for cell in line.split("|")]

    assert max(map(len, cells)) < 500


def test_the_report_runs_without_installed_packages(tmp_path: Path) -> None:
    # Without site-packages there is neither Mayfly nor matplotlib; these results need no plot.
    (tmp_path / "results").mkdir()
    for name in ("abuse", "selection"):
        (tmp_path / "results" / f"{name}.json").write_bytes((RESULTS / f"{name}.json").read_bytes())
    arguments = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "R.md")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    subprocess.run(
        [sys.executable, "-S", "-m", "benchmarks.report.main", *arguments],
        check=True,
        cwd=BENCHMARKS.parent,
        env=environment,
    )

    lines = (tmp_path / "R.md").read_text()
    for words in (
        "[abuse.json](results/abuse.json)",
        "make bench-quality",
        "| 1,000,000 |",
        "malformed requests",
    ):
        assert words in lines
