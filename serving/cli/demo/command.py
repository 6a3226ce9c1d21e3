"""The command `mayfly demo`."""

from __future__ import annotations

import sys
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from serving.cli.console import err, out, say
from serving.cli.progress import Status
from serving.models.catalogue import default_model
from serving.settings.settings import Settings
from serving.settings.shared_options import HOME, Home, Model


def demo(
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")
    ] = 8000,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the server running after the demonstration.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on the last line.")
    ] = False,
    model: Model = None,
    home: Home = HOME,
) -> None:
    """Start a server, teach it an invented format by ten examples, adapt one request to a corpus,
    and compare the answers with those of the base model.
    """
    from serving.cli.demo.comparison import run
    from serving.cli.demo.display import show, show_examples
    from serving.cli.demo.few_examples import answer_questions
    from serving.cli.demo.passage import prepare
    from serving.local.checks import check_port, check_writable
    from serving.versions import check_versions

    check_versions()
    console = err if json else out
    check_port(Settings.host, port)
    check_writable(home)
    settings = Settings(model=model, port=port, home=home)
    name = settings.resolved().served_model_name[0]
    reason = f" ({default_model().reason})" if model is None else ""
    say(f"model: {name}{reason}", to=console)
    corpus, results = f"demo-{Path(name).name}", {}
    try:
        with Status("starting", console):
            from serving.local.server import running_server

            config = settings.config()
        with running_server(config, lambda stage: say(stage, "dim", console)) as (url, watch):
            taught = answer_questions(url, name, console)
            show_examples(taught, console)
            results["examples"] = taught.as_dict()
            passage = prepare(home, corpus, settings.base_model, console)
            result = run(url, name, corpus, passage, console)
            show(result, url, console)
            results = result.as_dict() | results
            if keep:
                say("the server keeps running; Ctrl-C stops it", "dim", console)
                watch()
            say("ending ...", "dim", console)
    except KeyboardInterrupt:
        say("ended")
        if len(results) < 2:
            sys.exit(130)
    if json:
        print(dumps(results))  # not with rich, which would break the line
