"""vLLM's arguments and variables are those that the installed vLLM knows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from serving.engine import vllm_options
from serving.engine.config import EngineConfig
from serving.engine.vllm_options import check_plugins, set_vllm_environment, vllm_arguments
from serving.errors import StartError

CONFIG = EngineConfig(
    "folder", "served", 24, ("q_proj", "v_proj"), dtype="float32", more_names=("alias",)
)

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


@pytest.mark.parametrize(
    ("stored", "unit", "expected"),
    [
        ("bfloat16", "amx_bf16", "bfloat16"),
        ("bfloat16", "avx512_bf16", "bfloat16"),
        ("bfloat16", "avx2", "float32"),
        ("float16", "avx512_bf16", "float32"),
        ("float32", "amx_bf16", "float32"),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_model_and_processor_have_it(
    stored: str, unit: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": stored}))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {unit: True})
    config = replace(CONFIG, model=str(tmp_path), dtype="auto")

    on_cpu, on_gpu = (vllm_arguments(config, on_cpu) for on_cpu in (True, False))

    assert on_cpu[on_cpu.index("--dtype") + 1] == expected
    assert on_gpu[on_gpu.index("--dtype") + 1] == "auto"


def test_the_plugins_are_installed() -> None:
    check_plugins()


def test_a_plugin_that_vllm_would_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "mayfly_cpu_lora,others")

    with pytest.raises(StartError, match="mayfly_parent_death, mayfly_strict_lora: reinstall"):
        check_plugins()
