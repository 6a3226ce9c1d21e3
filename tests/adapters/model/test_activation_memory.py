"""The activation memory of a step is predicted, and can be reduced by checkpointing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters.model.activation_memory import ActivationMemory, free_bytes, saved_bytes
from adapters.model.base_model import BaseModel
from adapters.model.lora import LoraBank
from adapters.model.row import Row
from adapters.trainer import LLAMA_TARGETS


@pytest.fixture(scope="module")
def bound(tiny_llama: str) -> tuple[BaseModel, LoraBank]:
    base = BaseModel(tiny_llama, precision="float32")
    return base, LoraBank(base.model, 4, 1.0, LLAMA_TARGETS)


@pytest.mark.parametrize("tokens", [5, 16, 40, 64])
def test_a_rows_bytes_are_predicted(bound: tuple[BaseModel, LoraBank], tokens: int) -> None:
    base, bank = bound
    with bank.bind([0]):
        memory = ActivationMemory(base, limit=1 << 30)
        kept = saved_bytes(base, tokens)

    assert memory.row_bytes(tokens) == pytest.approx(kept, rel=0.02)
    assert memory.checkpointed_bytes(tokens) < memory.row_bytes(tokens)


def test_checkpointing_saves_less_for_the_same_gradient(
    bound: tuple[BaseModel, LoraBank],
) -> None:
    base, bank = bound
    bank.reset(0, 1)
    gradients = []
    kept = []
    for checkpointing in (False, True):
        with bank.bind([0]) as gradients_MP:
            memory = ActivationMemory(base, limit=1)
            with memory.checkpointing(checkpointing):
                kept.append(saved_bytes(base, 64))
                base.losses([Row.of(range(64))]).sum().backward()  # type: ignore[no-untyped-call]
            gradients.append(gradients_MP.clone())

    assert torch.equal(gradients[0], gradients[1])
    assert float(gradients[0].norm()) > 0
    assert kept[1] < kept[0] / 2


def test_the_default_limit_follows_free_memory(bound: tuple[BaseModel, LoraBank]) -> None:
    base, bank = bound
    with bank.bind([0]):
        memory, small = ActivationMemory(base), ActivationMemory(base, limit=1)

    assert memory.fits(1, 64)
    assert not memory.fits(1 << 40, 64)
    assert not small.fits(1, 2)


def test_a_containers_limit_is_respected(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) > 1 << 20
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 400\n")
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(tmp_path) > 1 << 20
    (tmp_path / "memory.max").write_text("1500\n")
    assert free_bytes(tmp_path) == 900
    (tmp_path / "memory.max").write_text("500\n")
    assert free_bytes(tmp_path) == 0
