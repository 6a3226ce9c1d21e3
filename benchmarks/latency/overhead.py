"""Overhead: `Compute-Budget: none` against plain `vllm serve`, same model, same machine, one
interleaved run.

Both servers are up all the time and only one is asked at once, by `vllm bench serve`, each with the
same prompts, in turns: a pair is a run against each, and every second pair begins with the other.
The ratios are medians over pairs. The first pair is warm-up. Plain vLLM has no LoRA and none of
Mayfly's plugin, and Mayfly's thread settings.

`wrong` are requests that the tool counts as failed.

    python -m benchmarks.latency.overhead [--requests 200] [--pairs 7] [--json] [--out
    benchmarks/results/overhead.json]
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.harness.server import free_port, home, running, serving
from benchmarks.harness.thresholds import LEAST_THROUGHPUT, MOST_TTFT
from benchmarks.harness.violations import Verdict, arguments, finish
from benchmarks.latency.bench_serve import bench_serve, environment, vllm_serve
from benchmarks.quality.passages import progress

CONTEXT, INPUT, OUTPUT = 1024, 128, 32  # tokens
AT_ONCE = 8


def measure(url: str, folder: Path, requests: int, seed: int) -> dict[str, float]:
    """What `vllm bench serve` finds of one server.

    Raises:
        RuntimeError: as `bench_serve`.
    """
    options = {
        "--dataset-name": "random",
        "--random-input-len": INPUT,
        "--random-output-len": OUTPUT,
        "--num-prompts": requests,
        "--max-concurrency": AT_ONCE,
        "--seed": seed,
        "--header": "Compute-Budget=none",
    }
    found = bench_serve(url, folder, options)
    return {
        "tokens_per_second": found["output_throughput"],
        "ttft_milliseconds": found["median_ttft_ms"],
        "failed": requests - found["completed"],
    }


def overhead(folder: Path, options: Any, verdict: Verdict) -> dict[str, Any]:
    """All pairs."""
    port = free_port()
    pairs = []
    with (
        running(vllm_serve(port, CONTEXT), port, folder / "vllm.log", environment()),
        serving(folder, "--max-model-len", str(CONTEXT)) as server,
    ):
        urls = {"vllm": f"http://127.0.0.1:{port}", "mayfly": server.url}
        workers = server.workers()
        for number in range(options.pairs + 1):
            order = list(urls) if number % 2 else list(reversed(urls))
            pair = {}
            for name in order:
                progress(f"pair {number} of {options.pairs}: {name}")
                pair[name] = measure(urls[name], folder, options.requests, options.seed + number)
                verdict.requests += options.requests
                failed = int(pair[name]["failed"])
                if failed:
                    verdict.blame(
                        "wrong", f"failed at {name}", f"{failed} in pair {number}", failed
                    )
            pairs.append(pair)
        verdict.check_quiet(server, 30.0)
        verdict.check_workers(workers, server.workers())
    verdict.check_end(server)
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
        "holds": ratios["throughput_ratio"] >= LEAST_THROUGHPUT
        and ratios["ttft_ratio"] <= MOST_TTFT,
        "throughput_ratios": [round(ratio, 4) for ratio in throughput],
        "ttft_ratios": [round(ratio, 4) for ratio in ttft],
        "tokens": {"input": INPUT, "output": OUTPUT},
        "at_once": AT_ONCE,
        "pairs": pairs[1:],
    }


def main() -> None:
    """Measure, print, write the JSON."""
    parser = arguments(__doc__ or "", 200)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    verdict = Verdict()
    with home() as folder:
        facts = overhead(folder, options, verdict)
    finish(verdict, facts, options)


if __name__ == "__main__":
    main()
