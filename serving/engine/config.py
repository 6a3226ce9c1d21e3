"""The engine's configuration, in a module that does not import vLLM."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineConfig:
    """Settings of one vLLM engine.

    Attributes:
        model: Hugging Face id or folder of the base model.
        served_name: the model name that clients use.
        rank: largest LoRA rank of an adapter.
        targets: projections that adapters may change.
        dtype: a type that vLLM knows, or "auto": the model's own type on a GPU, and on a CPU
            bfloat16 where it and the model have it, otherwise float32.
        more_names: further model names that clients may use.
        tool_call_parser: vLLM's parser for the model's tool calls; None rejects requests that let
            the model choose a tool.
        max_model_len: context length in tokens; None for the model's own.
        adapters: largest number of adapters loaded at the same time.
        resident: largest number of corpora's adapters that stay loaded while no request uses them;
            one place is always left for others.
        max_num_seqs: largest number of sequences that vLLM runs at the same time.
        kv_cache_bytes: size of the KV cache on a CPU, in bytes.
        gpu_memory_utilization: share of a GPU's memory that vLLM takes, from 0 to 1.
        vllm_flags: further flags of `vllm serve`.
    """

    model: str
    served_name: str
    rank: int
    targets: tuple[str, ...]
    dtype: str = "auto"
    more_names: tuple[str, ...] = ()
    tool_call_parser: str | None = None
    max_model_len: int | None = None
    adapters: int = 8
    resident: int = 2
    max_num_seqs: int = 32
    kv_cache_bytes: int = 1 << 30
    gpu_memory_utilization: float = 0.55
    vllm_flags: tuple[str, ...] = ()
