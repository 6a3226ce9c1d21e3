"""What the latency benchmark asks, in small and in full: budgets, loads, lengths, pairs, rounds,
and how cost grows.

Plain values; who measures them is `benchmarks/latency/main.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.latency.bench_serve import Load
from benchmarks.latency.growth import ANSWER, PROMPT, RESIDENT, STEADY, Growth


@dataclass(frozen=True)
class Plan:
    """How much is asked.

    Attributes:
        budgets, at_once: of the closed loops, each with each.
        opened: budgets that are asked in an open loop, too.
        checked: how many at once, None in an open loop, where `vllm bench serve` asks the same.
        requests: of a cell, one for each client at least.
        lengths: of prompt and answer, beside the usual ones, at budget STEADY and one at once.
        pairs: of hot-loading.
        rounds, round_requests: of the race with the naive way.
        growth: of its own requests.
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
    """A load and who is asked: "mayfly", "vllm", or "resident", which is vLLM with an adapter; and
    if it is checked.
    """

    server: str
    load: Load
    checked: bool = True

    @property
    def name(self) -> str:
        """In words; no other cell of a run has it."""
        load, loop = (
            self.load,
            "open loop" if self.load.at_once is None else f"{self.load.at_once} at once",
        )
        return ", ".join(
            filter(None, [self.server, load.budget, loop, f"{load.prompt}/{load.answer} tokens"])
        )


def cells(plan: Plan) -> list[Cell]:
    """All of a plan's, the open ones, whose rate the closed ones decide, last."""
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
