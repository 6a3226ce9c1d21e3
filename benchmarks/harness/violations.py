"""What became of a run that holds the server to its promises: counts, examples, a table, the last
line.

A promise is broken in one of three ways: a `wrong` answer, an error of the server (5xx, or a
process of it that died), or something that it kept. Which is which is for the run to say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NoReturn

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.harness.server import Server
from benchmarks.quality.passages import circumstances

Kind = Literal["wrong", "server_errors", "leaked"]
MOST_EXAMPLES = 40
# Growth of the resident memory that is no leak: the larger of the two.
MEMORY_SHARE, MEMORY_BYTES = 0.05, 128 << 20


class Verdict:
    """Counts of what was asked and of what was broken, by category, with a few examples in words."""

    def __init__(self) -> None:
        self.requests = 0
        self.broken: dict[Kind, Counter[str]] = {
            "wrong": Counter(),
            "server_errors": Counter(),
            "leaked": Counter(),
        }
        self.examples: list[str] = []

    def blame(self, kind: Kind, category: str, why: str, count: int = 1) -> None:
        """Count a broken promise; the first of each category is kept as an example, others as long
        as there is room.
        """
        first = not self.broken[kind][category]
        self.broken[kind][category] += count
        if first or len(self.examples) < MOST_EXAMPLES:
            self.examples.append(f"{kind}, {category}: {why}")

    def check(self, holds: bool, kind: Kind, category: str, why: str) -> None:
        """Blame, unless it holds."""
        if not holds:
            self.blame(kind, category, why)

    def check_memory(self, before: int, after: int) -> None:
        """Bytes resident before and after: is the memory back where it was, to the stated bound?"""
        bound = max(MEMORY_SHARE * before, MEMORY_BYTES)
        grown = (after - before) / 1e6
        self.check(
            after - before <= bound,
            "leaked",
            "memory",
            f"{grown:.0f} MB more, {bound / 1e6:.0f} are allowed",
        )

    def check_quiet(
        self, server: Server, seconds: float, headers: dict[str, str] | None = None
    ) -> None:
        """Nothing may run, be staged, loaded or connected within so many seconds."""
        if server.quiet_within(seconds, headers) is not None:
            return
        try:
            totals = server.metrics(headers)
        except httpx.HTTPError as problem:
            self.blame("server_errors", "no answer", f"/metrics: {problem!r}")
            return
        for what, left in {
            "connections": server.connections(),
            "staged adapters": len(server.staged()),
            "live adapters": int(totals["mayfly_live_adapters"]),
            "requests in vLLM": int(
                totals["vllm:num_requests_running"] + totals["vllm:num_requests_waiting"]
            ),
            "requests in a stage": int(totals["mayfly_requests_in_stage"]),
        }.items():
            if left:
                self.blame("leaked", what, f"{left} after {seconds:.0f} s", left)

    def check_workers(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """No process of the server may have been replaced."""
        for name, process in before.items():
            self.check(
                after.get(name) == process,
                "server_errors",
                "restart",
                f"the {name} is another process now",
            )

    def check_end(self, server: Server) -> None:
        """A server that has ended leaves nothing."""
        for what in server.left:
            self.blame("leaked", "after the end", what)

    def counts(self) -> dict[str, Any]:
        """For the last line."""
        totals: dict[str, int] = {
            kind: sum(counter.values()) for kind, counter in self.broken.items()
        }
        return {
            "requests": self.requests,
            **totals,
            "by_category": {k: dict(c) for k, c in self.broken.items() if c},
        }


def arguments(description: str, requests: int) -> argparse.ArgumentParser:
    """The options that all such runs have."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--requests", type=int, default=requests)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--out", type=Path, help="write the full result here")
    return parser


def finish(verdict: Verdict, facts: dict[str, Any], options: argparse.Namespace) -> NoReturn:
    """Table, file and last line; exit status 1 if a promise was broken."""
    said = {**verdict.counts(), **facts}
    table = Table("", "", box=None, pad_edge=False, show_header=False)
    for key, value in said.items():
        table.add_row(
            key.replace("_", " "), json.dumps(value) if isinstance(value, dict) else str(value)
        )
    console = Console(stderr=options.json)
    console.print(table, highlight=False)
    for example in verdict.examples:
        console.print(f"  {example}", highlight=False, markup=False)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        full = {**circumstances(), "seed": options.seed, **said, "examples": verdict.examples}
        options.out.write_text(json.dumps(full, indent=1) + "\n")
    if options.json:
        print(json.dumps(said))
    sys.exit(any(verdict.broken.values()))
