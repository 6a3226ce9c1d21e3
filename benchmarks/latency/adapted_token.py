"""Adapted tokens: the time of one with an adapter over that of one of the base model.

One vLLM engine with Mayfly's plugins, and the options of Mayfly's engine on a CPU, decodes with the
base model and with adapters in alternating rounds, alone and with several requests at once, each of
which has an adapter of its own. A time is the median over the steps in which every request gets one
token. The adapters have random weights. The script takes nothing from Mayfly except its plugins,
which vLLM finds by their entry points, so another checkout is measured with
`PYTHONPATH=CHECKOUT python benchmarks/latency/adapted_token.py --model FOLDER`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROMPT_TOKENS = 64
_WEIGHTS = "adapter_model.safetensors"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print one JSON object."""
    options = _parse(argv)
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    os.environ |= {
        "OMP_WAIT_POLICY": "PASSIVE",
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        engine = _engine(options)
        try:
            result = _measure(engine, _adapters(options, Path(folder)), options)
        finally:
            # Otherwise this process waits for the engine's at its end.
            engine.engine_core.shutdown()
    print(json.dumps(result))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    description = " ".join((__doc__ or "").split("\n\n")[0].split())
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--dtype", default="float32", help="vLLM's type (default: float32)")
    parser.add_argument("--rank", type=int, default=16, help="LoRA rank (default: 16)")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8], help="requests at once")
    parser.add_argument("--tokens", type=int, default=24, help="tokens per request and round")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of rounds")
    parser.add_argument("--threads", type=int, default=1, help="threads of the engine")
    return parser.parse_args(argv)


def _engine(options: argparse.Namespace) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    return LLMEngine.from_engine_args(
        EngineArgs(
            model=options.model,
            dtype=options.dtype,
            load_format="safetensors",
            enforce_eager=True,
            max_model_len=1024,
            max_num_seqs=32,
            max_num_batched_tokens=256,
            kv_cache_memory_bytes=1 << 30,
            enable_lora=True,
            max_loras=max(options.requests) + 1,
            max_lora_rank=options.rank,
            lora_target_modules=list(TARGETS),
        )
    )


def _adapters(options: argparse.Namespace, folder: Path) -> list[Any]:
    """One LoRARequest for each of the most requests at once."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM
    from vllm.lora.request import LoRARequest

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            AutoConfig.from_pretrained(options.model)
        )
    shapes = {
        name: module.weight.shape
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in TARGETS
    }
    config = {"peft_type": "LORA", "r": options.rank, "lora_alpha": options.rank}
    requests = []
    for number in range(1, max(options.requests) + 1):
        generator = torch.Generator().manual_seed(number)
        weights = {}
        for name, (out_width, in_width) in shapes.items():
            key = f"base_model.model.{name}.lora_"
            weights[f"{key}A.weight"] = torch.randn(options.rank, in_width, generator=generator)
            weights[f"{key}B.weight"] = torch.randn(out_width, options.rank, generator=generator)
        path = folder / str(number)
        path.mkdir()
        save_file({key: 1e-2 * weight for key, weight in weights.items()}, path / _WEIGHTS)
        (path / "adapter_config.json").write_text(
            json.dumps({**config, "target_modules": list(TARGETS)})
        )
        requests.append(LoRARequest(f"adapter-{number}", number, str(path)))
    return requests


def _measure(engine: Any, adapters: Sequence[Any], options: argparse.Namespace) -> dict[str, Any]:
    numbers = random.Random(0)  # noqa: S311  prompts, not secrets
    seconds: dict[tuple[int, bool], list[float]] = {}
    prefill: dict[tuple[int, bool], list[float]] = {}
    for adapter in adapters:
        engine.add_lora(adapter)
    for round_number in range(-1, options.rounds):
        for count in options.requests:
            # The arm that begins alternates, so a change of the machine's speed favours neither.
            for adapted in (False, True) if round_number % 2 else (True, False):
                first, steps = _round(
                    engine, adapters[:count] if adapted else [None] * count, numbers, options.tokens
                )
                if round_number >= 0:
                    seconds.setdefault((count, adapted), []).extend(steps)
                    prefill.setdefault((count, adapted), []).append(first)

    def milliseconds(times: dict[tuple[int, bool], list[float]], adapted: bool) -> dict[str, float]:
        return {
            str(count): round(1000 * statistics.median(times[count, adapted]), 3)
            for count in options.requests
        }

    base, lora = milliseconds(seconds, False), milliseconds(seconds, True)
    return {
        "dtype": options.dtype,
        "rank": options.rank,
        "threads": options.threads,
        "base_ms": base,
        "adapted_ms": lora,
        "adapted_token_ratio": {key: round(lora[key] / base[key], 4) for key in base},
        "prompt_tokens": PROMPT_TOKENS,
        "base_prefill_ms": milliseconds(prefill, False),
        "adapted_prefill_ms": milliseconds(prefill, True),
    }


def _round(
    engine: Any, adapters: Sequence[Any], numbers: random.Random, tokens: int
) -> tuple[float, list[float]]:
    """Seconds until all requests have a token, and those of each later step.

    Args:
        engine: vLLM's engine.
        adapters: the adapter of each request, None for none.
        numbers: source of the prompts, which are new to the prefix cache.
        tokens: tokens per request.
    """
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    for adapter in adapters:
        prompt = {"prompt_token_ids": [numbers.randrange(5, 4000) for _ in range(PROMPT_TOKENS)]}
        engine.add_request(f"r{numbers.random()}", prompt, params, lora_request=adapter)
    started, begun, steps = time.perf_counter(), set[str](), list[float]()
    first = 0.0
    while engine.has_unfinished_requests():
        before = time.perf_counter()
        outputs = engine.step()
        now = time.perf_counter()
        if len(begun) == len(adapters) and len(outputs) == len(adapters):
            steps.append(now - before)
        elif outputs:
            begun.update(output.request_id for output in outputs)
            first = now - started
    return first, steps


if __name__ == "__main__":
    main()
