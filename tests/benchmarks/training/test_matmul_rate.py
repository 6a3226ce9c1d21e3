"""Which parameters multiply, and what operations are for."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.training.matmul_rate import kind_of_operation, multiplying_parameters


@pytest.mark.parametrize(
    ("name", "callers", "expected"),
    [
        ("aten::mm", ["_Projection"], "base products"),
        ("aten::addmm", ["aten::linear", "_ProjectionBackward"], "base products"),
        ("aten::baddbmm", ["_Projection"], "LoRA"),
        ("aten::copy_", ["_ProjectionBackward"], "LoRA"),
        ("aten::bmm", ["_CausalAttention"], "attention"),
        ("aten::mm", ["_CrossEntropy"], "loss"),
        ("aten::_fused_adam_", [], "Adam"),
        ("aten::mul", ["_RmsNorm"], "element-wise"),
        ("_Projection", [], "rest"),
    ],
)
def test_an_operation_is_classified_by_its_name_and_its_callers(
    name: str, callers: list[str], expected: str
) -> None:
    assert kind_of_operation(name, callers) == expected


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_counts_where_it_multiplies(tied: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    config.tie_word_embeddings = tied
    model: Any = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]

    # In both cases 800 parameters make the logits; the few of the norms count too.
    assert multiplying_parameters(model) == 800 + 4 * 8 * 8 + 3 * 8 * 16 + 3 * 8
