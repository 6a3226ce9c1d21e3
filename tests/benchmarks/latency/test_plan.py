"""The cells of a plan."""

from __future__ import annotations

import pytest

from benchmarks.latency.client import Load
from benchmarks.latency.plan import PLANS, Cell, cells


@pytest.mark.parametrize("budget", PLANS)
def test_every_cell_of_a_plan_has_a_unique_name(budget: str) -> None:
    plan_cells = cells(PLANS[budget])
    names = [cell.name for cell in plan_cells]

    assert len(set(names)) == len(names)
    assert [cell.load.at_once for cell in plan_cells].index(None) == len(names) - len(
        PLANS[budget].opened
    )
    assert all(cell.load.requests >= (cell.load.at_once or 1) for cell in plan_cells)


def test_the_small_plan_checks_every_server_and_budget_once() -> None:
    plan_cells = cells(PLANS["small"])
    checked = [(cell.server, cell.load.budget) for cell in plan_cells if cell.checked]

    assert len(set(checked)) == len(checked)
    assert set(checked) == {(cell.server, cell.load.budget) for cell in plan_cells}


def test_the_full_plan_checks_one_and_eight_at_once_and_every_open_loop() -> None:
    for cell in cells(PLANS["full"]):
        assert cell.checked == (cell.load.at_once in (1, 8, None))


def test_a_name_describes_the_load() -> None:
    assert (
        Cell("mayfly", Load("auto", 9, 128, 32, 4)).name == "mayfly, auto, 4 at once, 128/32 tokens"
    )
    assert Cell("vllm", Load(None, 9, 128, 32, None)).name == "vllm, open loop, 128/32 tokens"
