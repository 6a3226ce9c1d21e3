"""The projections of decoder layers: linear layers of every kind, and what cannot be adapted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import Conv1D as _Conv1D

from adapters.errors import BaseModelError
from adapters.model.projections import (
    decoder_projections,
    is_projection,
    list_names,
    shape_of,
)
from tests.adapters.peft_reference import Base, load

Conv1D: Any = _Conv1D


class _Quantised(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).round()


def test_linear_layers_are_projections_and_others_are_not() -> None:
    assert is_projection(nn.Linear(3, 5))
    assert is_projection(Conv1D(5, 3))
    assert shape_of(nn.Linear(3, 5)) == shape_of(Conv1D(5, 3)) == (5, 3)
    for other in (_Quantised(3, 5), nn.Conv1d(3, 5, 1), nn.Embedding(3, 5), nn.LayerNorm(3)):
        assert not is_projection(other)


def test_the_output_layer_is_none_of_them(base: Base) -> None:
    model = load(base.folder)
    found = decoder_projections(model)

    assert len(found) == 2 * len(base.targets) + (2 if base.kind == "gpt2" else 0)
    assert {name.rpartition(".")[2] for name in found} == set(base.targets)
    assert all(model.get_submodule(name) is module for name, module in found.items())


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (_Quantised(32, 32), r"model\.layers\.\*\.mlp\.weight"),
        (nn.Conv1d(32, 32, 3), r"model\.layers\.\*\.mlp\.weight"),
        (nn.Bilinear(32, 32, 32), r"model\.layers\.\*\.mlp\.weight"),
    ],
)
def test_other_matrices_are_an_error_unless_targets_are_named(
    tiny_llama: str, other: nn.Module, name: str
) -> None:
    model = load(tiny_llama)
    model.model.layers[1].mlp = other

    with pytest.raises(BaseModelError, match=f"that Mayfly cannot adapt: {name};"):
        decoder_projections(model)
    assert len(decoder_projections(model, all_weights=False)) == 4 + 7


def test_a_convolution_of_each_channel_by_itself_is_no_projection(tiny_llama: str) -> None:
    model = load(tiny_llama)
    model.model.layers[1].mlp = nn.Conv1d(32, 32, 3, groups=32)

    assert len(decoder_projections(model)) == 4 + 7


def test_experts_are_an_error_even_if_targets_are_named(tiny_llama: str) -> None:
    model = load(tiny_llama)
    model.model.layers[1].mlp = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(32, 32)])})

    with pytest.raises(BaseModelError, match=r"not supported: model\.layers\.\*\.mlp\.experts;"):
        decoder_projections(model, all_weights=False)


def test_a_model_without_decoder_layers_is_an_error(tiny_llama: str) -> None:
    model: Any = load(tiny_llama)
    model.config.num_hidden_layers = 3

    with pytest.raises(
        BaseModelError, match="does not find its 3 decoder layers: LlamaForCausalLM"
    ):
        decoder_projections(model)


def test_a_message_has_the_names_of_all_layers_as_one() -> None:
    names = [f"layers.{layer}.{name}" for layer in range(3) for name in "abcdefghij"]

    assert list_names(names[:3]) == "layers.*.a, layers.*.b, layers.*.c"
    assert list_names(names).endswith("layers.*.h and 2 more")
