"""Overhead: `Compute-Budget: none` against plain `vllm serve`, same model and machine, interleaved.

Both servers are up all the time, and only one at a time gets requests, from `vllm bench serve`. A
pair is a run against each, with the same prompts; every second pair begins with the other server.
The ratios are medians over pairs; the first pair is a warm-up. Plain vLLM has no LoRA and none of
Mayfly's plugins, and Mayfly's thread settings.

`wrong` counts requests that `vllm bench serve` reports as failed.

    python -m benchmarks.latency.overhead [--requests 200] [--pairs 7] [--json]
    [--out benchmarks/results/overhead.json]
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks.harness.command_line import progress
from benchmarks.harness.server import free_port, mayfly_server, running_server
from benchmarks.harness.thresholds import MAX_TTFT_RATIO, MIN_THROUGHPUT_RATIO
from benchmarks.harness.violations import Violations, argument_parser, run_and_finish
from benchmarks.latency.vllm_cli import bench_serve, vllm_environment, vllm_serve

CONTEXT, INPUT, OUTPUT = 1024, 128, 32  # tokens
CONCURRENCY = 8


def measure(url: str, folder: Path, requests: int, seed: int) -> dict[str, float]:
    """Measure one server by `vllm bench serve`.

    Raises:
        RuntimeError: the command failed.
    """
    options = {
        "--dataset-name": "random",
        "--random-input-len": INPUT,
        "--random-output-len": OUTPUT,
        "--num-prompts": requests,
        "--max-concurrency": CONCURRENCY,
        "--seed": seed,
        "--header": "Compute-Budget=none",
    }
    report = bench_serve(url, folder, options)
    return {
        "tokens_per_second": report["output_throughput"],
        "ttft_milliseconds": report["median_ttft_ms"],
        "failed": requests - report["completed"],
    }


def run(folder: Path, options: Namespace, violations: Violations) -> dict[str, Any]:
    """Measure all pairs, on servers of their own."""
    port = free_port()
    pairs = []
    with (
        running_server(vllm_serve(port, CONTEXT), port, folder / "vllm.log", vllm_environment()),
        mayfly_server(folder, "--max-model-len", str(CONTEXT)) as server,
    ):
        urls = {"vllm": f"http://127.0.0.1:{port}", "mayfly": server.url}
        workers = server.workers()
        for number in range(options.pairs + 1):
            order = list(urls) if number % 2 else list(reversed(urls))
            pair = {}
            for name in order:
                progress(f"pair {number} of {options.pairs}: {name}")
                pair[name] = measure(urls[name], folder, options.requests, options.seed + number)
                violations.requests += options.requests
                failed = int(pair[name]["failed"])
                if failed:
                    violations.record(
                        "wrong", f"failed at {name}", f"{failed} in pair {number}", failed
                    )
            pairs.append(pair)
        violations.check_idle(server, 30.0)
        violations.check_workers(workers, server.workers())
    violations.check_end(server)
    throughput = [
        each["mayfly"]["tokens_per_second"] / each["vllm"]["tokens_per_second"]
        for each in pairs[1:]
    ]
    ttft = [
        each["mayfly"]["ttft_milliseconds"] / each["vllm"]["ttft_milliseconds"]
        for each in pairs[1:]
    ]
    ratios = {
        "throughput_ratio": statistics.median(throughput),
        "ttft_ratio": statistics.median(ttft),
    }
    return {
        **{name: round(ratio, 4) for name, ratio in ratios.items()},
        "holds": ratios["throughput_ratio"] >= MIN_THROUGHPUT_RATIO
        and ratios["ttft_ratio"] <= MAX_TTFT_RATIO,
        "throughput_ratios": [round(ratio, 4) for ratio in throughput],
        "ttft_ratios": [round(ratio, 4) for ratio in ttft],
        "tokens": {"input": INPUT, "output": OUTPUT},
        "at_once": CONCURRENCY,
        "pairs": pairs[1:],
    }


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argument_parser(__doc__, 200)
    parser.add_argument("--pairs", type=int, default=7, help="number (default: %(default)s)")
    run_and_finish(run, parser.parse_args())


if __name__ == "__main__":
    main()
