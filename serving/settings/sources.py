"""Options: settings as the flags of a command, as variables of the environment, in a file, and in
Ray Serve's `args`.

A setting `max_steps` is the flag `--max-steps`, `MAYFLY_MAX_STEPS` in the environment, and
`max-steps` in the file (TOML) and in the `args` of a Serve config. What is said in several places:
a flag goes before the environment, that before the file or `args`, that before the default. Typer
reads flags and environment and checks every value's range.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import fields
from difflib import get_close_matches
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from serving.environment import INTERNAL
from serving.errors import SettingsError
from serving.settings.settings import PANELS, Settings

FILE = "config"
_OTHER_VARIABLES = {"MAYFLY_CONFIG", "MAYFLY_API_KEY", *INTERNAL}  # of the file, and of clients
# What Kubernetes tells a pod of Services called mayfly, or mayfly-something.
_SERVICE_LINK = re.compile(r"MAYFLY_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT(_\d+_\w+)?)")
_KINDS = {int: "an integer", float: "a number", str: "text", Path: "text", list: "a list of texts"}

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        f"--{FILE}",
        envvar="MAYFLY_CONFIG",
        help="TOML file of these settings; flags and environment go before it.",
        is_eager=True,
        callback=lambda context, value: _from_file(context, value),
    ),
]


def with_settings(act: Callable[..., None], *more: Parameter) -> Callable[..., None]:
    """A command that has every setting as an option, and acts on them all together.

    Args:
        act: takes the settings, typer's context, and the further options by name.
        more: further options, each of which it must have a default for.
    """
    parameters = [*_parameters(), *more]

    def command(context: typer.Context, **said: Any) -> None:
        check_environment(os.environ)
        del said[FILE]
        others = {each.name: said.pop(each.name) for each in more}
        act(Settings(**said), context, **others)

    command.__name__, command.__doc__ = act.__name__, act.__doc__
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def settings_of(told: Mapping[str, Any]) -> Settings:
    """Settings from a mapping, such as the `args` of a Serve config; the environment goes before
    it.

    Raises:
        SettingsError: a name that is no setting, or a value that does not suit it; or a secret,
            since Ray shows and logs what it is told.
    """
    said = checked(told)
    if "api_key" in said:
        raise SettingsError(
            f"api-key is no secret here: set {variable('api_key')}, or `api-key-file`"
        )
    found: list[Settings] = []
    app = typer.Typer()
    app.command()(with_settings(lambda settings, _: found.append(settings)))
    try:
        typer.main.get_command(app).main([], standalone_mode=False, default_map=said)
    except typer.BadParameter as problem:
        raise SettingsError(problem.format_message()) from None
    return found[0]


def sources(context: typer.Context) -> dict[str, str]:
    """Where each setting's value is from: "flag", the variable, the file, or "default"."""
    words = {
        "COMMANDLINE": "flag",
        "ENVIRONMENT": "",
        "DEFAULT_MAP": str(context.params[FILE]),
        "DEFAULT": "default",
    }
    found = {}
    for each in fields(Settings):
        source = context.get_parameter_source(each.name)
        assert source is not None
        found[each.name] = words[source.name] or variable(each.name)
    return found


def by_default(setting: str) -> str:
    """In words, what a setting is that is nowhere said."""
    said = get_args(get_type_hints(Settings, include_extras=True)[setting])[1].show_default
    return said if isinstance(said, str) else "none"


def variable(setting: str) -> str:
    """Of the environment."""
    return "MAYFLY_API_KEYS" if setting == "api_key" else f"MAYFLY_{setting.upper()}"


def check_environment(environment: Mapping[str, str]) -> None:
    """Whether every variable that looks like a setting is one.

    Raises:
        SettingsError: one is not.
    """
    known = {variable(each.name) for each in fields(Settings)} | _OTHER_VARIABLES
    for name in sorted(
        each for each in environment if each.startswith("MAYFLY_") and each not in known
    ):
        if _SERVICE_LINK.fullmatch(name):
            continue
        like = get_close_matches(name, known, n=1, cutoff=0.85)
        raise SettingsError(
            f"the variable {name} is no setting" + (f"; is it {like[0]}?" if like else "; unset it")
        )


def checked(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says, by the settings' own names.

    Raises:
        SettingsError: a name that is no setting, or a value of another kind.
    """
    hints, found = get_type_hints(Settings), {}
    for name, value in told.items():
        setting = name.replace("-", "_")
        if setting not in hints:
            known = ", ".join(each.replace("_", "-") for each in hints)
            raise SettingsError(f"there is no setting {name!r}; there are {known}")
        kind = _kind(hints[setting])
        listed = [value] if kind is list and isinstance(value, str) else value
        if not _suits(listed, kind):
            raise SettingsError(f"{name} must be {_KINDS[kind]}, not {value!r}")
        found[setting] = listed
    return found


def _from_file(context: typer.Context, file: Path | None) -> Path | None:
    if file is None:
        return None
    try:
        said = checked(tomllib.loads(file.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError) as problem:
        raise SettingsError(f"cannot read the settings in {file}: {problem}") from problem
    # `args`, where there are any, go before it.
    context.default_map = {**said, **(context.default_map or {})}
    return file


def _parameters() -> list[Parameter]:
    hints = get_type_hints(Settings, include_extras=True)
    panels = {name: panel for panel, names in PANELS.items() for name in names}
    found = [
        Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context),
        Parameter(FILE, Parameter.KEYWORD_ONLY, annotation=ConfigFile, default=None),
    ]
    parameters = signature(Settings).parameters
    for name in dict.fromkeys([*panels, *parameters]):  # in the order of the help
        parameter = parameters[name]
        kind, shared = get_args(hints[name])
        option = copy(shared)
        option.envvar, option.show_envvar = variable(name), False
        option.rich_help_panel = panels.get(name)
        found.append(
            parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=Annotated[kind, option])
        )
    return found


def _kind(hint: Any) -> type:
    """int, float, str, Path or list."""
    if isinstance(hint, UnionType):
        hint = next(each for each in get_args(hint) if each is not type(None))
    origin = get_origin(hint) or hint
    return origin if origin in _KINDS else str  # a choice of texts


def _suits(value: Any, kind: type) -> bool:
    if kind is list:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    wanted = {int: int, float: (int, float)}.get(kind, str)
    return isinstance(value, wanted) and not isinstance(value, bool)  # type: ignore[arg-type]
