"""Settings: all options of a server, and the `Config` that follows from them.

`serving.settings.sources` reads the settings from flags, environment variables, a file and the
`args` of a Ray Serve config. Where the default of a setting is None, `Settings.resolved` derives
the value from the model, the corpus or the machine. `serving.settings.checks` checks the settings
before a server starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from serving.api_keys.database import keys_required
from serving.api_keys.key import digest
from serving.budget import (
    AUTO,
    EXAMPLE_LIMITS,
    LIMITS,
    MAX_SHOWN,
    Budget,
    ExampleLimits,
    parse_budget,
)
from serving.errors import SettingsError
from serving.settings.corpus import corpus_calibration
from serving.settings.hardware import available_cores, available_gpus, cores_to_take
from serving.settings.resolved import Resolved
from serving.settings.shared_options import (
    EMBEDDER,
    HOME,
    Corpora,
    EmbedderName,
    Home,
    Model,
    VllmFlags,
    location_of,
)

if TYPE_CHECKING:
    from selection.location import Location
    from serving.config import Config

LogFormat = Literal["json", "text"]
_BY_PROCESSOR = "by processor"
_THREADS = "half the cores; with a large model, all while the others rest"
# Shares of engine and trainer in the only GPU of a machine.
_GPU_SHARES = 0.6, 0.4


def _option(text: str, default: str | bool = True, **limits: float) -> Any:
    """An option with this help text; `default` describes a default that depends on something."""
    return typer.Option(help=text, show_default=default, **limits)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Settings:
    """The settings of one server; the help of each option documents its attribute."""

    model: Model = None
    corpus: Annotated[str | None, _option("Default corpus of requests.")] = None
    shards: Annotated[
        int, _option("Number of shards of each sharded corpus; 0 without shards.", min=0, max=64)
    ] = 0
    host: Annotated[str, _option("Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _option("Port to listen on.", min=1, max=65535)] = 8000
    allowed_host: Annotated[
        list[str] | None,
        _option(
            "Additional host name of a server without API keys; may be repeated.",
            "loopback names and --host",
        ),
    ] = None
    allowed_origin: Annotated[
        list[str] | None,
        _option("Origin of a web app that may call this server, `https://...`; may be repeated."),
    ] = None
    served_model_name: Annotated[
        list[str] | None,
        _option("Name of the model in requests; may be repeated for more names.", "as --model"),
    ] = None
    embedder: EmbedderName = EMBEDDER
    budget: Annotated[
        str,
        _option(
            "Budget of `auto` and of requests without one, such as `steps=20, seconds=5` or "
            "`instant`.",
            f"up to {AUTO.steps} steps and {AUTO.seconds:g} seconds, gain={AUTO.gain}",
        ),
    ] = ""
    max_steps: Annotated[int, _option("Maximum training steps of a request.", min=0)] = LIMITS.steps
    max_seconds: Annotated[float, _option("Maximum seconds of an adaptation.", min=0.01)] = 60.0
    show: Annotated[
        int | None,
        _option(
            "Chosen sequences that are put into the prompt of requests without `show`.",
            "as `auto` decides, or as the corpus is calibrated",
            min=0,
            max=MAX_SHOWN,
        ),
    ] = None
    max_examples: Annotated[
        int, _option("Maximum examples, and texts, that a request brings to learn from.", min=1)
    ] = EXAMPLE_LIMITS.count
    max_example_tokens: Annotated[
        int, _option("Maximum tokens of all examples and texts of a request.", min=2)
    ] = EXAMPLE_LIMITS.tokens
    learning_rate: Annotated[
        float | None, _option("Adam learning rate.", "by model size", min=1e-9)
    ] = None
    rank: Annotated[int | None, _option("LoRA rank.", "by model size", min=1, max=512)] = None
    lora_target: Annotated[
        list[str] | None,
        _option("Name of a projection to adapt; may be repeated.", "all of the decoder layers"),
    ] = None
    train_corpora: Annotated[
        bool, _option("Train the adapters of all corpora, and again when they have changed.")
    ] = False
    slots: Annotated[
        int, _option("Adapters that are trained at the same time.", min=1, max=256)
    ] = 8
    precision: Annotated[
        str, _option("Precision of the trainer's base model: auto, float32 or bfloat16.")
    ] = "auto"
    api_key: Annotated[
        list[str] | None, _option("API key with access to all corpora; may be repeated.")
    ] = None
    api_key_file: Annotated[
        Path | None, _option("TOML file of API keys with their corpora, budgets and rate limits.")
    ] = None
    log_format: Annotated[LogFormat, _option("Format of the log on standard error.")] = "text"
    max_requests: Annotated[
        int | None, _option("Maximum concurrent requests; more get a 429.", _BY_PROCESSOR, min=1)
    ] = None
    max_adaptations: Annotated[
        int | None, _option("Maximum concurrent adaptations; more get a 429.", _BY_PROCESSOR, min=1)
    ] = None
    undegraded: Annotated[
        int | None,
        _option(
            "Maximum concurrent adaptations that get all their steps; beyond it, each gets fewer.",
            _BY_PROCESSOR,
            min=1,
        ),
    ] = None
    regularisation: Annotated[
        float | None,
        _option("Regularisation lambda' of SIFT.", "as calibrated, otherwise 0.3", min=1e-9),
    ] = None
    dtype: Annotated[
        str, _option("Precision of the engine's model; auto follows the model and the processor.")
    ] = "auto"
    tool_call_parser: Annotated[
        str | None, _option("Name of vLLM's parser for the tool calls of the model.")
    ] = None
    max_model_len: Annotated[
        int | None, _option("Context length in tokens.", "the model's", min=1)
    ] = None
    threads: Annotated[
        int | None,
        _option("CPU threads of engine, trainer and selector each.", _THREADS, min=1),
    ] = None
    engine_gpus: Annotated[
        float | None,
        _option("GPUs of each engine replica; a fraction shares a GPU.", "by machine", min=0),
    ] = None
    trainer_gpus: Annotated[
        float | None,
        _option("GPUs of each trainer replica; a fraction shares a GPU.", "by machine", min=0),
    ] = None
    gpu_memory_utilization: Annotated[
        float | None,
        _option(
            "Fraction of GPU memory that the engine uses.",
            "0.9 on a GPU of its own, otherwise 0.55",
            min=0.05,
            max=1,
        ),
    ] = None
    vllm: VllmFlags = None
    home: Home = HOME
    corpora: Corpora = None

    def budgets(self) -> tuple[Budget, Budget]:
        """The budget of `auto`, within the limits, and the limits of all requests.

        Raises:
            SettingsError: a value is invalid.
            BudgetError: the budget is invalid.
        """
        from adapters.config import PRECISIONS

        if self.precision not in PRECISIONS:
            raise SettingsError(
                f"unknown precision {self.precision!r}: use one of {', '.join(PRECISIONS)}"
            )
        if not math.isfinite(self.max_seconds):
            raise SettingsError(f"max-seconds is {self.max_seconds}: use a number of seconds")
        limits = replace(LIMITS, steps=self.max_steps, seconds=self.max_seconds)
        auto = parse_budget(self.budget or None, default=AUTO, auto=AUTO, limits=limits)
        return auto.clamp(limits)[0], limits

    def resolved(self) -> Resolved:
        """The settings whose default the model, the corpus or this machine decides.

        Raises:
            SettingsError: a host name or an origin is invalid.
            CorpusError: the corpus does not exist or cannot be opened.
        """
        from adapters.model_defaults import rank_here
        from serving.adaptation.admission import Capacity
        from serving.http.browsers import ANY, parse_hosts, parse_origins
        from serving.models.catalogue import default_model
        from serving.settings.model_files import local_folder

        # Only "*" needs keys, which may be in the database.
        model, calibration, origins = self.base_model, None, self.allowed_origin or ()
        if self.corpus is not None:
            calibration = corpus_calibration(self.location, self.corpus, model)
        if (rank := self.rank) is None:
            rank = calibration.rank if calibration else rank_here(model, local_folder(model))
        cores, gpus = available_cores(), available_gpus()
        capacity = Capacity.for_machine(cores, gpus)
        shares = (0.0, 0.0) if gpus == 0 else _GPU_SHARES if gpus == 1 else (1.0, 1.0)
        engine_gpus = shares[0] if self.engine_gpus is None else self.engine_gpus
        return Resolved(
            model=model,
            served_model_name=self.served_model_name or [self.model or default_model().name],
            rank=rank,
            allowed_host=parse_hosts(self.allowed_host or ()),
            allowed_origin=parse_origins(origins, ANY in origins and self.has_keys),
            max_requests=self.max_requests or capacity.requests,
            max_adaptations=self.max_adaptations or capacity.adaptations,
            undegraded=self.undegraded or capacity.undegraded,
            threads=self.threads or max(1, cores // 2),
            cores=0 if self.threads else cores_to_take(cores, local_folder(model)),
            engine_gpus=engine_gpus,
            trainer_gpus=shares[1] if self.trainer_gpus is None else self.trainer_gpus,
            gpu_memory_utilization=self.gpu_memory_utilization
            or (0.9 if engine_gpus >= 1 else 0.55),
        )

    def config(self) -> Config:
        """The configuration of a server with these settings on this machine.

        Raises:
            SettingsError: a value is invalid.
            CorpusError: the corpus, or the database of the corpora, cannot be used.
            BaseModelError: the model cannot be loaded, or adapters cannot be trained on it.
        """
        from adapters.model_defaults import for_model
        from selection.config import SelectorConfig
        from serving.adaptation.admission import Capacity
        from serving.config import Config
        from serving.engine.config import EngineConfig
        from serving.engine.vllm_flags import chat_template
        from serving.settings.model_files import adapter_shape

        auto, limits = self.budgets()
        resolved = self.resolved()
        trainer = replace(
            for_model(resolved.model, self.lora_target),
            rank=resolved.rank,
            learning_rate=self.learning_rate,
            slots=self.slots,
            precision=self.precision,
        )
        return Config(
            engine=EngineConfig(
                resolved.model,
                resolved.served_model_name[0],
                trainer.rank,
                trainer.targets,
                adapters=max(EngineConfig.adapters, resolved.max_adaptations),
                dtype=self.dtype,
                more_names=tuple(resolved.served_model_name[1:]),
                tool_call_parser=self.tool_call_parser,
                max_model_len=self.max_model_len,
                gpu_memory_utilization=resolved.gpu_memory_utilization,
                vllm_flags=tuple(self.vllm or ()),
            ),
            trainer=trainer,
            selector=SelectorConfig(
                self.location,
                self.embedder,
                resolved.model,
                regularisation=self.regularisation,
                chat_template=chat_template(self.vllm or ()),
                adapters=adapter_shape(trainer),
            ),
            corpus=self.corpus,
            show=self.show,
            train_corpora=self.train_corpora,
            shards=self.shards,
            auto=auto,
            limits=limits,
            example_limits=ExampleLimits(self.max_examples, self.max_example_tokens),
            capacity=Capacity(resolved.max_requests, resolved.max_adaptations, resolved.undegraded),
            key_digests=self.key_digests(),
            key_file=self.absolute_key_file,
            keys_required=self.has_keys,
            log_format=self.log_format,
            host=self.host,
            port=self.port,
            allowed_hosts=resolved.allowed_host,
            allowed_origins=resolved.allowed_origin,
            threads=resolved.threads,
            cores=resolved.cores,
            engine_gpus=resolved.engine_gpus,
            trainer_gpus=resolved.trainer_gpus,
        )

    @property
    def base_model(self) -> str:
        """Hub id or folder of the base model.

        Raises:
            ModelFilesError: it is "smollm2", which is not installed.
        """
        from serving.models.catalogue import model_folder

        return model_folder(self.model)

    @property
    def location(self) -> Location:
        """Where all corpora are.

        Raises:
            SettingsError: it is invalid.
        """
        return location_of(self.home.expanduser().absolute(), self.corpora)

    @property
    def has_keys(self) -> bool:
        """Whether requests need an API key; CorpusError if the database cannot be used."""
        has_own = bool(self.api_key) or self.api_key_file is not None
        return has_own or keys_required(self.location)

    @property
    def absolute_key_file(self) -> Path | None:
        """The absolute path of the key file."""
        return None if self.api_key_file is None else self.api_key_file.expanduser().absolute()

    def key_digests(self) -> tuple[str, ...]:
        """The SHA-256 digests of `api_key`."""
        return tuple(digest(secret) for secret in self.api_key or ())
