"""Settings: all that a server can be told, in one list, and what it means for each room.

The list is also that of the flags, of the environment, of the file and of Ray Serve's `args`:
`serving.settings.sources` reads those. What is None here is decided in `config`, by the model, the
corpus and the machine. `Settings.check` tells within a second what is wrong by the values and the
files alone; `check` what only the model's own libraries can tell.
"""

from __future__ import annotations

import math
import os
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from serving.errors import SettingsError
from serving.settings.shared_options import EMBEDDER, HOME, EmbedderName, Home, Model

if TYPE_CHECKING:
    from adapters.config import TrainerConfig
    from selection.corpus.calibration import Calibration
    from serving.budget import Budget
    from serving.config import Config

LogFormat = Literal["json", "text"]
PANELS = {  # of `mayfly serve --help`
    "Model": ("model", "served_model_name", "dtype", "max_model_len", "tool_call_parser"),
    "Corpus": ("home", "corpus", "shards", "embedder", "regularisation"),
    "Training": ("learning_rate", "rank", "precision"),
    "Budget": ("budget", "max_steps", "max_seconds"),
    "Capacity": ("max_requests", "max_adaptations", "undegraded", "slots"),
    "Keys and network": (
        "host",
        "port",
        "allowed_host",
        "allowed_origin",
        "api_key",
        "api_key_file",
    ),
    "Hardware": ("threads", "engine_gpus", "trainer_gpus", "gpu_memory_utilization"),
    "Logs": ("log_format",),
}
_BY_PROCESSOR = "by processor"
_PARTS = 0.6, 0.4  # of the one GPU of a machine: engine, trainer
# In /dev, where torch could find a GPU.
_GPU_DEVICES = ("nvidia[0-9]*", "nvidiactl", "nvhost-gpu", "dxg", "kfd")


@dataclass(frozen=True)
class Settings:
    """What one server is told; the attributes' help is that of the flags."""

    model: Model = None
    corpus: Annotated[str | None, typer.Option(help="Corpus for requests that name none.")] = None
    shards: Annotated[
        int,
        typer.Option(
            min=0, max=64, help="Number of shards of the corpora (`mayfly corpus shard`); 0: none."
        ),
    ] = 0
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name by which a server without keys is reached, besides its address; may be repeated.",
            show_default="loopback names and --host",
        ),
    ] = None
    allowed_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin of a web app that may use this server, such as https://app.example; may be repeated."
        ),
    ] = None
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            help="Model name that clients use; may be repeated, for more names.",
            show_default="as --model; nano for the bundled one",
        ),
    ] = None
    embedder: EmbedderName = EMBEDDER
    budget: Annotated[
        str,
        typer.Option(
            help="Budget for `auto` and for requests without one, such as `steps=20, seconds=5`.",
            show_default="up to 50 steps, gain=0.25",
        ),
    ] = ""
    max_steps: Annotated[int, typer.Option(min=0, help="Most steps of any request.")] = 50
    max_seconds: Annotated[
        float, typer.Option(min=0.01, help="Most seconds of any adaptation.")
    ] = 60.0
    learning_rate: Annotated[
        float | None,
        typer.Option(min=1e-9, help="Adam learning rate.", show_default="by model size"),
    ] = None
    rank: Annotated[
        int | None, typer.Option(min=1, max=512, help="LoRA rank.", show_default="by model size")
    ] = None
    slots: Annotated[int, typer.Option(min=1, max=256, help="Adapters trained at once.")] = 8
    precision: Annotated[
        str, typer.Option(help="Precision of the trainer's base model: auto, float32 or bfloat16.")
    ] = "auto"
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="API key that sees everything; may be repeated."),
    ] = None
    api_key_file: Annotated[
        Path | None, typer.Option(help="TOML file of API keys with corpora, budgets and rates.")
    ] = None
    log_format: Annotated[LogFormat, typer.Option(help="Format of the log on standard error.")] = (
        "text"
    )
    max_requests: Annotated[
        int | None,
        typer.Option(
            min=1, help="Requests served at once; more get a 429.", show_default=_BY_PROCESSOR
        ),
    ] = None
    max_adaptations: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Adaptations at once, among these requests; more get a 429.",
            show_default=_BY_PROCESSOR,
        ),
    ] = None
    undegraded: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Adaptations at once that get all their steps; more share them.",
            show_default=_BY_PROCESSOR,
        ),
    ] = None
    regularisation: Annotated[
        float | None,
        typer.Option(
            min=1e-9, help="SIFT's regularisation lambda'.", show_default="for the default embedder"
        ),
    ] = None
    dtype: Annotated[
        str, typer.Option(help="Precision of the engine; auto is float32 on a CPU.")
    ] = "auto"
    tool_call_parser: Annotated[
        str | None, typer.Option(help="vLLM's name of the parser for the model's tool calls.")
    ] = None
    max_model_len: Annotated[
        int | None,
        typer.Option(min=1, help="Context length in tokens.", show_default="the model's"),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="CPU threads of engine, trainer and selector, each.",
            show_default="half the cores",
        ),
    ] = None
    engine_gpus: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="GPUs of each engine replica, as Ray counts; a fraction shares one.",
            show_default="by machine",
        ),
    ] = None
    trainer_gpus: Annotated[
        float | None,
        typer.Option(
            min=0, help="GPUs of each trainer replica, likewise.", show_default="by machine"
        ),
    ] = None
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(
            min=0.05,
            max=1,
            help="Share of its GPU's memory that the engine takes.",
            show_default="0.9; 0.55 beside a trainer",
        ),
    ] = None
    home: Home = HOME

    def check(self) -> None:
        """Tell what is wrong with the values and the files that they name, before anything heavy is
        imported.

        Raises:
            SettingsError: an invalid value or key file.
            ModelFilesError: a model or an embedder that cannot be used.
            CorpusError: there is no such corpus, it cannot be opened, or it belongs to another
                embedder.
        """
        from serving.api_keys import Keys
        from serving.http.browsers import parse_hosts, parse_origins
        from serving.settings.model_files import check_embedder, check_model

        auto, limits = self.budgets()
        parse_hosts(self.allowed_host or ())
        parse_origins(self.allowed_origin or (), self._has_keys())
        Keys(self._digests(), self._key_file(), auto, limits)
        check_model(self._model())
        check_embedder(self.embedder, self._model())
        if self.corpus is not None:
            check_corpus(self._corpora(), self.corpus, self.embedder)

    def budgets(self) -> tuple[Budget, Budget]:
        """What `auto` means, and what no request may exceed.

        Raises:
            SettingsError: an invalid value.
            BudgetError: an invalid budget.
        """
        from adapters.config import PRECISIONS
        from serving.budget import parse_budget
        from serving.config import AUTO, LIMITS

        if self.precision not in PRECISIONS:
            raise SettingsError(
                f"unknown precision {self.precision!r}: one of {', '.join(PRECISIONS)}"
            )
        if not math.isfinite(self.max_seconds):
            raise SettingsError(
                f"max-seconds is {self.max_seconds}; it needs to be a number of seconds"
            )
        limits = replace(LIMITS, steps=self.max_steps, seconds=self.max_seconds)
        return parse_budget(self.budget or None, default=AUTO, auto=AUTO, limits=limits), limits

    def config(self, *, only_to_show: bool = False) -> Config:
        """What these settings mean for each room, on this machine.

        Args:
            only_to_show: leave out what only the model's architecture tells and `mayfly config`
                does not show, the adapted projections: transformers and torch are not imported for
                it.

        Raises:
            SettingsError: a value that no room takes.
            CorpusError: there is no such corpus.
        """
        from selection.config import SelectorConfig
        from serving.adaptation.admission import Capacity
        from serving.config import Config
        from serving.engine.config import EngineConfig
        from serving.http.browsers import parse_hosts, parse_origins

        auto, limits = self.budgets()
        model, corpora = self._model(), self._corpora()
        cores, gpus = cores_here(), gpus_here()
        kept = None if self.corpus is None else _calibration(corpora, self.corpus, model)
        trainer = _rank_alone(model) if only_to_show else _trainer_of(model)
        trainer = replace(
            trainer,
            rank=self.rank or (kept.rank if kept else trainer.rank),
            learning_rate=self.learning_rate,
            slots=self.slots,
            precision=self.precision,
        )
        capacity = Capacity.of(cores, gpus)
        engine_gpus, trainer_gpus = (0.0, 0.0) if gpus == 0 else _PARTS if gpus == 1 else (1.0, 1.0)
        engine_gpus = engine_gpus if self.engine_gpus is None else self.engine_gpus
        trainer_gpus = trainer_gpus if self.trainer_gpus is None else self.trainer_gpus
        names = self.served_model_name or [self.model or "nano"]
        return Config(
            engine=EngineConfig(
                model,
                names[0],
                trainer.rank,
                trainer.targets,
                adapters=max(EngineConfig.adapters, self.max_adaptations or capacity.adaptations),
                dtype=self.dtype,
                more_names=tuple(names[1:]),
                tool_call_parser=self.tool_call_parser,
                max_model_len=self.max_model_len,
                gpu_memory_utilization=self.gpu_memory_utilization
                or (0.9 if engine_gpus >= 1 else 0.55),
            ),
            trainer=trainer,
            selector=SelectorConfig(
                corpora, self.embedder, model, regularisation=self.regularisation
            ),
            corpus=self.corpus,
            shards=self.shards,
            auto=auto.cut_to(limits)[0],
            limits=limits,
            capacity=Capacity(
                self.max_requests or capacity.requests,
                self.max_adaptations or capacity.adaptations,
                self.undegraded or capacity.undegraded,
            ),
            key_digests=self._digests(),
            key_file=self._key_file(),
            log_format=self.log_format,
            host=self.host,
            port=self.port,
            allowed_hosts=parse_hosts(self.allowed_host or ()),
            allowed_origins=parse_origins(self.allowed_origin or (), self._has_keys()),
            # Each with all of them made engine and trainer far slower.
            threads=self.threads or max(1, cores // 2),
            engine_gpus=engine_gpus,
            trainer_gpus=trainer_gpus,
        )

    def _model(self) -> str:
        from serving.config import bundled_model

        return self.model or bundled_model()

    def _corpora(self) -> Path:
        return self.home.expanduser().absolute() / "corpora"

    def _digests(self) -> tuple[str, ...]:
        from serving.api_keys import digest

        return tuple(digest(secret) for secret in self.api_key or ())

    def _has_keys(self) -> bool:
        return bool(self.api_key) or self.api_key_file is not None

    def _key_file(self) -> Path | None:
        return None if self.api_key_file is None else self.api_key_file.expanduser().absolute()


def check(config: Config) -> None:
    """What would otherwise fail minutes later, in another process: the model's tokenizer, and that
    of the corpus.

    Raises:
        SettingsError: the model's tokenizer cannot be loaded, or an invalid key file.
        CorpusError: there is no such corpus, or it belongs to another tokenizer.
    """
    from selection.corpus.corpus import Corpus
    from selection.ingest.ingest import tokenizer_digest
    from serving.api_keys import Keys
    from serving.settings.model_files import load_tokenizer

    Keys(config.key_digests, config.key_file, config.auto, config.limits)
    tokenizer = load_tokenizer(config.engine.model)
    if config.corpus is not None:
        with closing(Corpus.open(config.selector.root, config.corpus)) as corpus:
            corpus.check_tokenizer(tokenizer_digest(tokenizer))


def check_corpus(corpora: Path, name: str, embedder: str) -> None:
    """Whether a corpus can be opened and was made with an embedder of that name.

    Raises:
        CorpusError: it cannot, or was not.
    """
    from selection.corpus.corpus import Corpus
    from selection.errors import CorpusError

    with closing(Corpus.open(corpora, name)) as corpus:
        if corpus.embedder != embedder:
            raise CorpusError(
                f"corpus {name!r} was made with the embedder {corpus.embedder!r}, not {embedder!r}: use that "
                f"(--embedder), or run `mayfly corpus reembed {name} --embedder {embedder}`"
            )


def gpus_here(devices: Path = Path("/dev")) -> int:
    """GPUs that torch can use; torch is asked only where there is a device that it could find."""
    if not any(next(devices.glob(pattern), None) for pattern in _GPU_DEVICES):
        return 0
    import torch

    return torch.cuda.device_count()


def cores_here(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may compute on, or what the control group of a container allows, if
    that is less.
    """
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # there is no such group, or no limit, which is "max"
        quota, period = map(int, (group / "cpu.max").read_text().split())
        cores = min(cores, max(1, quota // period))
    return cores


def _trainer_of(model: str) -> TrainerConfig:
    from adapters.model_defaults import for_model

    return for_model(model)


def _rank_alone(model: str) -> TrainerConfig:
    from adapters.config import TrainerConfig
    from adapters.model_defaults import rank_here
    from serving.settings.model_files import local_folder

    return TrainerConfig(model, rank=rank_here(model, local_folder(model)))


def _calibration(root: Path, corpus: str, model: str) -> Calibration | None:
    from selection.corpus.calibration import calibration_of, is_calibrated, model_digest
    from selection.corpus.corpus import Corpus

    with closing(Corpus.open(root, corpus)) as opened:
        meta = opened.meta()
    return calibration_of(meta, model_digest(model)) if is_calibrated(meta) else None
