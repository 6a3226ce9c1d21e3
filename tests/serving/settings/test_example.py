"""The example of the settings file: it has every setting, and leaves each one at its default."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import typer
from typer.testing import CliRunner

from serving.cli.main import app
from serving.settings.example import example
from serving.settings.panels import PANELS
from serving.settings.settings import Settings
from serving.settings.sources import parse_settings, with_settings

# Its default depends on the user.
_USER_DEPENDENT = {"home"}


def settings_from_file(file: Path) -> Settings:
    found: list[Settings] = []
    command = typer.Typer()
    command.command()(with_settings(lambda settings, _: found.append(settings)))
    done = CliRunner().invoke(command, ["--config", str(file)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return found[0]


def test_unchanged_it_sets_the_defaults(tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["config", "--example"])
    (tmp_path / "mayfly.toml").write_text(printed.stdout)

    assert printed.stdout == example()
    assert settings_from_file(tmp_path / "mayfly.toml") == Settings()


def test_uncommented_it_sets_every_setting(tmp_path: Path) -> None:
    lines = re.sub(r"^#(?=[a-z])", "", example(), flags=re.MULTILINE)
    (tmp_path / "mayfly.toml").write_text(lines)

    parsed, settings = (
        parse_settings(tomllib.loads(lines)),
        settings_from_file(tmp_path / "mayfly.toml"),
    )

    assert list(parsed) == [name for names in PANELS.values() for name in names]
    assert set(parsed) == {each.name for each in fields(Settings)}
    for each in fields(Settings):
        default = getattr(Settings(), each.name)
        if default is not None and default != "" and each.name not in _USER_DEPENDENT:
            assert getattr(settings, each.name) == default, each.name


def test_the_help_shows_the_settings_in_panels() -> None:
    help_ = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output

    at = -1
    # The argument of the last panel is shown before all options.
    *options, (argument, _) = PANELS.items()
    assert "[-- VLLM FLAGS]" in help_.partition(f"─ {argument} ─")[2].partition("╰")[0]
    for panel, names in options:
        assert help_.index(f"─ {panel} ─") > at
        at = help_.index(f"─ {panel} ─")
        box = help_[at:].partition("╰")[0]
        for name in names:
            assert f"--{name.replace('_', '-')} " in box, (panel, name)
