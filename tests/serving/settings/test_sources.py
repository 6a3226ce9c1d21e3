"""Settings from flags, environment, file and Serve's `args`: precedence and errors."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from serving.app import application
from serving.cli.main import app
from serving.settings.settings import Settings
from serving.settings.sources import settings_from, sources, variable, with_settings


class Command:
    """A command that stores its settings and their sources."""

    def __init__(self) -> None:
        self.settings, self.sources = Settings(), {"": ""}
        self.app = typer.Typer()
        self.app.command()(with_settings(self._store))

    def _store(self, settings: Settings, context: typer.Context) -> None:
        self.settings, self.sources = settings, sources(context)

    def run(self, *flags: str, **environment: str) -> Settings:
        done = CliRunner().invoke(self.app, flags, env=environment, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return self.settings


@pytest.fixture
def command() -> Command:
    return Command()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    written = tmp_path / "mayfly.toml"
    written.write_text(
        "port = 9000\nmax-steps = 20\nmax_seconds = 5\n"
        'served-model-name = ["a", "b"]\nhome = "/data"\n'
    )
    return written


def test_without_any_source_settings_have_their_defaults(command: Command) -> None:
    assert command.run() == Settings()
    assert set(command.sources.values()) == {"default"}


def test_flags_override_the_environment_and_that_the_file(command: Command, file: Path) -> None:
    settings = command.run(
        "--config", str(file), "--port", "9002", MAYFLY_PORT="9001", MAYFLY_MAX_STEPS="30"
    )

    assert (settings.port, settings.max_steps, settings.max_seconds) == (9002, 30, 5.0)
    assert settings.served_model_name == ["a", "b"]
    assert settings.home == Path("/data")
    assert {name: source for name, source in command.sources.items() if source != "default"} == {
        "port": "flag",
        "max_steps": "MAYFLY_MAX_STEPS",
        "max_seconds": str(file),
        "served_model_name": str(file),
        "home": str(file),
    }


def test_a_setting_may_have_several_values_in_every_source(
    command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "several.toml"
    file.write_text(
        'allowed-host = ["a.example", "b.example"]\nallowed-origin = "https://c.example"\n'
    )

    flags = command.run("--allowed-host", "a.example", "--allowed-host", "b.example")
    variables = command.run(
        MAYFLY_ALLOWED_HOST="a.example b.example", MAYFLY_ALLOWED_ORIGIN="https://c.example"
    )
    filed = command.run("--config", str(file))
    served = settings_from(
        {"allowed-host": ["a.example", "b.example"], "allowed-origin": "https://c.example"}
    )

    for settings in (flags, variables, filed, served):
        assert settings.allowed_host == ["a.example", "b.example"]
    for settings in (variables, filed, served):
        assert settings.allowed_origin == ["https://c.example"]


def test_flags_of_vllm_come_from_every_source(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "mayfly.toml"
    file.write_text("[vllm]\nquantization = 'awq'\nenforce-eager = true\n")

    assert command.run("--config", str(file)).vllm == ["--quantization=awq", "--enforce-eager"]
    variable = command.run("--config", str(file), MAYFLY_VLLM="--quantization fp8")
    assert variable.vllm == ["--quantization", "fp8"]
    flags = ["--chat-template", "a file", "-tp", "2"]
    assert command.run("--port", "9001", "--", *flags, MAYFLY_VLLM="-q fp8").vllm == flags
    assert command.sources["vllm"] == "flag"
    assert settings_from({"vllm": {"max-num-seqs": 2}}).vllm == ["--max-num-seqs=2"]


def test_the_environment_may_name_the_file(command: Command, file: Path) -> None:
    assert command.run(MAYFLY_CONFIG=str(file)).port == 9000


def test_every_setting_is_a_flag_and_a_variable() -> None:
    help_ = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output

    for each in fields(Settings):
        flag = "-- VLLM FLAGS" if each.name == "vllm" else f"--{each.name.replace('_', '-')}"
        assert flag in help_
        assert variable(each.name).startswith("MAYFLY_")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prot = 1", "unknown setting 'prot'"),
        ("port = 70000", "port"),
        ('port = "many"', "port must be an integer"),
        ("port = true", "port must be an integer"),
        ("max-steps = 2.5", "max-steps must be an integer"),
        ("model = 5", "model must be text"),
        ("served-model-name = [1]", "a list of texts"),
        ("[port]\nx = 1", "port must be an integer"),
        ("vllm = 1", "vllm must be a list of texts"),
        ("port =", "cannot read the settings"),
        ('log-format = "loud"', "log-format"),
    ],
)
def test_an_error_in_the_file_is_reported(
    line: str, message: str, command: Command, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(line)

    done = CliRunner().invoke(
        command.app, ["--config", str(wrong)], env={"TERM": "dumb", "COLUMNS": "300"}
    )

    assert done.exit_code != 0
    assert message in done.output + str(done.exception)


def test_a_missing_file_is_reported(command: Command, tmp_path: Path) -> None:
    done = CliRunner().invoke(command.app, ["--config", str(tmp_path / "none.toml")])

    assert done.exit_code != 0
    assert "none.toml" in done.output + str(done.exception)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "MAYFLY_MAX_STEP",
            "unknown environment variable MAYFLY_MAX_STEP: did you mean MAYFLY_MAX_STEPS?",
        ),
        ("MAYFLY_COLOUR_OF_WINGS", "unknown environment variable MAYFLY_COLOUR_OF_WINGS: unset it"),
    ],
)
def test_an_unknown_variable_is_reported(name: str, message: str, command: Command) -> None:
    done = CliRunner().invoke(command.app, [], env={name: "1", "MAYFLY_API_KEY": "a client's"})

    assert done.exit_code != 0
    assert message in done.output + str(done.exception)


def test_the_service_variables_of_kubernetes_are_ignored(command: Command) -> None:
    links = (
        "MAYFLY_SERVICE_HOST",
        "MAYFLY_WEB_SERVICE_PORT_HTTP",
        "MAYFLY_WEB_PORT",
        "MAYFLY_PORT_8000_TCP_ADDR",
    )

    assert command.run(**dict.fromkeys(links, "10.0.0.1")) == Settings()


def test_arguments_of_a_serve_config_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    args = {"max-steps": 20, "log-format": "json", "served-model-name": "mine"}

    assert settings_from(args) == replace(
        Settings(), max_steps=20, log_format="json", served_model_name=["mine"]
    )
    assert settings_from({}) == Settings()
    monkeypatch.setenv("MAYFLY_MAX_STEPS", "30")
    assert settings_from(args).max_steps == 30


def test_arguments_override_a_file_that_the_environment_names(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAYFLY_CONFIG", str(file))

    settings = settings_from({"max-steps": 7})

    assert (settings.max_steps, settings.port) == (7, 9000)


def test_the_application_of_a_cluster_needs_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MAYFLY_API_KEYS", raising=False)

    with pytest.raises(ValueError, match="needs keys"):
        application({"home": str(tmp_path)})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"api-key": "secret"}, "Ray shows and logs an api-key"),
        ({"corpora": "postgresql://me:secret@host/db"}, "set MAYFLY_CORPORA in the environment"),
        ({"corpora": "postgresql://host/db?password=secret"}, "Ray shows and logs a password"),
        ({"steps": 1}, "unknown setting 'steps'"),
        ({"port": 0}, "port"),
        ({"max-seconds": "much"}, "must be a number"),
    ],
)
def test_invalid_arguments_are_an_error(args: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_from(args)
