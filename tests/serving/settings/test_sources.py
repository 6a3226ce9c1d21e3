"""Settings from flags, environment, file and Serve's `args`: who goes first, and what is wrong with
them.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from serving.app import application
from serving.cli.main import app
from serving.settings.settings import Settings
from serving.settings.sources import settings_of, sources, variable, with_settings


class Heard:
    """A command that keeps what it was told."""

    def __init__(self) -> None:
        self.settings, self.of = Settings(), {"": ""}
        self.app = typer.Typer()
        self.app.command()(with_settings(self._hear))

    def _hear(self, settings: Settings, context: typer.Context) -> None:
        self.settings, self.of = settings, sources(context)

    def told(self, *flags: str, **environment: str) -> Settings:
        done = CliRunner().invoke(self.app, flags, env=environment, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return self.settings


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    written = tmp_path / "mayfly.toml"
    written.write_text(
        'port = 9000\nmax-steps = 20\nmax_seconds = 5\nserved-model-name = ["a", "b"]\nhome = "/data"\n'
    )
    return written


def test_what_is_nowhere_said_is_the_default(heard: Heard) -> None:
    assert heard.told() == Settings()
    assert set(heard.of.values()) == {"default"}


def test_a_flag_goes_before_the_environment_that_before_the_file(heard: Heard, file: Path) -> None:
    told = heard.told(
        "--config", str(file), "--port", "9002", MAYFLY_PORT="9001", MAYFLY_MAX_STEPS="30"
    )

    assert (told.port, told.max_steps, told.max_seconds) == (9002, 30, 5.0)
    assert told.served_model_name == ["a", "b"]
    assert told.home == Path("/data")
    assert {name: of for name, of in heard.of.items() if of != "default"} == {
        "port": "flag",
        "max_steps": "MAYFLY_MAX_STEPS",
        "max_seconds": str(file),
        "served_model_name": str(file),
        "home": str(file),
    }


def test_a_setting_of_several_values_is_one_everywhere(heard: Heard, tmp_path: Path) -> None:
    file = tmp_path / "several.toml"
    file.write_text(
        'allowed-host = ["a.example", "b.example"]\nallowed-origin = "https://c.example"\n'
    )

    flags = heard.told("--allowed-host", "a.example", "--allowed-host", "b.example")
    variables = heard.told(
        MAYFLY_ALLOWED_HOST="a.example b.example", MAYFLY_ALLOWED_ORIGIN="https://c.example"
    )
    filed = heard.told("--config", str(file))
    served = settings_of(
        {"allowed-host": ["a.example", "b.example"], "allowed-origin": "https://c.example"}
    )

    for told in (flags, variables, filed, served):
        assert told.allowed_host == ["a.example", "b.example"]
    for told in (variables, filed, served):
        assert told.allowed_origin == ["https://c.example"]


def test_the_environment_names_the_file_too(heard: Heard, file: Path) -> None:
    assert heard.told(MAYFLY_CONFIG=str(file)).port == 9000


def test_every_setting_is_a_flag_and_a_variable() -> None:
    help_ = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output

    for each in fields(Settings):
        assert f"--{each.name.replace('_', '-')}" in help_
        assert variable(each.name).startswith("MAYFLY_")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("prot = 1", "no setting 'prot'"),
        ("port = 70000", "port"),
        ('port = "many"', "port must be an integer"),
        ("port = true", "port must be an integer"),
        ("max-steps = 2.5", "max-steps must be an integer"),
        ("model = 5", "model must be text"),
        ("served-model-name = [1]", "a list of texts"),
        ("[port]\nx = 1", "port must be an integer"),
        ("port =", "cannot read the settings"),
        ('log-format = "loud"', "log-format"),
    ],
)
def test_what_a_file_says_wrong_is_told(
    line: str, words: str, heard: Heard, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(line)

    done = CliRunner().invoke(
        heard.app, ["--config", str(wrong)], env={"TERM": "dumb", "COLUMNS": "300"}
    )

    assert done.exit_code != 0
    assert words in done.output + str(done.exception)


def test_a_file_that_is_not_there_is_told(heard: Heard, tmp_path: Path) -> None:
    done = CliRunner().invoke(heard.app, ["--config", str(tmp_path / "none.toml")])

    assert done.exit_code != 0
    assert "none.toml" in done.output + str(done.exception)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MAYFLY_MAX_STEP", "MAYFLY_MAX_STEP is no setting; is it MAYFLY_MAX_STEPS?"),
        ("MAYFLY_COLOUR_OF_WINGS", "MAYFLY_COLOUR_OF_WINGS is no setting; unset it"),
    ],
)
def test_a_variable_that_is_no_setting_is_told(name: str, words: str, heard: Heard) -> None:
    done = CliRunner().invoke(heard.app, [], env={name: "1", "MAYFLY_API_KEY": "a client's"})

    assert done.exit_code != 0
    assert words in done.output + str(done.exception)


def test_what_kubernetes_tells_of_its_services_is_passed_over(heard: Heard) -> None:
    links = (
        "MAYFLY_SERVICE_HOST",
        "MAYFLY_WEB_SERVICE_PORT_HTTP",
        "MAYFLY_WEB_PORT",
        "MAYFLY_PORT_8000_TCP_ADDR",
    )

    assert heard.told(**dict.fromkeys(links, "10.0.0.1")) == Settings()


def test_arguments_of_a_serve_config_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"max-steps": 20, "log-format": "json", "served-model-name": "mine"}

    assert settings_of(told) == replace(
        Settings(), max_steps=20, log_format="json", served_model_name=["mine"]
    )
    assert settings_of({}) == Settings()
    monkeypatch.setenv("MAYFLY_MAX_STEPS", "30")
    assert settings_of(told).max_steps == 30


def test_arguments_go_before_a_file_that_the_environment_names(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAYFLY_CONFIG", str(file))

    told = settings_of({"max-steps": 7})

    assert (told.max_steps, told.port) == (7, 9000)


def test_a_clusters_server_is_not_built_without_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MAYFLY_API_KEYS", raising=False)

    with pytest.raises(ValueError, match="needs keys"):
        application({"home": str(tmp_path)})


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"api-key": "secret"}, "no secret here"),
        ({"steps": 1}, "no setting 'steps'"),
        ({"port": 0}, "port"),
        ({"max-seconds": "much"}, "must be a number"),
    ],
)
def test_arguments_that_are_wrong_are_a_value_error(told: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings_of(told)
