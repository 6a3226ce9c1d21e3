"""How many threads the hardware and the size of a model allow."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from serving.settings.hardware import cores_to_take


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that says how large its model is, without its weights."""
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def say_parameters(model: Path, parameters: int) -> None:
    """Write the header of a file of weights."""
    tensor = {"dtype": "F32", "shape": [parameters], "data_offsets": [0, 4 * parameters]}
    header = json.dumps({"weight": tensor}).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize(("parameters", "cores"), [(50_000_000, 8), (49_999_999, 0)])
def test_a_process_takes_all_cores_for_a_large_model_alone(
    parameters: int, cores: int, model: Path
) -> None:
    say_parameters(model, parameters)

    assert cores_to_take(8, model) == cores


def test_of_a_model_of_unknown_size_it_takes_its_share(model: Path) -> None:
    assert cores_to_take(8, model) == 0
    assert cores_to_take(8, None) == 0
