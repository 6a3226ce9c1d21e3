"""`mayfly plan`: costs are measured once, saved, and used for other models and machines; invalid
input is reported in one line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from serving.capacity.cost_model import write_cost_model
from serving.cli.main import app
from tests.serving.capacity.test_planner import NANO

_MILLIONS = "1,000 M parameters"


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """A file of measurements."""
    write_cost_model(NANO, tmp_path / "costs.json")
    return str(tmp_path / "costs.json")


def plan(*options: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["plan", *options])


def planned(*options: str) -> dict[str, Any]:
    result = plan(*options, "--json")
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_saved_measurements_give_the_same_plan(tmp_path: Path) -> None:
    file = str(tmp_path / "costs.json")
    first = planned(
        "--sequence-tokens", "32", "--steps", "5", "--save", file, "--home", str(tmp_path)
    )

    again = planned("--sequence-tokens", "32", "--steps", "5", "--measured", file)

    assert again == first
    assert first["cost_model"]["model"] == "nano"
    assert [stage["stage"] for stage in first["plan"]["stages"]] == [
        "selector",
        "trainer",
        "engine",
    ]
    assert any("Estimated, not measured: the engine" in line for line in first["assumptions"])


def test_the_table_comes_with_its_assumptions(saved: str) -> None:
    result = plan(
        "--measured",
        saved,
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
        f"50 requests per second to {_MILLIONS} need",
        "most of them for the trainer",
    ):
        assert words in result.stdout
    for words in (
        "Measured with nano (5 M parameters) on 1 core.",
        "Estimated, not measured: the engine",
        f"Scaled to {_MILLIONS} on an accelerator in bfloat16",
        "200 times as large",
        "No stage is busier than 70%",
    ):
        assert words in result.stdout


def test_what_auto_needs_where_it_takes_no_step_is_planned_beside_it(saved: str) -> None:
    plans = planned("--measured", saved, "--rate", "5")
    shown = plan("--measured", saved, "--rate", "5").stdout

    (cores, fewer) = (plans[name]["cores"] for name in ("plan", "plan_without_steps"))
    alone = plans["plan_without_steps"]["seconds_alone"]
    assert fewer < cores
    assert f"5 requests per second to 5 M parameters need {cores} cores" in shown
    assert (
        "Each adapted request takes 50 steps. `auto` takes none where the adapter of the corpus, "
        "or chosen text in the prompt, helps: if it did so for each request, this would need "
        f"{fewer} cores, and an answer would take {alone:.3g} s alone."
    ) in " ".join(shown.split())
    assert "`auto`" not in plan("--measured", saved, "--steps", "0").stdout


def test_a_larger_model_has_a_larger_rank(saved: str) -> None:
    small, large = (
        planned("--measured", saved, "--parameters", size)["cost_model"] for size in ("1e7", "1e9")
    )

    assert (small["rank"], large["rank"]) == (16, 64)


def test_without_adaptation_only_the_engine_has_replicas(saved: str) -> None:
    result = plan("--measured", saved, "--adapted", "0")

    assert result.exit_code == 0
    assert result.stdout.count("none") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rate", "0"), "the rate is 0.0 requests per second; it needs to be more than 0"),
        (("--parameters", "-1"), "parameters is -1.0"),
        (("--flops", "1e12"), "give both --flops and --bandwidth"),
        (("--utilisation", "1"), "between 0 and 1"),
        (("--measured", "/no/such/file"), "cannot read /no/such/file"),
        (("--url", "http://127.0.0.1:9/v1"), "no server at http://127.0.0.1:9/v1"),
        (("--url", "nonsense"), "invalid URL 'nonsense'"),
        (("--model", "/no/such/model"), "cannot load the model '/no/such/model'"),
        (("--corpus", "nowhere"), "nowhere"),
    ],
)
def test_invalid_input_is_reported_in_one_line(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = plan(*options, "--home", str(tmp_path))

    assert result.exit_code == 1
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert result.stdout == ""


def test_contradicting_options_are_refused(saved: str, tmp_path: Path) -> None:
    for options in (
        ("--measured", saved, "--corpus", "nx"),
        ("--measured", saved, "--chat-template", "chat.jinja"),
        ("--save", str(tmp_path / "no" / "file")),
    ):
        assert plan(*options).exit_code == 2
