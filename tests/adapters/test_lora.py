"""The LoRA layers: a fresh adapter changes nothing, and what is exported means in PEFT what it means here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as from_safetensors

from adapters.adapter import Adapter
from adapters.lora import LoraLayers, LoraLinear

_ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_IDS = torch.tensor([[5, 17, 99, 3, 64, 64, 2, 120]])


@pytest.fixture(params=["llama", "qwen"])
def folder(request: pytest.FixtureRequest, tiny_llama: str, tiny_qwen: str) -> str:
    """A base model; Qwen2 has biases."""
    return tiny_llama if request.param == "llama" else tiny_qwen


def load(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(_IDS, use_cache=False).logits
    return found


@torch.no_grad()
def fill(layers: LoraLayers) -> None:
    """An adapter that does something, as after training."""
    generator = torch.Generator().manual_seed(3)
    for parameter in layers.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def adapter_of(layers: LoraLayers, folder: str, rank: int, numerator: float, targets: tuple[str, ...]) -> Adapter:
    return Adapter("mayfly-test", folder, rank, numerator, targets, layers.export(), (1.0,))


def test_a_fresh_adapter_changes_no_logit(folder: str) -> None:
    model = load(folder)
    before = logits(model)

    LoraLayers(model, 4, 8.0, _ALL).reset(1)

    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


def test_a_filled_adapter_does_and_a_reset_takes_it_back(folder: str) -> None:
    model = load(folder)
    before = logits(model)
    layers = LoraLayers(model, 4, 8.0, _ALL)

    fill(layers)
    assert (logits(model) - before).abs().max() > 0.1

    layers.reset(2)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


def test_a_reset_is_the_same_for_the_same_seed_only(tiny_llama: str) -> None:
    layers = LoraLayers(load(tiny_llama), 4, 8.0, _ALL)
    other_model = LoraLayers(load(tiny_llama), 4, 8.0, _ALL)
    exports = []
    for seed in (1, 2, 1):
        fill(layers)
        layers.reset(seed)
        exports.append(layers.export())
    other_model.reset(1)

    assert exports[0] == exports[2] == other_model.export()
    assert exports[0] != exports[1]


def test_it_starts_as_peft_starts_one(tiny_llama: str) -> None:
    # PEFT: A by kaiming_uniform_(a = sqrt 5), which is uniform within 1 / sqrt(inputs); B zero.
    layers = LoraLayers(load(tiny_llama), 16, 16.0, _ALL)

    layers.reset(5)

    for layer in layers.layers.values():
        bound = layer.a_RI.shape[1] ** -0.5
        assert 0.95 * bound < layer.a_RI.detach().abs().max() <= bound
        assert abs(float(layer.a_RI.detach().std()) / (bound / 3**0.5) - 1) < 0.1
        assert not layer.b_OR.any()


def test_only_the_adapter_can_learn(folder: str) -> None:
    model = load(folder)
    layers = LoraLayers(model, 4, 8.0, _ALL)

    learning = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}

    assert learning == {id(parameter) for parameter in layers.parameters()}
    assert len(layers.layers) == 2 * 7
    assert len(learning) == 2 * 2 * 7


def test_only_the_targets_are_adapted(tiny_llama: str) -> None:
    model = load(tiny_llama)

    layers = LoraLayers(model, 4, 8.0, ["q_proj", "down_proj"])

    assert sorted(layers.layers) == [
        f"model.layers.{i}.{name}" for i in range(2) for name in ("mlp.down_proj", "self_attn.q_proj")
    ]
    assert sum(isinstance(module, LoraLinear) for module in model.modules()) == 4


@pytest.mark.parametrize("targets", [("c_attn",), (), ("embed_tokens",), ("self_attn",), ("proj",)])
def test_targets_that_do_not_exist_are_refused(tiny_llama: str, targets: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no linear projections named"):
        LoraLayers(load(tiny_llama), 4, 8.0, targets)


@pytest.mark.parametrize(("rank", "numerator", "targets"), [(4, 8.0, _ALL), (3, 16.0, ("v_proj", "up_proj"))])
def test_peft_loads_the_export_and_gives_the_same_logits(
    tmp_path: Path, folder: str, rank: int, numerator: float, targets: tuple[str, ...]
) -> None:
    from peft import PeftModel

    model = load(folder)
    layers = LoraLayers(model, rank, numerator, targets)
    fill(layers)
    adapter_of(layers, folder, rank, numerator, targets).save(tmp_path / "adapter")

    theirs = PeftModel.from_pretrained(load(folder), str(tmp_path / "adapter"))

    assert (logits(theirs) - logits(load(folder))).abs().max() > 0.1
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)


def test_the_keys_are_exactly_those_that_peft_writes(tmp_path: Path, folder: str) -> None:
    from peft import LoraConfig, get_peft_model

    layers = LoraLayers(load(folder), 4, 8.0, _ALL)
    theirs = get_peft_model(load(folder), LoraConfig(r=4, target_modules=list(_ALL), task_type="CAUSAL_LM"))
    theirs.save_pretrained(tmp_path)

    written = from_safetensors((tmp_path / "adapter_model.safetensors").read_bytes())
    exported = from_safetensors(layers.export())

    shapes = {name: tensor.shape for name, tensor in exported.items()}
    assert shapes == {name: tensor.shape for name, tensor in written.items()}
    assert {tensor.dtype for tensor in exported.values()} == {torch.float32}


def test_an_adapter_is_saved_as_two_files(tmp_path: Path, tiny_llama: str) -> None:
    layers = LoraLayers(load(tiny_llama), 4, 8.0, _ALL)
    adapter = adapter_of(layers, tiny_llama, 4, 8.0, _ALL)

    adapter.save(tmp_path / "a" / "b")

    files = {file.name: file.read_bytes() for file in (tmp_path / "a" / "b").iterdir()}
    config = json.loads(files.pop("adapter_config.json"))
    assert files == {"adapter_model.safetensors": adapter.weights}
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8.0)
    assert (config["target_modules"], config["base_model_name_or_path"]) == (list(_ALL), tiny_llama)


def test_a_bfloat16_base_keeps_a_float32_adapter(tiny_llama: str) -> None:
    model = load(tiny_llama).to(torch.bfloat16)
    layers = LoraLayers(model, 4, 8.0, _ALL)

    fill(layers)

    assert logits(model).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in layers.parameters()} == {torch.float32}
