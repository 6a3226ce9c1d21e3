"""The commands `mayfly serve` and `mayfly config`: a server with these settings, and which settings these would be."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from dataclasses import fields
from typing import NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from serving.errors import LostError
from serving.options import by_default, sources, with_settings
from serving.settings import Settings, check
from serving.terminal import err, out


@with_settings
def serve(settings: Settings, _: typer.Context) -> None:
    """Serve the OpenAI API, an adapter trained for each request. Ctrl-C ends it."""
    from serving.app import running

    config, environment = settings.config(), dict(os.environ)
    check(config)
    try:
        with running(config, lambda stage: err.print(f"[dim]{stage} ...[/]")) as (url, watch):
            if not config.has_keys and not _is_loopback(config.host):
                err.print(
                    f"[yellow]open[/] to whoever reaches {config.host}:{config.port}, its corpora too: "
                    "there is no --api-key and no --api-key-file",
                    highlight=False,
                )
            err.print(f"[green]ready[/] {config.engine.served_name} at {url}/v1 (Ctrl-C ends it)", highlight=False)
            watch()
    except KeyboardInterrupt:
        err.print("ended")
    except LostError as problem:
        err.print(f"[red]{problem}[/]; starting again")
        _again(environment)


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _again(environment: dict[str, str]) -> NoReturn:
    """This command from its beginning, in this process: Ray cannot be started twice in one that has lost it."""
    for file in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the folder that was just read
            os.set_inheritable(int(file), int(file) <= 2)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606


@with_settings
def config(settings: Settings, context: typer.Context) -> None:
    """Print the settings that `mayfly serve` would have with the same flags, environment and file, and from where.

    Secrets are counted, not shown. What model, corpus or machine decide is as it would be here.
    """
    told, of = effective(settings), sources(context)
    table = Table("setting", "value", "from", box=None, pad_edge=False)
    for name, value in told.items():
        table.add_row(name.replace("_", "-"), escape(value), escape(of[name]))
    out.print(table, highlight=False)


def effective(settings: Settings) -> dict[str, str]:
    """What each setting comes to, in words; of secrets how many there are."""
    config = settings.config()
    decided = {
        "model": config.engine.model,
        "served_model_name": [config.engine.served_name, *config.engine.more_names],
        "budget": ", ".join(f"{name}={value:g}" for name, value in config.auto.as_dict().items() if value is not None),
        "rank": config.trainer.rank,
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
