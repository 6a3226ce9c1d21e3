"""The command `vllm serve` with the sizes of Mayfly's engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.latency.vllm_cli import vllm_serve
from serving.config import bundled_model
from serving.engine.config import EngineConfig
from serving.engine.vllm_options import cpu_dtype, vllm_arguments


def test_without_a_model_it_serves_the_bundled_one() -> None:
    command = vllm_serve(8000, 1024)

    assert command[command.index("serve") + 1] == bundled_model()
    assert _value(command, "--served-model-name") == "nano"


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_another_model_has_its_folders_name_and_the_sizes_of_mayflys_engine(
    stored: str, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    config = json.loads(Path(bundled_model(), "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": stored}))

    command = vllm_serve(8000, 1024, "--enable-lora", base=str(folder))

    engine = vllm_arguments(EngineConfig(str(folder), "other", 16, ()), on_cpu=True)
    assert command[command.index("serve") + 1] == str(folder)
    assert _value(command, "--served-model-name") == "other"
    assert _value(command, "--max-num-seqs") == _value(engine, "--max-num-seqs")
    assert _value(command, "--dtype") == _value(engine, "--dtype") == cpu_dtype(str(folder))
    assert command[-1] == "--enable-lora"


def _value(command: Sequence[str], flag: str) -> str:
    return command[command.index(flag) + 1]
