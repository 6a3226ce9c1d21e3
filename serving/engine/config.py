"""The engine's configuration, apart from the engine: importing that imports vLLM."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineConfig:
    """vLLM's part.

    Attributes:
        model: hub id or folder.
        served_name: the name clients use.
        more_names: others that they may use.
        tool_call_parser: vLLM's name of how the model calls tools; None refuses tools that it
            chooses itself.
        rank: the largest rank of an adapter.
        targets: projections that adapters may touch.
        dtype: "auto" takes float32 on a CPU and the model's own elsewhere.
        max_model_len: context in tokens; None takes the model's.
        adapters: how many adapters may be loaded at once.
        max_num_seqs: how many sequences vLLM runs at once.
        kv_cache_bytes: of the KV cache on a CPU.
        gpu_memory_utilization: the part of a GPU's memory that vLLM takes.
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
    max_num_seqs: int = 32
    kv_cache_bytes: int = 1 << 30
    gpu_memory_utilization: float = 0.55
