"""What the latency benchmark measures, by size: budgets, loads, lengths, pairs, rounds, growth.

Plain values; `benchmarks/latency/main.py` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.latency.client import Load
from benchmarks.latency.growth import ANSWER, PROMPT, RESIDENT, STEADY, Growth


@dataclass(frozen=True)
class Plan:
    """The amount of work of a run.

    Attributes:
        budgets: budgets of the closed loops.
        at_once: concurrent requests of the closed loops, for every budget.
        opened: budgets that are also measured in an open loop.
        checked: values of `at_once` that `vllm bench serve` measures too; None is an open loop.
        requests: requests of a cell, at least one per client.
        lengths: further lengths of prompt and answer, at budget STEADY and one request at once.
        pairs: pairs of the hot-loading comparison.
        rounds: rounds of the comparison with a PEFT loop per request.
        round_requests: requests of each round.
        growth: amount of work of the growth curves.
    """

    budgets: tuple[str, ...]
    at_once: tuple[int, ...]
    opened: tuple[str, ...]
    checked: tuple[int | None, ...]
    requests: int
    lengths: tuple[tuple[int, int], ...]
    pairs: int
    rounds: int
    round_requests: int
    growth: Growth


_STEPS, _SECONDS = (1, 5, 10, 20, 50), ("0.5", "1", "2", "5")
_EVERY = ("none", *(f"steps={n}" for n in _STEPS), *(f"seconds={s}" for s in _SECONDS), "auto")
PLANS = {
    "small": Plan(
        budgets=("none", "steps=5", "steps=20", "seconds=1", "auto"),
        at_once=(1, 4),
        opened=(STEADY,),
        checked=(1,),
        requests=3,
        lengths=(),
        pairs=10,
        rounds=1,
        round_requests=8,
        growth=Growth(2, (64, 256), (1_000, 10_000), (1, 8), ()),
    ),
    "full": Plan(
        budgets=_EVERY,
        at_once=(1, 2, 4, 8, 16),
        opened=_EVERY,
        checked=(1, 8, None),
        requests=20,
        lengths=((32, 32), (512, 32), (32, 128), (128, 128), (512, 128), (896, 32)),
        pairs=30,
        rounds=5,
        round_requests=16,
        growth=Growth(
            10,
            (32, 64, 128, 256, 512, 1024),
            (1_000, 10_000, 100_000),
            (1, 2, 4, 6, 8),
            ("30M", "150M"),
        ),
    ),
}


@dataclass(frozen=True)
class Cell:
    """A load on one of the servers.

    Attributes:
        server: "mayfly", "vllm", or "resident", which is vLLM with a resident adapter.
        load: the load.
        checked: whether `vllm bench serve` measures it too.
    """

    server: str
    load: Load
    checked: bool = True

    @property
    def name(self) -> str:
        """A unique description."""
        load, loop = (
            self.load,
            "open loop" if self.load.at_once is None else f"{self.load.at_once} at once",
        )
        return ", ".join(
            filter(None, [self.server, load.budget, loop, f"{load.prompt}/{load.answer} tokens"])
        )


def cells(plan: Plan) -> list[Cell]:
    """All cells of a plan. Open loops come last, since the closed ones decide their rate."""
    found = []
    for at_once in plan.at_once:
        load = Load(None, max(plan.requests, at_once), PROMPT, ANSWER, at_once)
        found += [Cell("vllm", load), Cell("resident", replace(load, model=RESIDENT[0]))]
        found += [Cell("mayfly", replace(load, budget=budget)) for budget in plan.budgets]
    found += [Cell("mayfly", Load(STEADY, plan.requests, *lengths)) for lengths in plan.lengths]
    found += [
        Cell("mayfly", Load(budget, plan.requests, PROMPT, ANSWER, None)) for budget in plan.opened
    ]
    return [replace(cell, checked=cell.load.at_once in plan.checked) for cell in found]
