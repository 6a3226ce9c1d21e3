"""Config: everything one Mayfly is started with; composes what its rooms own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapters.config import TrainerConfig
from selection.config import SelectorConfig
from serving.adaptation.admission import Capacity
from serving.adaptation.terms import Terms
from serving.budget import Budget
from serving.conversations.adapter_cache import AdapterCacheConfig
from serving.engine.config import EngineConfig

AUTO = Budget(steps=50, gain=0.25, own_gain=True)
LIMITS = Budget(steps=50, seconds=60.0)
CAPACITY = Capacity()
CONVERSATIONS = AdapterCacheConfig()
_SOURCE = Path(__file__).resolve().parent


def bundled_model() -> str:
    """The folder of the base model that comes with Mayfly: in a wheel beside this module, in a
    checkout in deploy/.
    """
    installed = _SOURCE / "nano"
    return str(installed if installed.is_dir() else _SOURCE.parent / "deploy" / "nano")


@dataclass(frozen=True)
class Config:
    """One Mayfly.

    Attributes:
        engine, trainer, selector: of the three deployments.
        corpus: the corpus of requests that name none; None answers those with the base model.
        auto: what `Compute-Budget: auto`, and no header at all, stand for.
        limits: what no request may exceed.
        capacity: how many requests one replica takes on.
        shards: in how many shards the corpora lie that lie in any.
        conversations: how many adapters are kept for a next turn, and how long.
        key_digests: SHA-256 of the API keys that see everything, in hexadecimal; with the next,
            `serving.api_keys`.
        key_file: the key file; without any key the server is open.
        log_format: "text" or "json".
        host, port: where HTTP is served.
        allowed_hosts, allowed_origins: names that a server without keys goes by, and pages that may
            use any server (`serving.http.browsers`).
        threads: of each of the three processes on a CPU.
        engine_gpus, trainer_gpus: of each replica, as Ray counts them; 0 keeps it where there is
            none.
    """

    engine: EngineConfig
    trainer: TrainerConfig
    selector: SelectorConfig
    corpus: str | None = None
    shards: int = 0
    auto: Budget = AUTO
    limits: Budget = LIMITS
    capacity: Capacity = CAPACITY
    conversations: AdapterCacheConfig = CONVERSATIONS
    key_digests: tuple[str, ...] = ()
    key_file: Path | None = None
    log_format: Literal["json", "text"] = "text"
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    threads: int = 2
    engine_gpus: float = 0.0
    trainer_gpus: float = 0.0

    @property
    def terms(self) -> Terms:
        """What a request is judged by."""
        return Terms(self.auto, self.limits, self.corpus)

    @property
    def has_keys(self) -> bool:
        """Whether a request needs an API key."""
        return bool(self.key_digests) or self.key_file is not None
