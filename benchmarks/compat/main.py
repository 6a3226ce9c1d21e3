"""Compatibility: widely used clients, in environments of their own, against a real server.

Each client is installed by pip into .cache/compat (pins in `benchmarks/compat/clients.py`) and run
against one server with the bundled model and a small corpus. Every request is adapted by two steps,
so that each client meets what Mayfly adds to requests and responses. A test counts as skipped if
the client skips it, or if it fails in the way that an excuse describes. A client that cannot be
installed is reported and left out.

    python -m benchmarks.compat.main [CLIENT ...] [--url http://127.0.0.1:8000] [--json]
    [--out FILE]

The last line of `--json` is, by client, {"passed", "failed", "skipped"}. The exit status is 1 if a
test failed, or none ran.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.compat.cases import Case, read_report, with_excuses
from benchmarks.compat.clients import CLIENTS, Target, openai_model_names
from benchmarks.compat.environment import Environment, NotInstalledError, make_environment
from benchmarks.harness.command_line import argument_parser, progress, write_result
from benchmarks.harness.provenance import provenance
from benchmarks.harness.server import (
    MODEL,
    ROOMY_FLAGS,
    create_corpora,
    mayfly_server,
    source_documents,
    temporary_home,
)
from serving.config import bundled_model

# Tokens. Many tests set no limit, and the bundled model rarely ends its answer.
CONTEXT = "256"


@dataclass(frozen=True)
class Result:
    """The outcome of a client: its tests and their seconds, or why it was not installed."""

    client: str
    packages: tuple[str, ...]
    cases: tuple[Case, ...] = ()
    seconds: float = 0.0
    not_installed: str = ""

    def counts(self) -> dict[str, int]:
        """Tests by outcome."""
        counts = Counter(case.outcome for case in self.cases)
        return {outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")}


@contextlib.contextmanager
def server(url: str | None, names: Sequence[str]) -> Iterator[Target]:
    """The server at a URL, or one that is started here, whose model also has these names."""
    if url is not None:
        yield Target(url.rstrip("/"), MODEL, bundled_model())
        return
    with temporary_home() as folder:
        create_corpora(folder, {"code": source_documents()})
        more = [word for name in (MODEL, *names) for word in ("--served-model-name", name)]
        flags = ("--corpus", "code", "--budget", "steps=2", "--max-model-len", CONTEXT)
        with mayfly_server(folder, *ROOMY_FLAGS, *flags, *more) as started:
            yield Target(started.url, MODEL, bundled_model())


def run(name: str, environment: Environment, target: Target) -> Result:
    """Run one client."""
    client, started = CLIENTS[name], time.monotonic()
    progress(f"running {name}")
    with tempfile.TemporaryDirectory(prefix="mayfly-compat-") as folder:
        try:
            reports = client.run(environment, target, Path(folder))
            cases = [case for report in reports for case in read_report(report)]
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            cases = [Case(f"all of {name}", "failed", str(error))]
    cases_with_excuses = tuple(with_excuses(cases, client.excuses))
    return Result(name, client.packages, cases_with_excuses, round(time.monotonic() - started, 1))


def show(results: Sequence[Result], console: Console) -> None:
    """Print a table of clients, then each failure, then the reasons of skipped tests."""
    table = Table(
        "client", "packages", "passed", "failed", "skipped", "seconds", box=None, pad_edge=False
    )
    for result in results:
        counts = [str(count) for count in result.counts().values()]
        table.add_row(
            result.client, escape(", ".join(result.packages[:2])), *counts, f"{result.seconds:.0f}"
        )
    console.print(table)
    for result in results:
        if result.not_installed:
            console.print(f"{result.client} is not installed: {result.not_installed}", markup=False)
        for case in result.cases:
            if case.outcome == "failed":
                console.print(
                    f"{result.client}, {case.name}: {case.why[:500]}", markup=False, highlight=False
                )
        reasons = Counter(
            case.why.partition("\n")[0] for case in result.cases if case.outcome == "skipped"
        )
        for reason, count in reasons.items():
            console.print(
                f"{result.client}, {count} skipped: {reason}", markup=False, highlight=False
            )


def main() -> None:
    """Install the clients, start the server, run, print."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "clients",
        nargs="*",
        metavar="CLIENT",
        help=f"clients to run: {', '.join(CLIENTS)} (default: all)",
    )
    parser.add_argument(
        "--url", help="base URL of a running server, without /v1 (default: one that is started)"
    )
    options = parser.parse_args()
    if unknown := set(options.clients) - set(CLIENTS):
        parser.error(
            f"unknown client {', '.join(sorted(unknown))}: choose from {', '.join(CLIENTS)}"
        )
    results: dict[str, Result] = {}
    environments: dict[str, Environment] = {}
    names: list[str] = []
    for name in options.clients or CLIENTS:
        try:
            if name == "openai":
                names = openai_model_names()
            environments[name] = make_environment(name, CLIENTS[name].packages)
        except NotInstalledError as error:
            results[name] = Result(name, CLIENTS[name].packages, not_installed=str(error))
    with server(options.url, names) as target:
        for name, environment in environments.items():
            results[name] = run(name, environment, target)
    console = Console(stderr=options.json)
    show(list(results.values()), console)
    summary: dict[str, Any] = {name: result.counts() for name, result in results.items()}
    full = {**provenance(), "results": [asdict(result) for result in results.values()]}
    write_result(options, full, summary)
    any_case = any(result.cases for result in results.values())
    sys.exit(not any_case or any(result.counts()["failed"] for result in results.values()))


if __name__ == "__main__":
    main()
