"""The command-line arguments and environment variables with which vLLM runs in a replica."""

from __future__ import annotations

import os
from importlib.metadata import entry_points

from serving.engine.config import EngineConfig
from serving.engine.limits import MAX_ANSWERS
from serving.environment import STRICT_LORA
from serving.errors import StartError

# The values that vLLM accepts for max_lora_rank.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_PLUGINS = {"mayfly_cpu_lora", "mayfly_parent_death", "mayfly_strict_lora"}
# Largest number of tokens in one step on a CPU. Every generation waits for the whole step, however
# many prompt tokens of other requests are in it, and larger steps hardly raise the throughput.
_STEP_TOKENS = 256


def check_plugins() -> None:
    """Check that vLLM will load Mayfly's plugins.

    Raises:
        StartError: a plugin is not installed, or VLLM_PLUGINS excludes it.
    """
    found = {each.name for each in entry_points(group="vllm.general_plugins")}
    if (allowed := os.environ.get("VLLM_PLUGINS")) is not None:
        found &= set(allowed.split(","))
    if missing := sorted(_PLUGINS - found):
        raise StartError(
            f"vLLM would not load the plugins {', '.join(missing)}: reinstall Mayfly "
            "(`make install`, or pip), and if VLLM_PLUGINS is set, add them to it"
        )


def set_vllm_environment() -> None:
    """Set the variables that vLLM reads while it is imported; what the user has set stays."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # vLLM's own limit is lower than the one that `serving.http.body` reports to clients.
    os.environ.setdefault("VLLM_MAX_COMPLETION_PROMPTS", str(MAX_ANSWERS))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # The event loop waits while vLLM compiles a regular expression.
    os.environ.setdefault("VLLM_REGEX_COMPILATION_TIMEOUT_S", "2")
    os.environ.update(STRICT_LORA)


def set_cpu_environment() -> None:
    """Set the variables for a CPU; what the user has set stays."""
    # "auto" would bind vLLM's threads to cores that the trainer uses, too.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    # The engine's core computes itself, without a worker process, which takes half a gigabyte and
    # has to import everything once more before the model loads.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # Otherwise the ranks of log-probabilities need a C++ compiler.
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")


def cpu_dtype(model: str) -> str:
    """The type in which a CPU computes a model, "bfloat16" or "float32".

    bfloat16 halves what a token reads from memory, and a token of one request is little else. It
    needs AMX or AVX-512-BF16, without which a product takes several times as long as in float32,
    and a model that is stored in bfloat16: no weight is rounded, so the trainer, which may compute
    in float32, has the same weights.

    Args:
        model: hub id or folder.
    """
    import torch
    from transformers import AutoConfig

    capabilities = torch.cpu.get_capabilities()
    has_units = any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
    if has_units and AutoConfig.from_pretrained(model).dtype == torch.bfloat16:
        return "bfloat16"
    return "float32"


def vllm_arguments(config: EngineConfig, on_cpu: bool) -> list[str]:
    """The arguments of `vllm serve` that correspond to a configuration."""
    rank = next(r for r in _RANKS if r >= config.rank)
    names = [config.served_name, *config.more_names]
    arguments = ["--model", config.model, "--served-model-name", *names]
    # Nothing is unpickled.
    arguments += ["--load-format", "safetensors"]
    dtype = cpu_dtype(config.model) if on_cpu and config.dtype == "auto" else config.dtype
    arguments += ["--dtype", dtype]
    arguments += ["--max-num-seqs", str(config.max_num_seqs), "--scheduling-policy", "priority"]
    # One slot more than there are loaded adapters, so that vLLM never evicts one that is in use.
    arguments += ["--enable-lora", "--max-loras", str(config.adapters + 1)]
    arguments += ["--max-lora-rank", str(rank), "--lora-target-modules", *config.targets]
    # Adds the endpoints that render prompts, which the gateway serves to no client.
    arguments += ["--enable-scale-out"]
    if config.tool_call_parser is not None:
        arguments += ["--enable-auto-tool-choice", "--tool-call-parser", config.tool_call_parser]
    if config.max_model_len is not None:
        arguments += ["--max-model-len", str(config.max_model_len)]
    if on_cpu:
        arguments += ["--max-num-batched-tokens", str(max(_STEP_TOKENS, config.max_num_seqs))]
        arguments += ["--enforce-eager", "--kv-cache-memory-bytes", str(config.kv_cache_bytes)]
    else:
        arguments += ["--gpu-memory-utilization", str(config.gpu_memory_utilization)]
    return arguments
