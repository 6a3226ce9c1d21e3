"""The blockwise loss equals torch's cross-entropy and its gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from adapters.model.loss import cross_entropy


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)


def compare(
    hidden_NH: torch.Tensor,
    output_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    tokens_N: torch.Tensor,
) -> None:
    """Losses and gradients of both, the tokens weighted differently."""
    weights_N = torch.linspace(-1.0, 2.0, len(tokens_N))
    found, expected = hidden_NH.clone().requires_grad_(), hidden_NH.double().requires_grad_()
    bias = None if bias_V is None else bias_V.double()

    mine_N = cross_entropy(found, output_VH, bias_V, tokens_N)
    theirs_N = functional.cross_entropy(
        functional.linear(expected, output_VH.double(), bias), tokens_N, reduction="none"
    )
    (mine_N * weights_N).sum().backward()  # type: ignore[no-untyped-call]
    (theirs_N * weights_N).sum().backward()  # type: ignore[no-untyped-call]

    scale = max(float(theirs_N.detach().abs().max()), 1.0)
    torch.testing.assert_close(
        mine_N.detach().double(), theirs_N.detach(), rtol=1e-5, atol=1e-5 * scale
    )
    assert found.grad is not None
    assert expected.grad is not None
    largest = max(float(expected.grad.abs().max()), float(output_VH.abs().max()))
    torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-4, atol=2e-5 * largest)
    assert (mine_N >= -1e-5 * scale).all()


@settings(deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 8),
    st.integers(2, 30),
    st.floats(0.01, 30.0),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_it_equals_torchs_cross_entropy(
    tokens: int, size: int, vocabulary: int, scale: float, with_bias: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden_NH = scale * normal(generator, tokens, size)
    bias_V = normal(generator, vocabulary) if with_bias else None
    tokens_N = torch.randint(vocabulary, (tokens,), generator=generator)

    compare(hidden_NH, normal(generator, vocabulary, size), bias_V, tokens_N)


@pytest.mark.parametrize("tokens", [1, 16, 17, 32, 40])
@pytest.mark.parametrize("with_bias", [False, True])
def test_several_blocks_equal_torchs_cross_entropy(tokens: int, with_bias: bool) -> None:
    # With this vocabulary a block has 16 tokens.
    generator = torch.Generator().manual_seed(tokens)
    vocabulary = 300_000
    bias_V = normal(generator, vocabulary) if with_bias else None
    tokens_N = torch.randint(vocabulary, (tokens,), generator=generator)

    compare(3 * normal(generator, tokens, 4), normal(generator, vocabulary, 4), bias_V, tokens_N)


def test_many_tokens_of_a_small_vocabulary() -> None:
    generator = torch.Generator().manual_seed(1)
    tokens_N = torch.randint(50_000, (200,), generator=generator)

    compare(normal(generator, 200, 4), normal(generator, 50_000, 4), None, tokens_N)


@given(st.floats(-50.0, 50.0), st.integers(0, 2**32))
def test_a_constant_added_to_all_logits_changes_nothing(shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden_NH, output_VH = normal(generator, 6, 4), normal(generator, 9, 4)
    tokens_N = torch.randint(9, (6,), generator=generator)

    plain_N, shifted_N = (
        cross_entropy(hidden_NH, output_VH, bias, tokens_N)
        for bias in (None, torch.full((9,), shift))
    )

    torch.testing.assert_close(plain_N, shifted_N, rtol=1e-4, atol=1e-4)


def test_enormous_logits_do_not_overflow() -> None:
    hidden_NH = torch.tensor([[1e6], [-1e6]])
    output_VH = torch.tensor([[1.0], [-1.0]])

    sure_N = cross_entropy(hidden_NH, output_VH, None, torch.tensor([0, 1]))
    wrong_N = cross_entropy(hidden_NH, output_VH, None, torch.tensor([1, 0]))

    assert sure_N.tolist() == [0.0, 0.0]
    assert wrong_N.tolist() == [2e6, 2e6]


def test_a_token_that_is_not_finite_affects_no_other() -> None:
    generator = torch.Generator().manual_seed(2)
    hidden_NH, output_VH = normal(generator, 5, 4), normal(generator, 9, 4)
    tokens_N = torch.arange(5)
    expected_N = cross_entropy(hidden_NH, output_VH, None, tokens_N)
    broken_NH = hidden_NH.clone()
    broken_NH[2] = torch.nan
    broken_NH.requires_grad_()

    found_N = cross_entropy(broken_NH, output_VH, None, tokens_N)
    found_N.sum().backward()  # type: ignore[no-untyped-call]

    others = torch.tensor([0, 1, 3, 4])
    assert found_N[2].isnan()
    assert torch.equal(found_N[others], expected_N[others])
    assert broken_NH.grad is not None
    assert broken_NH.grad[others].isfinite().all()


def test_no_tokens_give_no_losses() -> None:
    assert cross_entropy(
        torch.zeros(0, 4), torch.zeros(9, 4), None, torch.zeros(0, dtype=torch.long)
    ).shape == (0,)


def test_without_gradients_none_are_computed() -> None:
    hidden_NH = torch.randn(3, 4, generator=torch.Generator().manual_seed(3))

    assert not cross_entropy(hidden_NH, torch.ones(9, 4), None, torch.arange(3)).requires_grad


def test_bfloat16_losses_are_float32_and_close() -> None:
    generator = torch.Generator().manual_seed(4)
    hidden_NH, output_VH = (
        normal(generator, 50, 32).bfloat16(),
        normal(generator, 99, 32).bfloat16(),
    )
    tokens_N = torch.randint(99, (50,), generator=generator)
    learning_NH = hidden_NH.clone().requires_grad_()
    exact_NH = hidden_NH.float().requires_grad_()

    found_N = cross_entropy(learning_NH, output_VH, None, tokens_N)
    exact_N = cross_entropy(exact_NH, output_VH.float(), None, tokens_N)
    found_N.sum().backward()  # type: ignore[no-untyped-call]
    exact_N.sum().backward()  # type: ignore[no-untyped-call]

    assert found_N.dtype == torch.float32
    torch.testing.assert_close(found_N, exact_N, rtol=0.02, atol=0.1)
    assert learning_NH.grad is not None
    assert exact_NH.grad is not None
    assert learning_NH.grad.dtype == torch.bfloat16
    assert (learning_NH.grad.float() - exact_NH.grad).norm() <= 0.05 * exact_NH.grad.norm()
