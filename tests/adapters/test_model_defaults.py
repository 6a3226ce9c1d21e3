"""The default rank and targets of base models."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertConfig, LlamaConfig

from adapters.model_defaults import GPT2_TARGETS, for_model
from adapters.trainer import LLAMA_TARGETS, Trainer
from adapters.training import TrainingRequest


def test_a_small_llama(nano: str) -> None:
    config = for_model(nano)

    assert (config.rank, config.targets) == (16, LLAMA_TARGETS)


def test_a_large_model_without_its_weights(tmp_path: Path) -> None:
    LlamaConfig(hidden_size=1024, num_hidden_layers=8, intermediate_size=2048).save_pretrained(
        tmp_path
    )

    config = for_model(str(tmp_path))

    assert config.rank == 64


def test_a_gpt2_can_be_trained_with_its_defaults(tiny_gpt2: str) -> None:
    config = for_model(tiny_gpt2)

    training = Trainer(config).train(TrainingRequest([[1, 2, 3, 4]] * 3))

    assert config.targets == GPT2_TARGETS
    assert training.losses[-1] < training.losses[0]


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"cannot load the model '{tmp_path}'"):
        for_model(str(tmp_path))


def test_a_model_without_known_projections_is_refused(tmp_path: Path) -> None:
    BertConfig(
        num_hidden_layers=1, hidden_size=16, num_attention_heads=2, is_decoder=True
    ).save_pretrained(tmp_path)

    with pytest.raises(ValueError, match="none of the projections that Mayfly can adapt"):
        for_model(str(tmp_path))
