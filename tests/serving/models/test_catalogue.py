"""The names of models: the cache, the bundled model and the default."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from serving.environment import MODEL_CACHE
from serving.errors import ModelFilesError
from serving.models.card import ModelCard
from serving.models.catalogue import default_model, installed_models, model_folder, models_folder


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder of all models."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv(MODEL_CACHE, str(folder))
    return folder


def test_the_default_is_smollm2_where_it_is_installed(models: Path, nano: str) -> None:
    without = default_model()
    assert (without.name, without.folder) == ("nano", nano)
    assert without.reason == "smollm2 is not installed, `make install` brings it"
    assert model_folder(None) == nano
    with pytest.raises(ModelFilesError, match="'smollm2' is not installed: `make install`"):
        model_folder("smollm2")

    shutil.copytree(nano, models / "smollm2")

    chosen = default_model()
    assert (chosen.name, chosen.folder) == ("smollm2", str(models / "smollm2"))
    assert chosen.reason == "the default model"
    assert model_folder(None) == model_folder("smollm2") == str(models / "smollm2")


def test_a_name_is_that_of_an_installed_model_and_a_path_stays_a_path(
    models: Path, nano: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(nano, models / "mine")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()

    assert model_folder("mine") == str(models / "mine")
    assert model_folder("nano") == nano
    for other in ("./mine", str(tmp_path / "mine"), "owner/mine", "gpt2"):
        assert model_folder(other) == other


def test_models_are_listed_with_what_their_cards_say(models: Path, nano: str) -> None:
    for name in ("a", "b", ".unfinished"):
        shutil.copytree(nano, models / name)
    (models / "empty").mkdir()
    card = ModelCard("a-q4.gguf", "0" * 64, "mit", "llama", 5, "Q4_0", 4)
    card.write(models / "a")
    (models / "b" / "mayfly.json").write_text("{}")

    a, b, bundled = installed_models()

    assert (a.name, a.card) == ("a", card)
    assert (b.name, b.card.license, b.card.source) == ("b", None, str(models / "b"))
    assert (bundled.name, bundled.card.license) == ("nano", "apache-2.0")
    assert b.card.parameters == bundled.card.parameters == 5_573_888
    assert b.card.architecture == "llama"
    assert a.size == sum(file.stat().st_size for file in (models / "a").iterdir())


def test_models_are_below_the_home_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODEL_CACHE)
    assert models_folder() == Path.home() / ".mayfly" / "models"
