"""Provenance and output of the benchmarks' commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.harness.command_line import argument_parser, write_result
from benchmarks.harness.provenance import ROOT, command


def test_the_command_names_the_module_from_the_repositorys_root() -> None:
    script = str(ROOT / "benchmarks" / "promises" / "idle.py")

    assert command([script, "--json"]) == "python -m benchmarks.promises.idle --json"
    assert command(["/elsewhere/tool.py"]) == "python tool.py"


def test_the_description_is_the_first_paragraph_of_the_docstring() -> None:
    assert argument_parser("One\ntwo.\n\nThree.").description == "One two."


def test_a_result_goes_to_the_file_and_its_summary_to_the_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "result.json"
    options = argument_parser("Doc.").parse_args(["--json", "--out", str(file)])

    write_result(options, {"a": 1, "b": 2}, {"a": 1})

    assert json.loads(file.read_text()) == {"a": 1, "b": 2}
    assert json.loads(capsys.readouterr().out) == {"a": 1}


def test_without_options_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    write_result(argument_parser("Doc.").parse_args([]), {"a": 1}, {"a": 1})

    assert capsys.readouterr().out == ""
