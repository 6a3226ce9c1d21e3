"""Config: the configuration of a server, composed of those of its packages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapters.config import TrainerConfig
from selection.config import SelectorConfig
from serving.adaptation.admission import Capacity
from serving.budget import AUTO, EXAMPLE_LIMITS, LIMITS, Budget, ExampleLimits, Terms
from serving.conversations.adapter_cache import AdapterCacheConfig
from serving.engine.config import EngineConfig

CAPACITY = Capacity()
CONVERSATIONS = AdapterCacheConfig()
_SOURCE = Path(__file__).resolve().parent


def bundled_model() -> str:
    """Folder of the base model that comes with Mayfly: beside this module in a wheel, in deploy/ in
    a checkout.
    """
    installed = _SOURCE / "nano"
    return str(installed if installed.is_dir() else _SOURCE.parent / "deploy" / "nano")


@dataclass(frozen=True)
class Config:
    """The configuration of a server.

    Attributes:
        engine, trainer, selector: configurations of the three deployments.
        corpus: corpus of requests that name none; None answers those with the base model.
        show: number of chosen sequences that are put into the prompt of a request without `show`;
            None for what `auto`, or a calibrated corpus, decides, if the request adapts.
        auto: budget of `Compute-Budget: auto`, and of a request without a budget.
        limits: limits that no request may exceed.
        example_limits: limits on the examples and texts of a request.
        capacity: number of requests that one replica takes on.
        train_corpora: whether the adapters of corpora are trained without being asked.
        shards: number of shards of the corpora that are sharded.
        conversations: how many adapters are cached for a next turn, and how long.
        key_digests: SHA-256 of the API keys that see everything, in hexadecimal
            (`serving.api_keys`).
        key_file: key file.
        keys_required: whether requests need a key even without `key_digests` and `key_file`: the
            database of the corpora has, or has had, one.
        log_format: "text" or "json".
        host, port: address of the HTTP server.
        allowed_hosts: host names of a server without keys (`serving.http.browsers`).
        allowed_origins: origins of web pages that may use the server.
        threads: CPU threads of each of the three processes.
        cores: threads of engine and trainer while the other one rests; 0 for no more than
            `threads`.
        engine_gpus, trainer_gpus: GPUs of each replica, as Ray counts them; 0 for the CPU.
    """

    engine: EngineConfig
    trainer: TrainerConfig
    selector: SelectorConfig
    corpus: str | None = None
    show: int | None = None
    train_corpora: bool = False
    shards: int = 0
    auto: Budget = AUTO
    limits: Budget = LIMITS
    example_limits: ExampleLimits = EXAMPLE_LIMITS
    capacity: Capacity = CAPACITY
    conversations: AdapterCacheConfig = CONVERSATIONS
    key_digests: tuple[str, ...] = ()
    key_file: Path | None = None
    keys_required: bool = False
    log_format: Literal["json", "text"] = "text"
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    threads: int = 2
    cores: int = 0
    engine_gpus: float = 0.0
    trainer_gpus: float = 0.0

    @property
    def terms(self) -> Terms:
        """The terms of adaptation."""
        return Terms(self.auto, self.limits, self.corpus, self.example_limits, self.show)

    @property
    def has_keys(self) -> bool:
        """Whether requests need an API key from the start."""
        return bool(self.key_digests) or self.key_file is not None or self.keys_required
