"""The CPU's LoRA products compared with a loop over rows; rows without a slot stay unchanged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serving.engine.plugins.cpu_lora import (
    _per_token,
    expand,
    expand_slice,
    plan_batches,
    shrink,
)

_SLOTS, _RANK, _IN, _OUT = 4, 3, 6, 5

MIXES = pytest.mark.parametrize(
    "slots",
    [
        [0, 0, 0, 0],
        [3, 3, 3, 3],
        [-1, -1, -1, -1],
        [0, 1, 2, 3],
        [2, -1, 2, 0],
        [-1, 3, -1, 3],
        [1, 1, -1, -1],
        [0],
        [-1],
        [],
    ],
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@MIXES
@DTYPES
def test_shrink_uses_the_a_of_each_rows_slot(slots: list[int], dtype: torch.dtype) -> None:
    inputs, weights = random(len(slots), _IN), random(_SLOTS, 1, _RANK, _IN, dtype=dtype)
    output = random(len(slots), _RANK, seed=9)
    expected = torch.zeros(len(slots), _RANK)
    for row, slot in enumerate(slots):
        if slot >= 0:
            expected[row] = 0.5 * (weights[slot, 0].float() @ inputs[row])

    shrink(inputs, weights, output, torch.tensor(slots, dtype=torch.long), 0.5)

    close(output, expected)


def test_shrink_does_not_change_columns_beyond_the_rank() -> None:
    output = torch.full((2, _RANK + 2), 7.0)

    shrink(random(2, _IN), random(_SLOTS, _RANK, _IN), output, torch.tensor([0, -1]))

    assert output[:, _RANK:].eq(7.0).all()
    assert output[1, :_RANK].eq(0.0).all()
    assert output[0, :_RANK].ne(0.0).all()


@MIXES
@DTYPES
@pytest.mark.parametrize("add", [True, False])
def test_expand_uses_the_b_of_each_rows_slot(
    slots: list[int], dtype: torch.dtype, add: bool
) -> None:
    inputs, weights = random(len(slots), _RANK), random(_SLOTS, 1, _OUT, _RANK, dtype=dtype)
    output = random(len(slots), _OUT, seed=9)
    expected = output.clone() if add else torch.zeros_like(output)
    for row, slot in enumerate(slots):
        if slot >= 0:
            expected[row] += weights[slot, 0].float() @ inputs[row]

    expand(inputs, weights, output, torch.tensor(slots, dtype=torch.long), add)

    close(output, expected)


@MIXES
@DTYPES
@pytest.mark.parametrize("add", [True, False])
def test_expand_slice_changes_only_the_columns_of_its_slice(
    slots: list[int], dtype: torch.dtype, add: bool
) -> None:
    inputs, weights = random(len(slots), _RANK), random(_SLOTS, _OUT, _RANK, dtype=dtype)
    output = random(len(slots), 2 * _OUT, seed=9)
    offset, size = 3, _OUT
    expected = output.clone()
    if not add:
        expected[:, offset : offset + size] = 0
    for row, slot in enumerate(slots):
        if slot >= 0:
            expected[row, offset : offset + size] += weights[slot].float() @ inputs[row]

    expand_slice(inputs, weights, output, torch.tensor(slots, dtype=torch.long), offset, size, add)

    close(output, expected)


def test_a_row_without_a_slot_among_adapted_rows_is_unchanged_to_the_bit() -> None:
    # vLLM issue 48421: slot -1 was read as the last slot.
    output = random(4, _OUT, seed=9)
    before = output.clone()

    expand(random(4, _RANK), random(_SLOTS, _OUT, _RANK), output, torch.tensor([3, -1, 0, -1]))

    assert torch.equal(output[[1, 3]], before[[1, 3]])
    assert not torch.equal(output[[0, 2]], before[[0, 2]])


def test_half_precision_outputs_keep_their_type() -> None:
    output = torch.zeros(2, _OUT, dtype=torch.bfloat16)
    inputs, weights = random(2, _RANK), random(_SLOTS, _OUT, _RANK, dtype=torch.float16)

    expand(inputs, weights, output, torch.tensor([1, 2]))

    expected = torch.stack([weights[1].float() @ inputs[0], weights[2].float() @ inputs[1]])
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("lengths", [[3, 1, 2], [1, 0, 5]])
def test_in_prefill_each_token_has_the_slot_of_its_sequence(lengths: list[int]) -> None:
    tokens = sum(lengths)
    slots_of_sequences, rows = torch.tensor([2, -1, 0]), torch.tensor(lengths)
    per_token = torch.tensor(
        [s for s, n in zip([2, -1, 0], lengths, strict=True) for _ in range(n)]
    )
    starts = torch.cumsum(rows, 0) - rows
    batch: tuple[Any, ...] = (starts, rows, slots_of_sequences, 3, max(lengths), tokens)
    inputs, low = random(tokens, _IN), random(tokens, _RANK)
    a, b = random(_SLOTS, _RANK, _IN), random(_SLOTS, _OUT, _RANK)

    shrunk, expanded, sliced = (
        torch.ones(tokens, _RANK),
        torch.ones(tokens, _OUT),
        torch.ones(tokens, 2 * _OUT),
    )
    _per_token(shrink)(inputs, a, shrunk, *batch, 2.0)
    _per_token(expand)(low, b, expanded, *batch, add_inputs=True)
    _per_token(expand_slice)(low, b, sliced, *batch, _OUT, _OUT, False)

    shrunk_1, expanded_1, sliced_1 = (
        torch.ones(tokens, _RANK),
        torch.ones(tokens, _OUT),
        torch.ones(tokens, 2 * _OUT),
    )
    shrink(inputs, a, shrunk_1, per_token, 2.0)
    expand(low, b, expanded_1, per_token, True)
    expand_slice(low, b, sliced_1, per_token, _OUT, _OUT, False)
    for found, expected in ((shrunk, shrunk_1), (expanded, expanded_1), (sliced, sliced_1)):
        close(found, expected)


class Wrapper:
    """Like vLLM's class, which gets the slots of a batch and then computes its products."""

    token_lora_indices = torch.tensor([0])
    products = 0

    def update_metadata(self, slots: list[int]) -> None:
        self.token_lora_indices = torch.tensor(slots, dtype=torch.long)

    def add_lora_logits(self) -> None:
        self.products += 1

    add_lora_embedding = add_lora_logits


class Linear:
    """Like vLLM's class: a layer with LoRA around one without, which returns zeros."""

    output_slices: tuple[int, ...]
    output_size: int
    punica_wrapper: Any
    tp_size = 1

    def __init__(self, rank: int, widths: tuple[int, ...]) -> None:
        self.lora_a_stacked = tuple(random(_SLOTS, 1, rank, _IN) for _ in widths)
        self.lora_b_stacked = tuple(random(_SLOTS, 1, width, rank) for width in widths)
        self.output_slices, self.output_size = widths, sum(widths)
        self.vllm_products = 0

    def base_layer(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), self.output_size)

    def set_mapping(self, wrapper: Any) -> None:
        self.punica_wrapper = wrapper

    def _apply_lora_to_output(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        self.vllm_products += 1
        return output + 1

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._apply_lora_to_output(x, self.base_layer(x))


def patched() -> tuple[Any, Any]:
    """Subclasses of both classes, changed as those of vLLM are."""
    wrapper, linear = type("Wrapper", (Wrapper,), {}), type("Linear", (Linear,), {})
    plan_batches(wrapper, linear)
    return wrapper(), linear


@pytest.mark.parametrize("slots", [[-1, -1], [-1, 0], []])
def test_a_batch_without_adapters_skips_the_products(slots: list[int]) -> None:
    wrapper, linear_class = patched()
    linear = linear_class(_RANK, (_OUT, _OUT))
    linear.set_mapping(wrapper)
    x = random(len(slots), _IN)

    wrapper.update_metadata(slots)
    output = linear(x)
    wrapper.add_lora_logits()
    wrapper.add_lora_embedding()

    assert bool(output.any()) is (0 in slots)
    assert wrapper.products == (2 if 0 in slots else 0)
    assert linear.vllm_products == 0


def test_before_the_slots_of_a_batch_are_known_lora_is_not_skipped() -> None:
    wrapper, linear_class = patched()
    linear = linear_class(_RANK, (_OUT,))
    linear.set_mapping(wrapper)

    assert linear(random(1, _IN)).eq(1).all()
    wrapper.add_lora_logits()
    assert wrapper.products == 1


@pytest.mark.parametrize("tp_size", [1, 2])
def test_products_are_added_to_the_output_of_the_layer(tp_size: int) -> None:
    wrapper, linear_class = patched()
    linear = linear_class(_RANK, (_OUT, _OUT))
    linear.tp_size = tp_size
    linear.set_mapping(wrapper)
    wrapper.update_metadata([1, -1, 3])
    x = random(3, _IN)

    output = linear(x)

    pairs = list(zip(linear.lora_a_stacked, linear.lora_b_stacked, strict=True))
    for row, slot in ((0, 1), (2, 3)):
        close(output[row], torch.cat([b[slot, 0] @ (a[slot, 0] @ x[row]) for a, b in pairs]))
    assert output[1].eq(0).all()
    assert linear.vllm_products == 0


def test_a_layer_of_another_form_uses_vllms_own_loop() -> None:
    wrapper, linear_class = patched()
    linear = linear_class(_RANK, (_OUT, _OUT))
    # As for fully sharded LoRA.
    linear.lora_a_stacked = tuple(each[:, :, :1] for each in linear.lora_a_stacked)
    before = linear.lora_b_stacked
    linear.set_mapping(wrapper)
    wrapper.update_metadata([0, -1])

    assert linear(random(2, _IN)).eq(1).all()
    assert linear.vllm_products == 1
    assert linear.lora_b_stacked is before
