"""The products of a layer with all slices, compared with a loop over tokens in float64."""

from __future__ import annotations

import pytest
import torch

from serving.engine.plugins.cpu_lora_products import _LONG_RUN, BatchPlan, LayerProducts

_SLOTS, _IN, _WIDTHS = 4, 40, (24, 8, 8)
_LONG = [2] * _LONG_RUN

MIXES = pytest.mark.parametrize(
    "slots",
    [
        [0],
        [3, 3, 3],
        [0, 1, 2, 3],
        [2, -1, 2, 0],
        [-1, 3, -1, -1, 3],
        _LONG,
        [*_LONG, -1, 1, *_LONG, 0],
        [-1, *[-1] * _LONG_RUN, 3, *_LONG],
    ],
)
DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
)
RANKS = pytest.mark.parametrize("rank", [1, 8, 18])


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def layer(
    rank: int, dtype: torch.dtype = torch.float32
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    a = [random(_SLOTS, 1, rank, _IN, dtype=dtype, seed=n) for n in range(len(_WIDTHS))]
    b = [random(_SLOTS, 1, w, rank, dtype=dtype, seed=9 + n) for n, w in enumerate(_WIDTHS)]
    return a, b


@MIXES
@DTYPES
@RANKS
def test_each_token_gets_the_products_of_its_slot(
    slots: list[int], dtype: torch.dtype, tolerance: float, rank: int
) -> None:
    a, b = layer(rank, dtype)
    x, output = random(len(slots), _IN, dtype=dtype), random(len(slots), sum(_WIDTHS), dtype=dtype)
    expected = output.double()
    for row, slot in enumerate(slots):
        if slot >= 0:
            parts = [
                b_part[slot, 0].double() @ (a_part[slot, 0].double() @ x[row].double())
                for a_part, b_part in zip(a, b, strict=True)
            ]
            expected[row] += torch.cat(parts)
    before = output.clone()

    plan = BatchPlan.of(slots)
    products = LayerProducts(a, [LayerProducts.transposed(each) for each in b])
    assert products.fits(x, output, plan)
    products.add(x, output, plan)

    scale = float(expected.abs().max())
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=tolerance * scale)
    base = [row for row, slot in enumerate(slots) if slot < 0]
    # vLLM issue 48421: slot -1 was read as the last slot.
    assert torch.equal(output[base], before[base])


def test_weights_written_after_the_transposition_are_used() -> None:
    a, b = layer(8)
    stacked = [LayerProducts.transposed(torch.zeros_like(each)) for each in b]
    products = LayerProducts(a, stacked)
    x, plan = random(2, _IN), BatchPlan.of([1, -1])

    # As `BaseLinearLayerWithLoRA.set_lora` of vLLM does.
    for target, source in zip(stacked, b, strict=True):
        target[1, 0, : source.shape[2], :8].copy_(source[1, 0])
    output = torch.zeros(2, sum(_WIDTHS))
    products.add(x, output, plan)

    expected = torch.cat([b[n][1, 0] @ (a[n][1, 0] @ x[0]) for n in range(len(_WIDTHS))])
    torch.testing.assert_close(output[0], expected, rtol=1e-4, atol=1e-4)
    assert output[1].eq(0).all()


def test_rows_with_gaps_between_them_are_read_and_written_in_place() -> None:
    a, b = layer(8)
    products = LayerProducts(a, [LayerProducts.transposed(each) for each in b])
    x, output = random(3, 2 * _IN)[:, :_IN], random(3, 2 * sum(_WIDTHS))
    before, plan = output.clone(), BatchPlan.of([0, -1, 3])

    assert products.fits(x, output[:, : sum(_WIDTHS)], plan)
    products.add(x, output[:, : sum(_WIDTHS)], plan)

    contiguous = before[:, : sum(_WIDTHS)].contiguous()
    products.add(x.contiguous(), contiguous, plan)
    assert torch.equal(output[:, : sum(_WIDTHS)], contiguous)
    assert torch.equal(output[:, sum(_WIDTHS) :], before[:, sum(_WIDTHS) :])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3.4e38])
def test_adding_zero_keeps_nan_infinity_and_large_numbers_in_bfloat16(value: float) -> None:
    a, b = layer(8, torch.bfloat16)
    products = LayerProducts(a, [LayerProducts.transposed(each) for each in b])
    output = torch.full((1, sum(_WIDTHS)), value, dtype=torch.float32).to(torch.bfloat16)

    before = output.clone()

    products.add(torch.zeros(1, _IN, dtype=torch.bfloat16), output, BatchPlan.of([0]))

    assert torch.equal(output.isnan(), before.isnan())
    assert torch.equal(output.nan_to_num(), before.nan_to_num())


def test_arguments_of_another_form_do_not_fit() -> None:
    a, b = layer(8)
    products = LayerProducts(a, [LayerProducts.transposed(each) for each in b])
    x, output, plan = random(2, _IN), random(2, sum(_WIDTHS)), BatchPlan.of([0, 1])

    assert products.fits(x, output, plan)
    assert not products.fits(x, output, BatchPlan.of([0, 1, 2]))
    assert not products.fits(x[None], output[None], plan)
    assert not products.fits(x.half(), output.half(), plan)
    assert not products.fits(random(_IN, 2).T, output, plan)


def test_layers_of_another_form_are_not_supported() -> None:
    a, b = (tuple(stack) for stack in layer(8))
    width = sum(_WIDTHS)

    assert LayerProducts.supports(a, b, _WIDTHS, width)
    # Fully sharded LoRA: A has a part of the rank.
    assert not LayerProducts.supports(tuple(each[:, :, :4] for each in a), b, _WIDTHS, width)
    assert not LayerProducts.supports(a, b, (40,), width)
    assert not LayerProducts.supports(a, b, _WIDTHS, 2 * width)
    assert not LayerProducts.supports(a[0], b[0], _WIDTHS, width)
    half_a, half_b = (tuple(each.half() for each in stack) for stack in (a, b))
    assert not LayerProducts.supports(half_a, half_b, _WIDTHS, width)


@pytest.mark.parametrize(
    ("slots", "idle", "runs"),
    [
        ([], True, ()),
        ([-1, -1], True, ()),
        ([-1, 0], False, ()),
        (_LONG, False, ((2, 0, _LONG_RUN),)),
        ([-1, *_LONG, *_LONG], False, ((2, 1, 2 * _LONG_RUN + 1),)),
    ],
)
def test_a_batch_is_idle_where_no_token_has_a_slot(
    slots: list[int], idle: bool, runs: tuple[tuple[int, int, int], ...]
) -> None:
    plan = BatchPlan.of(slots)

    assert plan.is_idle is idle
    assert plan.runs == runs
