"""The command `mayfly`: what it consists of, one adapter to keep, the demonstration.

Errors a user can mend are one line that says how; everything else keeps its traceback. What the commands do
lives elsewhere: `selection`, `serving.app`, `serving.demo`; most have a file of their own, `serving.cli_*`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

import serving
from serving.chat import chat
from serving.cli_calibrate import calibrate
from serving.cli_corpus import corpus_app
from serving.cli_key import key_app
from serving.cli_plan import plan
from serving.cli_serve import config, serve
from serving.settings import Settings, check
from serving.terminal import EMBEDDER, HOME, EmbedderName, Home, Model, err, out

if TYPE_CHECKING:
    from serving.demo import Result

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
app.command()(serve)
app.command()(config)
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
    config = Settings(model=model, corpus=corpus, embedder=embedder, home=home).config()
    limits = parse_budget(budget, default=config.auto, auto=config.auto, limits=config.limits)
    check(config)
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
        config = Settings(corpus=CORPUS, port=port, home=home).config()
        with running(config, lambda stage: console.print(f"[dim]{stage} ...[/]")) as (url, watch):
            result = demonstrate(url, passage, console)
            show(result, url, console)
            if keep:
                console.print("[dim]The server stays up; Ctrl-C ends it.[/]")
                watch()
            console.print("[dim]ending ...[/]")
    except KeyboardInterrupt:
        err.print("ended")
        if result is None:
            sys.exit(130)
    if json and result is not None:
        print(result.as_json())  # not through rich: the terminal's width must not break the line
