"""Config: everything one Mayfly is started with; composes what its rooms own.

The engine's part stands here and not beside the engine, because importing `serving.engine` imports vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapters.trainer import TrainerConfig
from selection.selector import SelectorConfig
from serving.budget import Budget

AUTO = Budget(steps=50, alpha=0.05)
LIMITS = Budget(steps=50, seconds=60.0)
_SOURCE = Path(__file__).resolve().parent


def bundled_model() -> str:
    """The folder of the base model that comes with Mayfly: in a wheel beside this module, in a checkout in deploy/."""
    installed = _SOURCE / "nano"
    return str(installed if installed.is_dir() else _SOURCE.parent / "deploy" / "nano")


@dataclass(frozen=True)
class EngineConfig:
    """vLLM's part.

    Attributes:
        model: hub id or folder.
        served_name: the name clients use.
        rank: the largest rank of an adapter.
        targets: projections that adapters may touch.
        dtype: "auto" takes float32 on a CPU and the model's own elsewhere.
        max_model_len: context in tokens; None takes the model's.
        adapters: how many adapters may be loaded at once.
        max_num_seqs: how many sequences vLLM runs at once.
        kv_cache_bytes: of the KV cache on a CPU.
    """

    model: str
    served_name: str
    rank: int
    targets: tuple[str, ...]
    dtype: str = "auto"
    max_model_len: int | None = None
    adapters: int = 8
    max_num_seqs: int = 32
    kv_cache_bytes: int = 1 << 30


@dataclass(frozen=True)
class Config:
    """One Mayfly.

    Attributes:
        engine, trainer, selector: of the three deployments.
        corpus: the corpus of requests that name none; None answers those with the base model.
        auto: what `Compute-Budget: auto`, and no header at all, stand for.
        limits: what no request may exceed.
        host, port: where HTTP is served.
        threads: of each of the three processes on a CPU.
    """

    engine: EngineConfig
    trainer: TrainerConfig
    selector: SelectorConfig
    corpus: str | None = None
    auto: Budget = AUTO
    limits: Budget = LIMITS
    host: str = "127.0.0.1"
    port: int = 8000
    threads: int = 2
