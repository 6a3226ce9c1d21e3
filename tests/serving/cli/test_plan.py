"""`mayfly plan`: measured once, kept, and planned with for other models and machines; wrong input
in one line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from serving.capacity.cost_model import write_pieces
from serving.cli.main import app
from tests.serving.capacity.test_planner import NANO

_MILLIONS = "1,000 M parameters"


@pytest.fixture
def kept(tmp_path: Path) -> str:
    """A file of pieces."""
    write_pieces(NANO, tmp_path / "pieces.json")
    return str(tmp_path / "pieces.json")


def plan(*options: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["plan", *options])


def planned(*options: str) -> dict[str, Any]:
    result = plan(*options, "--json")
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def test_what_is_measured_is_kept_and_planned_with(tmp_path: Path) -> None:
    file = str(tmp_path / "pieces.json")
    first = planned(
        "--sequence-tokens", "32", "--steps", "5", "--save", file, "--home", str(tmp_path)
    )

    again = planned("--sequence-tokens", "32", "--steps", "5", "--measured", file)

    assert again == first
    assert first["pieces"]["model"] == "nano"
    assert [need["stage"] for need in first["plan"]["needs"]] == ["selector", "trainer", "engine"]
    assert any("Estimated, not measured: the engine" in said for said in first["assumptions"])


def test_a_table_for_people_says_what_it_rests_on(kept: str) -> None:
    result = plan(
        "--measured",
        kept,
        "--rate",
        "50",
        "--parameters",
        "1e9",
        "--flops",
        "4e14",
        "--bandwidth",
        "3e12",
    )

    assert result.exit_code == 0, result.output
    for words in (
        "selector",
        "trainer",
        "engine",
        f"Requests at 50 a second to {_MILLIONS} need",
        "most for the trainer",
    ):
        assert words in result.stdout
    for words in (
        "Measured with nano (5 M parameters) on 1 core.",
        "Estimated, not measured: the engine",
        f"Scaled to {_MILLIONS} on an accelerator in bfloat16",
        "200 times the size",
        "No stage is busier than 70%",
    ):
        assert words in result.stdout


def test_a_larger_model_has_a_larger_rank(kept: str) -> None:
    small, large = (
        planned("--measured", kept, "--parameters", size)["pieces"] for size in ("1e7", "1e9")
    )

    assert (small["rank"], large["rank"]) == (16, 64)


def test_requests_that_nobody_adapts_need_an_engine_alone(kept: str) -> None:
    result = plan("--measured", kept, "--adapted", "0")

    assert result.exit_code == 0
    assert result.stdout.count("none") == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rate", "0"), "the rate needs to be more than 0"),
        (("--parameters", "-1"), "parameters is -1.0"),
        (("--flops", "1e12"), "give both --flops and --bandwidth"),
        (("--utilisation", "1"), "between 0 and 1"),
        (("--measured", "/no/such/file"), "cannot read /no/such/file"),
        (("--url", "http://127.0.0.1:9/v1"), "no server at http://127.0.0.1:9/v1"),
        (("--url", "nonsense"), "is no URL"),
        (("--model", "/no/such/model"), "cannot load the model '/no/such/model'"),
        (("--corpus", "nowhere"), "nowhere"),
    ],
)
def test_wrong_input_is_an_error_that_a_user_can_mend(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    result = plan(*options, "--home", str(tmp_path))

    assert result.exit_code == 1
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)
    assert result.stdout == ""


def test_options_that_contradict_each_other_are_refused(kept: str, tmp_path: Path) -> None:
    for options in (
        ("--measured", kept, "--corpus", "nx"),
        ("--save", str(tmp_path / "no" / "file")),
    ):
        assert plan(*options).exit_code == 2
