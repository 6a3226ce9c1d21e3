"""The commands `mayfly serve`, which starts a server, and `mayfly config`, which prints its
settings.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from dataclasses import fields
from inspect import Parameter
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from serving.cli.console import row, say, show, table
from serving.cli.progress import Status
from serving.errors import LostError, in_full
from serving.local.checks import check_port
from serving.models.catalogue import default_model
from serving.processes import Call
from serving.settings.checks import check_settings, checked_config
from serving.settings.settings import Settings
from serving.settings.sources import describe_default, sources, with_settings
from serving.versions import check_versions


@with_settings
def serve(settings: Settings, _: typer.Context) -> None:
    """Serve the OpenAI API, training an adapter for each request. Ctrl-C stops the server."""
    check_versions()
    check_port(settings.host, settings.port)
    check_settings(settings)
    environment = dict(os.environ)
    with Status("checking the model"), Call(checked_config, settings) as call:
        # Imported while the other process checks.
        from serving.local.server import running_server

        config = call.result()

    try:
        with running_server(config, lambda stage: say(stage, "dim")) as (url, watch):
            if not config.has_keys and not _is_loopback(config.host):
                warning = (
                    f"no API keys configured; anyone who can reach {config.host}:{config.port} "
                    "can use this server and its corpora (set --api-key or --api-key-file)"
                )
                say(Text.assemble(("warning: ", "yellow"), warning))
            name = config.engine.served_name
            if settings.model is None:
                name += f" ({default_model().reason})"
            ready = f"{name} at {url}/v1 (Ctrl-C stops the server)"
            say(Text.assemble(("ready ", "green"), ready))
            watch()
    except KeyboardInterrupt:
        say("ended")
    except LostError as problem:
        say(Text.assemble((in_full(problem), "red"), "; starting again"))
        _restart(environment)


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _restart(environment: dict[str, str]) -> NoReturn:
    """Execute this command again from the beginning; Ray cannot be started twice in one process."""
    for file in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            os.set_inheritable(int(file), int(file) <= 2)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606


def _config(settings: Settings, context: typer.Context, example: bool) -> None:
    """Print the settings of `mayfly serve` with the same flags, environment and file, and where
    each one comes from.

    API keys are counted, not shown. Defaults that depend on the model, the corpus or the machine
    are shown as they are on this machine.
    """
    if example:
        from serving.settings.example import example as file

        print(file(), end="")  # not with rich, which breaks lines
        return
    check_settings(settings)
    values, origin = effective(settings), sources(context)
    shown = table("setting", "value", "from")
    for name, value in values.items():
        row(shown, name.replace("_", "-"), value, origin[name])
    show(shown)


_EXAMPLE = Annotated[
    bool, typer.Option("--example", help="Print an example of the settings file and exit.")
]
_config.__name__ = "config"
config = with_settings(
    _config, Parameter("example", Parameter.KEYWORD_ONLY, annotation=_EXAMPLE, default=False)
)


def effective(settings: Settings) -> dict[str, str]:
    """The value of each setting as text; for API keys, their number."""
    budget, _ = settings.budgets()
    limits = ((name, value) for name, value in budget.as_dict().items() if value is not None)
    values = vars(settings) | vars(settings.resolved())
    text = ", ".join(f"{name}={value:g}" for name, value in limits)
    values["budget"] = "instant" if budget.instant else text
    # Without its password.
    values["corpora"] = str(settings.location) if settings.corpora else None
    values["api_key"] = f"{len(settings.api_key)}, not shown" if settings.api_key else None
    texts = {}
    for each in fields(Settings):
        value = values[each.name]
        separator = " " if each.name == "vllm" else ", "
        text = separator.join(value) if isinstance(value, list | tuple) else value
        texts[each.name] = describe_default(each.name) if text in (None, "") else str(text)
    return texts
