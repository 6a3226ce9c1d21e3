"""The command `mayfly`: the server, one adapter to keep, the demonstration; corpora are in `serving.cli_corpus`.

Errors a user can mend are one line that says how; everything else keeps its traceback. What the commands do
lives elsewhere: `selection`, `serving.app`, `serving.demo`.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

import serving
from serving.chat import chat
from serving.cli_calibrate import calibrate
from serving.cli_corpus import corpus_app
from serving.cli_key import key_app
from serving.cli_plan import plan
from serving.terminal import EMBEDDER, HOME, EmbedderName, Home, Model, err, out

if TYPE_CHECKING:
    from selection.calibration import Calibration
    from serving.config import Config
    from serving.demo import Result

LogFormat = Literal["json", "text"]

app = typer.Typer(
    name="mayfly",
    help="Answer each request with an adapter trained for it. Begin with `mayfly demo`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(corpus_app, name="corpus")
app.add_typer(key_app, name="key")
app.command()(chat)
app.command()(calibrate)
app.command()(plan)


def main() -> None:
    """Entry point; turns errors that a user can mend into one line and exit status 1."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' own bars: ours say more
    from serving.errors import MayflyError, in_full

    try:
        app()
    except (ValueError, MayflyError) as problem:
        err.print(f"[red]mayfly:[/] {escape(in_full(problem))}", highlight=False, soft_wrap=True)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Say the version, or go on to a command."""
    if version:
        out.print(f"mayfly {serving.__version__}", highlight=False)
        raise typer.Exit


@app.command()
def serve(
    model: Model = None,
    corpus: Annotated[str | None, typer.Option("--corpus", help="The corpus of requests that name none.")] = None,
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            "--served-model-name",
            help="The name clients use; may be repeated, for more names.",
            show_default="as --model; nano for the bundled one",
        ),
    ] = None,
    embedder: EmbedderName = EMBEDDER,
    budget: Annotated[
        str, typer.Option("--budget", help="What `auto` and no header mean, in the words of the Compute-Budget header.")
    ] = "",
    max_steps: Annotated[int, typer.Option("--max-steps", min=0, help="The most steps any request may take.")] = 50,
    max_seconds: Annotated[
        float, typer.Option("--max-seconds", min=0.01, help="The most seconds any adaptation may take.")
    ] = 60.0,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Of Adam.", show_default="by model size")
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, max=512, help="Of the LoRA adapters.", show_default="by model size")
    ] = None,
    slots: Annotated[int, typer.Option("--slots", min=1, max=256, help="How many adapters are trained at once.")] = 8,
    precision: Annotated[
        str, typer.Option("--precision", help="Of the trainer's base model: auto, float32 or bfloat16.")
    ] = "auto",
    api_key: Annotated[
        list[str] | None,
        typer.Option("--api-key", envvar="MAYFLY_API_KEYS", help="A key that sees everything; may be repeated."),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="A file of keys with corpora, budgets and rates, TOML.")
    ] = None,
    log_format: Annotated[LogFormat, typer.Option("--log-format", help="Of the log, on standard error.")] = "text",
    max_requests: Annotated[
        int | None,
        typer.Option("--max-requests", min=1, help="Requests at once; more get a 429.", show_default="by processor"),
    ] = None,
    max_adaptations: Annotated[
        int | None,
        typer.Option(
            "--max-adaptations",
            min=1,
            help="Adaptations among them at once; more get a 429.",
            show_default="by processor",
        ),
    ] = None,
    undegraded: Annotated[
        int | None,
        typer.Option(
            "--undegraded",
            min=1,
            help="Adaptations at once that get all their steps; more share.",
            show_default="by processor",
        ),
    ] = None,
    regularisation: Annotated[
        float | None, typer.Option("--regularisation", help="lambda' of SIFT.", show_default="for the default embedder")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the engine; auto is float32 on a CPU.")] = "auto",
    tool_call_parser: Annotated[
        str | None, typer.Option("--tool-call-parser", help="How the model calls tools, as vLLM names it.")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", help="Context in tokens.", show_default="the model's")
    ] = None,
    home: Home = HOME,
) -> None:
    """Serve the OpenAI API, an adapter trained for each request. Ctrl-C ends it."""
    from dataclasses import replace

    from serving.admission import Capacity
    from serving.app import running
    from serving.budget import parse_budget
    from serving.keys import Keys, digest

    names = served_model_name or []
    config = make_config(home, model, corpus, port=port, host=host, embedder=embedder, name=next(iter(names), None))
    limits = replace(config.limits, steps=max_steps, seconds=max_seconds)
    auto = parse_budget(budget or None, default=config.auto, auto=config.auto, limits=limits)
    config = replace(
        config,
        limits=limits,
        auto=auto.cut_to(limits)[0],
        capacity=Capacity(
            max_requests or config.capacity.requests,
            max_adaptations or config.capacity.adaptations,
            undegraded or config.capacity.undegraded,
        ),
        key_digests=tuple(digest(secret) for secret in api_key or ()),
        key_file=None if api_key_file is None else api_key_file.absolute(),
        log_format=log_format,
        engine=replace(
            config.engine,
            dtype=dtype,
            max_model_len=max_model_len,
            more_names=tuple(names[1:]),
            tool_call_parser=tool_call_parser,
        ),
    )
    config = replace(config, trainer=replace(config.trainer, slots=slots, precision=precision))
    if learning_rate is not None:
        config = replace(config, trainer=replace(config.trainer, learning_rate=learning_rate))
    if rank is not None:
        config = replace(
            config,
            trainer=replace(config.trainer, rank=rank),
            engine=replace(config.engine, rank=rank),
        )
    if regularisation is not None:
        config = replace(config, selector=replace(config.selector, regularisation=regularisation))
    Keys(config.key_digests, config.key_file, config.auto, config.limits)  # what is wrong with them is told now
    _check(config)
    try:
        with running(config, lambda stage: err.print(f"[dim]{stage} ...[/]")) as url:
            err.print(f"[green]ready[/] {config.engine.served_name} at {url}/v1 (Ctrl-C ends it)", highlight=False)
            threading.Event().wait()
    except KeyboardInterrupt:
        err.print("ended")


@app.command()
def adapt(
    prompt: Annotated[str, typer.Option("--prompt", help="What to adapt to; `-` reads it from standard input.")],
    keep: Annotated[Path, typer.Option("--out", help="A folder for the adapter, in PEFT's format; made if need be.")],
    corpus: Annotated[str, typer.Option("--corpus", help="The corpus to learn from.")],
    budget: Annotated[
        str, typer.Option("--budget", help="As the Compute-Budget header, such as `steps=20, seconds=5`.")
    ] = "auto",
    plan: Annotated[str, typer.Option("--plan", help="How to train: sequential, batched or reuse.")] = "sequential",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the adapter.")] = 0,
    model: Model = None,
    embedder: EmbedderName = EMBEDDER,
    home: Home = HOME,
) -> None:
    """Train the adapter a prompt would be answered with, and keep it: plain PEFT and vLLM load the folder.

    Example: [cyan]mayfly adapt --prompt "def shortest_path(" --corpus nx --out ./adapter[/]
    """
    import math

    from transformers import AutoTokenizer

    from adapters import Trainer, Watch
    from selection import Selector
    from selection.embedding import Prompt
    from serving.budget import parse_budget
    from serving.request import watched

    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise typer.BadParameter(f"{keep} is there already; name a new or empty folder", param_hint="--out")
    config = make_config(home, model, corpus, port=8000, embedder=embedder)
    limits = parse_budget(budget, default=config.auto, auto=config.auto, limits=config.limits)
    _check(config)
    with err.status("loading the embedder and the base model"):
        selector, trainer = Selector(config.selector), Trainer(config.trainer)
    text = typer.get_text_stream("stdin").read() if prompt == "-" else prompt
    selection = selector.select([Prompt(text)], corpus, steps=limits.steps, alpha=limits.alpha)
    if not selection.ids:
        raise ValueError(f"nothing to learn: corpus {corpus!r} is empty, or the budget allows no step")
    kept = selection.calibration
    gain = kept.gain if kept and limits.own_gain else limits.gain
    tokens = watched([Prompt(text)], AutoTokenizer.from_pretrained(config.engine.model))
    with err.status("training") as status:
        training = trainer.train(
            selection.sequences,
            seed=seed,
            seconds=math.inf if limits.seconds is None else limits.seconds,
            plan=plan,
            learning_rate=kept.learning_rate if kept else None,
            watch=None if gain is None or len(tokens) < 2 else Watch(tokens, gain),
            on_step=lambda step: status.update(f"training: step {step.steps} of {step.of}, loss {step.loss:.3f}"),
        )
    if training.adapter is None:
        raise ValueError(f"no adapter: training ended by {training.stop!r} before it had one")
    training.adapter.save(keep)
    sigma = selection.uncertainty[training.used]
    out.print(
        f"{keep}: {len(training.losses)} steps in {training.seconds:.1f} s, sigma {sigma:.3f}, "
        f"loss {training.losses[0]:.3f} to {training.losses[-1]:.3f}, stop {training.stop}",
        highlight=False,
    )


@app.command()
def demo(
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server up afterwards.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
    home: Home = HOME,
) -> None:
    """Bring everything up, answer one request with the base model and with an adapter, and show the difference."""
    from serving.app import running
    from serving.demo import CORPUS, demonstrate, prepare, show

    console = err if json else out
    result: Result | None = None
    try:
        passage = prepare(home, console)
        config = make_config(home, None, CORPUS, port=port)
        with running(config, lambda stage: console.print(f"[dim]{stage} ...[/]")) as url:
            result = demonstrate(url, passage, console)
            show(result, url, console)
            if keep:
                console.print("[dim]The server stays up; Ctrl-C ends it.[/]")
                threading.Event().wait()
            console.print("[dim]ending ...[/]")
    except KeyboardInterrupt:
        err.print("ended")
        if result is None:
            sys.exit(130)
    if json and result is not None:
        print(result.as_json())  # not through rich: the terminal's width must not break the line


def make_config(
    home: Path,
    model: str | None,
    corpus: str | None,
    *,
    port: int,
    host: str = "127.0.0.1",
    embedder: str = EMBEDDER,
    name: str | None = None,
) -> Config:
    """The configuration of a server on this machine, everything else at its default; the rank is the corpus's own."""
    from dataclasses import replace

    import torch

    from adapters.defaults import for_model
    from selection.selector import SelectorConfig
    from serving.admission import Capacity
    from serving.config import Config, EngineConfig, bundled_model

    base = model or bundled_model()
    trainer, cores = for_model(base), os.cpu_count() or 1
    kept = None if corpus is None else _calibration(home / "corpora", corpus, base)
    if kept is not None:
        trainer = replace(trainer, rank=kept.rank)
    return Config(
        engine=EngineConfig(base, name or model or "nano", trainer.rank, trainer.targets),
        trainer=trainer,
        selector=SelectorConfig(home / "corpora", embedder, base),
        corpus=corpus,
        host=host,
        port=port,
        capacity=Capacity.of(cores, torch.cuda.device_count()),
        threads=max(1, cores // 2),  # engine and trainer share them; each with all of them made both far slower
    )


def _calibration(root: Path, corpus: str, model: str) -> Calibration | None:
    from selection.calibration import calibration_of, model_digest
    from selection.corpus import Corpus

    opened = Corpus.open(root, corpus)
    try:
        return calibration_of(opened.meta(), model_digest(model))
    finally:
        opened.close()


def _check(config: Config) -> None:
    """What would otherwise fail minutes later, in another process: the model's name, the corpus."""
    from transformers import AutoTokenizer

    from adapters.base_model import PRECISIONS
    from selection.corpus import Corpus
    from selection.documents import tokenizer_digest

    if config.trainer.precision not in PRECISIONS:
        raise ValueError(f"unknown precision {config.trainer.precision!r}: one of {', '.join(PRECISIONS)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.engine.model)
    except (OSError, ValueError) as problem:
        raise ValueError(f"cannot load the model {config.engine.model!r}: {str(problem).splitlines()[0]}") from problem
    if config.corpus is not None:
        corpus = Corpus.open(config.selector.root, config.corpus)
        corpus.check_tokenizer(tokenizer_digest(tokenizer))
        corpus.close()
