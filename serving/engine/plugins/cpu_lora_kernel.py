"""The LoRA products of single tokens on a CPU, compiled by numba.

A token that is decoded is one row with an adapter of its own. In PyTorch its products are some
twenty calls a layer, which cost more than the arithmetic, and more again in bfloat16, where each
call prepares a oneDNN primitive. Here they are one call for each of vLLM's layers, with all slices
of a fused layer and all rows of the batch, and it runs at the speed of the memory that holds A
and B. Sums are float32. vLLM has imported numba already, and numba needs no C++ compiler.

Compilation takes a second, once for each type; the machine code is cached in `__pycache__` beside
this file, else in the user's cache folder (`NUMBA_CACHE_DIR` names another).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

# The types of weights and activations, by their sizes in bytes: NumPy has no bfloat16.
_STORED = {4: numba.float32, 2: numba.uint16}
MARKERS = {4: np.empty(0, np.float32), 2: np.empty(0, np.uint16)}
_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic


@functools.cache
def compiled(item_bytes: int) -> Any:
    """`_add_products`, compiled for float32 (4 bytes) or bfloat16 (2 bytes)."""
    number = numba.int64
    arrays = (
        numba.types.Array(number, 1, "C", readonly=True),
        numba.types.Array(number, 2, "C", readonly=True),
        numba.types.Array(_STORED[item_bytes], 1, "C"),
    )
    signature = numba.void(number, number, number, number, number, number, *arrays)
    # The terms of a sum may be reordered and fused, so that it uses full SIMD width; NaN stays NaN.
    options = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        return numba.njit(signature, cache=True, **options)(_add_products)
    # No folder for the cache is writable, or the cached machine code is damaged: compile for this
    # process only.
    except Exception:
        return numba.njit(signature, **options)(_add_products)


@_intrinsic
def _pointer(_context: Any, _address: Any, marker: Any) -> Any:
    """An address as a pointer to the type of the marker's items."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return numba.types.CPointer(marker.dtype)(numba.int64, marker), generate


@_intrinsic
def _widen(_context: Any, stored: Any) -> Any:
    """A stored number as float32; bfloat16 is the upper half of a float32."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        if stored == numba.float32:
            return values[0]
        bits = builder.shl(builder.zext(values[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    return numba.float32(stored), generate


@_intrinsic
def _narrow(_context: Any, number: Any, marker: Any) -> Any:
    """A float32 as the type of the marker's items; bfloat16 is rounded to nearest, ties to even."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        if marker.dtype == numba.float32:
            return values[0]
        wide = ir.IntType(32)
        bits = builder.bitcast(values[0], wide)
        odd = builder.and_(builder.lshr(bits, ir.Constant(wide, 16)), ir.Constant(wide, 1))
        rounded = builder.add(bits, builder.add(odd, ir.Constant(wide, 0x7FFF)))
        # Rounding would turn some NaNs into infinity or zero.
        is_nan = builder.fcmp_unordered("uno", values[0], values[0])
        rounded = builder.select(is_nan, ir.Constant(wide, 0x7FC00000), rounded)
        return builder.trunc(builder.lshr(rounded, ir.Constant(wide, 16)), ir.IntType(16))

    return marker.dtype(numba.float32, marker), generate


def _add_products(
    input_address: int,
    input_stride: int,
    output_address: int,
    output_stride: int,
    in_width: int,
    rank: int,
    slots_N: Any,
    slices_S3: Any,
    marker: Any,
) -> None:
    """output += input A^T B^T, for each row with the A and B of its slot.

    Args:
        input_address, output_address: addresses of the first numbers of (rows, width).
        input_stride, output_stride: numbers from one row to the next.
        in_width: width of the input.
        rank: rows of A, columns of B.
        slots_N: slot of each row, -1 for a row that stays as it is.
        slices_S3: for each slice of the output, in order: address of A of all slots, (slots, rank,
            in_width); address of B of all slots, transposed, (slots, rank, width); width.
        marker: an array of the stored type.
    """
    rows, item_bytes = len(slots_N), marker.itemsize
    out_width = slices_S3[:, 2].sum()
    inputs = numba.carray(_pointer(input_address, marker), (rows, input_stride))
    outputs = numba.carray(_pointer(output_address, marker), (rows, output_stride))
    # In float32, and where LLVM knows that nothing else is.
    x, low = np.empty(in_width, np.float32), np.empty(rank, np.float32)
    y = np.empty(out_width, np.float32)
    for row in range(rows):
        slot = slots_N[row]
        if slot < 0:
            continue
        for i in range(in_width):
            x[i] = _widen(inputs[row, i])
        offset = 0
        for part in range(len(slices_S3)):
            width = slices_S3[part, 2]
            a_address = slices_S3[part, 0] + slot * rank * in_width * item_bytes
            b_address = slices_S3[part, 1] + slot * rank * width * item_bytes
            a = numba.carray(_pointer(a_address, marker), (rank, in_width))
            b = numba.carray(_pointer(b_address, marker), (rank, width))
            # Four rows at once, since reading and writing y or x for each would double the work.
            whole = rank - rank % 4
            for r in range(0, whole, 4):
                sum_0 = sum_1 = sum_2 = sum_3 = np.float32(0)
                for i in range(in_width):
                    sum_0 += _widen(a[r, i]) * x[i]
                    sum_1 += _widen(a[r + 1, i]) * x[i]
                    sum_2 += _widen(a[r + 2, i]) * x[i]
                    sum_3 += _widen(a[r + 3, i]) * x[i]
                low[r], low[r + 1], low[r + 2], low[r + 3] = sum_0, sum_1, sum_2, sum_3
            for r in range(whole, rank):
                sum_0 = np.float32(0)
                for i in range(in_width):
                    sum_0 += _widen(a[r, i]) * x[i]
                low[r] = sum_0
            for i in range(width):
                y[i] = _widen(outputs[row, offset + i])
            for r in range(0, whole, 4):
                for i in range(width):
                    y[i] += (low[r] * _widen(b[r, i]) + low[r + 1] * _widen(b[r + 1, i])) + (
                        low[r + 2] * _widen(b[r + 2, i]) + low[r + 3] * _widen(b[r + 3, i])
                    )
            for r in range(whole, rank):
                for i in range(width):
                    y[i] += low[r] * _widen(b[r, i])
            for i in range(width):
                outputs[row, offset + i] = _narrow(y[i], marker)
            offset += width
