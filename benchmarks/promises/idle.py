"""Idle: what a server costs that nobody asks anything.

A real server answers one request with the base model and one with an adapter, settles, and is then
left alone. The processor time of each of its processes over a minute, as the kernel counts it,
makes the share of one core. Base answers of 64 tokens are timed before and after, one after the
other: each is answered by an engine that rested.

`wrong` is a share above what is promised, and an answer that is not a 200 or not adapted.

    python -m benchmarks.promises.idle [--seconds 60] [--json] [--out benchmarks/results/idle.json]
"""

from __future__ import annotations

import contextlib
import re
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.harness.server import Server, completion, fill, home, serving, sources
from benchmarks.harness.thresholds import MOST_IDLE, MOST_IDLE_WORKER
from benchmarks.harness.violations import Verdict, arguments, finish
from benchmarks.quality.passages import progress

SETTLE_SECONDS = 15.0  # the trainer gives memory back, caches of metrics are filled
_CORPUS = "code"
_TOKENS, _ANSWERS = 64, 5
_NAMES = (  # in the command line of a process, and what it is called here
    (r"VLLM::Worker", "worker"),
    (r"VLLM::EngineCore", "engine core"),
    (r"ServeReplica:\w+:(\w+)", None),
    (r"ServeController", "Serve's controller"),
    (r"ProxyActor", "Serve's proxy"),
    (r"/raylet/raylet ", "raylet"),
    (r"gcs_server", "control store"),
    (r"runtime_env/agent", "Ray's environment agent"),
    (r"dashboard/agent", "Ray's agent"),
    (r"dashboard", "Ray's dashboard"),
    (r"log_monitor", "Ray's log monitor"),
    (r"autoscaler|monitor\.py", "Ray's monitor"),
    (r"ray::IDLE", "idle workers"),
    (r"haproxy", "HAProxy"),
    (r"mayfly serve|mayfly\W+serve", "the command"),
)


def name_of(command_line: str) -> str:
    """What a process of the server is, by its command line."""
    for pattern, name in _NAMES:
        if found := re.search(pattern, command_line):
            return name or str(found[1])
    return "others"


def spent(server: Server) -> dict[tuple[int, str], float]:
    """Seconds of processor that each process has had so far."""
    seconds = {}
    for process in server.family():
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            seconds[process.pid, name_of(" ".join(process.cmdline()))] = times.user + times.system
    return seconds


def shares(
    before: dict[tuple[int, str], float], after: dict[tuple[int, str], float], seconds: float
) -> dict[str, float]:
    """Of one core, by process, the largest first; one that began in between counts from its
    beginning.
    """
    found: defaultdict[str, float] = defaultdict(float)
    for (pid, name), total in after.items():
        found[name] += (total - before.get((pid, name), 0.0)) / seconds
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def idle(folder: Path, seconds: float, verdict: Verdict) -> dict[str, Any]:
    """The whole run on a server of its own."""
    fill(folder, {_CORPUS: sources()})
    with serving(folder, "--corpus", _CORPUS, "--max-model-len", "512") as server:
        first = answers(server, verdict)
        time.sleep(SETTLE_SECONDS)
        progress(f"idle for {seconds:.0f} s")
        before, begun = spent(server), time.monotonic()
        time.sleep(seconds)
        by_process = shares(before, spent(server), time.monotonic() - begun)
        last = answers(server, verdict)
    verdict.check_end(server)
    core_share, worker_share = sum(by_process.values()), by_process.get("worker", float("nan"))
    verdict.check(
        core_share < MOST_IDLE,
        "wrong",
        "core",
        f"{core_share:.1%} of a core, not below {MOST_IDLE:.0%}",
    )
    verdict.check(
        worker_share < MOST_IDLE_WORKER,
        "wrong",
        "worker",
        f"{worker_share:.1%}, not below {MOST_IDLE_WORKER:.0%}",
    )
    return {
        "core_share": round(core_share, 4),
        "worker_share": round(worker_share, 4),
        "seconds": seconds,
        "by_process": {name: round(share, 4) for name, share in by_process.items()},
        "base_answer_seconds": {"tokens": _TOKENS, "before": first, "after": last},
    }


def answers(server: Server, verdict: Verdict) -> float:
    """One adapted answer, then some of the base model; the median seconds of these."""
    took = []
    for budget in ("steps=1", *["none"] * _ANSWERS):
        begun = time.monotonic()
        body = completion(max_tokens=_TOKENS, ignore_eos=True)
        reply = httpx.post(
            f"{server.url}/v1/completions",
            json=body,
            headers={"Compute-Budget": budget},
            timeout=60,
        )
        took.append(time.monotonic() - begun)
        verdict.requests += 1
        report = reply.json().get("adaptation") or {}
        holds = reply.status_code == 200 and report.get("adapted") is (budget != "none")
        verdict.check(
            holds,
            "wrong",
            budget,
            f"{reply.status_code}: {report.get('reason') or reply.text[:200]}",
        )
        time.sleep(1.5)
    return round(statistics.median(took[1:]), 4)


def main() -> None:
    """Measure, print, write the JSON."""
    parser = arguments(__doc__ or "", 0)
    parser.add_argument("--seconds", type=float, default=60.0, help="that the server is left alone")
    options = parser.parse_args()
    verdict = Verdict()
    with home() as folder:
        facts = idle(folder, options.seconds, verdict)
    finish(verdict, facts, options)


if __name__ == "__main__":
    main()
