"""Compatibility: the clients that people use, in environments of their own, against a real server.

Each client is installed by pip into .cache/compat (pins in `benchmarks/compat/clients.py`) and run
against one server with the bundled model and a small corpus, whose every request is adapted by two
steps, so that what Mayfly adds to requests and answers is in every client's way. A test counts as
skipped if the client skips it by itself, or if it fails in the way that an excuse describes. A
client that cannot be installed is named and left out.

    python -m benchmarks.compat.main [CLIENT ...] [--url http://127.0.0.1:8000] [--json] [--out
    FILE]

The last line of `--json` is, by client, {"passed", "failed", "skipped"}. Exit status 1 if a test
failed, or none ran.
"""

from __future__ import annotations

import argparse
import contextlib
import json
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

from benchmarks.compat.cases import Case, excused, read_report
from benchmarks.compat.clients import CLIENTS, Target, openai_model_names
from benchmarks.compat.environment import Environment, NotInstalledError, make
from benchmarks.harness.command_line import progress
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

# Tokens: many tests set no limit, and the bundled model does not know when it has said enough.
CONTEXT = "256"


@dataclass(frozen=True)
class Result:
    """What became of a client: its tests and the seconds they took, or why it was not installed."""

    client: str
    packages: tuple[str, ...]
    cases: tuple[Case, ...] = ()
    seconds: float = 0.0
    not_installed: str = ""

    def counts(self) -> dict[str, int]:
        """Tests by outcome."""
        found = Counter(case.outcome for case in self.cases)
        return {outcome: found[outcome] for outcome in ("passed", "failed", "skipped")}


@contextlib.contextmanager
def server(url: str | None, names: Sequence[str]) -> Iterator[Target]:
    """The server at a URL, or one of our own whose model also goes by these names."""
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
    client, begun = CLIENTS[name], time.monotonic()
    progress(f"running {name}")
    with tempfile.TemporaryDirectory(prefix="mayfly-compat-") as folder:
        try:
            reports = client.run(environment, target, Path(folder))
            cases = [case for report in reports for case in read_report(report)]
        except (RuntimeError, subprocess.TimeoutExpired) as problem:
            cases = [Case(f"all of {name}", "failed", str(problem))]
    told = tuple(excused(cases, client.excuses))
    return Result(name, client.packages, told, round(time.monotonic() - begun, 1))


def show(results: Sequence[Result], console: Console) -> None:
    """A table of clients, then each failure, then each reason for which tests were skipped."""
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
    """Install, start, run, tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "clients", nargs="*", metavar="CLIENT", help=f"of {', '.join(CLIENTS)}; default all"
    )
    parser.add_argument(
        "--url", help="of a running server, without /v1; default one that is started for this"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--out", type=Path, help="write the full result here")
    options = parser.parse_args()
    if unknown := set(options.clients) - set(CLIENTS):
        parser.error(f"no client {', '.join(sorted(unknown))}: there are {', '.join(CLIENTS)}")
    results: dict[str, Result] = {}
    environments: dict[str, Environment] = {}
    names: list[str] = []
    for name in options.clients or CLIENTS:
        try:
            if name == "openai":
                names = openai_model_names()
            environments[name] = make(name, CLIENTS[name].packages)
        except NotInstalledError as problem:
            results[name] = Result(name, CLIENTS[name].packages, not_installed=str(problem))
    with server(options.url, names) as target:
        for name, environment in environments.items():
            results[name] = run(name, environment, target)
    console = Console(stderr=options.json)
    show(list(results.values()), console)
    said: dict[str, Any] = {name: result.counts() for name, result in results.items()}
    if options.out:
        full = {**provenance(), "results": [asdict(result) for result in results.values()]}
        options.out.write_text(json.dumps(full, indent=1) + "\n")
    if options.json:
        print(json.dumps(said))
    ran = any(result.cases for result in results.values())
    sys.exit(not ran or any(result.counts()["failed"] for result in results.values()))


if __name__ == "__main__":
    main()
