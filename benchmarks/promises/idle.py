"""Idle: the processor time of a server without requests.

A real server completes one request with the base model and one with an adapter, settles, and is
then left alone. The processor time of each of its processes over a minute, as the kernel counts it,
gives its share of one core. Base-model completions of 64 tokens are timed before and after, one
after the other, each by an engine that has rested.

`wrong` counts a share above its threshold, and a response other than 200 or without an adapter.

    python -m benchmarks.promises.idle [--seconds 60] [--json] [--out benchmarks/results/idle.json]
"""

from __future__ import annotations

import contextlib
import statistics
import time
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.harness.command_line import progress
from benchmarks.harness.process_names import process_name
from benchmarks.harness.server import (
    Server,
    completion_body,
    create_corpora,
    mayfly_server,
    source_documents,
)
from benchmarks.harness.thresholds import MAX_IDLE_SHARE, MAX_IDLE_WORKER_SHARE
from benchmarks.harness.violations import Violations, argument_parser, run_and_finish

# Until then the trainer releases memory, and caches of metrics are filled.
SETTLE_SECONDS = 15.0
_CORPUS = "code"
_TOKENS, _ANSWERS = 64, 5


def cpu_seconds(server: Server) -> dict[tuple[int, str], float]:
    """Processor time of each process so far, in seconds, by pid and name."""
    seconds = {}
    for process in server.processes():
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            seconds[process.pid, process_name(" ".join(process.cmdline()))] = (
                times.user + times.system
            )
    return seconds


def shares(
    before: dict[tuple[int, str], float], after: dict[tuple[int, str], float], seconds: float
) -> dict[str, float]:
    """Shares of one core by name of process, the largest first.

    Args:
        before: processor seconds by pid and name, at the start.
        after: the same at the end; a process that has started since counts in full.
        seconds: time between both.
    """
    found: defaultdict[str, float] = defaultdict(float)
    for (pid, name), total in after.items():
        found[name] += (total - before.get((pid, name), 0.0)) / seconds
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def run(folder: Path, options: Namespace, violations: Violations) -> dict[str, Any]:
    """The whole run, on a server of its own."""
    create_corpora(folder, {_CORPUS: source_documents()})
    with mayfly_server(folder, "--corpus", _CORPUS, "--max-model-len", "512") as server:
        first = time_answers(server, violations)
        time.sleep(SETTLE_SECONDS)
        progress(f"idle for {options.seconds:.0f} s")
        before, started = cpu_seconds(server), time.monotonic()
        time.sleep(options.seconds)
        by_process = shares(before, cpu_seconds(server), time.monotonic() - started)
        last = time_answers(server, violations)
    violations.check_end(server)
    core_share = sum(by_process.values())
    # Without a worker the core computes.
    worker_share = by_process["engine core"] + by_process.get("worker", 0.0)
    violations.check(
        core_share < MAX_IDLE_SHARE,
        "wrong",
        "core",
        f"{core_share:.1%} of a core; must be below {MAX_IDLE_SHARE:.0%}",
    )
    violations.check(
        worker_share < MAX_IDLE_WORKER_SHARE,
        "wrong",
        "worker",
        f"{worker_share:.1%} of a core; must be below {MAX_IDLE_WORKER_SHARE:.0%}",
    )
    return {
        "core_share": round(core_share, 4),
        "worker_share": round(worker_share, 4),
        "seconds": options.seconds,
        "by_process": {name: round(share, 4) for name, share in by_process.items()},
        "base_answer_seconds": {"tokens": _TOKENS, "before": first, "after": last},
    }


def time_answers(server: Server, violations: Violations) -> float:
    """Request one adapted completion, then some of the base model; median seconds of the latter."""
    took = []
    for budget in ("steps=1", *["none"] * _ANSWERS):
        started = time.monotonic()
        body = completion_body(max_tokens=_TOKENS, ignore_eos=True)
        reply = httpx.post(
            f"{server.url}/v1/completions",
            json=body,
            headers={"Compute-Budget": budget},
            timeout=60,
        )
        took.append(time.monotonic() - started)
        violations.requests += 1
        report = reply.json().get("adaptation") or {}
        holds = reply.status_code == 200 and report.get("adapted") is (budget != "none")
        violations.check(
            holds,
            "wrong",
            budget,
            f"{reply.status_code}: {report.get('reason') or reply.text[:200]}",
        )
        time.sleep(1.5)
    return round(statistics.median(took[1:]), 4)


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="duration without requests (default: %(default)s)",
    )
    run_and_finish(run, parser.parse_args())


if __name__ == "__main__":
    main()
