"""Which parameters multiply."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.training.matmul_rate import multiplying_parameters


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
