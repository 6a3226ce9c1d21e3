"""The default rank and targets of base models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from adapters.errors import BaseModelError
from adapters.model_defaults import SizeDefaults, defaults_of, for_model, projection_shapes
from adapters.trainer import LLAMA_TARGETS, Trainer
from adapters.training import TrainingRequest
from tests.adapters.peft_reference import load
from tests.tiny_models import ARCHITECTURES, save_tiny


def test_a_small_llama(nano: str) -> None:
    config = for_model(nano)

    assert (config.rank, config.targets) == (16, LLAMA_TARGETS)


def test_a_large_model_without_its_weights(tmp_path: Path) -> None:
    LlamaConfig(hidden_size=4096, num_hidden_layers=8).save_pretrained(tmp_path)

    config = for_model(str(tmp_path))

    assert config.rank == 64


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (49e6, SizeDefaults(16, 16.0, 6e-4, (1.0, 0.5), 1 / 3)),
        (50e6, SizeDefaults(16, 4.0, 6e-4, (0.5, 0.25), 1 / 10)),
        (999e6, SizeDefaults(16, 4.0, 6e-4, (0.5, 0.25), 1 / 10)),
        (1e9, SizeDefaults(64, 1.0, 5e-4, (0.5, 0.25), 1 / 10)),
    ],
)
def test_settings_follow_the_size(parameters: float, expected: SizeDefaults) -> None:
    assert defaults_of(parameters) == expected


def test_a_gpt2_can_be_trained_with_its_defaults(tiny_gpt2: str) -> None:
    config = for_model(tiny_gpt2)

    training = Trainer(config).train(TrainingRequest([[1, 2, 3, 4]] * 3))

    assert config.targets == ("c_attn", "c_proj", "c_fc")
    assert training.losses[-1] < training.losses[0]


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"cannot load the model '{tmp_path}'"):
        for_model(str(tmp_path))


@pytest.mark.parametrize(
    ("architecture", "problem"),
    [
        (
            "mixtral",
            r"mixture-of-experts models are not supported: model\.layers\.\*\.mlp\.experts;",
        ),
        ("qwen3_moe", r"mixture-of-experts .*: model\.layers\.\*\.mlp\.experts;"),
        ("olmoe", r"mixture-of-experts .*: model\.layers\.\*\.mlp\.experts;"),
        ("granitemoe", r"mixture-of-experts .*: model\.layers\.\*\.block_sparse_moe\.experts;"),
        ("deepseek_v3", r"mixture-of-experts .*\.mlp\.experts, .*\.mlp\.shared_experts;"),
        ("mamba", r"weights that Mayfly cannot adapt: backbone\.layers\.\*\.mixer\.A_log;"),
        ("gemma3", "multimodal models are not supported: gemma3;"),
    ],
)
def test_a_model_that_cannot_be_adapted_whole_is_refused(
    architecture: str, problem: str, tmp_path: Path
) -> None:
    AutoConfig.for_model(architecture).save_pretrained(tmp_path)

    with pytest.raises(BaseModelError, match=f"cannot adapt the model '{tmp_path}': .*{problem}"):
        for_model(str(tmp_path))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_projections_of_the_decoder_layers_are_targets(
    architecture: str, nano: str, tmp_path: Path
) -> None:
    folder = save_tiny(architecture, tmp_path, nano)

    targets = for_model(folder).targets

    assert {name for name, _, _ in projection_shapes(folder, targets)} == {
        name
        for name, module in load(folder).named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


def test_fewer_targets_can_be_named(tiny_llama: str) -> None:
    config = for_model(tiny_llama, ["v_proj", "q_proj"])

    assert config.targets == ("v_proj", "q_proj")
    assert projection_shapes(tiny_llama, config.targets) == [
        (f"model.layers.{layer}.self_attn.{name}_proj", outputs, 32)
        for layer in range(2)
        for name, outputs in (("q", 32), ("v", 16))
    ]


def test_unknown_targets_are_refused(tiny_llama: str) -> None:
    with pytest.raises(BaseModelError, match=r"no projections named w1, lm_head: .* q_proj, k_"):
        for_model(tiny_llama, ["q_proj", "w1", "lm_head"])
