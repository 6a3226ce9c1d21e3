"""The fused CPU modules: the same losses and gradients as the model's own modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

from adapters.model.fused_cpu import fuse, restore

_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_IDS = torch.arange(2 * 19).view(2, 19) % 64


def build(config: Any) -> Any:
    automatic: Any = AutoModelForCausalLM
    return automatic.from_config(config, attn_implementation="eager")


def grouped() -> Any:
    return build(LlamaConfig(**_SIZES, num_key_value_heads=2))


def plain() -> Any:
    return build(LlamaConfig(**_SIZES, head_dim=16))


def biased() -> Any:
    return build(Qwen2Config(**_SIZES, num_key_value_heads=2))


def windowed() -> Any:
    return build(MistralConfig(**_SIZES, num_key_value_heads=1, sliding_window=8))


def losses_and_gradients(model: Any, ids: torch.Tensor = _IDS) -> tuple[torch.Tensor, torch.Tensor]:
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    loss = model(inputs_embeds=embedded, labels=ids, use_cache=False).loss
    (gradient,) = torch.autograd.grad(loss, embedded)
    return loss.detach(), gradient


# The longer rows have several blocks of queries.
@pytest.mark.parametrize("tokens", [19, 64, 150])
@pytest.mark.parametrize("make", [grouped, plain, biased, windowed])
def test_fused_modules_give_the_same_losses_and_gradients(
    make: Callable[[], Any], tokens: int
) -> None:
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    ids = torch.randint(64, (2, tokens))
    loss, gradient = losses_and_gradients(model, ids)

    assert fuse(model) > 0
    faster_loss, faster_gradient = losses_and_gradients(model, ids)

    torch.testing.assert_close(faster_loss, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(faster_gradient, gradient, rtol=1e-3, atol=1e-7)


def test_every_attention_mlp_and_norm_is_fused_and_restored() -> None:
    model = grouped()
    classes = [type(module).forward for module in model.modules()]

    assert fuse(model) == 2 * (1 + 1 + 2) + 1
    restore(model)

    assert not [module for module in model.modules() if "forward" in module.__dict__]
    assert [type(module).forward for module in model.modules()] == classes


def test_other_activations_are_not_fused() -> None:
    model = build(LlamaConfig(**_SIZES, hidden_act="gelu"))

    assert fuse(model) == 2 * (1 + 2) + 1


def test_attention_is_causal() -> None:
    torch.manual_seed(0)
    model: Any = grouped().eval()
    fuse(model)
    other = _IDS.clone()
    other[:, 10:] += 1

    with torch.no_grad():
        one, two = model(_IDS).logits, model(other % 64).logits

    torch.testing.assert_close(one[:, :10], two[:, :10], rtol=0, atol=0)
    assert not torch.equal(one[:, 10:], two[:, 10:])
