"""The commands `mayfly serve` and `mayfly config`: a server with these settings, and which settings
these would be.
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
from serving.cli.progress import working
from serving.errors import LostError, in_full
from serving.local.checks import check_port
from serving.settings.settings import Settings, check
from serving.settings.sources import by_default, sources, with_settings


@with_settings
def serve(settings: Settings, _: typer.Context) -> None:
    """Serve the OpenAI API, an adapter trained for each request. Ctrl-C ends it."""
    check_port(settings.host, settings.port)
    settings.check()
    environment = dict(os.environ)
    with working("checking the model"):
        config = settings.config()
        check(config)
    with working("starting"):
        from serving.local.server import running

    try:
        with running(config, lambda stage: say(stage, "dim")) as (url, watch):
            if not config.has_keys and not _is_loopback(config.host):
                warning = f"there are no API keys: anyone who can reach {config.host}:{config.port} can use this server"
                say(
                    Text.assemble(
                        ("warning: ", "yellow"),
                        f"{warning} and its corpora (--api-key, --api-key-file)",
                    )
                )
            say(
                Text.assemble(
                    ("ready ", "green"), f"{config.engine.served_name} at {url}/v1 (Ctrl-C ends it)"
                )
            )
            watch()
    except KeyboardInterrupt:
        say("ended")
    except LostError as problem:
        say(Text.assemble((in_full(problem), "red"), "; starting again"))
        _again(environment)


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _again(environment: dict[str, str]) -> NoReturn:
    """This command from its beginning, in this process: Ray cannot be started twice in one that has
    lost it.
    """
    for file in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the folder that was just read
            os.set_inheritable(int(file), int(file) <= 2)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606


def _config(settings: Settings, context: typer.Context, example: bool) -> None:
    """Print the settings that `mayfly serve` would have with the same flags, environment and file,
    and from where.

    Secrets are counted, not shown. What model, corpus or machine decide is as it would be here.
    """
    if example:
        from serving.settings.example import example as file

        print(file(), end="")  # not through rich, which breaks lines
        return
    settings.check()
    told, of = effective(settings), sources(context)
    shown = table("setting", "value", "from")
    for name, value in told.items():
        row(shown, name.replace("_", "-"), value, of[name])
    show(shown)


_EXAMPLE = Annotated[
    bool, typer.Option("--example", help="Print an example of the settings file, and nothing else.")
]
_config.__name__ = "config"
config = with_settings(
    _config, Parameter("example", Parameter.KEYWORD_ONLY, annotation=_EXAMPLE, default=False)
)


def effective(settings: Settings) -> dict[str, str]:
    """What each setting comes to, in words; of secrets how many there are."""
    config = settings.config(only_to_show=True)
    decided = {
        "model": config.engine.model,
        "served_model_name": [config.engine.served_name, *config.engine.more_names],
        "budget": ", ".join(
            f"{name}={value:g}"
            for name, value in config.auto.as_dict().items()
            if value is not None
        ),
        "rank": config.trainer.rank,
        "allowed_host": [*config.allowed_hosts] or None,
        "allowed_origin": [*config.allowed_origins] or None,
        "api_key": f"{len(config.key_digests)}, not shown" if config.key_digests else None,
        "max_requests": config.capacity.requests,
        "max_adaptations": config.capacity.adaptations,
        "undegraded": config.capacity.undegraded,
        "threads": config.threads,
        "engine_gpus": config.engine_gpus,
        "trainer_gpus": config.trainer_gpus,
        "gpu_memory_utilization": config.engine.gpu_memory_utilization,
    }
    words = {}
    for each in fields(settings):
        value = decided.get(each.name, getattr(settings, each.name))
        listed = ", ".join(value) if isinstance(value, list) else value
        words[each.name] = by_default(each.name) if listed is None else str(listed)
    return words
