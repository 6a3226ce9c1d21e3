"""Base models of each architecture, and shared trainers."""

from __future__ import annotations

import math
import shutil

import pytest
from safetensors.torch import load_file, save_file

from adapters.trainer import Trainer
from tests.adapters.peft_reference import Base
from tests.adapters.trainers import POISON, trainer_of


@pytest.fixture(scope="session", params=["llama", "qwen", "gpt2"])
def base(request: pytest.FixtureRequest) -> Base:
    """A tiny base model: Qwen2 has biases, GPT-2 has transposed projections."""
    folder: str = request.getfixturevalue(f"tiny_{request.param}")
    return Base(request.param, folder)


@pytest.fixture(scope="session")
def trainer(tiny_llama: str) -> Trainer:
    """A trainer of the tiny Llama, shared: every training starts on a fresh adapter."""
    return trainer_of(tiny_llama)


@pytest.fixture(scope="session")
def base_trainer(base: Base) -> Trainer:
    """A trainer of each kind of model, with PeftReference's learning rate."""
    return trainer_of(base.folder, targets=base.targets, learning_rate=5e-3)


@pytest.fixture(scope="session")
def poisoned(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """The same model, in which one token's embedding is infinite."""
    folder = tmp_path_factory.mktemp("poisoned") / "model"
    shutil.copytree(tiny_llama, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][POISON] = math.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return trainer_of(str(folder))
