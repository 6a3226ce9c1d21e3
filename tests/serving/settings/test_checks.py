"""Checks of settings before a server starts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selection.location import DatabaseLocation
from serving.api_keys.changes import add_key
from serving.api_keys.key import digest
from serving.engine import vllm_arguments
from serving.engine.config import EngineConfig
from serving.errors import ModelFilesError, SettingsError
from serving.settings.checks import check_settings, check_vllm_arguments
from serving.settings.settings import Settings


def test_a_quantised_model_is_refused_with_what_to_do(nano: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(nano, model)
    config = json.loads((model / "config.json").read_text())
    check_settings(Settings(model=str(model), home=tmp_path))
    (model / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "awq", "bits": 4}})
    )

    with pytest.raises(ModelFilesError, match=r"is quantised \(awq\).*full precision"):
        check_settings(Settings(model=str(model), home=tmp_path))


def test_a_flag_of_vllm_that_mayfly_sets_is_refused(nano: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--max-loras cannot be passed on"):
        check_settings(Settings(model=nano, home=tmp_path, vllm=["--max-loras", "3"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corpora": "mysql://me:secret@host/db"}, "--corpora must be a URL of PostgreSQL"),
        ({"corpora": "/srv/corpora"}, "corpora in a folder are in that of --home"),
        ({"corpora": "postgresql://h/d", "shards": 2}, "--shards is for corpora in a folder"),
    ],
)
def test_a_database_that_cannot_do_what_is_asked_is_refused(
    nano: str, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        check_settings(Settings(model=nano, home=tmp_path, **options))

    assert "secret" not in str(refused.value)


def test_the_keys_of_the_database_are_required_and_checked(
    nano: str, tmp_path: Path, postgres: DatabaseLocation
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'[keys.alice]\nsha256 = "{digest("a")}"\n')
    settings = Settings(model=nano, home=tmp_path, corpora=postgres.url)
    check_settings(settings)
    assert not settings.has_keys
    assert not settings.config().has_keys

    add_key(postgres, "alice", {})

    check_settings(settings)
    assert settings.has_keys
    assert settings.config().has_keys
    assert settings.config().key_digests == ()
    with pytest.raises(SettingsError, match=r"the key 'alice' is in .* and in the database"):
        check_settings(replace(settings, api_key_file=file))
    # A page of any origin needs a key then.
    check_settings(replace(settings, allowed_origin=["*"]))


@pytest.mark.parametrize(
    "chosen",
    [{}, {"vllm_flags": ("--enforce-eager",)}, {"tool_call_parser": "hermes"}, {"dtype": "half"}],
)
def test_vllm_is_asked_about_what_the_user_has_chosen_only(
    monkeypatch: pytest.MonkeyPatch, chosen: dict[str, Any]
) -> None:
    asked: list[EngineConfig] = []
    monkeypatch.setattr(vllm_arguments, "check_arguments", asked.append)
    config = EngineConfig("model", "name", 16, ("q_proj",), **chosen)

    check_vllm_arguments(config)

    assert asked == [config] * bool(chosen)
