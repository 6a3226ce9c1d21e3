"""Settings: the configuration that follows from them, and how `mayfly config` shows them."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serving.budget import AUTO, LIMITS
from serving.cli.main import app
from serving.cli.serve import effective
from serving.config import bundled_model
from serving.settings.hardware import available_cores
from serving.settings.settings import Settings


def test_defaults_are_decided_by_model_and_machine(tmp_path: Path) -> None:
    config = Settings(home=tmp_path).config()

    assert (
        config.engine.model == config.trainer.model == config.selector.base_model == bundled_model()
    )
    assert config.engine.served_name == "nano"
    assert config.engine.rank == config.trainer.rank == 16
    assert config.auto == AUTO.clamp(LIMITS)[0]
    assert config.threads >= 1
    # The model is small.
    assert config.cores == 0
    assert (
        config.capacity.requests >= config.capacity.adaptations >= config.capacity.undegraded >= 1
    )


def test_settings_reach_the_configurations_of_their_parts(tmp_path: Path) -> None:
    config = Settings(
        home=tmp_path,
        served_model_name=["a", "b"],
        budget="steps=40",
        max_steps=20,
        learning_rate=1e-3,
        rank=8,
        lora_target=["q_proj", "v_proj"],
        slots=3,
        regularisation=0.5,
        show=5,
        max_requests=7,
        api_key=["secret"],
        threads=3,
        allowed_host=["GPU.example"],
        allowed_origin=["*"],
        engine_gpus=1,
        trainer_gpus=2,
    ).config()

    assert (config.engine.served_name, config.engine.more_names) == ("a", ("b",))
    assert (config.auto.steps, config.limits.steps) == (20, 20)
    assert (config.trainer.learning_rate, config.trainer.rank, config.trainer.slots) == (1e-3, 8, 3)
    assert config.engine.rank == 8
    assert config.engine.targets == config.trainer.targets == ("q_proj", "v_proj")
    assert (config.selector.regularisation, config.show) == (0.5, 5)
    assert config.capacity.requests == 7
    assert len(config.key_digests) == 1
    assert (config.allowed_hosts, config.allowed_origins) == (("gpu.example",), ("*",))
    assert (config.engine_gpus, config.trainer_gpus) == (1, 2)
    # Threads that were asked for are neither more nor fewer.
    assert (config.threads, config.cores) == (3, 0)


def test_an_engine_with_a_whole_gpu_takes_more_of_its_memory(tmp_path: Path) -> None:
    assert Settings(home=tmp_path, engine_gpus=1).config().engine.gpu_memory_utilization == 0.9
    assert Settings(home=tmp_path, engine_gpus=0.5).config().engine.gpu_memory_utilization == 0.55
    assert (
        Settings(home=tmp_path, gpu_memory_utilization=0.3).config().engine.gpu_memory_utilization
        == 0.3
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(model="/no/such/model"), "cannot load the model"),
        (Settings(precision="float8"), "unknown precision"),
        (Settings(max_seconds=math.nan), "max-seconds is nan"),
        (Settings(budget="much"), "Compute-Budget"),
        (Settings(allowed_host=["http://a"]), "invalid allowed-host 'http://a'"),
        (Settings(allowed_origin=["a.example"]), "invalid allowed-origin 'a.example'"),
        (Settings(allowed_origin=["*"]), "api-key"),
        (Settings(corpus="nowhere"), "no corpus 'nowhere'"),
        (Settings(lora_target=["w1"]), "no projections named w1: its projections are q_proj, k_"),
    ],
)
def test_an_invalid_value_is_an_error(settings: Settings, message: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=message):
        Settings(**{**vars(settings), "home": tmp_path}).config()


def test_the_cpu_limit_of_a_container_counts(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert available_cores(tmp_path) == len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert available_cores(tmp_path) == 1


def test_the_command_shows_every_setting_and_its_source_but_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "mayfly.toml"
    file.write_text("max-steps = 20\n")
    environment = {"MAYFLY_API_KEYS": "hidden-one hidden-two", "COLUMNS": "300"}

    flags = ["--allowed-host", "GPU.example", "--allowed-host", "b.example"]
    shown = CliRunner().invoke(
        app, ["config", "--config", str(file), "--home", str(tmp_path), *flags], env=environment
    )

    assert shown.exit_code == 0, shown.output
    lines = {line.split()[0]: line for line in shown.output.splitlines()}
    assert "hidden" not in shown.output
    assert "2, not shown" in lines["api-key"]
    assert "MAYFLY_API_KEYS" in lines["api-key"]
    assert lines["max-steps"].split() == ["max-steps", "20", str(file)]
    assert lines["allowed-host"].split() == ["allowed-host", "gpu.example,", "b.example", "flag"]
    assert lines["allowed-origin"].split() == ["allowed-origin", "none", "default"]
    assert lines["rank"].split() == ["rank", "16", "default"]
    assert lines["learning-rate"].split() == ["learning-rate", "by", "model", "size", "default"]
    # The budget is shown within the limits.
    assert "steps=20, seconds=20, gain=0.25" in lines["budget"]


def test_no_password_of_a_database_is_shown(nano: str, tmp_path: Path) -> None:
    url = "postgresql://me:s3cret@db.internal/corpora?sslmode=verify-full"
    # With a key of its own, the database is not asked whether it has one.
    settings = Settings(model=nano, home=tmp_path, corpora=url, api_key=["a"])

    assert effective(settings)["corpora"] == "postgresql://me@db.internal/corpora"
    assert "s3cret" not in repr(settings.config())
