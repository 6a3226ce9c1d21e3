"""vLLM's arguments and variables are those that the installed vLLM knows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from serving.engine import vllm_options
from serving.engine.config import EngineConfig
from serving.engine.vllm_options import check_plugins, set_vllm_environment, vllm_arguments
from serving.errors import StartError

CONFIG = EngineConfig("folder", "served", 24, ("q_proj", "v_proj"), more_names=("alias",))

# In a process of its own, since importing vLLM changes the logging of the whole process.
_VLLM = """
import json, typing
import vllm.envs
from vllm.config.lora import MaxLoRARanks
known = [*vllm.envs.environment_variables]
print(json.dumps({"variables": known, "ranks": typing.get_args(MaxLoRARanks)}))
"""


@pytest.fixture(scope="module")
def vllm() -> dict[str, Any]:
    """The variables and the ranks that the installed vLLM knows."""
    ran = subprocess.run(
        [sys.executable, "-c", _VLLM], capture_output=True, text=True, check=True, timeout=180
    )
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_vllm_knows_the_variables_and_accepts_the_ranks(
    vllm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    set_vllm_environment()
    vllm_options.set_cpu_environment()
    ours = {name for name in os.environ if name.startswith("VLLM_")}

    assert len(ours) == 6
    assert ours <= set(vllm["variables"])
    assert list(vllm_options._RANKS) == vllm["ranks"]


def test_a_rank_is_rounded_up_to_one_that_vllm_accepts() -> None:
    arguments = vllm_arguments(CONFIG, on_cpu=True)

    assert arguments[arguments.index("--max-lora-rank") + 1] == "32"
    assert arguments[arguments.index("--served-model-name") :][1:3] == ["served", "alias"]


def test_memory_arguments_depend_on_the_platform() -> None:
    cpu, gpu = (vllm_arguments(CONFIG, on_cpu) for on_cpu in (True, False))

    assert "--kv-cache-memory-bytes" in cpu
    assert "--gpu-memory-utilization" not in cpu
    assert "--gpu-memory-utilization" in gpu
    assert "--kv-cache-memory-bytes" not in gpu
    assert cpu[cpu.index("--dtype") + 1] == "float32"
    assert gpu[gpu.index("--dtype") + 1] == "auto"


def test_the_plugins_are_installed() -> None:
    check_plugins()


def test_a_plugin_that_vllm_would_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "mayfly_cpu_lora,others")

    with pytest.raises(StartError, match="mayfly_parent_death, mayfly_strict_lora: reinstall"):
        check_plugins()
