"""Models that vLLM has no LoRA for are refused by servers, at once, and by nothing else."""

from __future__ import annotations

import ast
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from adapters.model_defaults import for_model
from serving.config import bundled_model
from serving.errors import ModelFilesError
from serving.settings.architecture import NO_LORA, check_architecture
from serving.settings.checks import check_settings
from serving.settings.model_files import check_model
from serving.settings.settings import Settings
from tests.serving.commands import run

_VLLM = Path(next(iter(find_spec("vllm").submodule_search_locations)))  # type: ignore[union-attr, arg-type]


@pytest.fixture
def gpt2(tiny_gpt2: str, tmp_path: Path) -> str:
    """The folder of a GPT-2 with a tokenizer."""
    folder = Path(shutil.copytree(tiny_gpt2, tmp_path / "gpt2"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(bundled_model(), name), folder)
    return str(folder)


def test_a_server_refuses_gpt2_before_it_looks_for_the_corpus(gpt2: str, tmp_path: Path) -> None:
    ended = run(tmp_path, "serve", "--model", gpt2, "--corpus", "x", MAYFLY_HOME=str(tmp_path))

    assert ended.err == (
        f"mayfly: cannot serve the model '{gpt2}': vLLM has no LoRA for GPT2LMHeadModel; adapters "
        "of it can be trained (`mayfly adapt`), but a server needs another model\n"
    )
    assert ended.status == 1
    assert ended.heavy == set()


def test_adapters_of_gpt2_can_be_trained(gpt2: str, tmp_path: Path) -> None:
    check_model(gpt2)
    check_settings(Settings(model=gpt2, home=tmp_path), is_server=False)
    assert for_model(gpt2).targets


def test_other_architectures_pass(tmp_path: Path) -> None:
    check_architecture(bundled_model())
    # Whatever has no architecture is reported when the model is loaded.
    for content in ("{}", "[]", "no JSON"):
        (tmp_path / "config.json").write_text(content)
        check_architecture(str(tmp_path))


@pytest.mark.parametrize("architecture", ["FalconForCausalLM", "StableLmForCausalLM"])
def test_the_architecture_is_named(architecture: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))

    with pytest.raises(ModelFilesError, match=f"vLLM has no LoRA for {architecture}"):
        check_architecture(str(tmp_path))


def test_the_list_is_that_of_the_installed_vllm() -> None:
    """Read from vLLM's sources, since importing all of its models takes minutes."""
    bases: dict[str, set[str]] = {}
    for folder in ("models", "model_executor/models"):
        for file in (_VLLM / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef):
                    names = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                    bases.setdefault(node.name, set()).update(names)

    def has_lora(name: str, below: frozenset[str] = frozenset()) -> bool:
        return name == "SupportsLoRA" or any(
            has_lora(base, below | {name}) for base in bases.get(name, set()) - below
        )

    (models,) = (
        ast.literal_eval(node.value)
        for node in ast.parse((_VLLM / "model_executor/models/registry.py").read_text()).body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "_TEXT_GENERATION_MODELS"
    )
    assert {name for name, (_, kind) in models.items() if not has_lora(kind)} == NO_LORA
