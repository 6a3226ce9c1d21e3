"""vLLM's rotary kernel for CPUs rotates all heads, however they are laid out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serving.engine.plugins.cpu_rotary import flatten_heads

_TOKENS, _QUERY_HEADS, _KEY_HEADS, _SIZE = 5, 4, 2, 32


def rotary() -> Any:
    """A class that calls the kernel as vLLM's `RotaryEmbedding` does."""
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    angles = torch.outer(torch.arange(8.0), 10 ** -torch.linspace(0, 3, _SIZE // 2))
    cache = torch.cat([angles.cos(), angles.sin()], -1)

    class Rotary:
        def forward_cpu(self, positions: Any, query: Any, key: Any = None) -> tuple[Any, Any]:
            ops.rotary_embedding(positions, query, key, _SIZE, cache, True)
            return query, key

    return Rotary


@pytest.mark.parametrize("has_key", [True, False])
def test_heads_of_a_dimension_of_their_own_are_rotated_like_flat_ones(has_key: bool) -> None:
    kind = rotary()
    query = torch.randn(_TOKENS, _QUERY_HEADS, _SIZE)
    key = torch.randn(_TOKENS, _KEY_HEADS, _SIZE) if has_key else None
    positions = torch.arange(_TOKENS)
    expected = kind().forward_cpu(
        positions, query.flatten(1).clone(), None if key is None else key.flatten(1).clone()
    )

    flatten_heads(kind)
    flatten_heads(kind)
    found = kind().forward_cpu(positions, query.clone(), None if key is None else key.clone())

    assert found[0].shape == query.shape
    torch.testing.assert_close(found[0].flatten(1), expected[0], rtol=0, atol=0)
    assert (found[1] is None) == (key is None)
    if key is not None:
        torch.testing.assert_close(found[1].flatten(1), expected[1], rtol=0, atol=0)


def test_the_kernel_still_needs_this() -> None:
    query = torch.randn(_TOKENS, _QUERY_HEADS, _SIZE)
    kind, positions = rotary(), torch.arange(_TOKENS)

    separate, _ = kind().forward_cpu(positions, query.clone())
    flat, _ = kind().forward_cpu(positions, query.flatten(1).clone())

    assert not torch.allclose(separate.flatten(1), flat)
