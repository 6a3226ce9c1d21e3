"""The command `mayfly`: its entry point.

The commands have modules of their own in this package. Nothing heavy is imported before a command
needs it.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import serving
from serving.cli.adaptation.adapt import adapt
from serving.cli.adaptation.chat import chat
from serving.cli.calibrate import calibrate
from serving.cli.console import out, say
from serving.cli.corpus.app import corpus_app
from serving.cli.demo.command import demo
from serving.cli.error_reporting import ErrorReporter
from serving.cli.key import key_app
from serving.cli.model import model_app
from serving.cli.plan import plan
from serving.cli.serve import config, serve
from serving.environment import set_environment
from serving.settings.hardware import available_cores

app = typer.Typer(
    name="mayfly",
    help="Answer each request with an adapter trained for it. Start with `mayfly demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(corpus_app, name="corpus")
app.add_typer(model_app, name="model")
app.add_typer(key_app, name="key")
app.command()(serve)
app.command()(config)
app.command()(chat)
app.command()(demo)
app.command()(adapt)
app.command()(calibrate)
app.command()(plan)

_reporter = ErrorReporter()


def main() -> None:
    """Run the command; `serving.cli.error_reporting` reports its exceptions."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The libraries' own progress bars would disturb ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    set_environment(available_cores())
    sys.exit(_reporter.run(app))


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of every error.")
    ] = False,
) -> None:
    """Print the version, or run a command."""
    _reporter.debug = debug
    if version:
        say(f"mayfly {serving.__version__}", to=out)
        raise typer.Exit
