"""The distribution: nothing shadows our packages, and wheels and source archives are complete."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parents[1]
_PACKAGES = ["serving", "adapters", "selection"]


def test_adapterhub_is_not_installed() -> None:
    # The distribution `adapters` has a package of the same name, which would shadow ours.
    with pytest.raises(PackageNotFoundError):
        distribution("adapters")


@pytest.mark.parametrize("package", _PACKAGES)
def test_our_packages_are_imported_from_this_repository(package: str) -> None:
    module = importlib.import_module(package)

    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == _REPOSITORY / package / "__init__.py"


def test_a_wheel_contains_the_packages_and_the_bundled_model(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=_REPOSITORY, check=True, capture_output=True, text=True)

    (wheel,) = tmp_path.glob("mayfly_serve-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        model = archive.read("serving/nano/model.safetensors")
        entry_points = archive.read(
            next(name for name in names if name.endswith("entry_points.txt"))
        ).decode()

    sources = {
        str(file.relative_to(_REPOSITORY))
        for package in _PACKAGES
        for file in (_REPOSITORY / package).rglob("*.py")
    }
    assert sources <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(_PACKAGES)
    assert model == (_REPOSITORY / "deploy" / "nano" / "model.safetensors").read_bytes()
    assert {"serving/nano/config.json", "serving/nano/tokenizer.json"} <= names
    assert "mayfly = serving.cli.main:main" in entry_points
    for plugin in ("cpu_lora", "parent_death", "strict_lora"):
        assert f"mayfly_{plugin} = serving.engine.plugins.{plugin}:register" in entry_points


def test_a_source_archive_builds_a_wheel_that_runs_elsewhere(tmp_path: Path) -> None:
    """The wheel is installed into a folder outside this repository, without its dependencies."""
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path / "dist")]
    subprocess.run(
        [*build, "-t", "sdist"], cwd=_REPOSITORY, check=True, capture_output=True, text=True
    )
    (source,) = (tmp_path / "dist").glob("mayfly_serve-*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (unpacked,) = (tmp_path / "source").iterdir()
    subprocess.run(
        [*build, "-t", "wheel"], cwd=unpacked, check=True, capture_output=True, text=True
    )
    (wheel,) = (tmp_path / "dist").glob("mayfly_serve-*.whl")

    installed = tmp_path / "installed"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-qq",
        "--no-deps",
        "--no-index",
        "--target",
        str(installed),
        str(wheel),
    ]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    code = (
        "from adapters.model_defaults import for_model; from serving.config import bundled_model; "
        "print(for_model(bundled_model()).model)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    )

    assert ran.stdout.strip() == str(installed / "serving" / "nano")
    assert not any(part in {".venv", ".cache", "results"} for part in os.listdir(unpacked))
