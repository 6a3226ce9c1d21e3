"""Counts of broken promises: what a run against a server found, its table and its last line.

A promise is broken in one of three ways: a `wrong` answer, an error of the server (5xx, or a
process of it that died), or a leak, which is anything the server still holds after the work has
ended. Each benchmark decides which of them a finding is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.harness import command_line
from benchmarks.harness.provenance import provenance
from benchmarks.harness.server import Server, temporary_home

Kind = Literal["wrong", "server_errors", "leaked"]
MAX_EXAMPLES = 40
# Growth of the resident memory that counts as no leak: the larger of the two.
MEMORY_SHARE, MEMORY_BYTES = 0.05, 128 << 20


class Violations:
    """Counts of requests and of broken promises, by kind and category, with examples.

    Attributes:
        requests: requests made so far.
        counts: violations by kind, then by category.
        examples: descriptions of some violations.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.counts: dict[Kind, Counter[str]] = {
            "wrong": Counter(),
            "server_errors": Counter(),
            "leaked": Counter(),
        }
        self.examples: list[str] = []

    def record(self, kind: Kind, category: str, reason: str, count: int = 1) -> None:
        """Count a violation.

        The first of each category becomes an example, and others do until there are MAX_EXAMPLES.
        """
        first = not self.counts[kind][category]
        self.counts[kind][category] += count
        if first or len(self.examples) < MAX_EXAMPLES:
            self.examples.append(f"{kind}, {category}: {reason}")

    def check(self, holds: bool, kind: Kind, category: str, reason: str) -> None:
        """Record a violation unless the promise holds."""
        if not holds:
            self.record(kind, category, reason)

    def check_memory(self, before: int, after: int) -> None:
        """Check that the resident memory, in bytes, has not grown beyond the bound."""
        bound = max(MEMORY_SHARE * before, MEMORY_BYTES)
        growth = (after - before) / 1e6
        self.check(
            after - before <= bound,
            "leaked",
            "memory",
            f"{growth:.0f} MB more; at most {bound / 1e6:.0f} are allowed",
        )

    def check_idle(
        self, server: Server, seconds: float, headers: dict[str, str] | None = None
    ) -> None:
        """Check that after at most `seconds` nothing runs, is staged, loaded or connected."""
        if server.seconds_until_idle(seconds, headers) is not None:
            return
        try:
            totals = server.metrics(headers)
        except httpx.HTTPError as error:
            self.record("server_errors", "no answer", f"/metrics: {error!r}")
            return
        for resource, count in {
            "connections": server.connections(),
            "staged adapters": len(server.staged_adapters()),
            "live adapters": int(totals["mayfly_live_adapters"]),
            "requests in vLLM": int(
                totals["vllm:num_requests_running"] + totals["vllm:num_requests_waiting"]
            ),
            "requests in a stage": int(totals["mayfly_requests_in_stage"]),
        }.items():
            if count:
                self.record("leaked", resource, f"{count} after {seconds:.0f} s", count)

    def check_workers(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Check that no process of the server was replaced."""
        for name, process in before.items():
            self.check(
                after.get(name) == process,
                "server_errors",
                "restart",
                f"the {name} is another process now",
            )

    def check_end(self, server: Server) -> None:
        """Check that a server that has ended left nothing behind."""
        for leftover in server.leftovers:
            self.record("leaked", "after the end", leftover)

    def summary(self) -> dict[str, Any]:
        """Requests, totals by kind, and counts by category."""
        totals: dict[str, int] = {
            kind: sum(counter.values()) for kind, counter in self.counts.items()
        }
        return {
            "requests": self.requests,
            **totals,
            "by_category": {k: dict(c) for k, c in self.counts.items() if c},
        }


def argument_parser(doc: str | None, requests: int | None = None) -> argparse.ArgumentParser:
    """A parser with the options of every such run.

    Args:
        doc: the module's docstring.
        requests: default of `--requests`; None for a run without this option.
    """
    parser = command_line.argument_parser(doc)
    if requests is not None:
        parser.add_argument(
            "--requests", type=int, default=requests, help="number (default: %(default)s)"
        )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    return parser


def run_and_finish(
    run: Callable[[Path, argparse.Namespace, Violations], dict[str, Any]],
    options: argparse.Namespace,
) -> NoReturn:
    """Run a benchmark in a temporary home, print and write its result, and exit.

    The exit status is 1 if a promise was broken.

    Args:
        run: takes the home, the options and the violations to record in; returns further facts.
        options: parsed by `argument_parser`.
    """
    violations = Violations()
    with temporary_home() as home:
        facts = run(home, options, violations)
    _finish(violations, facts, options)


def _finish(violations: Violations, facts: dict[str, Any], options: argparse.Namespace) -> NoReturn:
    summary = {**violations.summary(), **facts}
    table = Table("", "", box=None, pad_edge=False, show_header=False)
    for key, value in summary.items():
        table.add_row(
            key.replace("_", " "), json.dumps(value) if isinstance(value, dict) else str(value)
        )
    console = Console(stderr=options.json)
    console.print(table, highlight=False)
    for example in violations.examples:
        console.print(f"  {example}", highlight=False, markup=False)
    result = {**provenance(), "seed": options.seed, **summary, "examples": violations.examples}
    command_line.write_result(options, result, summary)
    sys.exit(any(violations.counts.values()))
