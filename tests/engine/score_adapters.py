"""A program that scores a text with vLLM, for one model after the other in one process.

Usage: python -m tests.engine.score_adapters JOBS RESULTS. JOBS is a JSON list of objects with
`folder` of a model, `adapter` (the folder of an adapter of it), `rank`, `targets` and `tokens`.
RESULTS becomes a JSON object that has, by folder, the text's log-probabilities without and with the
adapter (`base`, `adapted`), or a `problem`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from serving.engine.config import EngineConfig
from serving.engine.trial_adapter import trial_adapter
from serving.engine.vllm_options import (
    set_cpu_environment,
    set_vllm_environment,
    vllm_arguments,
)


def main() -> None:
    set_vllm_environment()
    set_cpu_environment()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.triton_utils import dispatcher

    jobs, results = Path(sys.argv[1]), Path(sys.argv[2])
    scores: dict[str, Any] = {}
    for job in json.loads(jobs.read_text()):
        # vLLM raises errors of any type, and the other models shall have their scores.
        try:
            scores[job["folder"]] = score(job)
        except Exception as problem:
            scores[job["folder"]] = {"problem": str(problem)}
        gc.collect()
        cleanup_dist_env_and_memory()
        # The first engine of a process has registered the kernels. Looking for them again fails
        # once numba, which Mayfly's plugin uses, is among the modules.
        dispatcher.register_kernels = lambda overrides: None
    results.write_text(json.dumps(scores))


@cache
def parser() -> Any:
    """The parser of vLLM's arguments, which takes long to make."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser())


def score(job: dict[str, Any]) -> dict[str, list[float]]:
    """Start an engine with Mayfly's own arguments, and score the text."""
    from vllm import LLM, EngineArgs, SamplingParams
    from vllm.lora.request import LoRARequest

    config = EngineConfig(
        job["folder"],
        "tiny",
        job["rank"],
        tuple(job["targets"]),
        adapters=1,
        kv_cache_bytes=64 << 20,
    )
    arguments = parser().parse_args(vllm_arguments(config, True))
    # vLLM changes transformers' classes of some models when it loads them.
    trial = trial_adapter(config)
    llm = LLM.from_engine_args(EngineArgs.from_cli_args(arguments))

    def log_probabilities(adapter: Any = None) -> list[float]:
        (output,) = llm.generate(
            [{"prompt_token_ids": job["tokens"]}],
            SamplingParams(max_tokens=1, prompt_logprobs=0),
            lora_request=adapter,
            use_tqdm=False,
        )
        return [next(iter(entry.values())).logprob for entry in output.prompt_logprobs[1:]]

    trial.save(folder := Path(job["adapter"]).with_name("trial"))
    llm.llm_engine.add_lora(LoRARequest("trial", 1, str(folder)))
    base = log_probabilities()
    return {"base": base, "adapted": log_probabilities(LoRARequest("adapter", 2, job["adapter"]))}


if __name__ == "__main__":
    main()
