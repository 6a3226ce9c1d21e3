"""The import of GGUF files: random models that gguf's own writer has written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter

from serving.errors import ModelFilesError
from serving.models.card import ModelCard
from serving.models.gguf_import import import_gguf
from serving.settings.model_files import check_model, load_tokenizer
from tests.serving.models.gguf_files import TEMPLATE, random_model, write_gguf

KINDS = {
    "llama": GGMLQuantizationType.Q4_1,
    "qwen2": GGMLQuantizationType.Q8_0,
    "gemma3": GGMLQuantizationType.F16,
}


@pytest.fixture
def llama(tmp_path: Path, nano: str) -> Path:
    """The GGUF file of a random Llama."""
    file = tmp_path / "llama.gguf"
    write_gguf(file, random_model("llama", nano), "llama", nano)
    return file


@pytest.mark.parametrize("architecture", KINDS)
def test_an_imported_model_computes_what_the_rounded_original_computes(
    tmp_path: Path, nano: str, architecture: str
) -> None:
    from transformers import AutoModelForCausalLM

    original = random_model(architecture, nano)
    file = tmp_path / "model.gguf"
    write_gguf(
        file, original, architecture, nano, KINDS[architecture], general__license="apache-2.0"
    )
    stages: list[str] = []

    def on_stage(stage: str, total: int) -> Any:
        stages.append(stage)
        return lambda done: stages.append(f"{done} of {total}")

    card = import_gguf(file, tmp_path / "imported", on_stage)

    check_model(str(tmp_path / "imported"))
    imported: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "imported")
    assert imported.dtype == torch.bfloat16
    ids = torch.randint(0, original.config.vocab_size, (1, 32))
    with torch.inference_mode():
        expected, got = original(ids).logits, imported.float()(ids).logits
    assert torch.allclose(expected, got, rtol=1e-3, atol=1e-3 * float(expected.std()))

    bits = {"llama": ("Q4_1", 4), "qwen2": ("Q8_0", 8), "gemma3": (None, None)}[architecture]
    assert (card.quantisation, card.bits) == bits
    assert card.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (card.source, card.license, card.architecture) == (
        "model.gguf", "apache-2.0", architecture,
    )  # fmt: skip
    assert card.parameters == original.num_parameters()
    assert card.note is None
    assert ModelCard.read(tmp_path / "imported") == card
    assert f"{file.stat().st_size} of {file.stat().st_size}" in stages
    assert sorted(each.name for each in tmp_path.iterdir()) == ["imported", "model.gguf"]


def test_the_tokenizer_and_the_chat_template_come_along(
    tmp_path: Path, llama: Path, tokenizer: Any
) -> None:
    umask = os.umask(0o022)
    os.umask(umask)
    import_gguf(llama, tmp_path / "imported")

    imported = load_tokenizer(str(tmp_path / "imported"))
    text = "def shortest_path(graph):\n    return None  # naïve"
    # The words are split as the file says, which is not how the bundled model splits them.
    assert imported.get_vocab() == tokenizer.get_vocab()
    assert imported.decode(imported(text).input_ids) == text
    assert imported.chat_template == TEMPLATE
    for file in (tmp_path / "imported").iterdir():
        assert file.stat().st_mode & 0o777 == 0o666 & ~umask, file.name
    assert '"quantization_config"' not in (tmp_path / "imported" / "config.json").read_text()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"GGML" + data[4:], "is not a GGUF file"),
        (lambda data: b"", "is not a GGUF file"),
        (lambda data: data[:100], "is damaged or incomplete"),
        (lambda data: data[: len(data) // 2], "is damaged or incomplete"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, llama: Path, damage: Any, message: str
) -> None:
    llama.write_bytes(damage(llama.read_bytes()))

    with pytest.raises(ModelFilesError, match=message):
        import_gguf(llama, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_an_architecture_that_transformers_cannot_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    writer = GGUFWriter(file, "rwkv7")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    with pytest.raises(ModelFilesError, match="has the architecture 'rwkv7', which transformers"):
        import_gguf(file, tmp_path / "imported")


def test_a_model_with_missing_weights_is_refused(tmp_path: Path, nano: str) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, random_model("llama", nano), "llama", nano, leave_out=("blk.1.ffn_up.weight",))

    with pytest.raises(
        ModelFilesError, match=r"finds no model\.layers\.1\.mlp\.up_proj\.weight .*\(1 weights"
    ):
        import_gguf(file, tmp_path / "imported")
    assert [each.name for each in tmp_path.iterdir()] == ["model.gguf"]


def test_scaled_positions_are_noted(tmp_path: Path, nano: str) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, random_model("llama", nano), "llama", nano, llama__rope__scaling__type="yarn")

    assert "scales its rotary positions" in str(import_gguf(file, tmp_path / "imported").note)


def test_only_an_empty_folder_is_written_to(tmp_path: Path, llama: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").write_text("keep")

    with pytest.raises(ModelFilesError, match="already exists; name a new or empty folder"):
        import_gguf(llama, used)
    assert (used / "notes.txt").read_text() == "keep"

    (used / "notes.txt").unlink()
    import_gguf(llama, used)
    check_model(str(used))
