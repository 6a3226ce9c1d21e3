"""The fingerprint of a base model: equal for copies, different for fine-tunes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from adapters.errors import BaseModelError
from adapters.fingerprint import model_fingerprint


@pytest.fixture
def copy(tiny_llama: str, tmp_path: Path) -> Path:
    """A copy of the tiny Llama, in another folder."""
    shutil.copytree(tiny_llama, tmp_path / "copy")
    return tmp_path / "copy"


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values, indent=4))


def test_a_copy_has_the_same(tiny_llama: str, copy: Path) -> None:
    found = model_fingerprint(copy)

    assert found == model_fingerprint(Path(tiny_llama))
    assert len(found) == 32
    int(found, 16)


def test_names_and_versions_of_libraries_do_not_count(tiny_llama: str, copy: Path) -> None:
    change_config(copy, transformers_version="99.0", _name_or_path="elsewhere/model")

    assert model_fingerprint(copy) == model_fingerprint(Path(tiny_llama))


def test_another_configuration_counts(tiny_llama: str, copy: Path) -> None:
    change_config(copy, rope_theta=12345.0)

    assert model_fingerprint(copy) != model_fingerprint(Path(tiny_llama))


def test_a_fine_tune_of_any_single_tensor_counts(tiny_llama: str, copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    found = {model_fingerprint(copy)}
    for name, tensor in weights.items():
        tuned = weights | {name: tensor * 1.001 + 1e-4}
        save_file(tuned, copy / "model.safetensors", metadata={"format": "pt"})
        found.add(model_fingerprint(copy))

    assert len(found) == 1 + len(weights)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"absent.*no such folder"):
        model_fingerprint(tmp_path / "absent")


def test_a_folder_that_is_no_model_is_named(copy: Path) -> None:
    with (copy / "model.safetensors").open("r+b") as stream:
        stream.write(b"\xff" * 8)
    with pytest.raises(BaseModelError, match=r"model\.safetensors is damaged"):
        model_fingerprint(copy)
    (copy / "config.json").unlink()
    with pytest.raises(BaseModelError, match=r"config\.json"):
        model_fingerprint(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"no \*\.safetensors"):
        model_fingerprint(copy)


def test_it_needs_no_torch(tiny_llama: str) -> None:
    script = (
        "import sys; from pathlib import Path; from adapters.fingerprint import model_fingerprint; "
        "model_fingerprint(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", script, tiny_llama], check=True, timeout=60)
