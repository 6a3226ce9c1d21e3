"""Reads settings from flags, environment variables, a TOML file and Ray Serve's `args`.

The setting `max_steps` is the flag `--max-steps`, the variable `MAYFLY_MAX_STEPS`, and `max-steps`
in the file and in the `args`. A flag overrides a variable, a variable overrides the file and the
`args`, and these override the default. Typer parses flags and variables and checks the range of
every value.
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

from serving.engine.vllm_flags import flags_of
from serving.environment import INTERNAL, MODEL_CACHE
from serving.errors import SettingsError
from serving.settings.panels import PANELS
from serving.settings.settings import Settings
from serving.settings.shared_options import has_password

FILE = "config"
# Variables that name the settings file or the models, are read by clients, or are internal.
_OTHER_VARIABLES = {"MAYFLY_CONFIG", "MAYFLY_API_KEY", MODEL_CACHE, *INTERNAL}
# Variables that Kubernetes sets in every pod for Services called mayfly or mayfly-something.
_SERVICE_LINK = re.compile(r"MAYFLY_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT(_\d+_\w+)?)")
_KINDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    Path: "text",
    list: "a list of texts",
}

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        f"--{FILE}",
        envvar="MAYFLY_CONFIG",
        help="TOML file of settings; flags and environment variables override it.",
        is_eager=True,
        callback=lambda context, value: _from_file(context, value),
    ),
]


def with_settings(action: Callable[..., None], *extra: Parameter) -> Callable[..., None]:
    """A command with an option for every setting.

    Args:
        action: takes the settings, typer's context, and the extra options by name.
        extra: extra options, each with a default.
    """
    parameters = [*_parameters(), *extra]

    def command(context: typer.Context, **values: Any) -> None:
        check_environment(os.environ)
        del values[FILE]
        options = {each.name: values.pop(each.name) for each in extra}
        action(Settings(**values), context, **options)

    command.__name__, command.__doc__ = action.__name__, action.__doc__
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings from a mapping, such as the `args` of a Serve config; the environment overrides it.

    Raises:
        SettingsError: a name is unknown or a value is invalid; or the mapping has an API key, which
            Ray would show and log.
    """
    parsed = parse_settings(values)
    if "api_key" in parsed:
        raise SettingsError(
            f"Ray shows and logs an api-key in the args: set {variable('api_key')} "
            "in the environment, or api-key-file"
        )
    if has_password(parsed.get("corpora") or ""):
        raise SettingsError(
            f"Ray shows and logs a password in the args: set {variable('corpora')} in the "
            "environment"
        )
    found: list[Settings] = []
    app = typer.Typer()
    app.command()(with_settings(lambda settings, _: found.append(settings)))
    try:
        typer.main.get_command(app).main([], standalone_mode=False, default_map=parsed)
    except typer.BadParameter as problem:
        raise SettingsError(problem.format_message()) from None
    return found[0]


def sources(context: typer.Context) -> dict[str, str]:
    """Where the value of each setting comes from: "flag", a variable, the file, or "default"."""
    names = {
        "COMMANDLINE": "flag",
        "ENVIRONMENT": "",
        "DEFAULT_MAP": str(context.params[FILE]),
        "DEFAULT": "default",
    }
    found = {}
    for each in fields(Settings):
        source = context.get_parameter_source(each.name)
        assert source is not None
        found[each.name] = names[source.name] or variable(each.name)
    return found


def describe_default(setting: str) -> str:
    """A description of a setting's default that depends on something; "none" without one."""
    hint = get_type_hints(Settings, include_extras=True)[setting]
    default = get_args(hint)[1].show_default
    return default if isinstance(default, str) else "none"


def variable(setting: str) -> str:
    """The name of a setting's environment variable."""
    return "MAYFLY_API_KEYS" if setting == "api_key" else f"MAYFLY_{setting.upper()}"


def check_environment(environment: Mapping[str, str]) -> None:
    """Check that every variable called MAYFLY_* exists.

    Raises:
        SettingsError: a variable is unknown, which may be a misspelt setting.
    """
    known = {variable(each.name) for each in fields(Settings)} | _OTHER_VARIABLES
    for name in sorted(environment):
        if not name.startswith("MAYFLY_") or name in known or _SERVICE_LINK.fullmatch(name):
            continue
        similar = get_close_matches(name, known, n=1, cutoff=0.85)
        remedy = f"did you mean {similar[0]}?" if similar else "unset it"
        raise SettingsError(f"unknown environment variable {name}: {remedy}")


def parse_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the names and types of a mapping of settings, and return it by attribute names.

    Raises:
        SettingsError: a name is unknown or a value has the wrong type.
    """
    hints, parsed = get_type_hints(Settings), {}
    for name, value in values.items():
        setting = name.replace("-", "_")
        if setting not in hints:
            known = ", ".join(each.replace("_", "-") for each in hints)
            raise SettingsError(f"unknown setting {name!r}; the settings are {known}")
        if setting == "vllm" and isinstance(value, dict):
            parsed[setting] = flags_of(value)
            continue
        kind = _kind(hints[setting])
        parsed[setting] = [value] if kind is list and isinstance(value, str) else value
        if not _is_a(kind, parsed[setting]):
            raise SettingsError(f"{name} must be {_KINDS[kind]}, not {value!r}")
    return parsed


def _from_file(context: typer.Context, file: Path | None) -> Path | None:
    if file is None:
        return None
    try:
        values = parse_settings(tomllib.loads(file.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError) as problem:
        raise SettingsError(f"cannot read the settings in {file}: {problem}") from problem
    # The `args` of a Serve config override the file.
    context.default_map = {**values, **(context.default_map or {})}
    return file


def _parameters() -> list[Parameter]:
    hints = get_type_hints(Settings, include_extras=True)
    panels = {name: panel for panel, names in PANELS.items() for name in names}
    found = [
        Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context),
        Parameter(FILE, Parameter.KEYWORD_ONLY, annotation=ConfigFile, default=None),
    ]
    parameters = signature(Settings).parameters
    for name in dict.fromkeys([*panels, *parameters]):  # the order of the help
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
    """bool, int, float, str, Path or list."""
    if isinstance(hint, UnionType):
        hint = next(each for each in get_args(hint) if each is not type(None))
    origin = get_origin(hint) or hint
    return origin if origin in _KINDS else str  # a Literal of texts


def _is_a(kind: type, value: Any) -> bool:
    if kind is list:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    expected = {bool: bool, int: int, float: (int, float)}.get(kind, str)
    return isinstance(value, expected) and isinstance(value, bool) == (kind is bool)  # type: ignore[arg-type]
