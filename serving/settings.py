"""Settings: all that a server can be told, in one list, and what it means for each room.

The list is also that of the flags, of the environment, of the file and of Ray Serve's `args`: `serving.options` reads
those. What is None here is decided in `config`, by the model, the corpus and the machine.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from serving.terminal import EMBEDDER, HOME, EmbedderName, Home, Model

if TYPE_CHECKING:
    from selection.calibration import Calibration
    from serving.config import Config

LogFormat = Literal["json", "text"]
_BY_PROCESSOR = "by processor"
_PARTS = 0.6, 0.4  # of the one GPU of a machine: engine, trainer


@dataclass(frozen=True)
class Settings:
    """What one server is told; the attributes' help is that of the flags."""

    model: Model = None
    corpus: Annotated[str | None, typer.Option(help="The corpus of requests that name none.")] = None
    shards: Annotated[
        int, typer.Option(min=0, max=64, help="In how many shards corpora lie (`mayfly corpus shard`); 0: in none.")
    ] = 0
    host: Annotated[str, typer.Option(help="Where HTTP is served.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            help="The name clients use; may be repeated, for more names.",
            show_default="as --model; nano for the bundled one",
        ),
    ] = None
    embedder: EmbedderName = EMBEDDER
    budget: Annotated[
        str, typer.Option(help="What `auto` and no header mean, in the words of the Compute-Budget header.")
    ] = ""
    max_steps: Annotated[int, typer.Option(min=0, help="The most steps any request may take.")] = 50
    max_seconds: Annotated[float, typer.Option(min=0.01, help="The most seconds any adaptation may take.")] = 60.0
    learning_rate: Annotated[float | None, typer.Option(min=1e-9, help="Of Adam.", show_default="by model size")] = None
    rank: Annotated[
        int | None, typer.Option(min=1, max=512, help="Of the LoRA adapters.", show_default="by model size")
    ] = None
    slots: Annotated[int, typer.Option(min=1, max=256, help="How many adapters are trained at once.")] = 8
    precision: Annotated[str, typer.Option(help="Of the trainer's base model: auto, float32 or bfloat16.")] = "auto"
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="A key that sees everything; may be repeated."),
    ] = None
    api_key_file: Annotated[Path | None, typer.Option(help="A file of keys with corpora, budgets and rates, TOML.")] = (
        None
    )
    log_format: Annotated[LogFormat, typer.Option(help="Of the log, on standard error.")] = "text"
    max_requests: Annotated[
        int | None, typer.Option(min=1, help="Requests at once; more get a 429.", show_default=_BY_PROCESSOR)
    ] = None
    max_adaptations: Annotated[
        int | None,
        typer.Option(min=1, help="Adaptations among them at once; more get a 429.", show_default=_BY_PROCESSOR),
    ] = None
    undegraded: Annotated[
        int | None,
        typer.Option(
            min=1, help="Adaptations at once that get all their steps; more share.", show_default=_BY_PROCESSOR
        ),
    ] = None
    regularisation: Annotated[
        float | None, typer.Option(min=1e-9, help="lambda' of SIFT.", show_default="for the default embedder")
    ] = None
    dtype: Annotated[str, typer.Option(help="Of the engine; auto is float32 on a CPU.")] = "auto"
    tool_call_parser: Annotated[str | None, typer.Option(help="How the model calls tools, as vLLM names it.")] = None
    max_model_len: Annotated[int | None, typer.Option(min=1, help="Context in tokens.", show_default="the model's")] = (
        None
    )
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Of engine, trainer and selector each, on a CPU.", show_default="half the cores"),
    ] = None
    engine_gpus: Annotated[
        float | None,
        typer.Option(min=0, help="Of each engine replica, for Ray; a part of 1 shares one.", show_default="by machine"),
    ] = None
    trainer_gpus: Annotated[
        float | None, typer.Option(min=0, help="Of each trainer replica, as above.", show_default="by machine")
    ] = None
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(
            min=0.05, max=1, help="The engine's part of its GPU's memory.", show_default="0.9; 0.55 beside a trainer"
        ),
    ] = None
    home: Home = HOME

    def config(self) -> Config:
        """What these settings mean for each room, on this machine.

        Raises:
            ValueError: a value that no room takes.
            CorpusError: there is no such corpus.
        """
        import torch

        from adapters.base_model import PRECISIONS
        from adapters.defaults import for_model
        from selection.selector import SelectorConfig
        from serving.admission import Capacity
        from serving.budget import parse_budget
        from serving.config import AUTO, LIMITS, Config, EngineConfig, bundled_model
        from serving.keys import digest

        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}: one of {', '.join(PRECISIONS)}")
        if not math.isfinite(self.max_seconds):
            raise ValueError(f"max-seconds is {self.max_seconds}; it needs to be a number of seconds")
        model, corpora = self.model or bundled_model(), self.home.expanduser().absolute() / "corpora"
        cores, gpus = cores_here(), torch.cuda.device_count()
        kept = None if self.corpus is None else _calibration(corpora, self.corpus, model)
        trainer = for_model(model)
        trainer = replace(
            trainer,
            rank=self.rank or (kept.rank if kept else trainer.rank),
            learning_rate=self.learning_rate,
            slots=self.slots,
            precision=self.precision,
        )
        limits = replace(LIMITS, steps=self.max_steps, seconds=self.max_seconds)
        auto = parse_budget(self.budget or None, default=AUTO, auto=AUTO, limits=limits)
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
                gpu_memory_utilization=self.gpu_memory_utilization or (0.9 if engine_gpus >= 1 else 0.55),
            ),
            trainer=trainer,
            selector=SelectorConfig(corpora, self.embedder, model, regularisation=self.regularisation),
            corpus=self.corpus,
            shards=self.shards,
            auto=auto.cut_to(limits)[0],
            limits=limits,
            capacity=Capacity(
                self.max_requests or capacity.requests,
                self.max_adaptations or capacity.adaptations,
                self.undegraded or capacity.undegraded,
            ),
            key_digests=tuple(digest(secret) for secret in self.api_key or ()),
            key_file=None if self.api_key_file is None else self.api_key_file.expanduser().absolute(),
            log_format=self.log_format,
            host=self.host,
            port=self.port,
            threads=self.threads or max(1, cores // 2),  # each with all of them made engine and trainer far slower
            engine_gpus=engine_gpus,
            trainer_gpus=trainer_gpus,
        )


def check(config: Config) -> None:
    """What would otherwise fail minutes later, in another process: keys, the model's tokenizer, the corpus.

    Raises:
        ValueError: a key file that is none, or there is no such model.
        CorpusError: there is no such corpus, or it belongs to another tokenizer.
    """
    from transformers import AutoTokenizer

    from selection.corpus import Corpus
    from selection.documents import tokenizer_digest
    from serving.keys import Keys

    Keys(config.key_digests, config.key_file, config.auto, config.limits)
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.engine.model)
    except (OSError, ValueError) as problem:
        raise ValueError(f"cannot load the model {config.engine.model!r}: {str(problem).splitlines()[0]}") from problem
    if config.corpus is not None:
        corpus = Corpus.open(config.selector.root, config.corpus)
        corpus.check_tokenizer(tokenizer_digest(tokenizer))
        corpus.close()


def cores_here(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may compute on, or what the control group of a container allows, if that is less."""
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # there is no such group, or no limit, which is "max"
        quota, period = map(int, (group / "cpu.max").read_text().split())
        cores = min(cores, max(1, quota // period))
    return cores


def _calibration(root: Path, corpus: str, model: str) -> Calibration | None:
    from selection.calibration import calibration_of, model_digest
    from selection.corpus import Corpus

    opened = Corpus.open(root, corpus)
    try:
        return calibration_of(opened.meta(), model_digest(model))
    finally:
        opened.close()
