"""docs/cluster.md, which no test runs: Ray knows its commands, and fragments fit the manifests."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from ray.scripts.scripts import start

from serving import __version__
from tests.deploy.test_kubernetes import cluster, every_overlay

_ROOT = Path(__file__).resolve().parents[2]
_PAGE = (_ROOT / "docs" / "cluster.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", _PAGE, re.DOTALL | re.MULTILINE)


def test_ray_start_knows_every_option() -> None:
    script = "\n".join(blocks("shell")).replace("\\\n", " ")
    commands = re.findall(r"ray start --head.*", script)
    known = {name for parameter in start.params for name in parameter.opts}

    assert len(commands) == 2
    for command in commands:
        options = [word for word in shlex.split(command, comments=True) if word.startswith("--")]
        assert set(options) <= known


@every_overlay
def test_the_page_says_how_to_survive_the_loss_of_a_head_which_no_overlay_does(name: str) -> None:
    (example,) = [
        found["spec"]["rayClusterConfig"]
        for found in map(yaml.safe_load, blocks("yaml"))
        if "spec" in found
    ]

    assert "gcsFaultToleranceOptions" not in cluster(name)
    # The fields of KubeRay's GcsFaultToleranceOptions that an external Redis needs.
    assert set(example) == {"gcsFaultToleranceOptions"}
    assert set(example["gcsFaultToleranceOptions"]) == {"redisAddress", "redisPassword"}
    assert "value" not in example["gcsFaultToleranceOptions"]["redisPassword"]


@pytest.mark.parametrize(
    "file", ["docs/cluster.md", "deploy/docker/cpu.Dockerfile", "deploy/docker/cuda.Dockerfile"]
)
def test_commands_name_images_of_this_version(file: str) -> None:
    tags = re.findall(r"\bmayfly:(\d[\w.]*)-(?:cpu|gpu)\b", (_ROOT / file).read_text())

    assert tags
    assert set(tags) == {__version__}
