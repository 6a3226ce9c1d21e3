"""The command `mayfly`: what it consists of, one adapter to keep, the demonstration.

Errors that a user can mend are one line that says how; everything else is a bug and keeps its
traceback. What the commands do lives elsewhere: `selection`, `serving.app`, `serving.cli.demo`;
most have a file of their own in this package. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import serving
from adapters.training import TrainingRequest
from selection.request import SelectionRequest
from serving.cli.calibrate import calibrate
from serving.cli.chat import chat, told_loss
from serving.cli.console import err, out, read_input, say
from serving.cli.corpus import corpus_app
from serving.cli.failures import Failures
from serving.cli.key import key_app
from serving.cli.plan import plan
from serving.cli.progress import kept_when_broken_off, working
from serving.cli.serve import config, serve
from serving.environment import set_environment
from serving.settings.settings import Settings, check, cores_here
from serving.settings.shared_options import EMBEDDER, HOME, EmbedderName, Home, Model

if TYPE_CHECKING:
    from serving.cli.demo import Result

app = typer.Typer(
    name="mayfly",
    help="Answer each request with an adapter trained for it. Begin with `mayfly demo`.",
    no_args_is_help=True,
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

_failures = Failures()


def main() -> None:
    """Entry point: see `serving.cli.failures` for what becomes of an exception."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' own bars: ours say more
    set_environment(cores_here())
    sys.exit(_failures.status_of(app))


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of every error.")
    ] = False,
) -> None:
    """Say the version, or go on to a command."""
    _failures.debug = debug
    if version:
        say(f"mayfly {serving.__version__}", to=out)
        raise typer.Exit


@app.command()
def adapt(
    prompt: Annotated[
        str, typer.Option("--prompt", help="What to adapt to; `-` reads it from standard input.")
    ],
    keep: Annotated[
        Path,
        typer.Option("--out", help="A folder for the adapter, in PEFT's format; made if need be."),
    ],
    corpus: Annotated[str, typer.Option("--corpus", help="The corpus to learn from.")],
    budget: Annotated[
        str,
        typer.Option(
            "--budget", help="As the Compute-Budget header, such as `steps=20, seconds=5`."
        ),
    ] = "auto",
    plan: Annotated[
        str, typer.Option("--plan", help="How to train: sequential, batched or reuse.")
    ] = "sequential",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the adapter.")] = 0,
    model: Model = None,
    embedder: EmbedderName = EMBEDDER,
    home: Home = HOME,
) -> None:
    """Train the adapter a prompt would be answered with, and keep it: plain PEFT and vLLM load the
    folder.

    Example: [cyan]mayfly adapt --prompt "def shortest_path(" --corpus nx --out ./adapter[/]
    """

    from adapters.step_plan import PLANS
    from serving.adaptation.reasons import no_step
    from serving.budget import parse_budget
    from serving.errors import AdaptationFailedError
    from serving.local.checks import check_writable

    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise typer.BadParameter(
            f"{keep} is there already; name a new or empty folder", param_hint="--out"
        )
    if plan not in PLANS:
        raise typer.BadParameter(
            f"unknown plan {plan!r}: one of {', '.join(PLANS)}", param_hint="--plan"
        )
    check_writable(keep)
    settings = Settings(model=model, corpus=corpus, embedder=embedder, home=home)
    auto, most = settings.budgets()
    limits = parse_budget(
        budget, default=auto.cut_to(most)[0], auto=auto.cut_to(most)[0], limits=most
    )
    if limits.steps == 0:
        raise AdaptationFailedError(f"nothing to learn: {no_step(limits, ())}")
    settings.check()
    text = read_input() if prompt == "-" else prompt
    with working("loading the embedder and the base model"):
        from adapters import Probe, Trainer
        from selection import Selector
        from selection.embedding import Prompt
        from serving.adaptation.request import watched
        from serving.settings.model_files import load_tokenizer

        config = settings.config()
        check(config)
        selector, trainer = Selector(config.selector), Trainer(config.trainer)
    selection = selector.select(
        SelectionRequest([Prompt(text)], corpus, steps=limits.steps, alpha=limits.alpha)
    )
    if not selection.ids:
        raise AdaptationFailedError(
            f"nothing to learn: corpus {corpus!r} is empty; add documents with `mayfly corpus add`"
        )
    kept = selection.calibration
    gain = kept.gain if kept and limits.own_gain and limits.gain is not None else limits.gain
    tokens = watched([Prompt(text)], load_tokenizer(config.engine.model))
    with (
        kept_when_broken_off(lambda: f"no adapter was written to {keep}"),
        working("training") as status,
    ):
        training = trainer.train(
            TrainingRequest(
                selection.sequences,
                seed=seed,
                seconds=limits.seconds,
                plan=plan,
                learning_rate=kept.learning_rate if kept else None,
                probe=Probe(tokens, gain) if len(tokens) > 1 else None,
            ),
            on_step=lambda step: status.update(
                f"step {step.steps} of {step.of}"
                + (
                    ""
                    if step.watched is None
                    else f", loss of the prompt itself {step.watched:.3f}"
                )
            ),
        )
    if training.adapter is None:
        raise AdaptationFailedError(
            f"no adapter: training ended by '{training.stop}' before it had one"
        )
    training.adapter.save(keep)
    sigma, helped = selection.uncertainty[training.used], training.before_and_after
    loss = f"{told_loss(*helped, training.kept, training.used)}, " if helped else ""
    say(
        f"{keep}: {loss}{len(training.losses)} steps in {training.seconds:.1f} s, sigma {sigma:.3f}, "
        f"stop {training.stop}",
        to=out,
    )


@app.command()
def demo(
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")
    ] = 8000,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server up afterwards.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line.")
    ] = False,
    home: Home = HOME,
) -> None:
    """Bring everything up, answer one request with the base model and with an adapter, and show the
    difference.
    """
    from serving.cli.demo import CORPUS, demonstrate, prepare, show
    from serving.local.checks import check_port, check_writable

    console = err if json else out
    check_port(Settings.host, port)
    check_writable(home)
    result: Result | None = None
    try:
        passage = prepare(home, console)
        with working("starting", console):
            from serving.local.server import running

            config = Settings(corpus=CORPUS, port=port, home=home).config()
        with running(config, lambda stage: say(stage, "dim", console)) as (url, watch):
            result = demonstrate(url, passage, console)
            show(result, url, console)
            if keep:
                say("The server stays up; Ctrl-C ends it.", "dim", console)
                watch()
            say("ending ...", "dim", console)
    except KeyboardInterrupt:
        say("ended")
        if result is None:
            sys.exit(130)
    if json and result is not None:
        print(result.as_json())  # not through rich: the terminal's width must not break the line
